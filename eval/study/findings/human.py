"""Human similarity of arms against each other, paired by seed, as `paired.py` does for the other figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.alignment.records import SetScores
from eval.metrics import seeds
from eval.report import alignment
from eval.report.alignment import HumanRow
from eval.study.findings.paired import Pair


@dataclass(frozen=True, kw_only=True)
class HumanFigure:
    """A figure of a set: a, b (seeds,) of the pair's common seeds; the row's interval and p are over them."""

    about: SetScores
    a: np.ndarray
    b: np.ndarray
    row: HumanRow

    @property
    def key(self) -> str:
        """Its name in study.json."""
        place = f"human:{self.about.name}/{self.row.measure.key}"
        return f"{place}@{self.row.name}"


def figures(pair: Pair) -> list[HumanFigure]:
    """Every figure that all runs of both arms have; none without a common seed.

    Raises ValueError where they were evaluated on different judgements.
    """
    if not pair.seeds:
        return []
    out = []
    for about, like, *both in alignment.figures_of(pair.a.arm(pair.seeds), pair.b.arm(pair.seeds)):
        a, b = (np.array([score.value for score in values]) for values in both)
        over = seeds.paired(a[None], b[None])[0]
        p = over.p if over.count > 1 else None
        row = alignment.row(like, a, b, over.mean, p=p, seeds=over)
        out.append(HumanFigure(about=about, a=a, b=b, row=row))
    return out
