"""Instance retrieval: average precision and recall of ranked answers, and what a random ranking gets.

Q queries, N images of the gallery; masks (Q, N) bool are in the order of a query's ranking, best first.
"""

from __future__ import annotations

import numpy as np
from scipy import special
from torch import Tensor

_HELD = 2**24  # cosines at a time


def order(queries: Tensor, gallery: Tensor) -> np.ndarray:
    """(Q, N) int64: the gallery's images by falling cosine, of equals the first; unit rows (Q, D), (N, D)."""
    return (queries @ gallery.T).argsort(dim=1, descending=True, stable=True).cpu().numpy()


def chunks(queries: int, gallery: int) -> list[slice]:
    """Queries to be ranked at a time."""
    step = max(1, _HELD // gallery)
    return [slice(start, start + step) for start in range(0, queries, step)]


def average_precision(right: np.ndarray) -> np.ndarray:
    """(Q,): the mean of the precision at every right answer; NaN for a query without any."""
    return _mean_at(right, right.cumsum(1) / np.arange(1, right.shape[1] + 1))


def revisited_precision(right: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """(Q,): average precision of Revisited Oxford and Paris; NaN for a query without a right answer.

    Junk is taken out of the ranking.  At a right answer the precision before and after it are averaged
    (filipradenovic/revisitop `python/evaluate.py`, `compute_ap` and `compute_map`).
    """
    place = np.where(right, (~junk).cumsum(1) - 1, 1)  # from 0, without junk
    found = right.cumsum(1)
    before = np.where(place == 0, 1.0, (found - 1) / np.maximum(place, 1))
    return _mean_at(right, (before + found / (place + 1)) / 2)


def _mean_at(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    counts = mask.sum(1)
    sums = np.where(mask, values, 0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def first(right: np.ndarray) -> np.ndarray:
    """(Q,) int64: the place of the first right answer, from 0; N where there is none."""
    return np.where(right.any(1), right.argmax(1), right.shape[1])


# -- chance -----------------------------------------------------------------------------------------


def chance_precision(right: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The expected average precision of a random ranking of `images`, of which `right` are right answers."""
    p, n = np.asarray(right, float), np.asarray(images, float)
    harmonic = special.digamma(n + 1) + np.euler_gamma  # 1 + 1/2 + … + 1/n
    return (harmonic + (p - 1) / np.maximum(n - 1, 1) * (n - harmonic)) / n


def chance_revisited(right: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The same of `revisited_precision`; images: without junk."""
    return (np.asarray(right) / np.asarray(images) + chance_precision(right, images)) / 2


def chance_recall(right: np.ndarray, images: int, k: int) -> np.ndarray:
    """The probability that a right answer is among the first k of a random ranking."""
    drawn = np.arange(k)
    missed = np.maximum(images - np.asarray(right)[:, None] - drawn, 0) / (images - drawn)
    return 1 - missed.prod(1)
