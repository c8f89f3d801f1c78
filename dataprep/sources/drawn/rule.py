"""Which triplets are drawn, and what their votes are.

A triplet (ref, left, right) is drawn at random among all that are different and obey the rule: d(ref, left)
and d(ref, right) differ by a least amount, and are never equal.  Its vote is for the nearer of the two.

Not here: d itself (`spaces.py`), which images take part (`source.py`).

N images of the space, M of them that take part, T triplets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataprep.sources.drawn.spaces import Space

_SAMPLE = 1 << 20  # pairs and triplets by which a space is measured; fewer if there are no more
_ALL = 1 << 22  # so many triplets are gone through one by one, and not tried at random
_ROUND = 1 << 18  # triplets that are tried together
_RARE = 1e-4  # new triplets among those tried, below which a search ends


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How triplets are drawn."""

    triplets: int = 100_000
    """Triplets of the training split, if there are as many; val and test get --held-out times as many."""
    margin: float | None = None
    """Least difference of the two distances from ref; by default 0.5, unless --quantile is given."""
    quantile: float | None = None
    """Instead of a margin: only triplets whose difference is among this largest share of random triplets'."""
    units: Literal["sd", "absolute"] = "sd"
    """What --margin and --soft count in: standard deviations of the dissimilarity over pairs, or the
    dissimilarity itself."""
    soft: float | None = None
    """Votes are 1 / (1 + exp(-difference / SOFT)) instead of 0 and 1."""

    def check(self) -> None:
        """ValueError for values that cannot be.  (At construction tyro would draw a box around it.)"""
        if self.triplets < 1:
            raise ValueError(f"--triplets must be at least 1, not {self.triplets}")
        if self.margin is not None and self.quantile is not None:
            raise ValueError("give --margin or --quantile, not both")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise ValueError(f"--margin must be 0 or more, not {self.margin:g}")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(f"--quantile is a share above 0 and at most 1, not {self.quantile:g}")
        if self.soft is not None and not 0 < self.soft < math.inf:
            raise ValueError(f"--soft must be above 0, not {self.soft:g}")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A rule in the units of one space's dissimilarity."""

    sd: float  # of the dissimilarity over pairs of different images
    least: float  # |d(ref, left) − d(ref, right)| of a triplet that is drawn is not below it
    share: float  # of random triplets that obey the rule
    temperature: float | None  # of soft votes

    def obeys(self, difference: np.ndarray) -> np.ndarray:
        """Whether triplets with these differences may be drawn; not where one is NaN."""
        return (np.abs(difference) >= self.least) & (difference != 0)

    def votes(self, difference: np.ndarray) -> np.ndarray:
        """(T,) share of votes for right, from d(ref, left) − d(ref, right)."""
        if self.temperature is None:
            return (difference > 0).astype(np.float64)
        return np.exp(-np.logaddexp(0, -difference / self.temperature))  # a sigmoid that does not overflow


def measure(space: Space, images: np.ndarray, rule: Rule) -> Scale:
    """The rule in units of a space, by the pairs and triplets of `images` (M,), or 2^20 random ones of them.

    Numbers are rounded to six digits, so that what the JSON says is what was done.
    Raises ValueError where dissimilarities do not differ.
    """
    if math.comb(len(images), 2) > _SAMPLE:
        i, j = _random_rows(len(images), _SAMPLE)[:, :2].T
    else:
        i, j = np.triu_indices(len(images), 1)
    pairs = space.distances(images[i], images[j][:, None])
    pairs = pairs[np.isfinite(pairs)]
    if not pairs.size or not np.ptp(pairs) > 0:
        raise ValueError("all dissimilarities are the same, or none is finite")
    sd = _rounded(pairs.std())
    difference = differences(space, images[_random_rows(len(images), _SAMPLE)])
    difference = difference[np.isfinite(difference)]
    unit = sd if rule.units == "sd" else 1.0
    margin = 0.5 if rule.margin is None else rule.margin
    if rule.quantile is not None:
        least = _rounded(np.quantile(np.abs(difference), 1 - rule.quantile))
    else:
        least = _rounded(margin * unit)
    temperature = None if rule.soft is None else _rounded(rule.soft * unit)
    scale = Scale(sd=sd, least=least, share=0.0, temperature=temperature)
    share = _rounded(scale.obeys(difference).mean())
    return Scale(sd=sd, least=least, share=share, temperature=temperature)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def draw(
    space: Space, images: np.ndarray, count: int, scale: Scale, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` different triplets of `images` (M,) that obey the rule, in random order.

    Returns (T, 3) int32 numbers of ref, left, right and (T,) float64 d(ref, left) − d(ref, right).  T < count
    if there are no more, or if those left are too rare to be met at random.
    """
    rng = np.random.default_rng(seed)
    if math.comb(len(images), 3) * 3 <= _ALL:
        rows = images[_all_rows(len(images), rng)]
        difference = differences(space, rows)
        chosen = np.flatnonzero(scale.obeys(difference))[:count]
        return rows[chosen], difference[chosen]
    rows, difference = np.empty((0, 3), np.int32), np.empty(0)
    while (before := len(rows)) < count:
        found, tried = [(rows, difference)], 0
        while sum(len(part) for part, _ in found) < count and tried < 64 * _ROUND:
            new = images[random_rows(len(images), _ROUND, rng)]
            new_difference = differences(space, new)
            obeys = scale.obeys(new_difference)
            found.append((new[obeys], new_difference[obeys]))
            tried += _ROUND
        rows, difference = (np.concatenate(parts) for parts in zip(*found))
        first = _first_of_each(rows, space.size)[:count]
        rows, difference = rows[first], difference[first]
        if len(rows) - before < _RARE * tried:
            break
    return rows, difference


def differences(space: Space, rows: np.ndarray) -> np.ndarray:
    """(T,) d(ref, left) − d(ref, right) of (T, 3) images."""
    left, right = space.distances(rows[:, 0], rows[:, 1:]).T
    with np.errstate(invalid="ignore"):  # of two infinite ones
        return left - right


def random_rows(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) int32: three different numbers below `size`, every choice and order as likely."""
    a, b, c = (rng.integers(size - n, size=count, dtype=np.int32) for n in range(3))
    b += b >= a  # it skips a; c skips both, the smaller one first
    c += c >= np.minimum(a, b)
    c += c >= np.maximum(a, b)
    return np.stack([a, b, c], 1)


def _random_rows(size: int, count: int) -> np.ndarray:
    """The same ones every time: measuring does not depend on the seed."""
    return random_rows(size, count, np.random.default_rng(0))


def _all_rows(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size · C(size − 1, 2), 3): every triplet once, in random order and with random sides."""
    left, right = np.triu_indices(size - 1, 1)
    ref = np.repeat(np.arange(size), len(left))
    rows = np.stack([ref, np.tile(left, size), np.tile(right, size)], 1).astype(np.int32)
    rows[:, 1:] += rows[:, 1:] >= rows[:, :1]  # they skip the reference
    swap = rng.random(len(rows)) < 0.5
    rows[swap, 1:] = rows[swap, :0:-1]
    return rng.permutation(rows)


def _first_of_each(rows: np.ndarray, size: int) -> np.ndarray:
    """Where each triplet comes first, whichever side its images are on, in the order of `rows`."""
    ref, left, right = rows.astype(np.int64).T
    keys = (ref * size + np.minimum(left, right)) * size + np.maximum(left, right)
    return np.sort(np.unique(keys, return_index=True)[1])
