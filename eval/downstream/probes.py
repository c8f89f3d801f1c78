"""Classification sets with a training split: nearest neighbours and a linear probe on frozen features.

N training images, M test images, K classes of the training split.  The linear probe of CLEVR-Count is also
judged by how far it miscounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from eval.downstream import logistic, neighbours, records
from eval.downstream.records import Outcome
from eval.metrics.uncertainty import Interval
from eval.sets.evalset import ClassificationSet, Images, shown
from eval.sets.prompts import known_classnames

PER_CLASS = "mean_per_class_recall"
COUNTING = "vtab/clevr_count_all"  # the field's names of its classes are three, four, … ten


@dataclass(frozen=True)
class ClassTask:
    """A test split and the training split beside it; `labels` are the test images' among the latter's."""

    test: ClassificationSet
    train: ClassificationSet
    key: str = field(init=False)
    labels: np.ndarray = field(init=False)
    notes: tuple[str, ...] = field(init=False)
    may_lose = True

    def __post_init__(self) -> None:
        """ValueError where the two splits do not share their classes."""
        object.__setattr__(self, "key", self.test.entry.key)
        object.__setattr__(self, "labels", _among(self.test, self.train))
        notes = [*self.test.notes, *(f"training split: {note}" for note in self.train.notes)]
        object.__setattr__(self, "notes", tuple(notes))

    @property
    def images(self) -> list[Images]:
        return [self.train.images, self.test.images]

    def score(self, features: Sequence[Tensor], kept: Sequence[np.ndarray]) -> Outcome:
        """features: of the training and the test images that are `kept` of the two."""
        train, test = features
        known, labels = self.train.labels[kept[0]], self.labels[kept[1]]
        groups = None if self.test.groups is None else self.test.groups[kept[1]]
        found, notes = self._neighbours(train, test, known), self.notes
        if logistic.held_out(known).any():
            found = {"linear": self._probe(train, test, known)} | found
        else:
            notes += ("no linear probe: no class has two training images, so none can be held out",)
        figures = []
        for how, (answers, told) in found.items():
            told |= {"training_images": len(known), "classes": self.classes}
            for metric, interval, chance in self._figures(answers, labels, groups):
                figure = (self.key, self.test.entry.name, f"{how}_{metric}", interval, chance, len(labels))
                figures.append(records.figure(*figure, **told))
        if "linear" in found and self._counts:
            error = records.mean(np.abs(found["linear"][0] - labels))
            guess = float(np.abs(labels - np.median(known)).mean())
            figure = (self.key, self.test.entry.name, "linear_mae", error, guess, len(labels))
            figures.append(records.figure(*figure, **found["linear"][1]))
        arrays = {how: answers for how, (answers, _) in found.items()}
        return Outcome(figures=figures, arrays={"index": kept[1], "labels": labels} | arrays, notes=notes)

    @property
    def _counts(self) -> bool:
        """Whether the classes are consecutive numbers of objects."""
        return self.key == COUNTING and self.train.prompts.classes == known_classnames(
            self.test.entry.prompts
        )

    @property
    def classes(self) -> int:
        return len(self.train.prompts.classes)

    def _probe(self, train: Tensor, test: Tensor, known: np.ndarray) -> tuple[np.ndarray, dict]:
        """(answers (M,), settings)."""
        probe, c = logistic.probe(train, known, self.classes)
        decades = f"10^-{logistic.RANGE} to 10^{logistic.RANGE}"
        return probe.predict(test), {
            "c": c,
            "search": f"{decades} in steps of 2 decades, around the best halved to {logistic.FINEST:g}",
            "held_out": f"1 of {logistic.HELD_OUT} training images of each class, seed 0",
            "converged": probe.converged,
        }

    def _neighbours(self, train: Tensor, test: Tensor, known: np.ndarray) -> dict[str, tuple]:
        """By k, the largest first: (answers (M,), settings)."""
        votes = neighbours.predict(train, known, test, self.classes)
        heat = {"temperature": neighbours.TEMPERATURE}
        return {f"knn{k}": (votes[k], {"k": min(k, len(train))} | heat) for k in sorted(votes, reverse=True)}

    def _figures(
        self, answers: np.ndarray, labels: np.ndarray, groups: np.ndarray | None
    ) -> list[tuple[str, Interval, float]]:
        """(metric, interval, chance); guessing gets one of K classes right, in each class too."""
        hits, guess = answers == labels, 1 / self.classes
        out = [("acc1", records.mean(hits, groups), guess)]
        if self.test.entry.main_metric == PER_CLASS:
            out.append((PER_CLASS, records.mean_recall(labels, hits), guess))
        return out


def _among(test: ClassificationSet, train: ClassificationSet) -> np.ndarray:
    """(M,) the test images' labels among the training split's classes, which are told apart by name."""
    theirs, own = train.prompts.classes, test.prompts.classes
    if theirs == own:
        return test.labels
    place = {name: i for i, name in enumerate(theirs)}
    if len(place) < len(theirs):
        raise ValueError(f"{train.path}: two classes of its training split have one name, which names none")
    if missing := [name for name in own if name not in place]:
        raise ValueError(
            f"{test.path}: {len(missing)} of its {len(own)} classes are not in its training split: "
            f"{shown(missing)}"
        )
    return np.array([place[name] for name in own])[test.labels]
