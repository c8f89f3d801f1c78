"""Worker processes: results, the running count, and each way to end early."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dataprep.pool import WorkersDied, run
from pipeline.base.console import Progress, describe, exit_code

WEIGHTS = [1] * 6


class Seen(Progress):
    """Remembers the last count of samples."""

    samples = -1

    def show(self, samples: int, inside: float = 0.0, force: bool = False) -> None:
        self.samples = samples


def square(task: int, step) -> int:
    step(task)
    return task * task


def fail(task: int, step) -> int:
    if task == 3:
        raise ValueError("row 3 is wrong")
    if task == 4:
        raise ZeroDivisionError("a fault of ours")
    return square(task, step)


def die(task: int, step) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 4:
        os._exit(7)
    return square(task, step)


def run_on(work, tasks, workers: int = 2) -> tuple[dict[int, int], int]:
    results: dict[int, int] = {}
    progress = Seen("x", len(tasks))
    run(work, tasks, WEIGHTS, workers, progress, results.__setitem__)
    return results, progress.samples


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_every_sample_counted(workers):
    assert run_on(square, range(6), workers) == ({n: n * n for n in range(6)}, 15)


@pytest.mark.slow
def test_what_a_task_raises_ends_the_work():
    with pytest.raises(ValueError, match="row 3 is wrong") as mistake:
        run_on(fail, [0, 1, 2, 3])
    assert describe(mistake.value) == "error: row 3 is wrong" and exit_code(mistake.value) == 2
    with pytest.raises(ZeroDivisionError) as fault:
        run_on(fail, [0, 1, 2, 4])
    assert "in fail" in describe(fault.value) and exit_code(fault.value) == 1  # the worker's own traceback


@pytest.mark.slow
@pytest.mark.parametrize("task, cause", [(3, "killed by signal 9 \\(out of memory"), (4, "exit code 7")])
def test_how_a_worker_died_is_told(task, cause):
    with pytest.raises(WorkersDied, match=f"{cause}.*the same command goes on") as died:
        run_on(die, [0, 1, 2, task])
    assert exit_code(died.value) == 2


@pytest.mark.slow
def test_what_the_caller_raises_ends_the_work():
    def stop(task: int, result: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(sleep, range(6), WEIGHTS, 2, Progress("x", 6), stop)
    assert time.monotonic() - start < 60, "it waited for the other task"


def sleep(task: int, step) -> None:
    time.sleep(0 if task == 0 else 600)
