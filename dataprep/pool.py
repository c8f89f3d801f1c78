"""Runs the unfinished tasks of a build in processes, shows progress, and never waits for the dead.

A task that fails, a process that is killed (memory), Ctrl-C: all processes end, and one line tells
why.  If this process is killed, its workers die with it (Linux's parent-death signal).

Not here: what a task is (`shard.py`), which ones are left (`build.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait

from pipeline.base import console
from pipeline.base.console import Progress

_DATA_LIMIT = 6 << 30  # bytes a worker may allocate: a hostile image becomes a MemoryError, a reject


class WorkersDied(console.Failed):
    """Processes or jobs of this build have ended too early; the same command goes on."""

    code = 2


def run(
    work: Callable[[int, Callable[[int], None]], object],
    tasks: Sequence[int],
    weights: Sequence[int],
    workers: int,
    progress: Progress,
    finished: Callable[[int, object], None],
) -> None:
    """Call `work(task, step)` for every task; in this process if one worker suffices.

    `work` must be picklable.  `finished(task, result)` is called here after each and may raise to end all.
    Raises the ValueError or OSError of a task, WorkersDied when a process died.
    """
    workers = min(workers, len(tasks))
    if workers > 1:
        try:
            pool = _Pool(work, tasks, weights, workers, progress, finished)
        except OSError as error:  # limits of files or processes, a system without /dev/shm
            print(f"note: {workers} processes cannot be started ({error}); one does it all", file=sys.stderr)
        else:
            pool.run()
            return
    seen = 0

    def step(samples: int) -> None:
        nonlocal seen
        seen += samples
        progress.show(seen)

    for task in tasks:
        result = work(task, step)
        progress.finished(weights[task])
        finished(task, result)
    progress.show(seen, force=True)
    progress.end()


class _Pool:
    def __init__(self, work, tasks, weights, workers, progress, finished):
        self.weights, self.progress, self.finished = weights, progress, finished
        self.left, self.pipes, self.processes = len(tasks), [], []
        _allow_files()
        try:
            self._start(work, tasks, workers)
        except OSError:
            self._end()
            raise

    def _start(self, work, tasks, workers: int) -> None:
        context = get_context("spawn")  # the parent may have threads (pyarrow, torch)
        self.seen = context.Value("q", 0)
        self.next = context.Value("q", 0)
        for _ in range(workers):
            here, there = context.Pipe(duplex=False)
            arguments = (work, list(tasks), self.next, self.seen, there, os.getpid())
            process = context.Process(target=_worker, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(here)
            there.close()

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def run(self) -> None:
        try:
            while self.left:
                self._listen()
                self.progress.show(self.seen.value)
            self.progress.show(self.seen.value, force=True)
        finally:
            self._end()
            self.progress.end()

    def _listen(self) -> None:
        """Take what the workers report; an end of file is a death or a worker without more work."""
        for pipe in wait(self.pipes, timeout=0.5):
            try:
                task, result, error = pipe.recv()
            except EOFError:
                self._buried(self.pipes.index(pipe))
                continue
            if error is not None:
                raise error
            self.left -= 1
            self.progress.finished(self.weights[task])
            self.finished(task, result)

    def _buried(self, number: int) -> None:
        process = self.processes[number]
        process.join()
        if process.exitcode:
            code = process.exitcode
            cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}, its traceback is above"
            hint = " (out of memory? use fewer --workers)" if code == -signal.SIGKILL else ""
            raise WorkersDied(f"a worker process died, {cause}{hint}; the same command goes on from here")
        del self.pipes[number], self.processes[number]


def _worker(work, tasks, following, seen, pipe, parent) -> None:
    """Main of a worker: take the next task until none is left."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return  # it died before the call above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _limit_memory()
    one_thread()

    def step(samples: int) -> None:
        with seen.get_lock():
            seen.value += samples

    while True:
        with following.get_lock():
            number = following.value
            following.value += 1
        if number >= len(tasks):
            return
        try:
            result, error = work(tasks[number], step), None
        except (ValueError, OSError) as caught:
            result, error = None, caught
        pipe.send((tasks[number], result, error))
        if error is not None:
            return


def _allow_files() -> None:
    """As many open files as the hard limit allows: each process takes some, and there may be many cores."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _limit_memory() -> None:
    """At most `_DATA_LIMIT`, and never more than the limits this process was started with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    given = [limit for limit in (_DATA_LIMIT, soft, hard) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(ValueError, OSError):  # a system that does not let one set limits
        resource.setrlimit(resource.RLIMIT_DATA, (min(given), hard))


def one_thread() -> None:
    """A worker is one thread: parallelism comes from processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
