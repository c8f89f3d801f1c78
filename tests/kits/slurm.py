"""A real, private SLURM of some nodes on this one host, for tests.

    python -m tests.kits.slurm start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf
    python -m tests.kits.slurm stop FOLDER

Needs root (several slurmd on one host, jobs as other users) and the packages named in `missing`.
There is no accounting database: nothing here asks sacct.  Every process has a folder of its own
under FOLDER and is ended by the process id noted there, after a look that it is still ours.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo")
HOSTS = Path("/etc/hosts")
GPUS, CPUS = 6, 96  # that each node claims to have
PATIENCE = 60.0  # seconds until it must be up

CONFIGURATION = """\
ClusterName=pitest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start once its old credential has expired: 120 s by default.
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
# No control groups in a container: follow processes by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=8
FirstJobId={first_job}
PropagateResourceLimits=NONE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
PartitionName=scavenge Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Gres=gpu:{gpus}\n"


def missing() -> str | None:
    """Why no SLURM can be started here, or None."""
    if os.geteuid() != 0:
        return "a SLURM of our own needs root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    absent = [p for p in PROGRAMS if shutil.which(p, path=path) is None]
    return f"not installed: {', '.join(absent)} ({PACKAGES})" if absent else None


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


class Slurm:
    """The cluster in `root`; nodes are node1, node2, …"""

    def __init__(self, root: Path, nodes: int = 2):
        self.root, self.nodes = root.resolve(), [f"node{i + 1}" for i in range(nodes)]
        self.host = socket.gethostname().split(".")[0]
        self.pids = self.root / "processes.json"
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "PATH": os.environ["PATH"] + os.pathsep + "/usr/sbin",
        }

    # -- start --------------------------------------------------------------------------

    def start(self) -> None:
        """Bring all daemons up and wait until every node is idle; RuntimeError with the logs' ends if not."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        for name in ("munge", "state"):
            (self.root / name).mkdir(exist_ok=True)
        (self.root / "munge").chmod(0o711)
        self._name_hosts()
        self._configure()
        try:
            self._start_munge()
            self._spawn("slurmctld", "-D", "-c")  # nothing of an earlier one
            for node in self.nodes:
                self._spawn("slurmd", "-D", "-N", node)
            self._wait(self._all_idle, "the nodes did not become idle")
        except BaseException:
            self.stop()
            raise

    def _name_hosts(self) -> None:
        """Node names must resolve: a job's ranks meet at its first node."""
        known = HOSTS.read_text().split()
        absent = [name for name in (self.host, *self.nodes) if name not in known]
        if absent:
            with open(HOSTS, "a") as file:
                file.write(f"127.0.0.1 {' '.join(absent)}\n")

    def _configure(self) -> None:
        control, *own = _free_ports(1 + len(self.nodes))
        first_job = int(time.time()) % 1_000_000 * 10 + 1  # ids never repeat in a run's folder
        text = CONFIGURATION.format(host=self.host, port=control, root=self.root, first_job=first_job)
        for name, port in zip(self.nodes, own):
            text += NODE.format(name=name, host=self.host, port=port, cpus=CPUS, gpus=GPUS)
        (self.root / "slurm.conf").write_text(text)
        for number in range(GPUS):  # slurmd counts device files; these are as good as /dev/null
            device = self.root / f"gpu{number}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.root / "gres.conf").write_text(f"Name=gpu File={self.root}/gpu[0-{GPUS - 1}]\n")

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o400)
        files = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        flags = [f"--{flag}={folder / name}" for flag, name in files.items()]
        self._spawn("munged", "--foreground", "--force", *flags)
        self._wait((folder / "socket").exists, "munged did not open its socket")

    def _spawn(self, program: str, *flags: str) -> None:
        with open(self.root / f"{program}.out", "a") as out:
            process = subprocess.Popen(
                [program, *flags], env=self.environment, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        known = json.loads(self.pids.read_text()) if self.pids.exists() else []
        self.pids.write_text(json.dumps([*known, process.pid]))

    def _wait(self, condition, complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                ends = [f"{p.name}: {p.read_text()[-400:]}" for p in sorted(self.root.glob("*.log"))]
                raise RuntimeError("\n".join([complaint, *ends]))
            time.sleep(0.1)

    def _all_idle(self) -> bool:
        return self._states() == dict.fromkeys(self.nodes, "idle")

    def _states(self) -> dict[str, str]:
        output = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False)
        return dict(line.split()[:2] for line in output.splitlines())

    # -- use ----------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, timeout: float = 30) -> str:
        """What a SLURM command prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=check
        )
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`, asked again where a busy controller hung up (seen: SIGPIPE)."""
        output = self.run("scontrol", "show", "job", number, check=False)
        if not output:
            time.sleep(1)
            output = self.run("scontrol", "show", "job", number)
        return dict(word.split("=", 1) for word in output.split() if "=" in word)

    def wait_job(self, number: str, *states: str, timeout: float = 240) -> dict[str, str]:
        """Until the job is in one of `states`; TimeoutError names the state it is in."""
        deadline = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {number} is {job['JobState']} ({job.get('Reason')}), not {states}")
            time.sleep(0.2)
        return job

    # -- stop ---------------------------------------------------------------------------

    def stop(self) -> None:
        """End jobs and daemons; the folder stays for its logs."""
        if not self.pids.exists():
            return
        self.run("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 20
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(0.2)
        pids = [pid for pid in reversed(json.loads(self.pids.read_text())) if self._ours(pid)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(self._ours, pids):
                os.kill(pid, number)
            deadline = time.monotonic() + 10
            while any(map(self._ours, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
        self.pids.unlink()

    def _ours(self, pid: int) -> bool:
        """Whether the process is alive (not a zombie) and was started for this folder."""
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return state != "Z" and f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in variables


if __name__ == "__main__":
    action, folder = sys.argv[1:3]
    if missing():
        sys.exit(f"error: {missing()}")
    getattr(Slurm(Path(folder)), {"start": "start", "stop": "stop"}[action])()
