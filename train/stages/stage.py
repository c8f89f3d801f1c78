"""What both stages are made of: the towers on every rank, and micro-batches of a rank's share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from pipeline.beton.fields import Beton
from train.config import Recipe
from train.distributed import World, replicate
from train.model import Towers

B = TypeVar("B", bound=Any)  # a batch of pipeline/batch.py


class Stage(ABC):
    """The objective of a stage: gradients of a batch, and scores of a held-out split.

    file: the training file, as far as the objective asks it.  towers: what is trained.  replica: the same,
    whose gradients are averaged over the ranks.  micro: samples that a rank forwards at once.
    """

    def __init__(self, recipe: Recipe, clip: nn.Module, world: World, file: Beton | None = None):
        self.recipe, self.world = recipe, world
        self.clip: Any = clip  # open_clip's models share names, not a type
        self.towers = Towers(clip, recipe)
        self.replica = replicate(self.towers, world)
        self.micro = recipe.micro_batch(recipe.rank_batch(world.size))

    @abstractmethod
    def prepare(self, batch: Any) -> list[Any]:
        """What `gradients` takes of a loader's batch: named tuples of tensors, one for each micro-batch.

        Runs in a thread, on the CPU (`train/device/prefetch.py`); the tensors are on the device afterwards.
        """

    @abstractmethod
    def gradients(self, parts: list[Any]) -> dict[str, Tensor]:
        """Add this step's gradient to the parameters; returns what was measured of this rank's share.

        parts: `prepare`'s, on the device.  By name, scalars on the device; "loss" is one of them.
        """

    def constrain(self) -> None:  # noqa: B027 (a stage without bounds has nothing to do)
        """After an update: put parameters that have bounds back into them."""

    @abstractmethod
    def validate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Scores by name, over a held-out split whose batches are spread over the ranks.

        Raises ValueError where no sample of it decodes.
        """


def micro_batches(batch: B, size: int) -> Iterator[tuple[B, bool]]:
    """(part, whether it is the last) for consecutive parts of `size` samples of a loader's batch."""
    for start in range(0, len(batch), size):
        parts = {f.name: getattr(batch, f.name)[start : start + size] for f in fields(batch)}
        yield replace(batch, **parts), start + size >= len(batch)
