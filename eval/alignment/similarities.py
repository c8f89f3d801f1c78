"""Cosines of pairs of images, for millions of pairs in flat memory; nothing here knows people or figures.

U images, D width, N judgements, P pairs of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ROWS = 8192  # judgements whose vectors are gathered at a time: 50 MB at width 512
_TABLE = 8192  # images up to which all pairs may be computed first: 256 MB


def of_pairs(features: Tensor, rows: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(N, P) float32 cosines.

    features (U, D) float32, unit rows.  rows (N, k): the images of each judgement.  pairs: P pairs of columns
    of `rows`.

    One pair has one value to the last bit, wherever it stands and in either order, so equal images are exact
    ties; it is the value that `eval.metrics.perceptual.choose` takes the distance from.
    """
    count = len(features)
    if count <= _TABLE and count**2 < len(rows) * len(pairs):
        table = all_pairs(features)
        return np.stack([table[rows[:, a], rows[:, b]] for a, b in pairs], 1)
    out = np.empty((len(rows), len(pairs)), np.float32)
    for start in range(0, len(rows), _ROWS):
        part = torch.from_numpy(rows[start : start + _ROWS].astype(np.int64))
        vectors = [features[column] for column in part.T]
        for number, (a, b) in enumerate(pairs):
            out[start : start + _ROWS, number] = (vectors[a] * vectors[b]).sum(1).numpy()
    return out


def all_pairs(features: Tensor) -> np.ndarray:
    """(U, U) float32 cosines of all images with all, with the values of `of_pairs`."""
    out = np.empty((len(features), len(features)), np.float32)
    for row, vector in zip(out, features):
        row[:] = (features * vector).sum(1).numpy()
    return out
