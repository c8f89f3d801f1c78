"""Where each job stands, from what lies on disk; nothing is remembered that a kill could leave wrong.

    OUT/runs/NAME           a training run (train/), with its evaluations in eval/
    OUT/votes/NAME.npy      a table of votes
    OUT/jobs/NAME/          of a job: lock, log.txt, and what became of it
        failed.json         its last attempt failed: exit code, last line, when
        done.json           it ended well: command (paths as seen from OUT), seconds, commit
        queued.json         SLURM's id of the job

A job is in flight while its lock is held, or while SLURM has it in its queue.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from eval.results import RESULTS
from eval.study.graph import Graph, Job, samples, seen_from
from eval.watch import has_ended, pending
from pipeline.base import files, machine
from pipeline.base.console import clock
from pipeline.base.slurm import own_environment

Standing = Literal["planned", "queued", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Folder:
    """What is kept of a job."""

    path: Path

    @classmethod
    def of(cls, graph: Graph, job: Job) -> Folder:
        return cls(graph.out / "jobs" / job.name)

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def read(self, name: str) -> dict[str, Any]:
        """NAME.json, empty where there is none, or none that can be read."""
        try:
            values = json.loads((self.path / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def write(self, name: str, **values: Any) -> None:
        """NAME.json, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        files.write(self.path / f"{name}.json", json.dumps(values | {"time": time.time()}, indent=1))

    def remove(self, *names: str) -> None:
        for name in names:
            (self.path / f"{name}.json").unlink(missing_ok=True)

    def lock(self) -> IO | None:
        """A file that holds the lock until it and all that inherit it are closed; None: another has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            return machine.lock(self.path / "lock", "job of that name")[0]
        except machine.Busy:
            return None

    @property
    def locked(self) -> bool:
        if not (self.path / "lock").exists():
            return False
        file = self.lock()
        if file is not None:
            file.close()
        return file is None


@dataclass(frozen=True)
class View:
    """Where the jobs of a graph stand."""

    graph: Graph

    @cached_property
    def queue(self) -> dict[str, tuple[str, str]]:
        """SLURM's jobs of this user, id → (state, why it waits); empty without SLURM."""
        command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T %r"]
        try:
            with own_environment():
                done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return {}
        rows = (line.split(maxsplit=2) for line in done.stdout.splitlines())
        return {number: (state, "".join(reason)) for number, state, *reason in rows}

    def held(self, job: Job) -> str:
        """What to do about a job that SLURM will not start by itself; else nothing."""
        number = Folder.of(self.graph, job).read("queued").get("id", "")
        _, reason = self.queue.get(number, ("", ""))
        return f"SLURM holds it ({reason}): scontrol release {number}" if "held" in reason.lower() else ""

    def standing(self, job: Job) -> Standing:
        folder = Folder.of(self.graph, job)
        if is_done(self.graph, job):
            return "done"
        state, _ = self.queue.get(folder.read("queued").get("id", ""), (None, ""))
        if folder.locked or state in ("RUNNING", "COMPLETING"):
            return "running"
        if state is not None:
            return "queued"
        if folder.read("failed"):
            return "failed"
        return "interrupted" if folder.path.is_dir() else "planned"


def is_done(graph: Graph, job: Job) -> bool:
    """By what the job makes.  A report is never done: it is made again from what there is."""
    return _DONE[job.kind](graph, job)


def _built(graph: Graph, job: Job) -> bool:
    return all(path.exists() for path in job.needs)


def _voted(graph: Graph, job: Job) -> bool:
    return job.votes is not None and job.votes.is_file()


def _trained(graph: Graph, job: Job) -> bool:
    return job.run is not None and has_ended(job.run)


def command_of(graph: Graph, job: Job) -> list[str]:
    """What `done.json` keeps: its arguments, paths as seen from OUT."""
    words = job.arguments
    return [seen_from(graph.out, Path(word)) if word.startswith("/") else word for word in words]


def _evaluated(graph: Graph, job: Job) -> bool:
    """All its kept checkpoints, once it has ended.  ValueError if that was done with other data."""
    run = job.run
    assert run is not None
    before = Folder.of(graph, job).read("done").get("command")
    if before is not None and before != command_of(graph, job):
        raise ValueError(
            f"{run / 'eval'}: evaluated before by `python {' '.join(before)}`, not as this study does; "
            "move that folder away, or choose another --out"
        )
    return before is not None and has_ended(run) and not pending(run) and any(run.glob(f"eval/*/{RESULTS}"))


_DONE: dict[str, Callable[[Graph, Job], bool]] = {
    "build": _built,
    "votes": _voted,
    "train": _trained,
    "evaluate": _evaluated,
    "report": lambda graph, job: False,
}


class Progress(NamedTuple):
    """Of a training; seconds left at the pace of its last steps."""

    step: int
    steps: int
    left: float

    def __str__(self) -> str:
        return f"step {self.step:,} of {self.steps:,}, {clock(self.left)} left"


def progress(job: Job) -> Progress | None:
    """Of a training that has written two lines of metrics; None of anything else."""
    if job.recipe is None or job.run is None:
        return None
    rows = []
    for line in _last_lines(job.run / "metrics.jsonl"):
        with contextlib.suppress(ValueError):  # being written
            rows.append(json.loads(line))
    rows = [row for row in rows if "seconds" in row]
    if len(rows) < 2:
        return None
    step, steps = rows[-1]["step"], job.recipe.total_steps(samples(job.recipe))
    pace = rows[-1]["seconds"] / max(1, step - rows[-2]["step"])
    return Progress(step, steps, (steps - step) * pace)


def _last_lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 20_000))
        return file.read().splitlines()
