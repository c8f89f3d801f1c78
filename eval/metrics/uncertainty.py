"""How sure a difference between two models is.

Two sources of chance are kept apart.  Which test images there happen to be: bootstrap over images,
McNemar; images that belong together are drawn together.  Which training run one happens to have:
`eval/metrics/seeds.py`.  One run of each model says nothing about the second, whatever its p-value.

N images, k seeds.  Intervals are two-sided at level 1 − ALPHA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05
RESAMPLES = 10_000
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; low and high are None where nothing can be said."""

    value: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float] | None:
        """(low, high), or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def percentiles(value: float, resampled: np.ndarray) -> Interval:
    """The interval that holds all but ALPHA of the resampled values."""
    low, high = np.quantile(resampled, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(value, float(low), float(high))


def cluster_sums(d: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """(clusters, 2): sum of d and number of images in each cluster."""
    if groups is None:
        return np.stack([d, np.ones_like(d)], 1)
    _, number = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(number, d), np.bincount(number).astype(float)], 1)


def resampled_means(clusters: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, columns / 2): ratio of sums over clusters, rows (sum, size, …), drawn with replacement.

    Equal clusters are counted, not drawn one by one: for 0/1 outcomes there are three kinds, so the
    bootstrap distribution is a multinomial and 50,000 images cost what 50 do.
    """
    kinds, counts = np.unique(clusters, axis=0, return_counts=True)
    sums, sizes = kinds[:, 0::2], kinds[:, 1::2]
    out = np.empty((resamples, sums.shape[1]))
    block = max(1, _DRAWN_AT_ONCE // len(kinds))
    for start in range(0, resamples, block):
        rows = slice(start, min(start + block, resamples))
        drawn = rng.multinomial(len(clusters), counts / len(clusters), size=rows.stop - rows.start)
        out[rows] = (drawn @ sums) / (drawn @ sizes)
    return out


def mcnemar(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Two-sided p of "both models are right equally often", from the images they disagree on.

    Exact binomial; with groups, Obuchowski's clustered form (Statistics in Medicine 17, 1998): the
    square of the summed differences over the sum of squared cluster differences, χ² with 1 degree.
    """
    from scipy import stats

    d = np.asarray(a, float) - np.asarray(b, float)
    if groups is not None:
        sums = cluster_sums(d, groups)[:, 0]
        spread = float((sums**2).sum())
        return 1.0 if spread == 0 else float(stats.chi2.sf(sums.sum() ** 2 / spread, 1))
    better, worse = int((d > 0).sum()), int((d < 0).sum())
    return 1.0 if better + worse == 0 else float(stats.binomtest(better, better + worse).pvalue)


@dataclass(frozen=True)
class Outcomes:
    """One set's per-image outcomes (N,) under two models; sets with equal `images` show the same images.

    groups (N,): images (or queries) with the same number are drawn together.
    """

    a: np.ndarray
    b: np.ndarray
    groups: np.ndarray | None = None
    images: str | None = None

    @property
    def difference(self) -> np.ndarray:
        """a − b (N,)."""
        return np.asarray(self.a, float) - np.asarray(self.b, float)


def mean_of_sets(sets: Sequence[Outcomes], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over sets of the mean of a − b, with a percentile interval over images (paired bootstrap).

    Sets over the same images share draws.
    """
    rng = np.random.default_rng(seed)
    shared: dict[object, list[np.ndarray]] = {}
    for number, outcomes in enumerate(sets):
        d = outcomes.difference
        key = (outcomes.images, len(d)) if outcomes.images and outcomes.groups is None else number
        shared.setdefault(key, []).append(cluster_sums(d, outcomes.groups))
    total = np.zeros(resamples)
    for parts in shared.values():
        total += resampled_means(np.concatenate(parts, 1), resamples, rng).sum(1)
    return percentiles(float(np.mean([s.difference.mean() for s in sets])), total / len(sets))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values: reject where they are ≤ ALPHA, at family-wise error ALPHA."""
    values = np.asarray(p, float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    out = np.empty_like(values)
    out[order] = np.minimum(stepped, 1)
    return out


# -- scaling ------------------------------------------------------------------------------------------


def slopes(samples: Sequence[float], accuracy: np.ndarray) -> np.ndarray:
    """β: least-squares slope of log10(accuracy) on log10(samples) (paper, Figures 3 and 4).

    samples (points,), accuracy (…, points) → (…).  Points with accuracy 0 have no logarithm and are left
    out.  NaN where fewer than two remain.
    """
    x, y = np.asarray(samples, float), np.asarray(accuracy, float)
    keep = (x > 0) & (y > 0)
    x = np.where(keep, np.log10(np.where(keep, x, 1)), 0)
    y = np.where(keep, np.log10(np.where(keep, y, 1)), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = keep.sum(-1)
        dx = np.where(keep, x - (x.sum(-1) / n)[..., None], 0)
        return (dx * y).sum(-1) / (dx**2).sum(-1)


def scaling(samples: Sequence[float], curves: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """β of a family's mean accuracy, with an interval over seeds and over the family's sets.

    curves (seeds, sets, points).  The points of one run are serially correlated, so they are never
    resampled: β is fitted per seed and averaged.  No interval from one seed of one set.
    """
    curves = np.asarray(curves, float)
    seeds, sets, _ = curves.shape
    value = float(np.mean(slopes(samples, curves.mean(1))))
    if seeds * sets < 2:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    # A mean of drawn sets (or seeds) is a weighted one.  One set alone is drawn every time.
    draws = rng.multinomial(sets, np.full(sets, 1 / sets), resamples if sets > 1 else 1) / sets
    fitted = slopes(samples, np.einsum("rs,ksp->rkp", draws, curves))
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    resampled = np.where(weights > 0, weights * fitted, 0).sum(1)
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Interval(value, None, None)
    return percentiles(value, resampled)
