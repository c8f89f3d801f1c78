"""FSC-147: how many objects are in an image, by ridge regression on frozen features.

Layout and counts as in cvlab-stonybrook/LearningToCountEverything: `annotation_FSC147_384.json` and
`Train_Test_Val_FSC_147.json` beside `images_384_VarV2/`; an image's count is the number of its `points`
(`test.py`), and its splits have the sizes of COUNTS (`data/Train_Test_Val_FSC_147.json`).  The figures, mean
absolute error and root mean square error on the test split, are those of `test.py`; the regression from
global features, without the exemplars' boxes, is this project's.  α is chosen on the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eval.downstream import records, ridge
from eval.downstream.records import Outcome
from eval.sets.evalset import FileImages, Images, Member
from pipeline.formats import utf8

ANNOTATIONS, SPLITS, IMAGES = "annotation_FSC147_384.json", "Train_Test_Val_FSC_147.json", "images_384_VarV2"
COUNTS = {"train": 3659, "val": 1286, "test": 1190}
KEY, NAME = "fsc147", "FSC-147"


@dataclass(frozen=True)
class CountTask:
    """images: those of train, val and test; counts: of each split's images."""

    images: list[Images]
    counts: list[np.ndarray]
    notes: tuple[str, ...] = ()
    key = KEY
    may_lose = False

    def score(self, features: Sequence[Tensor], kept: Sequence[np.ndarray]) -> Outcome:
        """features: of the three splits' images, all of which are `kept`."""
        train, val, test = self.counts
        line, alpha = ridge.choose(ridge.fits(features[0], train), features[1], val)
        predicted = line.predict(features[2])
        told = {
            "alpha": alpha,
            "alphas": f"{ridge.ALPHAS[0]:g} to {ridge.ALPHAS[-1]:g} in quarter decades, chosen on val",
            "training_images": len(train),
        }
        error = np.abs(predicted - test)
        guesses = np.abs(test - np.median(train)).mean(), ((test - train.mean()) ** 2).mean() ** 0.5
        intervals = records.mean(error), records.root_mean(error**2)
        figures = [
            records.figure(KEY, NAME, metric, interval, float(guess), len(test), **told)
            for metric, interval, guess in zip(("ridge_mae", "ridge_rmse"), intervals, guesses)
        ]
        return Outcome(figures=figures, arrays={"count": test, "predicted": predicted})


def read(folder: Path) -> CountTask | None:
    """FSC-147 in this very folder, or None.  Raises ValueError naming the file, split and image."""
    if not (folder / ANNOTATIONS).is_file():
        return None
    annotations, splits = (_object(folder / name) for name in (ANNOTATIONS, SPLITS))
    images: list[Images] = []
    counts = []
    seen: dict[str, str] = {}
    for split, expected in COUNTS.items():
        where = f"{folder / SPLITS}, {split}"
        names = splits.get(split)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where}: no list of images")
        if len(names) != expected:
            raise ValueError(f"{where}: {len(names)} images; FSC-147 has {expected}, others do not compare")
        for number, name in enumerate(names, 1):
            _check(folder, name, f"{where}, image {number}")
            if name in seen:
                raise ValueError(f"{where}, image {number}: {name} is in {seen[name]} already")
            seen[name] = split
        images.append(FileImages([Member.whole(folder / IMAGES / name) for name in names]))
        counts.append(np.array([_count(annotations, name, folder / ANNOTATIONS) for name in names], float))
    return CountTask(images, counts)


def _object(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path}: missing; FSC-147 is {ANNOTATIONS}, {SPLITS} and {IMAGES}/")
    try:
        value = json.loads(utf8.text(path.read_bytes(), str(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is expected")
    return value


def _check(folder: Path, name: str, where: str) -> None:
    if Path(name).name != name:
        raise ValueError(f"{where}: {name!r} is no name of a file in {IMAGES}/")
    if not (folder / IMAGES / name).is_file():
        raise ValueError(f"{where}: {folder / IMAGES / name} is missing")


def _count(annotations: dict, name: str, path: Path) -> int:
    points = annotations[name].get("points") if isinstance(annotations.get(name), dict) else None
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"{path}, {name}: no list `points` of pairs")
    return len(points)
