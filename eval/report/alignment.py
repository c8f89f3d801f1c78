"""Human similarity in the reports: what alignment.json of each run holds, set against the baseline's.

Computing only, as in `eval/report/compare.py`; figures are `eval/alignment/`'s.  A run without the file has
no such section.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.alignment import scores
from eval.alignment.records import EVERYTHING, MEAN, Score, SetScores
from eval.alignment.results import ALIGNMENT, Alignment
from eval.alignment.scores import METRICS
from eval.metrics import seeds
from eval.metrics.uncertainty import Interval
from eval.report import figures
from eval.report.compare import Measure, Row
from eval.report.figures import Figure, Mark
from eval.report.runs import Arm, Run

GROUPS = {EVERYTHING: "all", MEAN: "mean of the parts"}


@dataclass(frozen=True, kw_only=True)
class HumanRow(Row):
    """One figure of both arms, and the test's own: judgements that count, chance, ceiling (a fraction)."""

    n: int
    chance: float | None
    ceiling: float | None
    ceiling_source: str


@dataclass(frozen=True, kw_only=True)
class HumanSet:
    """A set's rows, the leading figure first; about: the first run's own figures of it."""

    about: SetScores
    rows: list[HumanRow]


@dataclass(frozen=True, kw_only=True)
class HumanValues:
    """A figure of one arm alone: of each seed."""

    about: SetScores
    title: str
    group: str
    scores: list[Score]


def read(run: Run) -> Alignment | None:
    """Of a run's last evaluation; None where there is none.

    ValueError where it is of another checkpoint than results.json beside it.
    """
    folder = run.final.folder
    if not (folder / ALIGNMENT).is_file():
        return None
    found = Alignment.read(folder)
    weights = run.final.data["checkpoint"].get("weights")
    if weights is not None and weights != found.data["checkpoint"]["weights"]:
        raise ValueError(
            f"{folder / ALIGNMENT}: of another checkpoint than results.json; python -m eval.alignment again"
        )
    return found


def keys(run: Run) -> list[str]:
    """Names of the sets that a run has, for people."""
    found = read(run)
    return [] if found is None else [f"human similarity, {each.name}" for each in found.sets]


def title(metric: str) -> str:
    """Of a metric, for people; tests of their own may have others than `scores.METRICS`."""
    return METRICS[metric].title if metric in METRICS else metric


def _held(runs: Sequence[Run]) -> tuple[list[Alignment], list[str]]:
    """(each run's, names of the sets that all have).  ValueError where their judgements are not the same."""
    found = [each for run in runs if (each := read(run)) is not None]
    if len(found) < len(runs):
        return [], []
    common = [s.name for s in found[0].sets if all(any(t.name == s.name for t in f.sets) for f in found)]
    for name in common:
        asked = [each.data["judgements"][name] for each in found]
        if other := next((f for f, digest in zip(found, asked) if digest != asked[0]), None):
            raise ValueError(
                f"human similarity, {name}: {found[0].folder} and {other.folder} were evaluated on different "
                "judgements; evaluate both on the same data"
            )
    return found, common


def _of(found: Alignment, name: str) -> SetScores:
    return next(each for each in found.sets if each.name == name)


def _score(found: Alignment, name: str, like: Score) -> Score | None:
    every = _of(found, name).scores
    return next((s for s in every if (s.metric, s.group) == (like.metric, like.group)), None)


def figures_of(a: Arm, b: Arm) -> list[tuple[SetScores, Score, list[Score], list[Score]]]:
    """(set, the first run's figure, those of a's runs, those of b's), of the figures that all runs have."""
    found, common = _held([*a.runs, *b.runs])
    out = []
    for name in common:
        about = _of(found[0], name)
        for like in about.scores:
            every = [each for f in found if (each := _score(f, name, like)) is not None]
            if len(every) == len(found):
                out.append((about, like, every[: len(a.runs)], every[len(a.runs) :]))
    return out


def row(like: Score, a: np.ndarray, b: np.ndarray, delta: Interval, **more: object) -> HumanRow:
    """a, b: the figures of two arms by seed."""
    return HumanRow(
        name=GROUPS.get(like.group, like.group),
        measure=Measure(key=like.metric, title=title(like.metric), hits=lambda arrays: arrays[like.metric]),
        a=float(a.mean()),
        b=float(b.mean()),
        delta=delta,
        n=like.n,
        chance=like.chance,
        ceiling=like.ceiling,
        ceiling_source=like.ceiling_source,
        **more,  # type: ignore[arg-type]  # fields of Row
    )


def compare(a: Arm, b: Arm) -> list[HumanSet]:
    """Every figure that all runs of both arms have; intervals over judgements, paired."""
    found, _ = _held([*a.runs, *b.runs])
    by_set: dict[str, HumanSet] = {}
    for about, like, of_a, of_b in figures_of(a, b):
        arrays = [each for f in found if (each := f.arrays(_of(f, about.name))) is not None]
        values = [np.array([score.value for score in of]) for of in (of_a, of_b)]
        delta = Interval(float(values[0].mean() - values[1].mean()), None, None)
        if len(arrays) == len(found) and like.metric in METRICS:
            count = len(a.runs)
            delta = scores.difference(arrays[:count], arrays[count:], like.metric, like.group)
        paired = len(of_a) == len(of_b) > 1
        over = seeds.paired(*(v[None] for v in values))[0] if paired else None
        made = by_set.setdefault(about.name, HumanSet(about=about, rows=[]))
        made.rows.append(row(like, values[0], values[1], delta, seeds=over))
    return list(by_set.values())


def alone(arm: Arm) -> list[HumanValues]:
    """Every figure that all seeds of one arm have."""
    return [
        HumanValues(
            about=about, title=title(like.metric), group=GROUPS.get(like.group, like.group), scores=values
        )
        for about, like, values, _ in figures_of(arm, Arm("", []))
    ]


def notes(arms: Sequence[Arm]) -> dict[str, list[str]]:
    """Title of a set → where its ceilings come from, and what was left out of it, as the first run has it."""
    found, common = _held([run for arm in arms for run in arm.runs])
    out: dict[str, list[str]] = {}
    for about in [_of(found[0], name) for name in common]:
        ceilings = dict.fromkeys(s.ceiling_source for s in about.scores if s.ceiling is not None)
        if lines := [*(f"ceiling: {source}" for source in ceilings), *about.notes]:
            out[f"{about.title}, {about.probe}" if about.probe else about.title] = lines
    return out


def chart(name: str, arms: dict[int, Arm]) -> Figure | None:
    """The leading figure of every set that all arms have; None without one.  arms: by their colours."""
    found, common = _held([run for arm in arms.values() for run in arm.runs])
    if not common:
        return None
    rows: dict[str, Sequence[Mark]] = {}
    limits: dict[str, tuple[float | None, float | None]] = {}
    for key in common:
        about = _of(found[0], key)
        lead = about.scores[0]
        left, marks = list(found), []
        for number, arm in arms.items():
            of, left = left[: len(arm.runs)], left[len(arm.runs) :]
            held = [each for f in of if (each := _score(f, key, lead)) is not None]
            ends = (held[0].low, held[0].high) if len(held) == 1 else (None, None)
            if held:
                value = statistics.fmean(s.value for s in held)
                marks.append(Mark(number, arm.label, Interval(value, *ends)))
        label = f"{about.title}, {title(lead.metric)}" + (", probe" if about.probe else "")
        rows[label], limits[label] = marks, (lead.chance, lead.ceiling)
    return figures.dots(name, "Human similarity, % (correlations × 100)", rows, limits)
