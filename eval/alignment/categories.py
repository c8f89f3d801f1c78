"""Category odd-one-out on CIFAR-100: two images of one superclass and one of another; nobody was asked.

As UniSim-Bench has it (SaraGhazanfari/UniSim `data/three_afc/cifar.py`, `CIFAR100CoarseTriplets`, by the 20
superclasses; the odd one is the image outside the most similar pair, `eval/odd_one_out_eval.py`).  There
the triplets are drawn anew in every run, and the two of one superclass may be one image twice; here they are
drawn once for all, with a fixed seed, and are two.  So its published figures are not matched digit by digit.
The answers are constructed from labels.

N triplets, U images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xxhash

from eval.alignment import judgements, scores, similarities
from eval.alignment.judgements import ODD, PAIRS_OF
from eval.alignment.records import EVERYTHING, SHARE, Score, SetScores
from eval.alignment.results import Scored
from eval.metrics.perceptual import CONSTRUCTED
from eval.sets import sources
from eval.sets.evalset import ClassificationSet, Images

TRIPLETS = 5000  # as many as UniSim-Bench evaluates
METRIC = "odd_one_out"
# CIFAR-100's own: www.cs.toronto.edu/~kriz/cifar.html
SUPERCLASSES = (
    "beaver dolphin otter seal whale",
    "aquariumfish flatfish ray shark trout",
    "orchid poppy rose sunflower tulip",
    "bottle bowl can cup plate",
    "apple mushroom orange pear sweetpepper",
    "clock keyboard lamp telephone television",
    "bed chair couch table wardrobe",
    "bee beetle butterfly caterpillar cockroach",
    "bear leopard lion tiger wolf",
    "bridge castle house road skyscraper",
    "cloud forest mountain plain sea",
    "camel cattle chimpanzee elephant kangaroo",
    "fox porcupine possum raccoon skunk",
    "crab lobster snail spider worm",
    "baby boy girl man woman",
    "crocodile dinosaur lizard snake turtle",
    "hamster mouse rabbit shrew squirrel",
    "mapletree oaktree palmtree pinetree willowtree",
    "bicycle bus motorcycle pickuptruck train",
    "lawnmower rocket streetcar tank tractor",
)


def score(folder: Path, encode: Callable[[Images], np.ndarray]) -> Scored:
    """The figure of CIFAR-100's test images in `folder`, in any form that eval.run reads.

    encode: (U, D) float32 unit rows of the images.  Raises ValueError for a folder that holds another set.
    """
    evalset = sources.read_folder(folder)
    if evalset is None or evalset.prompts is None:
        raise ValueError(f"{folder}: no CIFAR-100 in it, in any form that eval.run reads")
    rows, odd = draw(superclasses(evalset))
    features = torch.from_numpy(encode(evalset.images))
    alike = similarities.of_pairs(features, rows, PAIRS_OF[ODD])
    arrays = {
        "group": np.zeros(len(rows), np.int16),
        "groups": np.array([EVERYTHING]),
        "clusters": np.empty((len(rows), 0), np.int32),
        "number": np.arange(len(rows)),
        METRIC: judgements.odd_credit(alike, np.eye(3)[odd])[METRIC],
    }
    figure = scores.interval(arrays, METRIC, EVERYTHING)
    made = Score(
        metric=METRIC,
        group=EVERYTHING,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        chance=1 / 3,
        ceiling=1.0,
        ceiling_source="labels",
        n=len(rows),
        unit=SHARE,
    )
    about = SetScores(
        key="cifar100",
        title="CIFAR-100, categories",
        scores=(made,),
        notes=(*evalset.notes, f"{len(rows)} triplets drawn from the 20 superclasses with seed 0"),
        source=str(folder.resolve()),
        voters=CONSTRUCTED,
    )
    asked = _digest(evalset.labels, rows, odd)
    return Scored(scores=about, arrays=arrays, judgements=asked)


def superclasses(evalset: ClassificationSet) -> np.ndarray:
    """(U,) int64: each image's superclass, by the name of its class."""
    number = {name: i for i, names in enumerate(SUPERCLASSES) for name in names.split()}
    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in evalset.prompts.classes]
    if sorted(plain) != sorted(number):
        strange = next((name for name, p in zip(evalset.prompts.classes, plain) if p not in number), "fewer")
        raise ValueError(f"{evalset.path}: its classes are not CIFAR-100's ({strange!r})")
    return np.array([number[name] for name in plain])[evalset.labels]


def draw(labels: np.ndarray, count: int = TRIPLETS) -> tuple[np.ndarray, np.ndarray]:
    """(rows (count, 3) int64 into the images, which of the three is the odd one (count,)); with seed 0.

    labels (U,): each image's class, of at least two.  Both classes, the images and the odd one's place are
    uniform; the two images of one class are different ones.  ValueError for a class with fewer than two.
    """
    rng = np.random.default_rng(0)
    sizes = np.bincount(labels)
    if sizes.min() < 2:
        raise ValueError(f"class {int(sizes.argmin())} has {int(sizes.min())} images; two are needed")
    members, starts = np.argsort(labels, kind="stable"), np.cumsum(sizes) - sizes
    one = rng.integers(len(sizes), size=count)
    other = (one + rng.integers(1, len(sizes), size=count)) % len(sizes)
    first = rng.integers(sizes[one])
    second = (first + rng.integers(1, sizes[one])) % sizes[one]
    away = rng.integers(sizes[other])
    chosen = np.stack([starts[other] + away, starts[one] + first, starts[one] + second], 1)
    odd = rng.integers(3, size=count)
    places = (np.arange(3) - odd[:, None]) % 3  # the odd one, which is first in `chosen`, to its place
    return members[np.take_along_axis(chosen, places, 1)], odd


def _digest(*arrays: np.ndarray) -> str:
    """Equal where the same was asked."""
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
