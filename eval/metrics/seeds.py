"""How sure a figure is over training runs: paired seeds, spread, and how many seeds a difference needs.

k seeds, F figures.  Differences are (F, k); NaN is a seed that lacks the figure.  Intervals are two-sided at
level 1 − ALPHA.  Of the choice of test images `eval/metrics/uncertainty.py` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from eval.metrics.uncertainty import ALPHA, RESAMPLES, Interval

POWER = 0.8  # of `needed`
# Seeds → effect, in deviations of the differences, that a sign-flip test of so few has POWER for, simulated.
# It has few p-values to choose from, so it takes larger ones than Student's t; from 10 seeds on they agree.
_FEW = {6: 1.793, 7: 1.329, 8: 1.188, 9: 1.087}
MOST_SEEDS = 100_000  # that `needed` answers
MOST_EXACT = 16  # seeds up to which all signs are gone through
_EQUAL = 1e-12  # of the values' size: sums that differ by less differ by rounding only
_AT_ONCE = 32  # figures whose sums are held at a time

# -- paired differences -----------------------------------------------------------------------------


def smallest_p(seeds: int) -> float:
    """The least two-sided p a sign-flip test over k paired seeds can reach: 2 / 2^k."""
    return 2 / 2**seeds


def _signs(seeds: int) -> np.ndarray:
    """(patterns, k) of ±1, the first always +1, since a pattern and its mirror image tell the same."""
    if seeds <= MOST_EXACT:
        bits = np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds) & 1
        return 1.0 - 2 * bits[:, ::-1]
    return np.random.default_rng(0).choice([-1.0, 1.0], (1 << MOST_EXACT, seeds))


def sign_flip(d: np.ndarray | Sequence[float]) -> np.ndarray:
    """(F, k) or (k,) → two-sided p of "symmetric about 0", over all 2^k signs (drawn above MOST_EXACT)."""
    d = np.asarray(d, float)
    rows, signs = np.atleast_2d(d), _signs(d.shape[-1])
    drawn = int(rows.shape[1] > MOST_EXACT)  # then the observed signs are one of the draws
    p = np.empty(len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        least = np.abs(part.sum(1)) - _EQUAL * np.abs(part).sum(1)
        as_far = (np.abs(signs @ part.T) >= least).sum(0)
        p[start : start + _AT_ONCE] = (as_far + drawn) / (len(signs) + drawn)
    return p.reshape(d.shape[:-1])


def bca(d: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """Mean of each row of (F, k) with Efron's BCa interval; none below 3 values or where all are equal.

    All rows share the draws.  With few values it is too narrow.  For normal ones at 95 %, simulated: 73 % at
    3, 81 % at 4, 88 % at 6, 90 % at 10 and 91 % at 20.
    """
    d = np.asarray(d, float)
    k, mean = d.shape[1], d.mean(1)
    varied = np.flatnonzero(np.ptp(d, 1) > _EQUAL * np.abs(d).max(1)) if k >= 3 else np.empty(0, int)
    counts = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), resamples)
    out = [Interval(float(m), None, None) for m in mean]
    for start in range(0, len(varied), _AT_ONCE):
        rows = varied[start : start + _AT_ONCE]
        for row, (low, high) in zip(rows, _bca_ends(d[rows], d[rows] @ counts.T / k)):
            out[row] = Interval(float(mean[row]), float(low), float(high))
    return out


def _bca_ends(d: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """(F, k) and their resampled means (F, R) → (F, 2); Efron and Tibshirani 1993, equations 14.9–14.15."""
    mean = d.mean(1, keepdims=True)
    u = d - mean
    acceleration = (u**3).sum(1) / (6 * (u**2).sum(1) ** 1.5)
    equal = _EQUAL * np.abs(d).max(1, keepdims=True)
    below = ((resampled < mean - equal).mean(1) + (resampled <= mean + equal).mean(1)) / 2
    bias = special.ndtri(below)[:, None]
    z = bias + special.ndtri([ALPHA / 2, 1 - ALPHA / 2])
    shares = special.ndtr(bias + z / (1 - acceleration[:, None] * z))
    ordered = np.sort(resampled, 1)
    at = shares * (ordered.shape[1] - 1)
    left = np.minimum(at.astype(int), ordered.shape[1] - 2)
    low, high = (np.take_along_axis(ordered, left + step, 1) for step in (0, 1))
    return low + (high - low) * (at - left)


@dataclass(frozen=True)
class Seeds:
    """k paired differences between training runs: mean with BCa interval, sign-flip p, its least value.

    sd: of the differences, with its chi-square interval.
    """

    count: int
    mean: Interval
    p: float
    least_p: float
    sd: Interval


def paired(a: np.ndarray, b: np.ndarray) -> list[Seeds]:
    """a, b (F, k): the figures of two models, in the same order of seeds.

    A seed that lacks a figure in either model does not count for that figure.
    """
    d = np.asarray(a, float) - np.asarray(b, float)
    lacking = ~np.isfinite(d)
    spreads = spread(d)
    out: dict[int, Seeds] = {}
    for pattern in np.unique(lacking, axis=0):
        rows, count = np.flatnonzero((lacking == pattern).all(1)), int((~pattern).sum())
        if not count:
            out |= {int(r): Seeds(0, Interval(np.nan, None, None), 1.0, 1.0, spreads[r]) for r in rows}
            continue
        kept = d[rows][:, ~pattern]
        for row, mean, p in zip(rows, bca(kept), sign_flip(kept)):
            out[int(row)] = Seeds(count, mean, float(p), min(1.0, smallest_p(count)), spreads[row])
    return [out[row] for row in range(len(d))]


def over(values: np.ndarray) -> Seeds:
    """`paired` of one model's figure (k,) against 0."""
    row = np.asarray(values, float)[None]
    return paired(row, np.zeros_like(row))[0]


# -- spread -------------------------------------------------------------------------------------------


def spread(values: np.ndarray) -> list[Interval]:
    """Standard deviation (n − 1) of each row of (F, k), with the chi-square interval of a normal variance.

    NaN values do not count; NaN below two values.
    """
    values = np.asarray(values, float)
    have = np.isfinite(values)
    df = have.sum(1) - 1
    known = np.where(have, values, 0)
    mean = known.sum(1) / np.maximum(df + 1, 1)
    squares = np.where(have, (values - mean[:, None]) ** 2, 0).sum(1)
    out = []
    for n, square in zip(df, squares):
        if n < 1:
            out.append(Interval(np.nan, None, None))
            continue
        low, high = np.sqrt(square / stats.chi2.ppf([1 - ALPHA / 2, ALPHA / 2], n))
        out.append(Interval(float(np.sqrt(square / n)), float(low), float(high)))
    return out


def correlation(a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float]) -> Interval:
    """Pearson's r of two models' figures by seed, with Fisher's interval (from 4 seeds on).

    NaN with fewer than 3 pairs, or where one does not vary.
    """
    pairs = np.array([a, b], float)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    k = pairs.shape[1]
    if k < 3 or (np.ptp(pairs, 1) <= _EQUAL * np.abs(pairs).max()).any():
        return Interval(np.nan, None, None)
    r = float(np.clip(np.corrcoef(pairs)[0, 1], -1, 1))
    if k < 4 or abs(r) == 1:
        return Interval(r, None, None)
    half = special.ndtri(1 - ALPHA / 2) / np.sqrt(k - 3)
    low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
    return Interval(r, float(low), float(high))


# -- how many seeds -------------------------------------------------------------------------------


def power(seeds: int, effect: float, of_pairs: bool = True) -> float:
    """Power of a two-sided t test at ALPHA of a true difference of `effect` standard deviations.

    of_pairs: the deviation is that of the paired differences, and there are `seeds` of them; else it is that
    of one model, and each of two has `seeds` runs.  The tail on the wrong side is left out.
    """
    df, shift = (seeds - 1, seeds**0.5) if of_pairs else (2 * seeds - 2, (seeds / 2) ** 0.5)
    return float(stats.nct.sf(stats.t.ppf(1 - ALPHA / 2, df), df, effect * shift))


def needed(sd: float, difference: float, of_pairs: bool = True) -> int | None:
    """The fewest seeds of each model that have POWER; None without a deviation, or far too many.

    Of pairs, for the sign-flip test, which needs 6 to reach ALPHA at all.  Of two models, for Student's t,
    and at least 4, as for a permutation test.
    """
    if not np.isfinite(sd):
        return None
    effect = abs(difference) / sd if sd else np.inf
    if of_pairs and (few := [count for count, least in _FEW.items() if effect >= least]):
        return few[0]
    # A test that knew the deviation would need this many; one that estimates it needs a few more.
    known = (special.ndtri(1 - ALPHA / 2) + special.ndtri(POWER)) ** 2 * (1 if of_pairs else 2)
    if effect == 0 or known / effect**2 > MOST_SEEDS:
        return None
    seeds = max(max(_FEW) + 1 if of_pairs else 4, int(known / effect**2))
    while power(seeds, min(effect, 5), of_pairs) < POWER:
        seeds += 1
    return seeds


# -- with values that are only known to be large -------------------------------------------------


def median(values: np.ndarray | Sequence[float]) -> Interval:
    """Median of k values, of which some may be infinite, with the interval between two order statistics.

    Its level is at least 1 − ALPHA whatever the distribution is; none below 6 values.
    """
    ordered = np.sort(np.asarray(values, float))
    k = len(ordered)
    # halves may be infinite, and inf − inf is no number
    value = ordered[k // 2] if k % 2 else ordered[k // 2 - 1] / 2 + ordered[k // 2] / 2
    rank = int(stats.binom.ppf(ALPHA / 2, k, 0.5))
    if stats.binom.cdf(rank, k, 0.5) > ALPHA / 2:
        rank -= 1
    if rank < 0:
        return Interval(float(value), None, None)
    return Interval(float(value), float(ordered[rank]), float(ordered[k - 1 - rank]))


def sign_test(d: np.ndarray | Sequence[float]) -> float:
    """Two-sided p of "above 0 as often as below"; zeros do not count, infinite values do."""
    d = np.asarray(d, float)
    above, below = int((d > 0).sum()), int((d < 0).sum())
    return 1.0 if above + below == 0 else float(stats.binomtest(above, above + below).pvalue)
