"""What is measured of every step alike, ours or a peer's: the first, some in a row, arithmetic, memory."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kernels.flops import flop_counter
from pipeline.base.measure import Spent, stopwatch
from train.config import Recipe

STEPS = {"cuda": 10, "cpu": 1}  # of a turn, unless --steps says otherwise


class Side(ABC):
    """A training step on one batch, which is on the device.

    recipe: of the step; its `batch` is the samples of a step.  model: what is trained.  moments: whose state
    are the optimizer's tensors.  given: what a step takes, a tree of tensors.
    """

    recipe: Recipe
    device: torch.device
    model: nn.Module
    moments: torch.optim.Optimizer
    given: Any

    def __init__(self) -> None:
        self._resting: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []

    @abstractmethod
    def step(self) -> Tensor:
        """Forward, backward and update; returns the loss, on the device."""

    @property
    def steps(self) -> int:
        """Of a turn."""
        return self.recipe.steps or STEPS[self.device.type]

    def first(self) -> dict[str, Any]:
        """The first step: its loss, and its seconds, which are those of compilation if there is any."""
        begun = time.perf_counter()
        loss = float(self.step())
        return {"batch": self.recipe.batch, "loss": loss, "first_s": time.perf_counter() - begun}

    def turn(self) -> Spent:
        """Time of a step, the mean of some in a row, between `wake` and `rest`."""
        self.wake()
        if self.device.type == "cuda":
            self.step()  # it takes its memory again
        spent = self.in_a_row(self.step, self.steps)
        self.rest()
        return spent

    def rest(self) -> None:
        """Leave a GPU's memory to another process; what must stay waits in the host's."""
        if self.device.type == "cuda":
            self.put_away()
            torch.cuda.empty_cache()

    def put_away(self) -> None:
        """What lies on the device goes to the host."""
        for storage in self.storages():
            self._resting.append((storage, torch.UntypedStorage(storage.nbytes()).copy_(storage)))
            storage.resize_(0)

    def wake(self) -> None:
        """The inverse of `rest`."""
        while self._resting:
            storage, copy = self._resting.pop()
            storage.resize_(copy.nbytes())
            storage.copy_(copy)

    def storages(self) -> list[torch.UntypedStorage]:
        """Of all that lies on the device between two steps."""
        parameters = list(self.model.parameters())
        model = [parameters, [p.grad for p in parameters], list(self.model.buffers())]
        leaves = tree_leaves([model, list(self.moments.state.values()), self.given])
        storages = [x.untyped_storage() for x in leaves if isinstance(x, Tensor) and x.device == self.device]
        return list({storage._cdata: storage for storage in storages}.values())

    def in_a_row(self, call: Callable[[], object], steps: int) -> Spent:
        """Time of a call, the mean of `steps`: the host runs ahead of a GPU, as in training."""
        self.wait()
        with stopwatch() as spent:
            for _ in range(steps):
                call()
            self.wait()
        return Spent(spent.wall / steps, spent.cpu / steps)

    def rate(self) -> dict[str, Any]:
        """Of steps in a row, as in training."""
        self.step()
        ms = 1e3 * self.in_a_row(self.step, self.steps).wall
        return {"ms": ms, f"{self.recipe.unit}_s": self.recipe.batch / ms * 1e3}

    def memory(self) -> dict[str, float]:
        """GB that a step takes on a GPU at most: of tensors, and what the allocator reserves for them."""
        if self.device.type != "cuda":
            return {}
        self.wait()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.step()
        self.wait()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_gb": peak / 1e9, "reserved_gb": reserved / 1e9}

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    @abstractmethod
    def compiles(self) -> bool:
        """Whether any of the step is compiled."""

    def flops(self) -> int:
        """Of a step, by torch's counter; 0 where that does not see it, in compiled code."""
        if self.compiles:
            return 0
        with flop_counter() as counter:
            self.step()
        return counter.get_total_flops()
