"""The two kinds of batch every engine delivers.

B batch, K captions, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


class _Batch:
    index: Tensor  # every kind has it

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """The same batch with every tensor on `device`."""
        moved = {name: x.to(device, non_blocking=non_blocking) for name, x in vars(self).items()}
        return type(self)(**moved)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class ImageText(_Batch):
    """Image–text pairs; a sample that did not decode has the mean colour for its image and valid = False."""

    images: Tensor  # (B, 3, S, S) normalised, or levels in uint8; channels_last
    tokens: Tensor  # (B, 77) int32 CLIP ids of the drawn caption, zero after the end token
    index: Tensor  # (B,) int64 sample number in the file
    valid: Tensor  # (B,) bool


@dataclass(frozen=True)
class Triplet(_Batch):
    """2AFC triplets; the three images of a sample share one set of draws."""

    ref: Tensor  # (B, 3, S, S), as the images of pairs
    left: Tensor  # (B, 3, S, S)
    right: Tensor  # (B, 3, S, S)
    vote: Tensor  # (B,) float32, the fraction of people who preferred right
    index: Tensor  # (B,) int64
    valid: Tensor  # (B,) bool
