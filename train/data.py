"""The recipe's data as a loader: file, augmentation, share of the samples, rank.

Images are levels in uint8, half of bf16's bytes on the way to a GPU, where `train/model.py` normalises them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from pipeline.augment import AUGMENTS, Augment
from pipeline.beton.fields import Beton
from pipeline.order import Order, Subset
from pipeline.stream import StreamLoader
from train.config import Recipe
from train.distributed import World

# Of DALI with a GPU, whose JPEG engine decodes: what 23,700 images/s were measured with (docs/benchmarks.md).
DALI_THREADS = 4


def augmentation(recipe: Recipe) -> Augment:
    """The recipe's preset, with its own crop range if it has one."""
    preset = AUGMENTS[recipe.data.augment]
    if recipe.data.crop_scale is None:
        return preset
    return dataclasses.replace(preset, crop="random", scale=recipe.data.crop_scale)


def _engine(recipe: Recipe) -> type[StreamLoader]:
    assert recipe.data.engine != "auto"  # train/device/auto.py has settled it
    if recipe.data.engine == "ffcv":
        from pipeline.ffcv_loader import FFCVLoader

        return FFCVLoader
    from pipeline.dali_loader import DALILoader

    return DALILoader


def _workers(recipe: Recipe, world: World) -> int:
    workers, on_gpu = recipe.data.workers, world.device.type == "cuda"
    return min(workers, DALI_THREADS) if recipe.data.engine == "dali" and on_gpu else workers


def _order(recipe: Recipe, total: int) -> Order:
    used, lanes = recipe.samples(total), recipe.data.lanes
    subset = None if used == total else Subset(samples=used, seed=recipe.seed)
    turn, views = recipe.batch // lanes, recipe.views
    return Order(kind=recipe.data.order, lanes=lanes, turn=turn, views=views, subset=subset)


def stream(recipe: Recipe, file: Beton, world: World, image_size: int, consumed: int) -> StreamLoader:
    """The endless training loader of this rank, from the `consumed`-th sample of the whole stream on.

    The views of a sample, where the recipe asks for several, come one after the other in its batches.
    """
    loader = _engine(recipe)
    pinned = {"pin": True} if recipe.data.engine == "ffcv" and world.device.type == "cuda" else {}
    return loader(
        file,
        batch_size=recipe.rank_batch(world.size) * recipe.views,
        image_size=image_size,
        augment=augmentation(recipe),
        seed=recipe.seed,
        order=_order(recipe, len(file)),
        rank=world.rank,
        world_size=world.size,
        consumed=consumed * recipe.views,
        workers=_workers(recipe, world),
        dtype=torch.uint8,
        **pinned,
    )


def held_out(recipe: Recipe, file: Beton, world: World, image_size: int, batch_size: int) -> Iterator:
    """One pass over this rank's share of a held-out split, not augmented."""
    return _engine(recipe).one_pass(
        file,
        batch_size=batch_size,
        image_size=image_size,
        augment=AUGMENTS["eval"],
        rank=world.rank,
        world_size=world.size,
        workers=_workers(recipe, world),
        dtype=torch.uint8,
    )
