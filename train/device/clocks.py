"""What a loader costs the step that it runs beside, in one process and in rounds that alternate.

Clocks of steps, on a batch that is on the device already unless the name says otherwise:

* `cached`: the loader's queues are full and its threads asleep.
* `beside`: the same, and each step takes a batch that is ready from the loader and throws it away.
* `loaded`: on the loader's batches, as in training.
* `launch`, `launch_beside`: until the step's call returns, with nothing queued before it.  On a GPU that is
  the time of the thread that launches kernels; on a CPU it is the step.

And two that need no GPU and isolate Python's lock, `eager` and `eager_beside`: one addition of two numbers on
the CPU, again and again.  That is dispatch alone, and gives the lock away and takes it back each time, as a
step does with each kernel.  (On meta tensors torch would run much more Python than a launch does.)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from train.device.prefetch import Prefetcher
from train.distributed import World

ROUNDS = 5
WARM_UP = 3  # steps before any clock starts
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

    def __post_init__(self) -> None:
        self.batch = next(self.prepared)[0]
        for _ in range(WARM_UP):
            self.step(self.batch)

    # -- steps --------------------------------------------------------------------------

    def cached(self) -> float:
        return self._seconds(lambda: self.batch)

    def beside(self) -> float:
        return self._seconds(self._take)

    def loaded(self) -> float:
        return self._seconds(lambda: next(self.prepared)[0])

    def launch(self) -> list[float]:
        return self._launches(lambda: self.batch)

    def launch_beside(self) -> list[float]:
        return self._launches(self._take)

    def _take(self) -> Any:
        if self.prepared.ready:
            next(self.prepared)
        return self.batch

    def _seconds(self, batch: Callable[[], Any]) -> float:
        """Of one step, all ranks together."""
        self._idle()
        wait(self.world)
        start = time.perf_counter()
        for _ in range(self.steps):
            self.step(batch())
        wait(self.world)
        return (time.perf_counter() - start) / self.steps

    def _launches(self, batch: Callable[[], Any]) -> list[float]:
        self._idle()
        seconds = []
        for _ in range(self.steps):
            given = batch()
            wait(self.world)
            start = time.perf_counter()
            self.step(given)
            seconds.append(time.perf_counter() - start)
        return seconds

    # -- operations ---------------------------------------------------------------------

    def eager(self) -> Eager:
        self._idle()
        return self._eager(None)

    def eager_beside(self, pace: float) -> Eager:
        """Batches are taken every `pace` seconds; 0: as fast as they come."""
        while not pace and self.prepared.ready:  # batches that are there already would be no work
            next(self.prepared)
        next(self.prepared)
        return self._eager(pace)

    def _eager(self, pace: float | None) -> Eager:
        x, y = torch.zeros(2, 1)
        before = _scheduled()
        start = due = now = time.perf_counter()
        done, taken = 0, 0
        while now < start + self.patience:
            enough = now >= start + EAGER_SECONDS
            if pace is None:
                if enough:
                    break
            elif now >= due and self.prepared.ready:
                next(self.prepared)
                taken, due = taken + 1, due + pace
                if enough and taken >= EAGER_BATCHES:  # as a batch is taken, so that no part of one is lost
                    break
            for _ in range(OPERATIONS):
                torch.add(x, y)
            done += OPERATIONS
            now = time.perf_counter()
        wall = now - start
        ran, queued = (b - a for a, b in zip(before, _scheduled()))
        blocked = 1 - ran / (wall - queued)
        return Eager(wall / max(done, 1), blocked, taken / wall if wall else 0.0)

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
