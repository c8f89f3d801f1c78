"""Dose–response: a figure against the share of triplets, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import seeds
from eval.metrics.seeds import Seeds
from eval.metrics.uncertainty import Interval
from eval.study.findings import paired
from eval.study.findings.finished import BASELINE, DOSE, Group, StudyArm
from eval.study.findings.paired import Figure, Pair, Quantity


@dataclass(frozen=True, kw_only=True)
class Dose:
    """One dose: values (seeds,) of its finished seeds and their mean.  against: None without a baseline."""

    arm: StudyArm
    x: float
    values: np.ndarray
    mean: Interval
    against: Figure | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series' doses, rising.

    slopes (seeds,): least-squares points per tenfold of triplets, of the seeds that have every dose.
    trend: over them; None below two doses or without such a seed.
    """

    series: str
    quantity: Quantity
    doses: list[Dose]
    baseline: Interval | None
    seeds: list[int]
    slopes: np.ndarray
    trend: Seeds | None


def curves(group: Group, pairs: Sequence[Pair]) -> list[Curve]:
    """Of every series in order of appearance: the mean of the sets, and each family's top-1.

    pairs: arms against the group's baseline.
    """
    dosed = [arm for arm in group.finished if arm.plan.dose is not None and arm.plan.role != BASELINE]
    if not any(arm.plan.role == DOSE for arm in dosed):
        return []
    named = dict.fromkeys(arm.plan.series for arm in dosed if arm.plan.series)
    out = []
    for series in named or [""]:
        members = [arm for arm in dosed if arm.plan.series in ("", series)]
        members.sort(key=lambda arm: arm.plan.dose or 0)
        out += _of_series(group.baseline, pairs, series, members)
    return out


def _of_series(
    baseline: StudyArm | None, pairs: Sequence[Pair], series: str, members: Sequence[StudyArm]
) -> list[Curve]:
    """Of the figures that all its doses, and the baseline, have."""
    wanted = (paired.MEAN, paired.FAMILY)
    every = paired.quantities([arm.arm() for arm in (*members, *([baseline] if baseline else []))])
    kept = [q for q in every if q.kind in wanted and q.measure is paired.TOP1]
    figures = {pair.a.label: pair.figures for pair in pairs}
    return [_curve(series, q, members, baseline, figures) for q in kept]


def _curve(
    series: str,
    quantity: Quantity,
    members: Sequence[StudyArm],
    baseline: StudyArm | None,
    figures: dict[str, list[Figure]],
) -> Curve:
    doses = []
    for arm in members:
        values = quantity.values(arm.arm())
        found = [f for f in figures.get(arm.label, ()) if f.quantity == quantity]
        doses.append(
            Dose(
                arm=arm,
                x=float(arm.plan.dose or 0),
                values=values,
                mean=seeds.over(values).mean,
                against=found[0] if found else None,
            )
        )
    common = [seed for seed in members[0].runs if all(seed in arm.runs for arm in members)]
    slopes = _slopes(quantity, members, common)
    kept = np.isfinite(slopes)
    return Curve(
        series=series,
        quantity=quantity,
        doses=doses,
        baseline=None if baseline is None else seeds.over(quantity.values(baseline.arm())).mean,
        seeds=[seed for seed, keep in zip(common, kept) if keep],
        slopes=slopes[kept],
        trend=seeds.over(slopes[kept]) if kept.any() else None,
    )


def _slopes(quantity: Quantity, members: Sequence[StudyArm], common: Sequence[int]) -> np.ndarray:
    """(seeds,) of a straight line through the figure against log10(dose); NaN where a dose lacks it."""
    x = np.log10([arm.plan.dose or np.nan for arm in members])
    if not common or np.ptp(x) == 0:
        return np.empty(0)
    y = np.array([quantity.values(arm.arm(common)) for arm in members])  # (doses, seeds)
    dx = x - x.mean()
    return (dx[:, None] * y).sum(0) / (dx**2).sum()
