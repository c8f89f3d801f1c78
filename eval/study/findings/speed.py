"""Learning speed: how many samples an arm needs to reach the baseline's final figure.

Read off each run's evaluated checkpoints, by straight lines over log(samples); each seed has its own
baseline's figure as target.  The baseline's own need is read off by the same rule, since a curve that goes up
and down reaches its final figure before its end.

A run that never reaches the target within its training needs more than it got: its value is infinite.  One
that is past it at its first checkpoint needed no more than that: its value is that checkpoint's.  Both are
counted.  So the centre is the median, whose interval between order statistics holds for infinite values too,
and the test is the sign test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import seeds
from eval.metrics.uncertainty import Interval
from eval.report.runs import Run
from eval.study.findings.paired import Pair, Quantity


def reach(samples: Sequence[float], figure: Sequence[float], target: float) -> float:
    """Samples at which a curve first is at `target`; inf where it never is, NaN without a curve or target.

    samples (points,) rising, figure (points,).
    """
    x, y = np.asarray(samples, float), np.asarray(figure, float)
    known = np.isfinite(y) & (x > 0)
    x, y = x[known], y[known]
    if len(x) < 2 or not np.isfinite(target):
        return float("nan")
    if not (y >= target).any():
        return float("inf")
    i = int(np.argmax(y >= target))
    if i == 0:
        return float(x[0])
    share = (target - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] * (x[i] / x[i - 1]) ** share)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of the seeds of a pair that have curves, in order: samples that arm and baseline needed.

    median: of the arm's need.  ratio: of its need to the baseline's.  p: sign test of the ratio against 1.
    never: seeds that did not reach the target.  at_once: seeds past it at their first checkpoint.
    """

    pair: Pair
    seeds: list[int]
    targets: np.ndarray
    needed: np.ndarray
    baseline: np.ndarray
    median: Interval
    ratio: Interval
    p: float
    never: int
    at_once: int


def _curve(run: Run, quantity: Quantity) -> tuple[list[float], list[float]]:
    at = {e.samples: quantity.of(e) for e in run.evaluations if e.samples}
    return list(at), list(at.values())


def speed(pair: Pair) -> Speed | None:
    """None where no seed has two evaluated checkpoints in both arms, or there is no mean of sets."""
    leading = pair.leading
    if leading is None:
        return None
    rows = []
    for i, seed in enumerate(pair.seeds):
        arm, base = (_curve(one.runs[seed], leading.quantity) for one in (pair.a, pair.b))
        target = float(leading.b[i])
        of_arm, of_base = reach(*arm, target), reach(*base, target)
        if np.isfinite(of_base) and not np.isnan(of_arm):
            rows.append((seed, target, of_arm, of_base, of_arm == arm[0][0]))
    if not rows:
        return None
    which, *columns = zip(*rows)
    targets, needed, baseline, at_once = map(np.array, columns)
    return Speed(
        pair=pair,
        seeds=list(which),
        targets=targets,
        needed=needed,
        baseline=baseline,
        median=seeds.median(needed),
        ratio=seeds.median(needed / baseline),
        p=seeds.sign_test(np.log(needed / baseline)),
        never=int(np.isinf(needed).sum()),
        at_once=int(at_once.sum()),
    )
