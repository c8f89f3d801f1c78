"""Running a job on this machine, or submitting it to SLURM, through submitit.

SLURM gets the flags that the user set and those that let a run survive: one task a rank, a warning signal
before the time limit, and the end of all ranks with the first that fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from pipeline.base import slurm
from pipeline.base.console import StatusLine, read_log_line
from pipeline.base.slurm import own_environment, submitting
from train.cluster import gpus
from train.cluster.options import Launch
from train.config import Recipe
from train.job import Job

# -- SLURM ----------------------------------------------------------------------------------


def slurm_parameters(launch: Launch, ranks: int, recipe: Recipe, after: str | None) -> dict:
    """submitit's parameters for `ranks` tasks a node; `after`: the job that must have succeeded before."""
    extra = {"requeue": True, **({"kill-on-invalid-dep": "yes"} if after else {})}
    available = slurm.gpus_of_nodes(launch)
    wanted = gpus.needed(recipe) if available is None else available > 0
    own = {
        "job_name": f"pi-stage{recipe.stage}",
        "nodes": launch.nodes,
        "ntasks_per_node": ranks,
        "time": launch.timeout,
        "signal_delay_s": launch.signal_delay,
        "wckey": None,  # submitit would send its own
        "srun_args": ["--kill-on-bad-exit=1"],  # one failing rank ends all
        "additional_parameters": extra,
        **({"gpus_per_node": ranks} if wanted else {}),
        **({"dependency": f"afterok:{after}"} if after else {}),
    }
    return launch.parameters(own)


def preview(launch: Launch, ranks: int, recipe: Recipe, after: str | None) -> str:
    """The batch file that `submit` would send."""
    folder = (recipe.folder / "jobs" / "%j").absolute()
    command = f"{sys.executable} -u -m submitit.core._submit {folder}"
    return slurm.batch_file(command, folder, slurm_parameters(launch, ranks, recipe, after))


def submit(recipe: Recipe, launch: Launch, ranks: int, after: str | None = None) -> str:
    """Submit one stage to SLURM; its job id.  ValueError with sbatch's own words if it is refused."""
    jobs = recipe.folder / "jobs"
    created = next((p for p in (recipe.folder, jobs) if not p.exists()), None)
    try:
        with submitting():
            parameters = slurm_parameters(launch, ranks, recipe, after)
            executor = slurm.executor("slurm", jobs / "%j", parameters, timeouts=30)
            return executor.submit(Job(recipe, {}, launch.profile)).job_id
    except ValueError:
        if created is not None:
            shutil.rmtree(created, ignore_errors=True)
        raise


# -- this machine ---------------------------------------------------------------------------


def run_local(recipe: Recipe, ranks: int, profile: int = 0) -> int:
    """`ranks` processes on this machine through submitit, followed until they end; the exit code."""
    # A folder of this launcher alone: ranks end when they see a failure in it, and `srun` may start many
    # launchers at a time.
    jobs = recipe.folder / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    executor = slurm.executor("local", jobs, {})
    executor.update_parameters(tasks_per_node=ranks)
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),  # submitit would number them anew
    }
    job = Job(recipe, environment, profile)
    requests: list[int] = []  # signals to stop
    # submitit's controller would kill the ranks one second after a Ctrl-C.  It inherits "ignore" from
    # here; the ranks install handlers of their own and save first.
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    try:
        with own_environment():
            submitted = executor.submit(job)
        for number in (signal.SIGINT, signal.SIGTERM):
            before.setdefault(number, signal.getsignal(number))
            signal.signal(number, lambda number, frame: requests.append(number))
        _follow(submitted, recipe.folder / "log.txt", requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _verdict(jobs, submitted)


def _follow(job, log: Path, requests: list[int]) -> None:
    """Show the run's log until the job ends; repeat a request to stop every second until then."""
    status, position = StatusLine(), log.stat().st_size if log.exists() else 0
    sent, ended = 0.0, False
    while True:
        if log.exists():
            with open(log) as file:
                file.seek(position)
                for line in file:
                    text, progress = read_log_line(line)
                    status.show(text, stays=not progress)
                position = file.tell()
        if ended:
            return status.end()
        ended = job._process.poll() is not None  # and one more look at the log
        if requests and time.monotonic() - sent > 1:
            job._process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
        time.sleep(0 if ended else 0.1)


def _verdict(jobs: Path, job) -> int:
    """The exit code of a local job that has ended, after saying what ended it."""
    for failure in jobs.glob("failure-*.json"):
        with contextlib.suppress(ValueError):  # cut short by a full disk
            report = json.loads(failure.read_text())
            print(report["text"], file=sys.stderr)
            return report["code"]
    if not all(task.paths.result_pickle.exists() for task in (job._sub_jobs or [job])):
        print(f"error: a rank was killed from outside; its output is in {jobs}", file=sys.stderr)
        return 1
    outcome = job.results()[0]
    return 0 if outcome["step"] == outcome["steps"] else 130


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
