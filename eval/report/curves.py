"""The report's curves: training logs, and accuracy against samples seen with the exponent β.

The paper's Figures 3 and 4 need runs evaluated at several checkpoints (`python -m eval.run --watch`);
without them there is no scaling chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.metrics import uncertainty
from eval.metrics.uncertainty import Interval
from eval.report import compare, figures
from eval.report.compare import Measure
from eval.report.figures import Figure, Series
from eval.report.render import minus
from eval.report.runs import Arm, read_log
from eval.sets.catalog import CLASSIFICATION_TASK

# -- training logs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """A figure of metrics.jsonl: its name there, its chart's title."""

    name: str
    title: str
    smooth: bool = False
    percent: bool = False


LOGGED = (
    Logged("loss", "Training loss (moving mean)", smooth=True),
    Logged("val_loss", "Validation loss"),
    Logged("val_twoafc", "Validation 2AFC, majority, %", percent=True),
    Logged("val_twoafc_soft", "Validation 2AFC, share of people, %", percent=True),
    Logged("logit_scale", "Logit scale", smooth=True),
)
FIRST_STAGE = (
    Logged("loss", "Stage 1: loss", smooth=True),
    Logged("twoafc_soft", "Stage 1: 2AFC in training, share of people, %", smooth=True, percent=True),
    Logged("val_twoafc", "Stage 1: validation 2AFC, majority, %", percent=True),
    Logged("val_twoafc_soft", "Stage 1: validation 2AFC, share of people, %", percent=True),
)


def learning(arms: Sequence[Arm]) -> list[Figure]:
    """Charts of each run's metrics.jsonl, and of the first stage's."""
    charts = []
    for logged in LOGGED:
        lines = [
            line
            for number, arm in enumerate(arms)
            for seed, run in enumerate(arm.runs)
            if (line := _line(run.log, logged, arm.label if seed == 0 else "_", number)) is not None
        ]
        if lines:
            charts.append(_chart("curve", logged, lines, "training samples seen"))
    return charts + _first_stage(arms)


def _first_stage(arms: Sequence[Arm]) -> list[Figure]:
    """Stage 1 of the first run that started from one whose log is still there."""
    for number, arm in enumerate(arms):
        start = arm.runs[0].recipe.get("init")
        if not start:
            continue
        places = (Path(start), arm.runs[0].folder.parent / Path(start).name)
        log = next((rows for place in places if (rows := read_log(place))), [])
        lines = [(logged, _line(log, logged, arm.label, number)) for logged in FIRST_STAGE]
        return [
            _chart("stage1", logged, [line], "triplets seen") for logged, line in lines if line is not None
        ]
    return []


def _line(rows: list[dict], logged: Logged, label: str, colour: int) -> Series | None:
    """Against samples: a validation's row has its step alone, and the training row of that step tells."""
    seen = {r["step"]: r["samples"] for r in rows if "samples" in r}
    rows = [r for r in rows if r.get(logged.name) is not None and r["step"] in seen]
    if len(rows) < 2:
        return None
    y = [r[logged.name] for r in rows]
    if logged.smooth:
        y = figures.smoothed(y, max(1, len(y) // 25)).tolist()
    return Series(label, [seen[r["step"]] for r in rows], y, colour, marks=not logged.smooth)


def _chart(prefix: str, logged: Logged, lines: list[Series], xlabel: str) -> Figure:
    return figures.lines(f"{prefix}-{logged.name}", logged.title, lines, xlabel, percent=logged.percent)


# -- scaling --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One arm's accuracy (seeds, sets, points) against samples seen, with its exponent."""

    arm: Arm
    number: int  # of the arm: its colour
    samples: list[int]
    accuracy: np.ndarray
    beta: Interval

    @property
    def slope(self) -> str:
        """β in words."""
        return beta(self.beta)

    @property
    def by_seed(self) -> np.ndarray:
        """(seeds,): each run's β."""
        return uncertainty.slopes(self.samples, self.accuracy.mean(1))


@dataclass(frozen=True, kw_only=True)
class ScalingChart:
    """A figure of a family, or of a set, against samples seen.

    near_chance: names of sets whose slopes mean nothing.
    """

    title: str
    figure: Figure
    curves: list[Curve]
    near_chance: list[str]


class _Panel(NamedTuple):
    title: str
    keys: list[str]
    measure: Measure
    near_chance: list[str]


def scaling(arms: Sequence[Arm], name: str = "scaling") -> list[ScalingChart]:
    """Families, then retrieval; empty when no arm has two evaluated checkpoints.

    name: the charts' files and ids begin with it.
    """
    return _charts(arms, name, _panels(arms))


def scaling_of_sets(arms: Sequence[Arm], name: str) -> list[ScalingChart]:
    """Each set's first figure; empty when no arm has two evaluated checkpoints."""
    datasets = arms[0].first.datasets
    panels = []
    for key in compare.shared_keys([run for arm in arms for run in arm.runs]):
        record = datasets[key]
        for measure in [m for m in compare.measures(record) if m.tested]:
            near_chance = [record["name"]] if record["near_chance"] else []
            panels.append(_Panel(f"{record['name']}, {measure.title}", [key], measure, near_chance))
    return _charts(arms, name, panels)


def _charts(arms: Sequence[Arm], name: str, panels: Sequence[_Panel]) -> list[ScalingChart]:
    points = [_shared_points(arm) for arm in arms]
    if all(len(p) < 2 for p in points):
        return []
    return [_scaling_chart(arms, points, f"{name}-{i:02d}", panel) for i, panel in enumerate(panels)]


def _scaling_chart(
    arms: Sequence[Arm], points: Sequence[list[int]], name: str, panel: _Panel
) -> ScalingChart:
    curves = []
    for number, (arm, at) in enumerate(zip(arms, points)):
        if len(at) > 1:
            accuracy = _accuracy(arm, panel.keys, panel.measure, at)
            exponent = uncertainty.scaling(at, accuracy)
            curves.append(Curve(arm=arm, number=number, samples=at, accuracy=accuracy, beta=exponent))
    series = [Series(c.arm.label, c.samples, c.accuracy.mean((0, 1)), c.number, marks=True) for c in curves]
    xlabel = "training samples seen"
    figure = figures.lines(name, f"{panel.title}, %", series, xlabel, log=True, percent=True)
    return ScalingChart(title=panel.title, figure=figure, curves=curves, near_chance=panel.near_chance)


def _shared_points(arm: Arm) -> list[int]:
    """Samples seen at the checkpoints that every seed of the arm was evaluated at, in order."""
    seen = [{e.samples for e in run.evaluations if e.samples} for run in arm.runs]
    return sorted(set.intersection(*seen))


def _accuracy(arm: Arm, keys: Sequence[str], measure: Measure, points: Sequence[int]) -> np.ndarray:
    """(seeds, sets, points) fractions; NaN where a checkpoint lacks a figure that the last one has."""
    by_samples = [{e.samples: e.datasets for e in run.evaluations} for run in arm.runs]
    return np.array(
        [
            [[at[p].get(key, {}).get("metrics", {}).get(measure.key, np.nan) for p in points] for key in keys]
            for at in by_samples
        ]
    )


def beta(interval: Interval) -> str:
    if np.isnan(interval.value):
        return "β –"
    if interval.low is None:
        return f"β {interval.value:.2f}"
    return minus(f"β {interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})")


def _panels(arms: Sequence[Arm]) -> list[_Panel]:
    """Families, then retrieval."""
    keys = compare.shared_keys([run for arm in arms for run in arm.runs])
    datasets = arms[0].first.datasets
    panels = []
    for measure in (compare.TOP1, compare.TOP5):
        for family, members in compare.families_of(arms[0].runs[0], keys, measure).items():
            near_chance = [datasets[k]["name"] for k in members if datasets[k]["near_chance"]]
            panels.append(_Panel(f"{family}, {measure.title}", members, measure, near_chance))
    for key in keys:
        if datasets[key]["task"] != CLASSIFICATION_TASK:
            for measure in compare.measures(datasets[key]):
                panels.append(_Panel(f"{datasets[key]['name']}, {measure.title}", [key], measure, []))
    return panels
