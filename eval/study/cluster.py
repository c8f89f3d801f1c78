"""A study's jobs on SLURM: an array a level, each after the arrays that hold what it needs.

    level 0   what needs nothing: stage 1, baselines, tables of votes
    level 1   what starts from them: stage 2, evaluations of baselines
    …         the report last

Arrays are ordered by `afterany`: a failed job must not stop the others.  So each job looks whether what it
needs is there, and fails with a line if it is not.  A training is what a single run is: the same ranks, put
in the queue again before its time limit, after preemption and after the death of a node.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

from eval.study.code import Code
from eval.study.graph import Graph, Job
from eval.study.local import last_line
from eval.study.state import Folder, View, command_of, is_done
from pipeline.base import slurm
from pipeline.base.console import Failed, say
from pipeline.base.slurm import check_path, restore, submitting
from train.cluster.options import Launch
from train.cluster.scheduler import slurm_parameters
from train.job import Job as Training


class NotReady(Failed):
    """What the job needs is not there."""


@dataclass
class Task:
    """A job as a function that submitit calls in each of its ranks."""

    graph: Graph  # of this job and what it needs
    job: Job
    code: Code

    def __call__(self) -> dict | None:
        """Run it, and note how it ended; raises what ended it."""
        import submitit

        first = submitit.JobEnvironment().global_rank == 0
        folder = Folder.of(self.graph, self.job)
        try:
            self._check()
            result = self._run(folder)
        except BaseException as error:
            if first and not isinstance(error, SystemExit):
                folder.write(
                    "failed", code=1, said=" ".join(str(error).split())[-500:] or type(error).__name__
                )
            raise
        if first and (result is None or result["step"] == result["steps"]):
            folder.remove("failed")
            folder.write("done", command=command_of(self.graph, self.job), commit=self.code.commit)
        return result

    def _check(self) -> None:
        missing = [name for name in self.job.after if not is_done(self.graph, self.graph.jobs[name])]
        if missing and self.job.kind != "report":
            raise NotReady(
                f"{self.job.name}: {', '.join(missing)} did not end well; the same command tries again"
            )

    def _run(self, folder: Folder) -> dict | None:
        if self.job.kind == "train":
            return Training(self.job.training, {})()
        with open(folder.log, "a") as log:
            command = [sys.executable, *self.code.arguments(self.job.arguments)]
            code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if code:
            raise Failed(last_line(folder.log))
        return None

    def checkpoint(self) -> object:
        """What submitit puts in the queue again after a preemption: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Submits what is not done and not in the queue.

    launch: flags of the trainings' jobs.  ranks: of a node.  at_once: jobs of an array that may run together.
    """

    graph: Graph
    launch: Launch
    ranks: int
    at_once: int
    code: Code

    def submit(self, names: Sequence[str]) -> None:
        """Arrays for these jobs; ValueError with sbatch's message if it refuses one."""
        check_path(self.graph.out, "--out")
        view = View(self.graph)
        standing = {name: view.standing(self.graph.jobs[name]) for name in names}
        missing = [name for name in names if standing[name] not in ("done", "queued", "running")]
        ids = {
            name: Folder.of(self.graph, self.graph.jobs[name]).read("queued").get("id", "")
            for name in names
            if standing[name] in ("queued", "running")
        }
        with _running_from(self.code):
            for array in _arrays(self.graph, missing):
                needed = {parent for name in array for parent in self.graph.jobs[name].after}
                before = sorted({ids[parent].partition("_")[0] for parent in needed if ids.get(parent)})
                ids |= self._array(array, before)
        counts = [
            f"{sum(s == kind for s in standing.values())} {kind}" for kind in ("done", "queued", "running")
        ]
        say(f"{len(missing)} jobs submitted; of the others {', '.join(counts)}")

    def _array(self, names: Sequence[str], before: Sequence[str]) -> dict[str, str]:
        """Submit jobs of one kind together; name → id."""
        jobs = [self.graph.jobs[name] for name in names]
        parameters = self._parameters(jobs[0]) | {"array_parallelism": self.at_once}
        if before:
            extra = dict(parameters.get("additional_parameters", {}))
            held = [f"afterany:{':'.join(before)}", *filter(None, [parameters.pop("dependency", None)])]
            extra["dependency"] = ",".join([*held, *filter(None, [extra.get("dependency")])])
            parameters["additional_parameters"] = extra
        folder = self.graph.out / "jobs" / "slurm" / "%j"
        with submitting():
            executor = slurm.executor("slurm", folder, parameters, timeouts=30)
            with executor.batch():
                submitted = [executor.submit(Task(_part(self.graph, job), job, self.code)) for job in jobs]
        ids = {job.name: item.job_id for job, item in zip(jobs, submitted)}
        for job in jobs:
            kept = Folder.of(self.graph, job)
            kept.write("queued", id=ids[job.name])
            kept.remove("failed")
        after = f", after {', '.join(before)}" if before else ""
        say(f"array {submitted[0].job_id.partition('_')[0]}: {len(jobs)} × {jobs[0].kind}{after}")
        return ids

    def _parameters(self, job: Job) -> dict[str, Any]:
        """submitit's, of an array of such jobs."""
        if job.kind == "train":
            parameters = slurm_parameters(self.launch, self.ranks, job.training, None)
        else:
            single = replace(self.launch, nodes=1)
            parameters = slurm_parameters(single, 1, self.graph.trainings[0].training, None)
            if job.kind == "report":
                parameters.pop("gpus_per_node", None)
            parameters["srun_args"] = []
        return parameters | {"job_name": f"study-{job.kind}"}


def _arrays(graph: Graph, names: Sequence[str]) -> Iterator[list[str]]:
    """The jobs of one level, kind, and (of trainings) stage together, levels in order."""
    wanted = set(names)
    sorter = TopologicalSorter({name: wanted & set(graph.jobs[name].after) for name in names})
    sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        kinds: dict[tuple, list[str]] = {}
        for name in sorted(ready, key=names.index):
            job = graph.jobs[name]
            kinds.setdefault((job.kind, job.recipe and (job.recipe.stage, job.recipe.model)), []).append(name)
        yield from kinds.values()
        sorter.done(*ready)


def _part(graph: Graph, job: Job) -> Graph:
    """What a task takes along: itself and what it needs."""
    return replace(graph, jobs={name: graph.jobs[name] for name in (*job.after, job.name)}, finals={})


@contextmanager
def _running_from(code: Code) -> Iterator[None]:
    """Jobs that are submitted within import the copied code."""
    before = {name: os.environ.get(name) for name in code.environment}
    os.environ |= code.environment
    try:
        yield
    finally:
        for name, value in before.items():
            restore(name, value)
