"""PieAPP: which of two distorted images is nearer to their reference.

77,280 pairs in train and val, 4,200 in test:

    {train,val,test}_reference_list.txt                the references of a split, a name a line
    labels/SPLIT/REFERENCE_pairwise_labels.csv         one table for each
    reference_images/SPLIT/REFERENCE.png, distorted_images/SPLIT/REFERENCE/*.png

Layout and meaning: dataset/dataset_README.md of github.com/prashnani/PerceptualImageError.  The names of the
columns, which have leading blanks, and of the lists: data/two_afc/pie_app.py of
github.com/SaraGhazanfari/UniSim and scripts/process_pieapp.py of github.com/chaofengc/IQA-PyTorch.

In train and val the column "processed preference for A" is read: a maximum-likelihood estimate from the
answers, which fills in the pairs that nobody was asked about.  In test, "preference for A": the share of 40
people.

Whether the images exist and can be read is not looked at; neither are the scores of single images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.formats import utf8
from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import Comparisons

SPLITS = ("train", "val", "test")
PEOPLE = 40  # asked about each pair of the test set
REFERENCE, LEFT, RIGHT = "ref. image", "distorted image A", "distorted image B"
_TABLE = "_pairwise_labels.csv"
UNSURE = (0.4, 0.6)  # UniSim-Bench leaves such preferences out


def read(folder: Path, split: str, skip_unsure: bool = False) -> Comparisons:
    """All pairs of a split, reference after reference in the order of the list; A is left.

    Pairs with the reference as an alternative (the test set has some) are left out, as UniSim-Bench does.
    skip_unsure: so are preferences from 0.4 to 0.6.  The notes say how many.
    `number` is the line in the table of the reference.
    Raises ValueError naming the file, the row and the column.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; PieAPP has {', '.join(SPLITS)}")
    column = "preference for A" if split == "test" else "processed preference for A"
    images: dict[str, int] = {}
    parts = {name: _read(folder, split, name, column, images) for name in _references(folder, split)}
    rows, number, for_left = (np.concatenate(arrays) for arrays in zip(*parts.values()))
    itself = (rows[:, :1] == rows[:, 1:]).any(axis=1)
    unsure = ~itself & (for_left >= UNSURE[0]) & (for_left <= UNSURE[1]) & skip_unsure
    kept = ~itself & ~unsure
    if not kept.any():
        raise ValueError(f"{folder / 'labels' / split}: no pair is left of {len(kept)}")
    reasons = (itself, "the reference is an alternative"), (unsure, "a preference from 0.4 to 0.6")
    notes = [f"{out.sum()} of {len(kept)} pairs left out: {why}" for out, why in reasons if out.any()]
    for name, (pairs, lines, _) in parts.items():
        notes += [f"{name}{_TABLE}: {note}" for note in delimited.repeats(pairs, lines)]
    left, rows = delimited.used(tuple(images), rows[kept])
    return Comparisons(
        folder=folder,
        images=left,
        rows=rows,
        number=number[kept],
        group=np.full(kept.sum(), ""),
        notes=tuple(notes),
        voters="human" if split == "test" else "human, estimated by maximum likelihood",
        vote=1 - for_left[kept],
        votes=np.full(kept.sum(), PEOPLE if split == "test" else 0, np.int32),
    )


def _references(folder: Path, split: str) -> list[str]:
    """The names of a split's references; ValueError where the list and the tables are not the same."""
    path, labels = folder / f"{split}_reference_list.txt", folder / "labels" / split
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; it lists the references of {split}, and PieAPP comes with it"
        )
    lines = utf8.text(path.read_bytes(), str(path)).splitlines()
    names = [line.strip().removesuffix(".png") for line in lines if line.strip()]
    tables = {file.name.removesuffix(_TABLE) for file in labels.glob(f"[!.]*{_TABLE}")}
    if not names:
        raise ValueError(f"{path}: it is empty")
    for number, name in enumerate(names, 1):
        if names.index(name) < number - 1:
            raise ValueError(f"{path}: {name} is there twice")
        if name not in tables:
            raise ValueError(f"{path}: it lists {name}, but there is no {labels / (name + _TABLE)}")
    if other := min(tables - set(names), default=""):
        raise ValueError(f"{labels / (other + _TABLE)}: {path.name} does not list it")
    return names


def _read(
    folder: Path, split: str, name: str, column: str, images: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (n, 3), lines and preferences for A of a reference's table; new images are added to `images`."""
    wanted = (REFERENCE, LEFT, RIGHT)
    table = delimited.columns(folder / "labels" / split / f"{name}{_TABLE}", (*wanted, column))
    files, rows = table.images(*wanted)
    reference = f"{name}.png"
    own = np.array([file == reference for file in files])
    table.check(REFERENCE, own[rows[:, 0]], f"{reference} is expected")
    paths = [
        f"reference_images/{split}/{file}" if file == reference else f"distorted_images/{split}/{name}/{file}"
        for file in files
    ]
    place = np.array([images.setdefault(path, len(images)) for path in paths], np.int32)
    return place[rows], table.line, table.number(column, 0, 1)
