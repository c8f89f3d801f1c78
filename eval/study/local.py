"""A study's jobs on this machine: as many at once as its GPUs or cores allow, each a process of its own.

A job's process inherits the lock of its folder, so it counts as running until it has ended, even if this
one was killed.  The same command waits for such processes, tries again what failed or was interrupted, and
goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from eval.study.code import Code
from eval.study.graph import Graph, Job
from eval.study.state import Folder, command_of, is_done, progress
from pipeline.base.console import StatusLine, clock, say
from train.cluster import gpus

POLL = 0.2  # seconds between looks at the processes
_STATUS = {True: 1.0, False: 60.0}  # seconds between status lines, on a terminal and in a log


@dataclass(frozen=True)
class Slot:
    """What one job may use: environment variables, and the numbers of its cores."""

    environment: dict[str, str]
    cores: frozenset[int]


def slots(at_once: int | None, gpus_a_job: int) -> list[Slot]:
    """Equal shares of this machine: `gpus_a_job` GPUs each where there are any, else a core each.

    ValueError where `at_once` jobs would have to share a GPU.
    """
    cores = sorted(os.sched_getaffinity(0))
    cards = _visible()
    most = len(cards) // gpus_a_job if cards else len(cores)
    if cards and (at_once or 1) > most:
        raise ValueError(f"--at-once {at_once}: {len(cards)} GPUs here, {gpus_a_job} a job")
    count = max(1, at_once or most)
    shares = [frozenset(cores[i::count]) or frozenset(cores) for i in range(count)]
    numbers = [cards[i * gpus_a_job : (i + 1) * gpus_a_job] for i in range(count)]
    return [
        Slot({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}, share)
        for own, share in zip(numbers, shares)
    ]


def _visible() -> list[str]:
    """The GPUs here, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = gpus.here()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen
    lock: IO
    slot: Slot
    begun: float = field(default_factory=time.monotonic)


class Local:
    """Runs the jobs of a graph, trainings with so many ranks."""

    def __init__(self, graph: Graph, places: list[Slot], code: Code, ranks: int = 1):
        self.graph, self.free, self.code, self.ranks = graph, list(places), code, ranks
        self.width = len(places)
        self.running: list[_Running] = []
        self.ended: set[str] = set()  # well, as far as this command knows
        self.failed: dict[str, str] = {}  # name → what it said last
        self.elsewhere: set[str] = set()  # processes of an earlier command, which go on
        self._seconds: dict[str, list[float]] = {}  # of those that ended, by kind
        self._line, self._shown = StatusLine(), 0.0

    def run(self, names: list[str]) -> str:
        """All of these that are not done, each after those it needs; names those that failed."""
        waiting = []
        for name in names:
            if is_done(self.graph, self.graph.jobs[name]):
                self.ended.add(name)
            else:
                waiting.append(name)
        say(f"{len(self.ended)} of {len(names)} jobs are done, {self.width} at once")
        try:
            while waiting or self.running:
                waiting = [name for name in waiting if not self._begin(name)]
                self._collect()
                self._show(len(names))
                if not self.running and not self.elsewhere and not any(map(self._may_begin, waiting)):
                    break  # all that is left waits for what failed
                time.sleep(POLL)
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            self._line.end()
        if self.failed:
            left = len(set(names) - self.ended - self.failed.keys())
            lines = [f"{name}: {line} ({Folder.of(self.graph, self.graph.jobs[name]).log})"
                     for name, line in self.failed.items()]  # fmt: skip
            waiting_for = f"; jobs that need them: {left}" if left else ""
            return f"failed: {'; '.join(lines)}{waiting_for}; the same command tries again"
        return ""

    # -- one job ------------------------------------------------------------------------

    def _may_begin(self, name: str) -> bool:
        return all(parent in self.ended for parent in self.graph.jobs[name].after)

    def _begin(self, name: str) -> bool:
        """Start the job if it may; whether it needs no more attention."""
        job = self.graph.jobs[name]
        if name in self.ended:
            return True
        if any(parent in self.failed for parent in job.after):
            return False
        if not self.free or not self._may_begin(name):
            return False
        folder = Folder.of(self.graph, job)
        lock = folder.lock()
        if lock is None:  # an earlier command was killed and its process goes on
            self.elsewhere.add(name)
            return False
        self.elsewhere.discard(name)
        if is_done(self.graph, job):  # by that process
            lock.close()
            self.ended.add(name)
            return True
        folder.remove("failed", "queued")
        slot = self.free.pop(0)
        with open(folder.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self.code.arguments(self._arguments(job))], stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()],
                env=os.environ | slot.environment | self.code.environment,
                start_new_session=True,  # Ctrl-C is passed on once, by `_interrupt`
                preexec_fn=lambda: os.sched_setaffinity(0, slot.cores),
            )  # fmt: skip
        self.running.append(_Running(job, process, lock, slot))
        return True

    def _arguments(self, job: Job) -> tuple[str, ...]:
        if job.kind != "train":
            return job.arguments
        # One rank is the process itself, which holds the lock.
        where = (
            ("--cluster", "debug") if self.ranks == 1 else ("--cluster", "local", "--ngpus", str(self.ranks))
        )
        return (*job.arguments, *where)

    def _collect(self) -> None:
        """Note what has ended."""
        for item in [item for item in self.running if item.process.poll() is not None]:
            self.running.remove(item)
            self.free.append(item.slot)
            name, folder = item.job.name, Folder.of(self.graph, item.job)
            seconds, code = time.monotonic() - item.begun, item.process.returncode
            if code == 0:
                folder.write(
                    "done", command=command_of(self.graph, item.job), seconds=seconds, commit=self.code.commit
                )
                self.ended.add(name)
                self._seconds.setdefault(item.job.kind, []).append(seconds)
            else:
                last = last_line(folder.log)
                folder.write("failed", code=code, said=last, seconds=seconds)
                self.failed[name] = last
                self._line.show(f"{name} failed: {last}", stays=True)
            item.lock.close()

    def _interrupt(self) -> None:
        """Ask all to save and end, as Ctrl-C does, and wait for them."""
        say(f"interrupted: waiting for {len(self.running)} jobs to save")
        for item in self.running:
            with contextlib.suppress(ProcessLookupError):
                item.process.send_signal(signal.SIGINT)
        for item in self.running:
            item.process.wait()
            item.lock.close()

    # -- what is shown ------------------------------------------------------------------

    def _show(self, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < _STATUS[self._line.live]:
            return
        self._shown = now
        words = [f"{len(self.ended)} of {total} jobs done", *self._words()]
        self._line.show(", ".join(words))

    def _words(self) -> Iterator[str]:
        if self.failed:
            yield f"{len(self.failed)} failed"
        if self.elsewhere:
            yield f"{len(self.elsewhere)} of an earlier command still run"
        for item in self.running[:1]:
            at = progress(item.job)
            yield f"{len(self.running)} running ({item.job.name}{f': {at}' if at else ''})"
        if left := self._left():
            yield f"about {clock(left)} left"

    def _left(self) -> float:
        """Seconds, at the mean of each kind's jobs that have ended; 0 while a kind has none."""
        waiting = [
            job for job in self.graph.jobs.values() if job.name not in self.ended and job.kind != "report"
        ]
        if any(job.kind not in self._seconds for job in waiting):
            return 0
        means = {kind: sum(all_) / len(all_) for kind, all_ in self._seconds.items()}
        gone = sum(min(time.monotonic() - item.begun, means[item.job.kind]) for item in self.running)
        return (sum(means[job.kind] for job in waiting) - gone) / self.width


def last_line(path: Path) -> str:
    """Of a log; what a command says last is what was wrong."""
    if not path.is_file():
        return "said nothing"
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4_000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.split("\r")[-1][-300:] for line in reversed(lines) if line.strip()), "said nothing")
