"""Figures of agreement with people, with intervals: pure functions of the outcomes that `outcomes.py` makes.

N judgements of one set, R resamples.  Outcomes are arrays by name:

    group (N,) int16 into groups (G,) str  the parts of the set
    clusters (N, 0 to 2) int32             what is drawn together: judgements of one reference; pairs in a
                                           matrix by both images, drawn as images; empty: each alone
    METRIC (N,) float64                    of a mean: credit of each judgement, NaN where none is due
    model, people (N,) float32, float64    of all others: larger where two images are more alike
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.alignment.records import CORRELATION, EVERYTHING, MEAN, SHARE
from eval.metrics import uncertainty
from eval.metrics.uncertainty import Interval

Arrays = dict[str, np.ndarray]
RESAMPLES = 1000  # of figures that are no means, each of which is computed anew
_DRAWN_AT_ONCE = 2_000_000


# -- statistics of weighted judgements ------------------------------------------------------------


def weighted_ranks(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks of values that occur `weights` times: codes (N,) their order, ties equal; weights (R, N)."""
    sizes = np.stack([np.bincount(codes, row) for row in weights])
    return (np.cumsum(sizes, 1) - (sizes - 1) / 2)[:, codes]


def spearman(model: np.ndarray, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) Spearman's ρ with ties at their mean rank, as scipy.stats.spearmanr; NaN where one is constant."""
    ranks = [weighted_ranks(np.unique(x, return_inverse=True)[1], weights) for x in (model, people)]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(1, keepdims=True)
        a, b = (x - (weights * x).sum(1, keepdims=True) / total for x in ranks)
        spread = (weights * a**2).sum(1) * (weights * b**2).sum(1)
        return np.where(spread > 0, (weights * a * b).sum(1) / np.sqrt(spread), np.nan)


def kendall(model: np.ndarray, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) Kendall's τ-b (scipy.stats.kendalltau); NaN where one is constant."""
    out = []
    for row in weights.astype(np.int64):
        drawn = np.repeat(np.arange(len(row)), row)
        varied = np.ptp(model[drawn]) > 0 and np.ptp(people[drawn]) > 0
        out.append(float(stats.kendalltau(model[drawn], people[drawn]).statistic) if varied else np.nan)
    return np.array(out)


def precision(model: np.ndarray, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) average precision of "the same" as the threshold on `model` (larger: more alike) falls.

    people (N,): the share that took the two for the same, which counts as that much of a hit.  The area under
    precision, raised to the best at any higher recall: what richzhang/PerceptualSimilarity computes for JND
    (`score_jnd_dataset` in lpips/trainer.py, `voc_ap` in lpips/__init__.py); ssundaram21/dreamsim publishes
    no code for its own.  Pairs of equal `model` count at once, where theirs takes them in the file's order.
    NaN where nobody takes any for the same.
    """
    codes = np.unique(-model, return_inverse=True)[1]
    hits, counted = (np.stack([np.bincount(codes, r) for r in each]) for each in (weights * people, weights))
    hits, counted = np.cumsum(hits, 1), np.cumsum(counted, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(counted > 0, hits / counted, 0)
        recalls = np.diff(hits / hits[:, -1:], axis=1, prepend=0)
    best = np.maximum.accumulate(shares[:, ::-1], 1)[:, ::-1]
    return (recalls * best).sum(1)


Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """title: for people.  statistic: of (model, people, weights (R, N)) → (R,); None for a mean of credits.

    chance: None where it is the share of hits.
    """

    title: str
    unit: str
    chance: float | None
    statistic: Statistic | None = None


METRICS = {
    "twoafc": Metric(title="2AFC (majority)", unit=SHARE, chance=1 / 2),
    "twoafc_soft": Metric(title="2AFC (share of people)", unit=SHARE, chance=1 / 2),
    "odd_one_out": Metric(title="odd one out", unit=SHARE, chance=1 / 3),
    "odd_one_out_soft": Metric(title="odd one out (share of people)", unit=SHARE, chance=1 / 3),
    "srcc": Metric(title="SRCC", unit=CORRELATION, chance=0.0, statistic=spearman),
    "krcc": Metric(title="KRCC", unit=CORRELATION, chance=0.0, statistic=kendall),
    "rsa": Metric(title="RSA (Spearman)", unit=CORRELATION, chance=0.0, statistic=spearman),
    "ap": Metric(title="average precision", unit=SHARE, chance=None, statistic=precision),
}


# -- of the parts of a set --------------------------------------------------------------------------


def groups_of(arrays: Arrays) -> list[str]:
    """The names of the parts that have judgements."""
    present = np.bincount(arrays["group"], minlength=len(arrays["groups"])) > 0
    return [str(name) for name in arrays["groups"][present]]


def part(arrays: Arrays, metric: str, group: str) -> Arrays:
    """The judgements of a group (EVERYTHING: all) that count for the metric, by name."""
    names = [metric] if METRICS[metric].statistic is None else ["model", "people"]
    rows = np.ones(len(arrays["group"]), bool)
    if group != EVERYTHING:
        rows = arrays["group"] == arrays["groups"].tolist().index(group)
    rows &= ~np.isnan(arrays[names[0]])
    return {name: arrays[name][rows] for name in (*names, "clusters")}


def _values(held: Sequence[Arrays], metric: str, weights: np.ndarray) -> np.ndarray:
    """(R, runs)"""
    statistic = METRICS[metric].statistic
    assert statistic is not None
    pairs = [(x["model"].astype(float), x["people"].astype(float)) for x in held]
    return np.stack([statistic(model, people, weights) for model, people in pairs], 1)


def value(arrays: Arrays, metric: str, group: str) -> float:
    """The figure; NaN where it is not defined."""
    if group == MEAN:
        return float(np.mean([value(arrays, metric, each) for each in groups_of(arrays)]))
    held = part(arrays, metric, group)
    if METRICS[metric].statistic is None:
        return float(held[metric].astype(float).mean()) if len(held[metric]) else float("nan")
    return float(_values([held], metric, np.ones((1, len(held["model"]))))[0, 0])


def counted(arrays: Arrays, metric: str, group: str) -> int:
    """How many judgements the figure is of."""
    return len(part(arrays, metric, EVERYTHING if group == MEAN else group)["clusters"])


def chance(arrays: Arrays, metric: str, group: str) -> float | None:
    """What guessing gets; of average precision, the share of hits."""
    if METRICS[metric].chance is not None:
        return METRICS[metric].chance
    return None if group == MEAN else float(part(arrays, metric, group)["people"].mean())


def resampled(runs: Sequence[Arrays], metric: str, group: str, rng: np.random.Generator) -> np.ndarray | None:
    """(R, runs): the figure of each model on resampled judgements, the same ones for all.

    None where there is only one thing to draw.
    """
    if group == MEAN:
        each = [resampled(runs, metric, name, rng) for name in groups_of(runs[0])]
        known = [values for values in each if values is not None]
        return np.mean(known, 0) if len(known) == len(each) else None
    held = [part(arrays, metric, group) for arrays in runs]
    clusters = held[0]["clusters"]
    if not clusters.shape[1]:
        clusters = np.arange(len(clusters))[:, None]
    names, numbers = np.unique(clusters, return_inverse=True)
    numbers = numbers.reshape(clusters.shape)
    if len(names) < 2:
        return None
    if METRICS[metric].statistic is None:
        alone = len(names) == len(numbers)
        credits = [x[metric].astype(float) for x in held]
        sums = [uncertainty.cluster_sums(c, None if alone else numbers[:, 0]) for c in credits]
        return uncertainty.resampled_means(np.concatenate(sums, 1), _many(metric), rng)
    out = []
    block = max(1, _DRAWN_AT_ONCE // len(numbers))
    for start in range(0, _many(metric), block):
        count = min(block, _many(metric) - start)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), count)
        out.append(_values(held, metric, np.prod([drawn[:, column] for column in numbers.T], 0, float)))
    return np.concatenate(out)


def _many(metric: str) -> int:
    """How often to resample."""
    return uncertainty.RESAMPLES if METRICS[metric].statistic is None else RESAMPLES


def _percentiles(of: float, drawn: np.ndarray | None) -> Interval:
    if drawn is None or not np.isfinite(of):
        return Interval(of, None, None)
    drawn = drawn[np.isfinite(drawn)]  # a resample may hold one value only
    return uncertainty.percentiles(of, drawn) if len(drawn) else Interval(of, None, None)


def interval(arrays: Arrays, metric: str, group: str, seed: int = 0) -> Interval:
    """The figure with its 95 % interval over judgements (percentiles of a bootstrap of the clusters).

    No interval where all resamples agree: three right of three do not make 100 % certain.
    """
    drawn = resampled([arrays], metric, group, np.random.default_rng(seed))
    varied = drawn is not None and np.nanmin(drawn) < np.nanmax(drawn)
    return _percentiles(value(arrays, metric, group), drawn[:, 0] if drawn is not None and varied else None)


def difference(a: Sequence[Arrays], b: Sequence[Arrays], metric: str, group: str) -> Interval:
    """Mean figure of the models `a` minus that of `b` on the same judgements, drawn in pairs."""
    of = [float(np.mean([value(arrays, metric, group) for arrays in runs])) for runs in (a, b)]
    drawn = resampled([*a, *b], metric, group, np.random.default_rng(0))
    if drawn is None:
        return Interval(of[0] - of[1], None, None)
    return _percentiles(of[0] - of[1], drawn[:, : len(a)].mean(1) - drawn[:, len(a) :].mean(1))
