"""Runs gathered into arms, and every figure of one arm set against the baseline's.

An arm is one way of training (perceptual initialization, baseline, …) and holds one run a seed.
Computing only: `eval/report.py` shows it.
"""

from __future__ import annotations

import json
import statistics as basic
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.metrics import uncertainty
from eval.metrics.perceptual import Choices
from eval.metrics.uncertainty import Interval, Outcomes, Seeds
from eval.results import RESULTS, Evaluation
from eval.sets import catalog
from eval.sets.catalog import CLASSIFICATION_TASK


@dataclass(frozen=True)
class Run:
    """One training run and its evaluations, oldest checkpoint first; the last one is what tables show."""

    label: str
    folder: Path  # of the training run if it is there, else of the evaluation
    evaluations: list[Evaluation]

    @property
    def final(self) -> Evaluation:
        return self.evaluations[-1]

    @property
    def recipe(self) -> dict | None:
        return self.final.data.get("recipe")

    @cached_property
    def log(self) -> list[dict]:
        """The lines of metrics.jsonl that have `samples`; empty when the run's folder is not here."""
        return read_log(self.folder)


def read_log(folder: Path) -> list[dict]:
    """A training run's metrics.jsonl; ValueError names a line that is not JSON."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path}, line {number}: not JSON") from None
    return [r for r in rows if "samples" in r or "step" in r]


_LABELS = {"pi": "PI", "baseline": "Baseline"}  # the demo's folders


def read_run(spec: str) -> Run:
    """`[LABEL=]FOLDER`: a training run that was evaluated, or an evaluation's folder.  Raises ValueError."""
    label, mark, rest = spec.partition("=")
    if not mark or Path(spec).is_dir():  # a folder's own name may have the mark in it
        label, rest = "", spec
    folder = Path(rest)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    steps = [p for form in ("step-*", "eval/step-*") for p in sorted(folder.glob(form))]
    places = [p for p in steps if p.name.removeprefix("step-").isdecimal()] + [folder / "eval", folder]
    found = [Evaluation.read(p) for p in places if (p / RESULTS).is_file()]
    if not found:
        raise ValueError(
            f"{folder}: no {RESULTS} in it or in its eval/; python -m eval.run --checkpoint {folder}"
        )
    by_step: dict[int, Evaluation] = {}
    for one in found:  # the same checkpoint may have been evaluated twice: the later place wins
        by_step[one.data["checkpoint"].get("step", -1)] = one
    home = Path(found[0].data["checkpoint"].get("run", folder))
    home = folder if (folder / "metrics.jsonl").is_file() or not home.is_dir() else home
    label = label or _LABELS.get(folder.name, folder.name)
    return Run(label, home, [by_step[s] for s in sorted(by_step)])


@dataclass(frozen=True)
class Arm:
    label: str
    runs: list[Run]

    def mean(self, value: Callable[[Evaluation], float]) -> float:
        return basic.fmean(value(r.final) for r in self.runs)


def arms(specs: Sequence[str]) -> list[Arm]:
    """Runs with the same label are seeds of one arm, by seed; arms in order of first appearance.

    Raises ValueError for one checkpoint given as two seeds.
    """
    out: dict[str, list[Run]] = {}
    for spec in specs:
        run = read_run(spec)
        for other in out.setdefault(run.label, []):
            weights = [r.final.data["checkpoint"].get("weights") for r in (run, other)]
            if weights[0] is not None and weights[0] == weights[1]:
                raise ValueError(
                    f"{other.final.folder} and {run.final.folder} are one checkpoint, not two seeds of "
                    f"{run.label}; name each once, or label them apart: LABEL=FOLDER"
                )
        out[run.label].append(run)
    return [Arm(label, sorted(runs, key=_seed)) for label, runs in out.items()]


def _seed(run: Run) -> int:
    return (run.recipe or {}).get("seed", 0)


# -- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """One figure of a set: its name in `metrics`, its title, and its per-query outcomes."""

    metric: str
    title: str
    hits: Callable[[dict[str, np.ndarray]], np.ndarray]
    groups: Callable[[dict[str, np.ndarray]], np.ndarray | None]


def _classification(k: int) -> Measure:
    return Measure(
        f"acc{k}",
        f"top-{k}",
        lambda arrays: (arrays["top"][:, :k] == arrays["labels"][:, None]).any(1),
        lambda arrays: arrays.get("groups"),
    )


def _recall(way: str, metric: str, title: str, k: int) -> Measure:
    grouped = way == "t2i"  # captions of one image are not independent
    return Measure(
        f"{metric}@{k}",
        f"{title} R@{k}",
        lambda arrays: arrays[f"{way}_first"] < k,
        lambda arrays: arrays["owner"] if grouped else None,
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


def measures(record: dict) -> tuple[Measure, ...]:
    """A set's figures in the order tables show them; top-5 only where it exists."""
    every = (TOP1, TOP5) if record["task"] == CLASSIFICATION_TASK else RECALLS
    return tuple(m for m in every if m.metric in record["metrics"])


@dataclass(frozen=True)
class Row:
    """One figure of both arms; fractions.  p: McNemar's, None where it does not apply."""

    key: str
    name: str
    family: str
    measure: str
    samples: int
    a: float
    b: float
    delta: Interval
    p: float | None
    near_chance: bool = False
    adjusted: float | None = None
    seeds: Seeds | None = None

    @property
    def sure(self) -> bool:
        """The interval leaves out 0."""
        return self.delta.low is not None and (self.delta.low > 0 or self.delta.high < 0)


@dataclass
class Comparison:
    """Arm `a` against arm `b` (the baseline)."""

    a: Arm
    b: Arm
    rows: list[Row] = field(default_factory=list)
    families: list[Row] = field(default_factory=list)
    primary: Row | None = None
    triplets: list[Row] = field(default_factory=list)

    def of(self, key: str) -> list[Row]:
        return [r for r in self.rows if r.key == key]


def _hits(arm: Arm, key: str, measure: Measure) -> np.ndarray:
    """Per-query outcome, averaged over the arm's seeds."""
    parts = [measure.hits(run.final.arrays(key)).astype(float) for run in arm.runs]
    return np.mean(parts, 0)


def _check_same(key: str, every: Sequence[Run]) -> None:
    """ValueError unless all runs were evaluated on the same queries, in the same order, with one wording."""
    first = every[0].final.arrays(key)
    for run in every[1:]:
        other = run.final.arrays(key)
        for name in ("index", "labels", "owner", "rows", "vote"):
            if name in first and (name not in other or not np.array_equal(first[name], other[name])):
                raise ValueError(
                    f"{key}: {every[0].final.folder} and {run.final.folder} were evaluated on different data"
                )
        records = [r.final.datasets.get(key, {}) for r in (every[0], run)]
        for name in ("classnames", "templates"):
            if records[0].get(name) != records[1].get(name):
                raise ValueError(
                    f"{key}: {every[0].final.folder} and {run.final.folder} were evaluated with different "
                    f"{name}; evaluate both with the same --prompts"
                )


def _paired_seeds(a: Arm, b: Arm, value: Callable[[Evaluation], float]) -> Seeds | None:
    if len(a.runs) < 2 or len(a.runs) != len(b.runs):
        return None
    return uncertainty.paired_seeds([value(r.final) for r in a.runs], [value(r.final) for r in b.runs])


def _row(a: Arm, b: Arm, key: str, measure: Measure) -> Row:
    record = a.runs[0].final.datasets[key]
    arrays = a.runs[0].final.arrays(key)
    hits_a, hits_b, groups = _hits(a, key, measure), _hits(b, key, measure), measure.groups(arrays)
    single = len(a.runs) == len(b.runs) == 1

    def value(one: Evaluation) -> float:
        return one.datasets[key]["metrics"][measure.metric]

    return Row(
        key, record["name"], record["family"], measure.title, len(hits_a), a.mean(value), b.mean(value),
        uncertainty.paired_bootstrap(hits_a, hits_b, groups),
        uncertainty.mcnemar(hits_a, hits_b, groups) if single else None,
        record["near_chance"], None, _paired_seeds(a, b, value),
    )  # fmt: skip


def _family_row(a: Arm, b: Arm, family: str, keys: list[str], measure: Measure) -> Row:
    sets = []
    for key in keys:
        arrays = a.runs[0].final.arrays(key)
        pictures = a.runs[0].final.datasets[key].get("crops")
        sets.append(
            Outcomes(_hits(a, key, measure), _hits(b, key, measure), measure.groups(arrays), pictures)
        )

    def value(one: Evaluation) -> float:
        return basic.fmean(one.datasets[k]["metrics"][measure.metric] for k in keys)

    return Row(
        "", family, family, measure.title, len(keys), a.mean(value), b.mean(value),
        uncertainty.mean_of_sets(sets), None, False, None, _paired_seeds(a, b, value),
    )  # fmt: skip


def _adjusted(rows: list[Row]) -> list[Row]:
    """Holm over the top-1 (or R@1) tests; the other figures of a set tell the same story again."""
    tested = [i for i, r in enumerate(rows) if r.p is not None and r.measure.endswith("1")]
    out = list(rows)
    if tested:
        for i, p in zip(tested, uncertainty.holm([rows[i].p for i in tested])):
            out[i] = Row(**{**vars(rows[i]), "adjusted": float(p)})
    return out


def shared_keys(every: Sequence[Run]) -> list[str]:
    """Sets that all runs were evaluated on, in the catalog's order."""
    common = set.intersection(*(set(r.final.datasets) for r in every))
    return [k for k in every[0].final.datasets if k in common]


def twoafc_names(metrics: dict[str, float]) -> dict[str, str]:
    """{metric: its name for people}: majority and share of people where they differ, else one."""
    if metrics["ceiling"] == 1:
        return {"twoafc": "2AFC"}
    return {"twoafc": "2AFC (majority)", "twoafc_soft": "2AFC (share of people)"}


def _triplet_row(a: Arm, b: Arm, split: str, metric: str, name: str) -> Row | None:
    """One of `twoafc_names` for one split ("" for all); None where no triplet of it has a majority."""
    end, soft = f"@{split}" if split else "", metric == "twoafc_soft"

    def credit(arm: Arm) -> np.ndarray:
        every = [
            Choices(**{n: r.final.arrays("triplets")[n] for n in ("dist", "vote", "split")}) for r in arm.runs
        ]
        chosen = (every[0].split == split) if split else np.ones(len(every[0].split), bool)
        if soft:
            return np.mean([c.soft_credit()[chosen] for c in every], 0)
        return np.mean([c.credit()[chosen & (c.vote != 0.5)] for c in every], 0)

    def value(one: Evaluation) -> float:
        return one.data["triplets"]["metrics"][f"{metric}{end}"]

    credit_a, credit_b = credit(a), credit(b)
    if not len(credit_a):
        return None
    single = len(a.runs) == len(b.runs) == 1
    return Row(
        "triplets", f"{name} {split}".strip(), "2AFC", "2AFC", len(credit_a), a.mean(value), b.mean(value),
        uncertainty.paired_bootstrap(credit_a, credit_b),
        uncertainty.mcnemar(credit_a, credit_b) if single and not soft else None,
        seeds=_paired_seeds(a, b, value),
    )  # fmt: skip


def _triplet_rows(a: Arm, b: Arm, every: Sequence[Run]) -> list[Row]:
    if any(r.final.data.get("triplets") is None for r in every):
        return []
    _check_same("triplets", every)
    splits = sorted(set(every[0].final.arrays("triplets")["split"].tolist()))
    names = twoafc_names(every[0].final.data["triplets"]["metrics"])
    where = splits if len(splits) > 1 else [""]
    rows = [_triplet_row(a, b, split, m, name) for m, name in names.items() for split in where]
    return [row for row in rows if row is not None]


def families_of(run: Run, keys: Sequence[str]) -> dict[str, list[str]]:
    """Family → its classification sets among `keys`, in the paper's order, then the others."""
    found: dict[str, list[str]] = {}
    for key in keys:
        record = run.final.datasets[key]
        if record["task"] == CLASSIFICATION_TASK:
            found.setdefault(record["family"], []).append(key)
    order = [f for f in catalog.FAMILIES if f in found] + [f for f in found if f not in catalog.FAMILIES]
    return {f: found[f] for f in order}


def compare(a: Arm, b: Arm) -> Comparison:
    """Every figure both arms have.  Raises ValueError when their data differ or nothing is shared."""
    every = [*a.runs, *b.runs]
    keys = shared_keys(every)
    out = Comparison(a, b)
    for key in keys:
        _check_same(key, every)
        out.rows += [_row(a, b, key, m) for m in measures(a.runs[0].final.datasets[key])]
    out.rows = _adjusted(out.rows)
    groups = families_of(a.runs[0], keys)
    for family, members in groups.items():
        out.families.append(_family_row(a, b, family, members, TOP1))
        with_five = [k for k in members if TOP5.metric in a.runs[0].final.datasets[k]["metrics"]]
        if with_five:
            out.families.append(_family_row(a, b, family, with_five, TOP5))
    scored = [k for f, members in groups.items() if f in catalog.FAMILIES for k in members]
    scored = scored or [k for members in groups.values() for k in members]
    if scored:
        out.primary = _family_row(a, b, "Mean of the sets", scored, TOP1)
    out.triplets = _triplet_rows(a, b, every)
    if not keys and not out.triplets:
        raise ValueError(f"{a.label} and {b.label} share no evaluated set")
    return out
