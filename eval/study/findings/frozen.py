"""Downstream figures of arms against each other, paired by seed: what frozen features are good for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.downstream.records import METRICS, SHARE
from eval.downstream.records import Figure as Downstream
from eval.metrics import seeds
from eval.metrics.seeds import Seeds
from eval.report import downstream
from eval.study.findings.paired import Pair


@dataclass(frozen=True, kw_only=True)
class FrozenFigure:
    """A figure of a set: a, b (seeds,) of the pair's common seeds, and their difference over seeds."""

    about: Downstream
    a: np.ndarray
    b: np.ndarray
    over: Seeds

    @property
    def title(self) -> str:
        return METRICS[self.about.metric][0]

    @property
    def is_share(self) -> bool:
        """Else an error in objects, of which less is better."""
        return METRICS[self.about.metric][1] == SHARE

    def number(self, value: float) -> str:
        """For people: percent, or objects."""
        return f"{100 * value:.2f}" if self.is_share else f"{value:.2f}"


def figures(pair: Pair) -> list[FrozenFigure]:
    """Every figure that all runs of both arms have of the same data; none without a common seed."""
    if not pair.seeds:
        return []
    held = []
    for arm in (pair.a.arm(pair.seeds), pair.b.arm(pair.seeds)):
        of_runs = [downstream.figures_of(run, arm.label, []) for run in arm.runs]
        held.append([{(f.key, f.metric): f for f in found} for found in of_runs])
    every = [run for arm in held for run in arm]
    out = []
    for name, about in every[0].items():
        found = [run.get(name) for run in every]
        there = [figure for figure in found if figure is not None]
        if len(there) < len(every) or len({downstream.data_of(figure) for figure in there}) > 1:
            continue
        a, b = (np.array([run[name].value for run in arm]) for arm in held)
        out.append(FrozenFigure(about=about, a=a, b=b, over=seeds.paired(a[None], b[None])[0]))
    return out
