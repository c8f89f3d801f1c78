"""Arms of a study against each other, paired by seed: computing only.

Chance here is that of training, so every interval and p is over seeds.  What the choice of test images adds
is in the report of two arms (`python -m eval.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.metrics import seeds
from eval.metrics.seeds import Seeds
from eval.metrics.uncertainty import Interval
from eval.report import compare
from eval.report.compare import TOP1, TOP5, Comparison, FamilyRow, Measure, Row, SetRow
from eval.report.runs import Arm
from eval.results import Evaluation
from eval.sets import catalog
from eval.study.findings.finished import CONTROL, SUBJECT, Group, StudyArm

MEAN, FAMILY, SET, TRIPLETS = "mean", "family", "set", "triplets"
POINTS = (0.005, 0.01, 0.02)  # differences whose number of seeds is predicted
TRIPLET_KEY = "triplets"
_COUNTS = ("triplets", "ceiling")  # of the data, the same for every model


# -- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A figure that every evaluation has: of a set, of the triplets, or a mean over sets.

    kind: MEAN, FAMILY, SET or TRIPLETS.  near_chance: as in the catalog; samples: queries of a set.
    """

    kind: str
    name: str
    measure: Measure
    sets: tuple[str, ...]
    family: str = ""
    near_chance: bool = False
    samples: int = 0

    @property
    def place(self) -> str:
        """The set's key, TRIPLET_KEY, or `family:NAME`."""
        return self.sets[0] if self.kind in (SET, TRIPLETS) else f"{self.kind}:{self.name}"

    @property
    def key(self) -> str:
        """Its name in study.json."""
        return f"{self.place}/{self.measure.key}"

    def of(self, evaluation: Evaluation) -> float:
        """NaN where the evaluation lacks the set or the figure."""
        records = evaluation.datasets | {TRIPLET_KEY: evaluation.data.get("triplets") or {}}
        values = [records.get(key, {}).get("metrics", {}).get(self.measure.key) for key in self.sets]
        return float(np.mean([np.nan if v is None else v for v in values]))

    def values(self, arm: Arm) -> np.ndarray:
        """(seeds,)"""
        return np.array(arm.values(self.of))


def primary(arms: Sequence[Arm]) -> Quantity | None:
    """Mean top-1 over the paper's families that all these arms have; over whatever sets there are, else."""
    keys = compare.shared_keys([run for arm in arms for run in arm.runs])
    families = compare.families_of(arms[0].runs[0], keys, TOP1)
    sets = [k for family, members in families.items() if family in catalog.FAMILIES for k in members]
    sets = sets or [k for members in families.values() for k in members]
    return Quantity(kind=MEAN, name="Mean of the sets", measure=TOP1, sets=tuple(sets)) if sets else None


def quantities(arms: Sequence[Arm]) -> list[Quantity]:
    """Every figure that all these arms have: the mean, families, sets, triplets."""
    runs = [run for arm in arms for run in arm.runs]
    keys, first = compare.shared_keys(runs), arms[0].first
    having = {measure: compare.families_of(runs[0], keys, measure) for measure in (TOP1, TOP5)}
    out = [mean] if (mean := primary(arms)) else []
    for family in having[TOP1]:
        for measure, families in having.items():
            if family in families:
                sets = tuple(families[family])
                out.append(Quantity(kind=FAMILY, name=family, measure=measure, sets=sets, family=family))
    for key in keys:
        record = first.datasets[key]
        about = {name: record[name] for name in ("name", "family", "near_chance", "samples")}
        out += [Quantity(kind=SET, measure=m, sets=(key,), **about) for m in compare.measures(record)]
    if all(run.final.data.get("triplets") for run in runs):
        metrics = first.data["triplets"]["metrics"]
        measures = [m for m in compare.twoafc(metrics) if m.key in metrics]
        count = int(metrics.get("triplets", 0))
        out += [
            Quantity(kind=TRIPLETS, name=m.title, measure=m, sets=(TRIPLET_KEY,), samples=count)
            for m in measures
        ]
    return out


# -- pairs of arms --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A quantity of two arms over their common seeds: values (seeds,) of each, and what they come to."""

    quantity: Quantity
    a: np.ndarray
    b: np.ndarray
    row: Row

    @property
    def seeds(self) -> Seeds:
        assert self.row.seeds is not None
        return self.row.seeds

    @property
    def sd(self) -> Interval:
        """Of arm `a` over these seeds."""
        return seeds.spread(self.a[None])[0]

    @property
    def correlation(self) -> Interval:
        """Of the two arms by seed: how much pairing gains."""
        return seeds.correlation(self.a, self.b)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Arm `a` against arm `b` over the seeds that both have finished, in order."""

    a: StudyArm
    b: StudyArm
    seeds: list[int]
    figures: list[Figure]

    def rows(self, *kinds: str) -> list:
        return [figure.row for figure in self.figures if figure.quantity.kind in kinds]

    @property
    def comparison(self) -> Comparison:
        """As the report's other parts take it; p is of the sign-flip test, intervals are over seeds."""
        return Comparison(
            a=self.a.arm(self.seeds),
            b=self.b.arm(self.seeds),
            rows=self.rows(SET),
            families=self.rows(FAMILY),
            primary=next(iter(self.rows(MEAN)), None),
            triplets=self.rows(TRIPLETS),
        )

    @property
    def leading(self) -> Figure | None:
        """What the verdict is about: the mean of the sets; else the triplets; else the first figure."""
        order = (MEAN, TRIPLETS, FAMILY, SET)
        ranked = sorted(self.figures, key=lambda figure: order.index(figure.quantity.kind))
        return ranked[0] if ranked else None

    @property
    def only(self) -> dict[str, list[int]]:
        """Label → seeds that only this arm has finished, so that they do not count."""
        both = ((self.a, self.b), (self.b, self.a))
        return {one.label: [s for s in one.runs if s not in other.runs] for one, other in both}


def pair(a: StudyArm, b: StudyArm) -> Pair:
    """Every figure that both have; without figures where they share no seed or no set."""
    common = [seed for seed in a.runs if seed in b.runs]
    if not common:
        return Pair(a=a, b=b, seeds=[], figures=[])
    of_a, of_b = a.arm(common), b.arm(common)
    every = quantities([of_a, of_b])
    if not every:
        return Pair(a=a, b=b, seeds=common, figures=[])
    values = [np.array([q.values(arm) for q in every]) for arm in (of_a, of_b)]
    found = [_figure(*each) for each in zip(every, *values, seeds.paired(*values))]
    adjusted = compare.with_holm([figure.row for figure in found if isinstance(figure.row, SetRow)])
    by_row = {(row.key, row.measure.key): row for row in adjusted}
    for i, figure in enumerate(found):
        if figure.quantity.kind == SET:
            row = by_row[figure.quantity.sets[0], figure.quantity.measure.key]
            found[i] = replace(figure, row=row)
    return Pair(a=a, b=b, seeds=common, figures=found)


def _figure(quantity: Quantity, a: np.ndarray, b: np.ndarray, over: Seeds) -> Figure:
    have = np.isfinite(a - b)
    row: dict[str, Any] = {
        "name": quantity.name,
        "measure": quantity.measure,
        "a": float(a[have].mean()) if have.any() else float("nan"),
        "b": float(b[have].mean()) if have.any() else float("nan"),
        "delta": over.mean,
        "p": over.p if over.count > 1 else None,
        "seeds": over,
    }
    if quantity.kind in (MEAN, FAMILY):
        return Figure(quantity=quantity, a=a, b=b, row=FamilyRow(sets=len(quantity.sets), **row))
    about: dict[str, Any] = {name: getattr(quantity, name) for name in ("samples", "family", "near_chance")}
    return Figure(quantity=quantity, a=a, b=b, row=SetRow(key=quantity.sets[0], **about, **row))


def against_baseline(group: Group) -> list[Pair]:
    """Each other arm against the group's baseline; empty without one."""
    baseline = group.baseline
    return [] if baseline is None else [pair(arm, baseline) for arm in group.finished if arm is not baseline]


def against_controls(group: Group) -> list[Pair]:
    """Each subject minus each control: the part of its effect that the control lacks."""
    return [pair(s, control) for s in group.of_role(SUBJECT) for control in group.of_role(CONTROL)]


# -- spread over seeds ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviation over seeds of one metric of one arm; seeds: how many have it."""

    values: np.ndarray
    seeds: int
    sd: Interval


def spreads(arm: StudyArm) -> dict[tuple[str, str], Spread]:
    """(set, TRIPLET_KEY, or a mean's `place`; metric) → its spread: of every metric that any seed has."""
    means = [q for q in quantities([arm.arm()]) if q.kind in (MEAN, FAMILY)]
    rows = {(q.place, q.measure.key): q.values(arm.arm()) for q in means}
    records = [
        run.final.datasets | {TRIPLET_KEY: run.final.data.get("triplets") or {}} for run in arm.runs.values()
    ]
    for key, metric in [(k, m) for record in records for k in record for m in record[k].get("metrics", {})]:
        if metric.partition("@")[0] not in _COUNTS and (key, metric) not in rows:
            values = [record.get(key, {}).get("metrics", {}).get(metric) for record in records]
            rows[key, metric] = np.array([np.nan if v is None else v for v in values], float)
    found = zip(rows.values(), seeds.spread(np.array([*rows.values()])))
    return {
        name: Spread(values=values, seeds=int(np.isfinite(values).sum()), sd=sd)
        for name, (values, sd) in zip(rows, found)
    }


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Seeds that a true difference (a fraction) takes at power 80 %.

    sd: of the paired differences, or the two arms' pooled one.  range: counts at both ends of its interval.
    A count of None: not known, or more than 100,000.
    """

    difference: float
    of_pairs: bool
    sd: Interval
    count: int | None
    range: tuple[int | None, int | None]


def needs(figure: Figure) -> list[Needs]:
    """For each of POINTS, paired and unpaired."""
    a, b = seeds.spread(np.array([figure.a, figure.b]))
    pooled = Interval(float(np.sqrt((a.value**2 + b.value**2) / 2)), None, None)
    if a.ends and b.ends:
        low, high = (float(np.sqrt((x**2 + y**2) / 2)) for x, y in zip(a.ends, b.ends))
        pooled = Interval(pooled.value, low, high)  # wider than 95 %: both at their ends at once
    return [
        _needs(difference, of_pairs, sd)
        for of_pairs, sd in ((True, figure.seeds.sd), (False, pooled))
        for difference in POINTS
    ]


def _needs(difference: float, of_pairs: bool, sd: Interval) -> Needs:
    ends = sd.ends or (float("nan"), float("nan"))
    low, high = (seeds.needed(end, difference, of_pairs) for end in ends)
    count = seeds.needed(sd.value, difference, of_pairs)
    return Needs(difference=difference, of_pairs=of_pairs, sd=sd, count=count, range=(low, high))
