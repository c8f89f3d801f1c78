"""Runs tasks in worker processes and shows progress.

If a task fails, a worker dies, or the user presses Ctrl-C, all workers are killed and the build ends with one
line that says why.  If this process is killed, its workers die with it (Linux's parent-death signal).

The processes are `concurrent.futures`'.  Our own: what a worker may take (memory, threads, signals), the
running count of samples, and how a dead worker ended.

Not here: what a task is (`shard.py`), which tasks are left (`build.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import resource
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.base import console
from pipeline.base.console import Progress

_DATA_LIMIT = 6 << 30  # bytes a worker may allocate: a hostile image becomes a MemoryError, a reject
_REFRESH = 0.5  # seconds between looks at the count of samples

Work = Callable[[int, Callable[[int], None]], Any]
Results = Generator[tuple[int, Any]]


class WorkersDied(console.Failed):
    """Processes or jobs of this build ended too early; the same command goes on."""

    code = 2


def run(
    work: Work,
    tasks: Sequence[int],
    weights: Sequence[int],
    workers: int,
    progress: Progress,
    finished: Callable[[int, Any], None],
) -> None:
    """Call `work(task, step)` for every task; in this process if one worker suffices.

    `work` must be picklable.  `step(n)` reports n more samples.  `finished(task, result)` is called in this
    process after each task, in the order in which they end; if it raises, all work ends.
    Raises what a task raised, or WorkersDied when a process died.
    """
    workers = min(workers, len(tasks))
    results = _alone(work, tasks, progress)
    if workers > 1:
        try:
            results = _Pool(work, tasks, workers).results(progress)
        except (OSError, NotImplementedError) as error:  # limits of files or processes, no /dev/shm
            print(f"note: {workers} processes cannot be started ({error}); one does it all", file=sys.stderr)
    with contextlib.closing(results):
        for task, result in results:
            progress.finished(weights[task])
            finished(task, result)


def _alone(work: Work, tasks: Sequence[int], progress: Progress) -> Results:
    seen = 0

    def step(samples: int) -> None:
        nonlocal seen
        seen += samples
        progress.show(seen)

    for task in tasks:
        yield task, work(task, step)
    progress.show(seen, force=True)
    progress.end()


class _Pool:
    """Workers that have begun on `tasks`."""

    def __init__(self, work: Work, tasks: Sequence[int], workers: int):
        _allow_files()
        context = multiprocessing.get_context("spawn")  # the parent may have threads (pyarrow, torch)
        self.seen = context.Value("q", 0)
        self.done: queue.SimpleQueue = queue.SimpleQueue()
        self.executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(work, self.seen, os.getpid())
        )
        self.others = multiprocessing.active_children()
        try:
            self.tasks = {self.executor.submit(_work_on, task): task for task in tasks}
        except BaseException:
            self._end()
            raise
        self.processes = self._living()
        for future in self.tasks:
            future.add_done_callback(self.done.put)

    def _living(self) -> list[BaseProcess]:
        return [process for process in multiprocessing.active_children() if process not in self.others]

    def results(self, progress: Progress) -> Results:
        """(task, result) in the order in which they end; closing it ends the processes."""
        try:
            while self.tasks:
                future = self._next(progress)
                yield self.tasks.pop(future), future.result()
            progress.show(self.seen.value, force=True)
        except BrokenProcessPool:
            raise WorkersDied(self._cause()) from None
        finally:
            self._end()
            progress.end()

    def _next(self, progress: Progress) -> Future:
        """The next future that is done; shows progress while it waits."""
        while True:
            progress.show(self.seen.value)
            with contextlib.suppress(queue.Empty):
                return self.done.get(timeout=_REFRESH)

    def _cause(self) -> str:
        """How a worker died; the executor has ended the others by SIGTERM."""
        self.executor.shutdown(cancel_futures=True)  # has joined them all
        codes = {process.exitcode or 0 for process in self.processes}
        code = max(codes - {-signal.SIGTERM}, key=abs, default=-int(signal.SIGTERM))
        cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}, its traceback is above"
        hint = " (out of memory? use fewer --workers)" if code == -signal.SIGKILL else ""
        return f"a worker process died, {cause}{hint}; the same command goes on from here"

    def _end(self) -> None:
        for process in self._living():
            process.kill()
        self.executor.shutdown(cancel_futures=True)


# -- in a worker ----------------------------------------------------------------------------

_worker: dict[str, Any] = {}  # what `_begin` was given


def _begin(work: Work, seen: Any, parent: int) -> None:
    """Prepare a worker process."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the call above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _limit_memory()
    _one_thread()
    _worker.update(work=work, seen=seen)


def _work_on(task: int) -> Any:
    return _worker["work"](task, _step)


def _step(samples: int) -> None:
    seen = _worker["seen"]
    with seen.get_lock():
        seen.value += samples


def _allow_files() -> None:
    """As many open files as the hard limit allows: each process takes some, and there may be many cores."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _limit_memory() -> None:
    """At most `_DATA_LIMIT`, and never more than the limits this process was started with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (_DATA_LIMIT, soft, hard) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(ValueError, OSError):  # a system that does not let one set limits
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def _one_thread() -> None:
    """Parallelism comes from processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
