"""Captions without their padding: packed end to end into rows of one length.

Tokens after the end token change nothing (causal attention, pooling at the end token), and a caption fills
some 16 of 77 places.  `pack` puts several captions in a row, with the numbers a tower needs to keep them
apart: attention stays within a segment, positions restart with each caption.  It is exact: no caption is
cut or dropped.

Elsewhere: computing with the rows (`kernels/towers.py`).

B captions, T = 77 tokens of context, R rows of L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.base.compiled import compiled

ROW = 128  # tokens of a row


class Packed(NamedTuple):
    """Captions in rows; filler has segment B, position 0 and token 0."""

    tokens: Tensor  # (R, L) int32
    segment: Tensor  # (R, L) int32: which caption of the batch
    position: Tensor  # (R, L) int32: place within the caption
    pool: Tensor  # (B,) int64: r * L + l of each caption's end token

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Packed:
        """The same rows with every tensor on `device`."""
        return Packed(*(x.to(device, non_blocking=non_blocking) for x in self))


def pack(tokens: Tensor, row: int = ROW, rows: int = 0) -> Packed:
    """Pack tokens (B, T) int32, zero after the end token, into rows of `row` tokens.

    First-fit, longest captions first.  With `rows` the shape is static: that many rows, empty ones
    included.  A batch that needs more gets a sixteenth more, as often as it takes.
    Raises ValueError for an empty caption or one longer than a row.
    """
    array = np.ascontiguousarray(tokens.numpy(), np.int32)
    lengths = _lengths(array)
    if not lengths.size or lengths.min() == 0:
        raise ValueError("pack: a caption without tokens (it needs at least an end token)")
    if lengths.max() > row:
        raise ValueError(f"pack: a caption of {lengths.max()} tokens does not fit a row of {row}")
    first = _first_fit(lengths, np.argsort(-lengths, kind="stable"), row)
    need = int(first.max()) // row + 1
    step = max(1, rows // 16)
    total = rows + step * max(0, -(-(need - rows) // step)) if rows else need
    return Packed(*map(torch.from_numpy, _fill(array, lengths, first, total, row)))


def _lengths(tokens: np.ndarray) -> np.ndarray:
    """(B,) int64: one more than the place of the last token that is not zero (id 0 may occur inside)."""
    return np.where(tokens.any(1), tokens.shape[1] - (tokens[:, ::-1] != 0).argmax(1), 0)


@compiled
def _first_fit(lengths, longest_first, row):
    """Where each caption's first token goes, counted over all rows: (B,) int64.

    Captions come longest first, so a row that is too full for one is too full for all of its length.
    """
    used = np.zeros(len(lengths), np.int64)  # of each row
    first = np.empty(len(lengths), np.int64)
    candidate, last = 0, -1
    for caption in longest_first:
        length = lengths[caption]
        if length != last:
            candidate, last = 0, length
        while used[candidate] + length > row:
            candidate += 1
        first[caption] = candidate * row + used[candidate]
        used[candidate] += length
    return first


@compiled
def _fill(tokens, lengths, first, rows, row):
    ids, position = np.zeros(rows * row, np.int32), np.zeros(rows * row, np.int32)
    segment = np.full(rows * row, len(lengths), np.int32)
    for caption in range(len(lengths)):
        for k in range(lengths[caption]):
            ids[first[caption] + k] = tokens[caption, k]
            segment[first[caption] + k] = caption
            position[first[caption] + k] = k
    shape = (rows, row)
    return ids.reshape(shape), segment.reshape(shape), position.reshape(shape), first + lengths - 1
