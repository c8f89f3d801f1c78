"""Every figure of one arm set against the baseline's.

Computing only: what the page says of it is in `eval/report/summary.py` and the templates.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from eval.alignment.results import ALIGNMENT
from eval.metrics import seeds, uncertainty
from eval.metrics.perceptual import Choices
from eval.metrics.seeds import Seeds
from eval.metrics.uncertainty import Interval, Outcomes
from eval.report.runs import Arm, Run
from eval.results import Evaluation
from eval.sets import catalog
from eval.sets.catalog import CLASSIFICATION_TASK

Arrays = dict[str, np.ndarray]


# -- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of a set, and its per-query outcomes.

    key: its name in `metrics`.  title: for people.  tested: whether Holm's correction counts its test; the
    other figures of a set tell the same story again.  hits: of the queries that count.  crisp: they are hits
    or misses, as McNemar's test needs, no shares of people.
    """

    key: str
    title: str
    hits: Callable[[Arrays], np.ndarray]
    groups: Callable[[Arrays], np.ndarray | None] = lambda arrays: None
    tested: bool = False
    crisp: bool = True


def _classification(k: int) -> Measure:
    return Measure(
        key=f"acc{k}",
        title=f"top-{k}",
        tested=k == 1,
        hits=lambda arrays: (arrays["top"][:, :k] == arrays["labels"][:, None]).any(1),
        groups=lambda arrays: arrays.get("groups"),
    )


def _recall(way: str, metric: str, title: str, k: int) -> Measure:
    grouped = way == "t2i"  # captions of one image are not independent
    return Measure(
        key=f"{metric}@{k}",
        title=f"{title} R@{k}",
        tested=k == 1,
        hits=lambda arrays: arrays[f"{way}_first"] < k,
        groups=lambda arrays: arrays["owner"] if grouped else None,
    )


TOP1, TOP5 = _classification(1), _classification(5)
RECALLS = tuple(
    _recall(way, metric, title, k)
    for way, metric, title in (
        ("i2t", "text_retrieval_recall", "I → T"),
        ("t2i", "image_retrieval_recall", "T → I"),
    )
    for k in (1, 5)
)


def choices(arrays: Arrays) -> Choices:
    """What a model chose in the triplets."""
    return Choices(*(arrays[name] for name in ("dist", "vote", "split")))


def _twoafc(key: str, title: str, credit: Callable[[Choices], np.ndarray], split: str) -> Measure:
    def hits(arrays: Arrays) -> np.ndarray:
        credits = credit(choices(arrays).of(split))
        return credits[~np.isnan(credits)]  # even votes have no majority to agree with

    return Measure(
        key=f"{key}@{split}" if split else key,
        title=f"{title} {split}".strip(),
        hits=hits,
        crisp=credit is Choices.credit,
    )


def twoafc(metrics: dict[str, float], splits: Sequence[str] = ("",)) -> list[Measure]:
    """Majority and share of people where they differ, else one; of each split, or of all triplets."""
    kinds = [("twoafc", "2AFC", Choices.credit)]
    if metrics["ceiling"] != 1:
        kinds = [
            ("twoafc", "2AFC (majority)", Choices.credit),
            ("twoafc_soft", "2AFC (share of people)", Choices.soft_credit),
        ]
    return [_twoafc(*kind, split) for kind in kinds for split in splits]


def measures(record: dict) -> tuple[Measure, ...]:
    """A set's figures in the order tables show them; top-5 only where it exists."""
    every = (TOP1, TOP5) if record["task"] == CLASSIFICATION_TASK else RECALLS
    return tuple(m for m in every if m.key in record["metrics"])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of both arms; fractions.

    p: McNemar's, None where it does not apply.  adjusted: p after Holm's correction.
    """

    name: str
    measure: Measure
    a: float
    b: float
    delta: Interval
    p: float | None = None
    adjusted: float | None = None
    seeds: Seeds | None = None

    @property
    def sure(self) -> bool:
        """The interval leaves out 0."""
        return self.delta.ends is not None and (self.delta.ends[0] > 0 or self.delta.ends[1] < 0)


@dataclass(frozen=True, kw_only=True)
class SetRow(Row):
    """Of one set, or of the triplets of a split; samples: queries that count."""

    key: str
    samples: int
    family: str = ""
    near_chance: bool = False


@dataclass(frozen=True, kw_only=True)
class FamilyRow(Row):
    """The mean of a family's sets; `sets`: how many they are."""

    sets: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arm `a` against arm `b` (the baseline)."""

    a: Arm
    b: Arm
    rows: list[SetRow]
    families: list[FamilyRow]
    primary: FamilyRow | None
    triplets: list[SetRow]

    @property
    def by_set(self) -> list[list[SetRow]]:
        """The rows of each set together."""
        return [list(rows) for _, rows in groupby(self.rows, lambda row: row.key)]


# -- comparing -----------------------------------------------------------------------------------


def compare(a: Arm, b: Arm) -> Comparison:
    """Every figure both arms have.  Raises ValueError when their data differ or nothing is shared."""
    runs = [*a.runs, *b.runs]
    keys = shared_keys(runs)
    for key in keys:
        check_same(key, runs)
    triplets = _triplet_rows(a, b)
    elsewhere = all((run.final.folder / ALIGNMENT).is_file() for run in runs)
    if not keys and not triplets and not elsewhere:
        raise ValueError(f"{a.label} and {b.label} share no evaluated set")
    having = {measure: families_of(a.runs[0], keys, measure) for measure in (TOP1, TOP5)}
    scored = [k for family, sets in having[TOP1].items() if family in catalog.FAMILIES for k in sets]
    scored = scored or [k for sets in having[TOP1].values() for k in sets]
    return Comparison(
        a=a,
        b=b,
        rows=with_holm([row for key in keys for row in _set_rows(a, b, key)]),
        families=[
            _family_row(a, b, family, families[family], measure)
            for family in having[TOP1]
            for measure, families in having.items()
            if family in families
        ],
        primary=_family_row(a, b, "Mean of the sets", scored, TOP1) if scored else None,
        triplets=triplets,
    )


def shared_keys(runs: Sequence[Run]) -> list[str]:
    """Sets that all runs were evaluated on, in the catalog's order."""
    common = set.intersection(*(set(r.final.datasets) for r in runs))
    return [k for k in runs[0].final.datasets if k in common]


def families_of(run: Run, keys: Sequence[str], measure: Measure) -> dict[str, list[str]]:
    """Family → its sets among `keys` that have this figure, in the paper's order, then the others."""
    members: dict[str, list[str]] = {family: [] for family in catalog.FAMILIES}
    for key in keys:
        record = run.final.datasets[key]
        if measure.key in record["metrics"]:
            members.setdefault(record["family"], []).append(key)
    return {family: sets for family, sets in members.items() if sets}


def check_same(key: str, runs: Sequence[Run]) -> None:
    """ValueError unless all runs were evaluated on the same queries, in the same order, with one wording."""
    first = runs[0].final
    for run in runs[1:]:
        other = run.final
        ours, theirs = first.arrays(key), other.arrays(key)
        for name in ("index", "labels", "owner", "rows", "vote"):
            if name in ours and (name not in theirs or not np.array_equal(ours[name], theirs[name])):
                raise ValueError(f"{key}: {first.folder} and {other.folder} were evaluated on different data")
        for name in ("classnames", "templates"):
            if first.record(key).get(name) != other.record(key).get(name):
                raise ValueError(
                    f"{key}: {first.folder} and {other.folder} were evaluated with different "
                    f"{name}; evaluate both with the same --prompts"
                )


def _outcomes(a: Arm, b: Arm, key: str, measure: Measure) -> Outcomes:
    """Per-query outcomes, averaged over each arm's seeds."""
    of_a, of_b = (
        np.mean([measure.hits(run.final.arrays(key)).astype(float) for run in arm.runs], 0) for arm in (a, b)
    )
    groups, images = measure.groups(a.first.arrays(key)), a.first.record(key).get("crops")
    return Outcomes(of_a, of_b, groups, images)


def _both(a: Arm, b: Arm, value: Callable[[Evaluation], float]) -> dict:
    """The fields of a Row that come from each run's own figure."""
    of_a, of_b = a.values(value), b.values(value)
    paired = len(of_a) == len(of_b) > 1
    return {
        "a": statistics.fmean(of_a),
        "b": statistics.fmean(of_b),
        "seeds": seeds.paired(np.array([of_a]), np.array([of_b]))[0] if paired else None,
    }


def _set_rows(a: Arm, b: Arm, key: str) -> list[SetRow]:
    record = a.first.datasets[key]
    about = {name: record[name] for name in ("name", "family", "near_chance")}
    return [_set_row(a, b, key, measure, **about) for measure in measures(record)]


def _triplet_rows(a: Arm, b: Arm) -> list[SetRow]:
    """Each of `twoafc`, by split if there are several; a split without any majority has no row."""
    runs = [*a.runs, *b.runs]
    if any(run.final.data.get("triplets") is None for run in runs):
        return []
    check_same("triplets", runs)
    splits = sorted(set(a.first.arrays("triplets")["split"].tolist()))
    metrics = a.first.record("triplets")["metrics"]
    every = twoafc(metrics, splits if len(splits) > 1 else ("",))
    return [_set_row(a, b, "triplets", m, name=m.title) for m in every if m.key in metrics]


def _set_row(a: Arm, b: Arm, key: str, measure: Measure, **about) -> SetRow:
    """One figure of a set or of the triplets; about: what SetRow says of the set besides."""
    outcomes = _outcomes(a, b, key, measure)
    crisp = measure.crisp and len(a.runs) == len(b.runs) == 1  # means over seeds are no hits or misses
    return SetRow(
        key=key,
        measure=measure,
        samples=len(outcomes.a),
        delta=uncertainty.mean_of_sets([outcomes]),
        p=uncertainty.mcnemar(outcomes.a, outcomes.b, outcomes.groups) if crisp else None,
        **about,
        **_both(a, b, lambda evaluation: evaluation.record(key)["metrics"][measure.key]),
    )


def with_holm(rows: list[SetRow]) -> list[SetRow]:
    """The rows with Holm's correction over the tests that count."""
    tested = {i: row.p for i, row in enumerate(rows) if row.p is not None and row.measure.tested}
    if not tested:
        return rows
    adjusted = dict(zip(tested, uncertainty.holm([*tested.values()])))
    return [replace(row, adjusted=float(adjusted[i])) if i in adjusted else row for i, row in enumerate(rows)]


def _family_row(a: Arm, b: Arm, family: str, keys: list[str], measure: Measure) -> FamilyRow:
    return FamilyRow(
        name=family,
        measure=measure,
        sets=len(keys),
        delta=uncertainty.mean_of_sets([_outcomes(a, b, key, measure) for key in keys]),
        **_both(a, b, lambda e: statistics.fmean(e.datasets[k]["metrics"][measure.key] for k in keys)),
    )
