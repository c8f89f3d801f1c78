"""Running a job on this machine, or submitting it to SLURM, through submitit.

SLURM is told nothing that the user did not set, apart from what makes a run survive: one task a rank, a
warning signal before the time limit, the end of all ranks with the first that fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from pipeline.base.slurm import YEAR, gpus_of_nodes, own_environment, submitting
from train.cluster import gpus
from train.cluster.options import Launch
from train.config import Recipe
from train.job import Job

# -- SLURM ----------------------------------------------------------------------------------


def slurm_parameters(launch: Launch, ranks: int, recipe: Recipe, after: str | None) -> dict:
    """submitit's parameters for `ranks` tasks a node; `after`: the job that must have succeeded before."""
    extra = {"requeue": True, **({"kill-on-invalid-dep": "yes"} if after else {})}
    there = gpus_of_nodes(launch)
    wanted = gpus.needed(recipe) if there is None else there > 0
    own = {
        "job_name": f"pi-stage{recipe.stage}",
        "nodes": launch.nodes,
        "ntasks_per_node": ranks,
        "time": launch.timeout or YEAR,
        "signal_delay_s": launch.signal_delay,
        "wckey": None,  # submitit would send its own
        "srun_args": ["--kill-on-bad-exit=1"],  # one failing rank ends all
        "additional_parameters": extra,
        **({"gpus_per_node": ranks} if wanted else {}),
        **({"dependency": f"afterok:{after}"} if after else {}),
    }
    return launch.parameters(own)


def batch_file(text: str, launch: Launch) -> str:
    """submitit's batch file without the time limit it always writes, if the user set none."""
    limited = launch.timeout or "time" in launch.given
    return text if limited else re.sub(r"#SBATCH --time=.*\n", "", text)


def preview(launch: Launch, ranks: int, recipe: Recipe, after: str | None) -> str:
    """The batch file that `submit` would send."""
    from submitit.slurm import slurm

    folder = (recipe.run / "jobs" / "%j").absolute()
    command = f"{sys.executable} -u -m submitit.core._submit {folder}"
    parameters = slurm_parameters(launch, ranks, recipe, after)
    return batch_file(slurm._make_sbatch_string(command=command, folder=folder, **parameters), launch)


def submit(recipe: Recipe, launch: Launch, ranks: int, after: str | None = None) -> str:
    """Submit one stage to SLURM; its job id.  ValueError with sbatch's own words if it is refused."""
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return batch_file(super()._make_submission_file_text(command, uid), launch)

    jobs = recipe.run / "jobs"
    fresh = next((p for p in (recipe.run, jobs) if not p.exists()), None)
    try:
        with submitting():
            executor = Executor(folder=jobs / "%j", max_num_timeout=30)
            executor.parameters.update(slurm_parameters(launch, ranks, recipe, after))
            return executor.submit(Job(recipe, {}, launch.profile)).job_id
    except ValueError:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        raise


# -- this machine ---------------------------------------------------------------------------


def run_local(recipe: Recipe, ranks: int, profile: int = 0) -> int:
    """`ranks` processes on this machine through submitit, followed until they end; the exit code."""
    import submitit

    # Of this launcher alone: ranks end when they see a failure there, and `srun` may start many at a time.
    jobs = recipe.run / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    executor = submitit.LocalExecutor(folder=jobs)
    executor.update_parameters(tasks_per_node=ranks, timeout_min=YEAR)
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),  # submitit would number them anew
    }
    job = Job(recipe, environment, profile)
    asked: list[int] = []
    # submitit's controller would kill the ranks one second after a Ctrl-C.  It inherits "ignore" from
    # here; the ranks install handlers of their own and save first.
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    try:
        with own_environment():
            submitted = executor.submit(job)
        for number in (signal.SIGINT, signal.SIGTERM):
            before.setdefault(number, signal.getsignal(number))
            signal.signal(number, lambda number, frame: asked.append(number))
        _follow(submitted, recipe.run / "log.txt", asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _verdict(jobs, submitted)


def _follow(job, log: Path, asked: list[int]) -> None:
    """Show the run's log until the job ends; pass a request to stop on until it is heard."""
    place, live = log.stat().st_size if log.exists() else 0, sys.stderr.isatty()
    passed, ended = 0.0, False
    while True:
        if log.exists():
            with open(log) as file:
                file.seek(place)
                for line in file:
                    _show(re.sub(r"^[\d-]+ [\d:]+ \| ", "", line.rstrip("\n")), live)
                place = file.tell()
        if ended:
            return
        ended = job._process.poll() is not None  # and one more look at the log
        if asked and time.monotonic() - passed > 1:
            job._process.send_signal(signal.SIGTERM)
            passed = time.monotonic()
        time.sleep(0 if ended else 0.1)


def _show(line: str, live: bool) -> None:
    passing = live and line.startswith("step ") and line.endswith(" left")
    start = "\r\033[K" if live else ""
    print(f"{start}{line}", end="" if passing else "\n", file=sys.stderr, flush=True)


def _verdict(jobs: Path, job) -> int:
    """The exit code of a local job that has ended, after saying what ended it."""
    for failure in jobs.glob("failure-*.json"):
        with contextlib.suppress(ValueError):  # cut short by a full disk
            report = json.loads(failure.read_text())
            print(report["text"], file=sys.stderr)
            return report["code"]
    if not all(task.paths.result_pickle.exists() for task in (job._sub_jobs or [job])):
        print(f"error: a rank was ended from outside; what it said is in {jobs}", file=sys.stderr)
        return 1
    outcome = job.results()[0]
    return 0 if outcome["step"] == outcome["steps"] else 130


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
