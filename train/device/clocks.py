"""What a loader costs the step that it runs beside, in one process and in rounds that alternate.

Clocks of steps, on a batch that is on the device already unless the name says otherwise:

* `cached`: the loader's queues are full and its threads asleep.
* `beside`: the same, while a thread takes batches from the loader at a step's pace and throws them away.
* `loaded`: on the loader's batches, as in training, from empty queues on.
* `launch`, `launch_beside`: until the step's call returns, with nothing queued before it.  On a GPU that is
  the time of the thread that launches kernels; on a CPU it is the step.

And two that need no GPU and isolate Python's lock, `eager` and `eager_beside`: one addition of two numbers on
the CPU, again and again.  That is dispatch alone, and gives the lock away and takes it back each time, as a
step does with each kernel.  (On meta tensors torch would run much more Python than a launch does.)
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from train.device.prefetch import Prefetcher
from train.distributed import World

ROUNDS = 5
WARM_UP = 3  # steps before any clock starts
QUEUED = 6  # batches at most in the queues of loader and prefetcher, unless they are small
EAGER_SECONDS = 1.0  # of a clock of operations, at least
EAGER_BATCHES = 3  # that are taken meanwhile, at least
OPERATIONS = 48  # between two looks at the clock


def wait(world: World) -> None:
    """For the device, and the other ranks."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def in_rounds(sides: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[Any]]:
    """What each side returns in each round, in an order drawn for the round, the same on every rank.

    So a machine that is busy for a while is busy for all sides, and no side always follows the same other.
    """
    results: dict[str, list[Any]] = {name: [] for name in sides}
    chance = random.Random(0)
    for _ in range(rounds):
        for name in chance.sample(list(sides), len(sides)):
            results[name].append(sides[name]())
    return results


def cost(alone: list[float], beside: list[float]) -> float:
    """How much longer, as a fraction: the median of the rounds' ratios, less 1."""
    return median(b / a for a, b in zip(alone, beside, strict=True)) - 1


class Eager(NamedTuple):
    """A stretch of operations."""

    seconds: float  # of one
    blocked: float  # share of the time that this thread slept, leaving out when it waited for a core
    taken: float  # batches a second that the loader made meanwhile


@dataclass
class Clocks:
    """The clocks of this module; seconds.

    step: trains on a batch of `prepared`.  steps: of a clock.  patience: for the loader to fill its queues.
    """

    world: World
    prepared: Prefetcher
    step: Callable[[Any], object]
    steps: int
    patience: float = 10.0
    batch: Any = field(init=False)
    pace: float = field(init=False)  # a step's, at which `beside` takes batches

    def __post_init__(self) -> None:
        self.batch = next(self.prepared)[0]
        for _ in range(WARM_UP):
            self.step(self.batch)
        self.pace = self.cached()

    # -- steps --------------------------------------------------------------------------

    def cached(self) -> float:
        self._idle()
        return self._seconds(lambda: self.batch)

    def beside(self) -> float:
        self._idle()
        with self._taking(self.pace):
            return self._seconds(lambda: self.batch)

    def loaded(self) -> float:
        self._drain()
        return self._seconds(lambda: next(self.prepared)[0])

    def launch(self) -> list[float]:
        self._idle()
        return self._launches()

    def launch_beside(self) -> list[float]:
        self._idle()
        with self._taking(self.pace):
            return self._launches()

    def _seconds(self, batch: Callable[[], Any]) -> float:
        """Of one step, all ranks together."""
        wait(self.world)
        start = time.perf_counter()
        for _ in range(self.steps):
            self.step(batch())
        wait(self.world)
        return (time.perf_counter() - start) / self.steps

    def _launches(self) -> list[float]:
        seconds = []
        for _ in range(self.steps):
            wait(self.world)
            start = time.perf_counter()
            self.step(self.batch)
            seconds.append(time.perf_counter() - start)
        return seconds

    # -- operations ---------------------------------------------------------------------

    def eager(self) -> Eager:
        self._idle()
        return self._eager([])

    def eager_beside(self, pace: float) -> Eager:
        """Batches are taken every `pace` seconds; 0: as fast as they come."""
        self._drain()
        with self._taking(pace) as taken:
            return self._eager(taken, EAGER_BATCHES)

    def _eager(self, taken: list[float], least: int = 0) -> Eager:
        """taken: when batches were, to which a thread adds; the clock runs until there are `least`."""
        x, y = torch.zeros(2, 1)
        before = _scheduled()
        start = now = time.perf_counter()
        done = 0
        while now < start + EAGER_SECONDS or (len(taken) < least and now < start + self.patience):
            for _ in range(OPERATIONS):
                torch.add(x, y)
            done += OPERATIONS
            now = time.perf_counter()
        ran, queued = (b - a for a, b in zip(before, _scheduled()))
        rate = (len(taken) - 1) / (taken[-1] - taken[0]) if len(taken) > 1 else 0.0
        return Eager((now - start) / done, 1 - ran / (now - start - queued), rate)

    # -- the loader ---------------------------------------------------------------------

    @contextmanager
    def _taking(self, pace: float) -> Iterator[list[float]]:
        """A thread takes a batch every `pace` seconds, or as they come, and throws it away; when it did."""
        taken: list[float] = []
        ended = threading.Event()

        def take() -> None:
            due = time.perf_counter()
            while not ended.is_set():
                next(self.prepared)
                taken.append(time.perf_counter())
                due = max(due + pace, taken[-1])
                ended.wait(due - taken[-1])

        with ThreadPoolExecutor(1, "taker") as pool:
            taking = pool.submit(take)
            try:
                yield taken
            finally:
                ended.set()
        taking.result()

    def _drain(self) -> None:
        """Empty the loader's queues, so that what follows takes batches as fast as they are made."""
        for _ in range(QUEUED):
            next(self.prepared)

    def _idle(self) -> None:
        """Return when the loader's queues are full: once this process does nothing for a moment."""
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            before = time.process_time()
            time.sleep(0.05)
            if time.process_time() - before < 0.005:
                return


def _scheduled() -> tuple[float, float]:
    """Seconds that this thread has had a core, and that it has waited for one (0: not told here)."""
    try:
        queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        queued = 0.0
    return time.thread_time(), queued
