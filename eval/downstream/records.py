"""What the downstream tasks come to: figures with their interval and chance level, on disk and read back.

    OUT/downstream.json        every figure, and what was evaluated how; the report's input
    OUT/downstream/KEY.npz     per-sample outcomes

Beside eval.run's results.json, and written as that is: removed first, written last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from eval.metrics import uncertainty
from eval.metrics.uncertainty import RESAMPLES, Interval, Outcomes
from eval.results import write_arrays
from pipeline.base import files

FILE, FOLDER = "downstream.json", "downstream"
SCHEMA = 1
SHARE, COUNT = "share", "objects"  # units: from 0 to 1, larger is better; an error in objects, smaller is
# metric → (title, unit)
METRICS = {
    "knn1_acc1": ("1-NN top-1", SHARE),
    "knn20_acc1": ("20-NN top-1", SHARE),
    "linear_acc1": ("linear probe top-1", SHARE),
    "knn1_mean_per_class_recall": ("1-NN mean per class", SHARE),
    "knn20_mean_per_class_recall": ("20-NN mean per class", SHARE),
    "linear_mean_per_class_recall": ("linear probe mean per class", SHARE),
    "linear_mae": ("linear probe mean absolute error", COUNT),
    "ridge_mae": ("ridge mean absolute error", COUNT),
    "ridge_rmse": ("ridge root mean square error", COUNT),
    "map_easy": ("mAP easy", SHARE),
    "map_medium": ("mAP medium", SHARE),
    "map_hard": ("mAP hard", SHARE),
    "map": ("mAP", SHARE),
    "recall@1": ("R@1", SHARE),
    "recall@5": ("R@5", SHARE),
    "recall@10": ("R@10", SHARE),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a set.

    metric: of METRICS.  low, high: the 95 % bootstrap interval over the samples that were tested.  chance:
    what guessing gets.  n: samples that count.  settings: how it was computed, in JSON values.
    """

    key: str
    name: str
    metric: str
    value: float
    low: float | None
    high: float | None
    chance: float
    n: int
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high, self.chance)
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise ValueError(f"{self.key} {self.metric}: a figure is not finite ({numbers})")

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One set's figures, its per-sample arrays, and what was left out, for the user to read."""

    figures: list[Figure]
    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.figures[0].key


# -- intervals --------------------------------------------------------------------------------------


def mean(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The mean of values (N,) with its percentile interval; samples of one group are drawn together."""
    return uncertainty.mean_of_sets([Outcomes(values, np.zeros(len(values)), groups)])


def root_mean(values: np.ndarray) -> Interval:
    """The root of the mean; the root keeps the order, so its percentiles are the roots of the mean's."""
    ends = mean(values)
    assert ends.low is not None and ends.high is not None  # a bootstrap over samples has them
    return Interval(ends.value**0.5, ends.low**0.5, ends.high**0.5)


def mean_recall(labels: np.ndarray, hits: np.ndarray) -> Interval:
    """Mean over the classes of the share of hits (N,) bool in each; drawn as images, not as classes.

    A class that a draw leaves out is left out of that draw's mean.
    """
    sizes, right = np.bincount(labels), np.bincount(labels[hits], minlength=labels.max() + 1)
    kinds = np.concatenate([right, sizes - right])
    drawn = np.random.default_rng(0).multinomial(len(labels), kinds / len(labels), RESAMPLES)
    good, bad = drawn[:, : len(sizes)], drawn[:, len(sizes) :]
    seen = good + bad > 0
    shares = np.where(seen, good / np.maximum(good + bad, 1), 0)
    there = sizes > 0
    value = float((right[there] / sizes[there]).mean())
    return uncertainty.percentiles(value, shares.sum(1) / seen.sum(1))


# -- on disk ----------------------------------------------------------------------------------------


def write(out: Path, outcomes: Sequence[Outcome], about: dict) -> Path:
    """Every file; returns downstream.json.  about: `checkpoint`, `settings`, `versions`, `time`."""
    path = out / FILE
    path.unlink(missing_ok=True)  # first: it must not vouch for files that are being replaced
    for old in (out / FOLDER).glob("*.npz"):
        old.unlink()  # of an earlier evaluation of another selection
    for outcome in outcomes:
        write_arrays(out / FOLDER / f"{file_name(outcome.key)}.npz", outcome.arrays)
    contents = {
        "schema": SCHEMA,
        "about": about,
        "sets": [asdict(figure) for outcome in outcomes for figure in outcome.figures],
        "notes": {outcome.key: list(outcome.notes) for outcome in outcomes if outcome.notes},
    }
    files.write(path, json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
    return path


def file_name(key: str) -> str:
    """Of a set's file of outcomes, without the ending."""
    return key.replace("/", "-")


@dataclass(frozen=True)
class Evaluation:
    """One downstream.json, read back."""

    path: Path
    about: dict
    figures: list[Figure]

    @classmethod
    def read(cls, folder: Path) -> Evaluation | None:
        """None where there is no downstream.json; ValueError for a damaged one or another version's."""
        path = folder / FILE
        if not path.is_file():
            return None
        again = "python -m eval.downstream makes it anew"
        try:
            data = json.loads(path.read_bytes())
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}")
            names = {each.name for each in fields(Figure)}
            figures = [Figure(**{name: value[name] for name in names}) for value in data["sets"]]
            if unknown := [figure.metric for figure in figures if figure.metric not in METRICS]:
                raise ValueError(f"metric {unknown[0]!r}")
            return cls(path, data["about"], figures)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: damaged, or of another version of this project ({error}); {again}"
            ) from None


def figure(
    key: str, name: str, metric: str, interval: Interval, chance: float, n: int, **settings: object
) -> Figure:
    """A figure from its interval."""
    low, high = interval.low, interval.high
    return Figure(
        key=key, name=name, metric=metric, value=interval.value, low=low, high=high, chance=chance, n=n,
        settings=settings,
    )  # fmt: skip
