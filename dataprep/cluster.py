"""Writes the shards of a build as an array of jobs through submitit: on SLURM, or on this machine to try it.

Job i of N takes every N-th unfinished task and runs them in its own worker processes.  The command that
submitted waits, shows progress, and joins the shards.  A job that is preempted or killed loses the shards it
was writing; the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from dataprep.build import Job
from dataprep.pool import WorkersDied, run
from pipeline.base import console, slurm
from pipeline.base.console import Progress
from pipeline.base.slurm import SlurmFlags, check_path, submitting


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(SlurmFlags):
    """Where the shards are written."""

    cluster: Literal["none", "slurm", "local"] = "none"
    """slurm: an array of jobs; local: the same jobs as processes of this machine, to try it."""
    shards: int = 16
    """Jobs of the array."""
    timeout: Annotated[int, tyro.conf.arg(metavar="MINUTES")] = 24 * 60
    """Time limit of a job."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards < 1 or self.timeout < 1:
            raise ValueError("--shards and --timeout: at least 1")

    def runner(self) -> Callable[[Job, list[int]], None] | None:
        """For `build`; None writes the shards in this command's own processes."""
        return None if self.cluster == "none" else self._run

    def slurm_parameters(self, workers: int) -> dict:
        """submitit's parameters of the array; a job gets one core for each of its worker processes."""
        own = {"job_name": "dataprep", "time": self.timeout, "cpus_per_task": workers, "wckey": None}
        return self.parameters(own)

    def _run(self, job: Job, unfinished: list[int]) -> None:
        if not unfinished:
            return
        folder = job.parts / "jobs"
        check_path(folder, "--out")
        count = min(self.shards, len(unfinished))
        with submitting():
            parameters = self.slurm_parameters(job.how.processes)
            executor = slurm.executor(self.cluster, folder, parameters, self.timeout)
            jobs = executor.map_array(ArrayJob(job), [unfinished[i::count] for i in range(count)])
        console.say(
            f"{job.out.name}: {count} jobs submitted, {jobs[0].job_id} and following; logs in {folder}"
        )
        try:
            _wait(job, jobs, unfinished)
        except BaseException:
            for submitted in jobs:
                with contextlib.suppress(Exception):  # it may have ended, or the queue be out of reach
                    submitted.cancel()
            raise


class ArrayJob:
    """What one job of the array does; submitit pickles it."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self, numbers: list[int]) -> None:
        job = self.job
        unfinished = [number for number in numbers if not job.is_finished(number)]
        workers = int(os.environ.get("SLURM_CPUS_PER_TASK", job.how.processes))
        progress = Progress(job.label, sum(job.weights[number] for number in unfinished))
        run(job.write, unfinished, job.weights, workers, progress, lambda number, tally: None)

    def checkpoint(self, numbers: list[int]) -> Any:
        """Preempted or out of time: the same again; finished shards are skipped."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, numbers)


def _wait(job: Job, jobs: list, unfinished: list[int]) -> None:
    """Until all jobs have ended: count finished shards, stop at the first failure."""
    waiting, seen_before, progress = set(unfinished), job.total.seen, job.progress(unfinished)
    while True:
        ended = all(submitted.done() for submitted in jobs)
        for number in sorted(waiting):
            if (tally := job.tally(number)) is not None:
                waiting.discard(number)
                progress.finished(job.weights[number])
                job.finished(number, tally)
        progress.show(job.total.seen - seen_before, force=ended)
        if ended:
            break
        time.sleep(1.0)
    progress.end()
    for submitted in jobs:
        error = submitted.exception()
        if error is not None:
            last = str(error).strip().splitlines()[-1]
            raise WorkersDied(f"job {submitted.job_id} failed: {last}; the same command goes on")
    if waiting:
        raise WorkersDied(
            f"{len(waiting)} shards are missing though all jobs ended; the same command goes on"
        )
