"""The section on frozen features: what `python -m eval.downstream` found, for every arm and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.downstream import records
from eval.downstream.records import METRICS, SHARE, Evaluation, Figure
from eval.report.render import counted, pct
from eval.report.runs import Arm, Run

_OF_DATA = ("training_images", "classes", "gallery")


def data_of(figure: Figure) -> tuple:
    """What must agree, else figures do not compare."""
    return (figure.n, *(figure.settings.get(name) for name in _OF_DATA))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.  cells: of each run (text, interval); differs: not of the same data in all runs."""

    name: str
    metric: str
    cells: list[tuple[str, str]]
    chance: str
    samples: str
    differs: bool


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """columns: (label, the arm's number) of each run."""

    columns: list[tuple[str, int]]
    rows: list[Row]
    notes: list[str]


def section(arms: Sequence[Arm]) -> Downstream | None:
    """None where no run was evaluated so.  Raises ValueError for a damaged file."""
    notes: list[str] = []
    columns, found = [], []
    for number, arm in enumerate(arms):
        for place, run in enumerate(arm.runs, 1):
            columns.append((arm.label + (f" {place}" if len(arm.runs) > 1 else ""), number))
            found.append({(f.key, f.metric): f for f in figures_of(run, columns[-1][0], notes)})
    names = dict.fromkeys(name for figures in found for name in figures)
    if not names and not notes:
        return None
    rows = [_row([figures.get(name) for figures in found]) for name in names]
    return Downstream(columns=columns, rows=rows, notes=notes)


def figures_of(run: Run, label: str, notes: list[str]) -> list[Figure]:
    """Of the evaluation whose results.json the report shows, in its folder or in that of all steps.

    label: of the run; notes gets what must be said of it.
    """
    final = run.final
    places = (final.folder, final.folder.parent) if final.folder.name.startswith("step-") else (final.folder,)
    read = [made for place in places if (made := Evaluation.read(place)) is not None]
    own = final.data["checkpoint"].get("weights")
    fitting = next((made for made in read if made.about["checkpoint"].get("weights") == own), None)
    if fitting is None:
        notes += [
            f"{label}: {made.path} is of other weights than its results.json; not shown" for made in read
        ]
        return []
    stopped = [f.key for f in fitting.figures if f.settings.get("converged") is False]
    if stopped:
        notes.append(f"{label}: the linear probe stopped short of its optimum on {', '.join({*stopped})}")
    return fitting.figures


def _row(figures: Sequence[Figure | None]) -> Row:
    there = [figure for figure in figures if figure is not None]
    first = there[0]
    data = {data_of(figure) for figure in there}
    title, unit = METRICS[first.metric]
    return Row(
        name=first.name,
        metric=title if unit == SHARE else f"{title}, {unit}",
        cells=[_cell(figure, unit) for figure in figures],
        chance=_number(first.chance, unit),
        samples=counted(first.n),
        differs=len(data) > 1,
    )


def _cell(figure: Figure | None, unit: str) -> tuple[str, str]:
    if figure is None:
        return "–", ""
    ends = [_number(end, unit) for end in (figure.low, figure.high) if end is not None]
    return _number(figure.value, unit), " to ".join(ends)


def _number(value: float, unit: str) -> str:
    return pct(value) if unit == records.SHARE else f"{value:.2f}"
