"""The recipe's data as a loader: file, augmentation, share of the samples, rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pipeline.augment import AUGMENTS, Augment
from pipeline.beton.fields import Beton
from pipeline.order import Order
from pipeline.stream import StreamLoader
from train.config import Recipe
from train.distributed import World

# In bf16 the towers' first operation would round the images anyway; half the bytes travel.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Share(Order):
    """The order of a fixed draw of `samples` out of a file's `total` samples.

    The draw is the head of a permutation by `seed`, so a smaller share lies inside a larger one.  Blocks are
    of members that follow each other in the file.
    """

    samples: int
    total: int
    seed: int

    @cached_property
    def members(self) -> np.ndarray:
        """(samples,) int64, in increasing order."""
        _, index = Order().locate(self.seed, self.total, np.arange(self.samples))
        return np.sort(index)

    def locate(self, seed: int, samples: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epoch, position = super().locate(seed, self.samples, t)
        return epoch, self.members[position]

    def windows(self, seed: int, samples: int, t: np.ndarray) -> list[list[tuple[int, int]]]:
        return super().windows(seed, self.samples, t)

    def expand(self, first: int, stop: int) -> np.ndarray:
        return self.members[first:stop]


def augmentation(recipe: Recipe) -> Augment:
    """The recipe's preset, with its own crop range if it has one."""
    preset = AUGMENTS[recipe.data.augment]
    if recipe.data.crop_scale is None:
        return preset
    return dataclasses.replace(preset, crop="random", scale=recipe.data.crop_scale)


def _engine(recipe: Recipe):
    """(the engine's loader, its one-pass `once`)."""
    if recipe.data.engine == "ffcv":
        from pipeline.ffcv_loader import FFCVLoader, once

        return FFCVLoader, once
    from pipeline.dali_loader import DALILoader, once

    return DALILoader, once


def _order(recipe: Recipe, total: int) -> Order:
    used, lanes = recipe.samples(total), recipe.data.lanes
    given = {"kind": recipe.data.order, "lanes": lanes, "turn": recipe.batch // lanes}
    if used == total:
        return Order(**given)
    return Share(**given, samples=used, total=total, seed=recipe.seed)


def stream(recipe: Recipe, file: Beton, world: World, image_size: int, consumed: int) -> StreamLoader:
    """The endless training loader of this rank, from the `consumed`-th sample of the whole stream on."""
    loader, _ = _engine(recipe)
    pinned = {"pin": True} if recipe.data.engine == "ffcv" and world.device.type == "cuda" else {}
    return loader(
        file,
        batch_size=recipe.rank_batch(world.size),
        image_size=image_size,
        augment=augmentation(recipe),
        seed=recipe.seed,
        order=_order(recipe, len(file)),
        rank=world.rank,
        world_size=world.size,
        consumed=consumed,
        workers=recipe.data.workers,
        dtype=DTYPES[recipe.compute.precision],
        **pinned,
    )


def held_out(recipe: Recipe, file: Beton, world: World, image_size: int, batch_size: int) -> Iterator:
    """One pass over this rank's share of a held-out split, not augmented."""
    _, once = _engine(recipe)
    return once(
        file,
        batch_size=batch_size,
        image_size=image_size,
        augment=AUGMENTS["eval"],
        rank=world.rank,
        world_size=world.size,
        workers=recipe.data.workers,
        dtype=DTYPES[recipe.compute.precision],
    )
