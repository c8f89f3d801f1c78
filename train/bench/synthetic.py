"""Batches of random images and captions, and the training file that they could come from.

B samples, S image side.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kernels.bench.cases import synthetic_captions, synthetic_lengths
from pipeline.batch import ImageText, Triplet
from train.config import Recipe


def batch(recipe: Recipe, side: int, tokens: float) -> ImageText | Triplet:
    """`recipe.batch` samples as the loaders deliver them, drawn from the recipe's seed; all of them valid.

    Levels of images are random: a card multiplies zeros faster.  tokens: mean length of the captions.
    """
    size = recipe.batch
    generator = torch.Generator().manual_seed(recipe.seed)

    def images() -> Tensor:  # (B, 3, S, S) uint8, channels_last
        levels = torch.randint(0, 256, (size, side, side, 3), generator=generator, dtype=torch.uint8)
        return levels.permute(0, 3, 1, 2)

    rest: dict[str, Tensor] = {"index": torch.arange(size), "valid": torch.ones(size, dtype=torch.bool)}
    if recipe.stage == 1:
        votes = torch.randint(0, 2, (size,), generator=generator).float()
        return Triplet(ref=images(), left=images(), right=images(), vote=votes, **rest)
    captions = synthetic_captions(synthetic_lengths(size, tokens)).int()
    return ImageText(images=images(), tokens=captions, **rest)


def file(made: ImageText | Triplet) -> Any:
    """Has the `info` of a .beton whose captions are the batch's: what the trainer asks of a file."""
    if isinstance(made, Triplet):
        return SimpleNamespace(info={})
    lengths = made.tokens.argmax(1) + 1  # the end token is the largest
    info = {"mean_tokens": float(lengths.double().mean()), "lengths": torch.bincount(lengths).tolist()}
    return SimpleNamespace(info={"captions": info})
