"""The study's page: charts and examples of each group, and what the templates need; no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eval.metrics.uncertainty import Interval
from eval.report import alignment, compare, figures, panels, paper, provenance, summary
from eval.report.compare import TOP1, TOP5, Measure, Row
from eval.report.figures import Figure, Series
from eval.report.panels import RetrievalPanel
from eval.report.render import render
from eval.report.runs import Arm
from eval.results import Evaluation
from eval.sets import catalog
from eval.study.findings import paired, words
from eval.study.findings.analysis import Analysis
from eval.study.findings.dose import Curve
from eval.study.findings.finished import Group, StudyArm, uneven
from eval.study.findings.paired import FAMILY, MEAN, SET, TRIPLETS, Pair, Spread

MORE = 3  # queries of each kind of outcome in the appendix


@dataclass(frozen=True)
class Part:
    """A group on the page: its analysis, and what is drawn of it."""

    analysis: Analysis

    @property
    def group(self) -> Group:
        return self.analysis.group

    @property
    def _name(self) -> str:
        return f"g{self.analysis.number}"

    # -- differences ----------------------------------------------------------------------------------

    def family_charts(self, measure: Measure) -> list[Figure]:
        """Figure 2 for all arms: one chart for the mean and for each family, on one axis."""
        by_name: dict[str, list[tuple[int, str, Interval]]] = {}
        for pair in self.analysis.pairs:
            for row in pair.rows(MEAN, FAMILY):
                if row.measure is measure:
                    by_name.setdefault(row.name, []).append((pair.a.number, pair.a.label, row.delta))
        every = [delta for rows in by_name.values() for _, _, delta in rows]
        reach = [abs(x) for delta in every for x in (delta.value, *(delta.ends or ()))]
        limit = max(filter(np.isfinite, reach), default=0.0)
        return [
            figures.deltas(f"{self._name}-{measure.key}-{i}", f"{name}, {measure.title}", rows, limit)
            for i, (name, rows) in enumerate(by_name.items())
        ]

    def axis(self, pairs: Sequence[Pair], *kinds: str) -> float:
        """Limit of the axis that shows these pairs' rows."""
        return summary.limit([row for pair in pairs for row in pair.rows(*kinds)])

    def cautions(self) -> list[str]:
        """What a reader must know of the sets."""
        return summary.set_cautions(row.key for pair in self.analysis.pairs for row in pair.rows(SET))

    def means(self) -> dict[str, list[tuple[Pair, Row]]]:
        """Mean, family or triplets, and figure → each arm's row, in the report's order."""
        out: dict[str, list[tuple[Pair, Row]]] = {}
        for pair in self.analysis.pairs:
            for figure in pair.figures:
                if figure.quantity.kind in (MEAN, FAMILY, TRIPLETS):
                    title = ", ".join(dict.fromkeys((figure.quantity.name, figure.row.measure.title)))
                    out.setdefault(title, []).append((pair, figure.row))
        return out

    @cached_property
    def human_chart(self) -> Figure | None:
        """Of the arms that were evaluated on human similarity."""
        held = {arm.number: arm.arm() for arm in self.group.finished}
        arms = {n: arm for n, arm in held.items() if all(alignment.read(run) is not None for run in arm.runs)}
        return alignment.chart(f"{self._name}-human", arms) if arms else None

    def human_axis(self) -> float:
        """Limit of the axis that shows all their differences."""
        return summary.limit([figure.row for _, found in self.analysis.human for figure in found])

    def speed_of(self, pair: Pair) -> object:
        return next((found for found in self.analysis.speeds if found.pair is pair), None)

    # -- spread ---------------------------------------------------------------------------------------

    def spread_rows(self, means: bool) -> list[tuple[str, str, list[Spread | None]]]:
        """(set or family, metric, each arm's spread); means: those of means, else those of single sets."""
        arms = [self.analysis.spreads[arm.label] for arm in self.group.finished]
        names = dict.fromkeys(name for arm in arms for name in arm)
        return [
            (self._title(place), metric, [arm.get((place, metric)) for arm in arms])
            for place, metric in names
            if (":" in place) == means
        ]

    def _title(self, place: str) -> str:
        """The name of a set, or of a family, for people."""
        for arm in self.group.finished:
            for run in arm.runs.values():
                if place in run.final.datasets:
                    return run.final.datasets[place]["name"]
        return place.partition(":")[2] or "Triplets"

    # -- curves ---------------------------------------------------------------------------------------

    def legend(self, place: str) -> Figure | None:
        """Names of the lines, where a chart has no room for them; place: its part of the page."""
        arms = self.group.finished
        if len(arms) <= figures.MOST_NAMED:
            return None
        return figures.legend(f"{self._name}-legend-{place}", {i: arm.label for i, arm in enumerate(arms)})

    @cached_property
    def dose_charts(self) -> list[Figure]:
        """The figure of every quantity, its series as lines, beside the baseline's."""
        by_quantity: dict[str, list[Curve]] = {}
        for curve in self.analysis.doses:
            by_quantity.setdefault(curve.quantity.key, []).append(curve)
        return [
            _dose_chart(f"{self._name}-dose-{i}", curves) for i, curves in enumerate(by_quantity.values())
        ]

    # -- examples -------------------------------------------------------------------------------------

    @cached_property
    def _shown(self) -> tuple[Arm, Arm] | None:
        """The first judged arm that has a pair, and the baseline: their first common seed, read whole."""
        pair = next((pair for pair in self.analysis.judged if pair.figures), None)
        if pair is None:
            return None
        a, b = (_whole(arm, pair.seeds[0]) for arm in (pair.a, pair.b))
        for key in compare.shared_keys([*a.runs, *b.runs]):
            if a.first.datasets[key]["task"] == catalog.RETRIEVAL_TASK:
                compare.check_same(key, [*a.runs, *b.runs])
        return a, b

    def retrieval(self, more: bool = False) -> list[RetrievalPanel]:
        """Figure 5; more: the further queries of the appendix."""
        if self._shown is None:
            return []
        return panels.retrieval_panels(*self._shown, *((MORE, panels.EACH) if more else ()))


def _whole(arm: StudyArm, seed: int) -> Arm:
    """One run with its texts, which the others are kept without."""
    run = arm.runs[seed]
    return Arm(arm.label, [replace(run, evaluations=[Evaluation.read(run.final.folder)])])


def _dose_chart(name: str, curves: Sequence[Curve]) -> Figure:
    quantity = curves[0].quantity
    lines = [
        Series(
            curve.series or "arms",
            [d.x for d in curve.doses],
            [d.mean.value for d in curve.doses],
            number if number == 0 else number + 1,  # the baseline's colour is kept for it
            marks=True,
            ends=np.array([d.mean.ends or (np.nan, np.nan) for d in curve.doses]),
        )
        for number, curve in enumerate(curves)
    ]
    if curves[0].baseline is not None:
        ends = [min(s for line in lines for s in line.x), max(s for line in lines for s in line.x)]
        lines.append(Series("baseline", ends, [curves[0].baseline.value] * 2, 1))
    title = f"{quantity.name}, {quantity.measure.title}, %"
    return figures.lines(name, title, lines, "share of the triplets", log=True, percent=True)


def within(arm: StudyArm) -> list[str]:
    """Settings in which the seeds of one arm differ, other than by the seed itself."""
    differing = provenance.settings([*arm.runs.values()])["differing"]
    return [name for name in differing if name.rpartition(".")[2] not in ("seed", "init", "data")]


def build(name: str, description: str, analyses: Sequence[Analysis]) -> str:
    """The page."""
    parts = [Part(analysis) for analysis in analyses]
    finished = [arm for analysis in analyses for arm in analysis.group.finished]
    first = [
        _whole(arm, next(iter(arm.runs))) if i == 0 else arm.arm([*arm.runs][:1])
        for i, arm in enumerate(finished)
    ]
    judged = [pair for analysis in analyses for pair in analysis.judged if pair.figures]
    return render(
        "study.html.j2",
        title=name,
        description=description,
        parts=parts,
        words=words,
        points=paired.POINTS,
        needs=paired.needs,
        uneven=uneven,
        measures={"top-1": TOP1, "top-5": TOP5},
        in_paper=[
            (row, cells)
            for row in (judged[0].comparison.rows if judged else [])
            if (cells := paper.printed(row))
        ],
        sections=[{"comparison": judged[0].comparison}] if judged else [],
        paper_checks=len(paper.checks()),
        paper_remarks=paper.remarks(),
        arms=first,
        within={arm.label: names for arm in finished if (names := within(arm))},
        votes_of=provenance.votes,
        first=first[0].first.data,
        not_shared=provenance.not_shared([arm.runs[0] for arm in first]),
        paper_sets=len(catalog.PAPER),
        settings=provenance.settings([arm.runs[0] for arm in first]),
        checkpoint=provenance.checkpoint,
    )
