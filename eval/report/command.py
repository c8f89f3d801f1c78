"""One page that says what an evaluation found: tables, curves, images, settings, and how sure it is.

    python -m eval.report PI=runs/demo/pi Baseline=runs/demo/baseline --out runs/demo/report
    python -m eval.report PI=runs/pi-0 PI=runs/pi-1 Baseline=runs/base-0 Baseline=runs/base-1 --out report

Runs with one label are seeds of one arm; without a label a run is called as its folder.  The last label is
the baseline that the others are set against.  The page is one file without any reference to the network;
charts also go to OUT/figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import tyro

from eval.report import (
    alignment,
    compare,
    curves,
    downstream,
    figures,
    panels,
    paper,
    provenance,
    runs,
    summary,
)
from eval.report.alignment import HumanSet
from eval.report.compare import TOP1, TOP5, Comparison
from eval.report.figures import Figure
from eval.report.panels import RetrievalPanel, Trio
from eval.report.render import render, signed
from eval.sets import catalog
from pipeline.base import console, files


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report of evaluated runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[LABEL=]RUN")]
    """Evaluated runs, the baseline last; one label for all seeds of an arm."""
    out: Path
    """The report's folder."""
    title: str = ""
    """The page's heading."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one evaluated run")


# -- what the page shows ----------------------------------------------------------------------------


def _file_name(comparison: Comparison, *what: str) -> str:
    """Of a chart of one comparison."""
    return re.sub(r"[^\w-]+", "-", "-".join((*what, comparison.a.label, comparison.b.label)))


@dataclass(frozen=True)
class Section:
    """A comparison with what is drawn of it."""

    comparison: Comparison

    @cached_property
    def charts(self) -> list[Figure]:
        """Figure 2: means of the families; empty when only one family was evaluated."""
        if len({row.name for row in self.comparison.families}) < 2:
            return []
        charts, a, b = [], self.comparison.a, self.comparison.b
        for measure in (TOP1, TOP5):
            if rows := [row for row in self.comparison.families if row.measure is measure]:
                chart = figures.bars(
                    name=_file_name(self.comparison, "families", measure.title),
                    title=f"Mean {measure.title}, %",
                    groups=[row.name for row in rows],
                    values={a.label: [row.a for row in rows], b.label: [row.b for row in rows]},
                    deltas=[signed(row.delta.value) for row in rows],
                )
                charts.append(chart)
        return charts

    @cached_property
    def trios(self) -> list[Trio]:
        return panels.trios(self.comparison)

    @cached_property
    def human(self) -> list[HumanSet]:
        return alignment.compare(self.comparison.a, self.comparison.b)

    @cached_property
    def retrieval(self) -> list[RetrievalPanel]:
        return panels.retrieval_panels(self.comparison.a, self.comparison.b)


def build(options: Report) -> tuple[str, list[Figure]]:
    """(the page, its charts).  Raises ValueError for runs that cannot be compared."""
    arms = runs.arms(options.runs)
    every = [run for arm in arms for run in arm.runs]
    sections = [Section(compare.compare(arm, arms[-1])) for arm in arms[:-1]]
    scaling, learning = curves.scaling(arms), curves.learning(arms)
    human = alignment.chart("human-similarity", dict(enumerate(arms)))
    others = " and ".join(arm.label for arm in arms[:-1])
    page = render(
        title=options.title or (f"{others} against {arms[-1].label}" if others else arms[0].label),
        arms=arms,
        sections=sections,
        single=[] if sections else summary.single_rows(arms[0]),
        human_alone=[] if sections else alignment.alone(arms[0]),
        human_chart=human,
        human_notes=alignment.notes(arms),
        votes_of=provenance.votes,
        downstream=downstream.section(arms),
        scaling=scaling,
        learning=learning,
        summary=summary,
        in_paper=[
            (row, cells)
            for row in (sections[0].comparison.rows if sections else [])
            if (cells := paper.printed(row))
        ],
        paper_checks=len(paper.checks()),
        paper_remarks=paper.remarks(),
        first=arms[0].first.data,
        not_shared=provenance.not_shared(every),
        paper_sets=len(catalog.PAPER),
        settings=provenance.settings(every),
        checkpoint=provenance.checkpoint,
    )
    answers = [
        figures.answers(_file_name(section.comparison, "answers", panel.key, panel.way), panel)
        for section in sections
        for panel in section.retrieval
    ]
    families = [chart for section in sections for chart in section.charts]
    return page, [
        *families,
        *([human] if human else []),
        *(chart.figure for chart in scaling),
        *learning,
        *answers,
    ]


def write(options: Report) -> None:
    page, charts = build(options)
    for line in provenance.not_shared([run for arm in runs.arms(options.runs) for run in arm.runs]):
        console.say(f"note: not compared: {line}")
    for chart in charts:
        chart.save(options.out / "figures")
    path = options.out / "index.html"
    files.write(path, page)
    console.say(f"{path} ({len(page) / 1e6:.1f} MB, {len(charts)} charts)")


def main(arguments: list[str] | None = None) -> int:
    return console.command(lambda: write(tyro.cli(Report, prog="python -m eval.report", args=arguments)))
