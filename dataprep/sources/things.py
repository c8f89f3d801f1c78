"""THINGS odd-one-out judgements as 2AFC triplets over object images.

Two forms are read:
- rows of three object numbers, counted from 0, the last one odd (SPoSE, VICE);
- rows of three image stems, the last one odd (DreamSim).

An answer (a, b, odd) becomes two triplets: with a as reference, b was preferred over odd; with b as
reference, a was.  Which of the two images is left is drawn from the row's number.

Not here: triplets drawn from a SPoSE embedding (`drawn/`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataprep.samples import PassedOver, Source, Task, Triplet, state_of
from dataprep.sources.named import ENDINGS, find, images_in, read_names
from dataprep.sources.nights import plan
from pipeline.formats import utf8


@cache
def _images(folder: Path, ids: Path | None) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """(names, image files) of the objects, in the order of `ids`, or sorted by name without `ids`.

    An object's image is NAME.jpg, or the first one in the folder NAME.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of object images")
    names = _names(ids) if ids else _all_names(folder)
    # An object without an image gets a name that does not exist: it is rejected when it is read.
    files = zip(names, find(folder, names))
    return names, tuple(path or folder / f"{name}.jpg" for name, path in files)


def _all_names(folder: Path) -> tuple[str, ...]:
    folders = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    return tuple(sorted(folders | {path.stem for path in images_in(folder)}))


def _names(ids: Path) -> tuple[str, ...]:
    names = tuple(name for _, name in read_names(ids))
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{ids}: {repeated[0]} appears more than once")
    return names


@cache
def _answers(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """(N, 3) int32 object numbers, the third one odd; ValueError names the line that is wrong."""
    try:
        table = np.loadtxt(path, ndmin=2, delimiter=_delimiter(path), encoding="utf-8-sig")
    except ValueError:
        table = _stems(path, names)
    except OSError:
        raise ValueError(f"{path}: no such file") from None
    if table.shape[1] != 3 or not len(table):
        raise ValueError(f"{path}: rows of three objects expected, it has {table.shape[1]} columns")
    wrong = (table < 0) | (table >= len(names)) | (table != np.floor(table))
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(1))[0])
        numbers = ", ".join(f"{number:.15g}" for number in table[row])
        raise ValueError(f"{path}: line {row + 1}: [{numbers}], there are {len(names)} objects, from 0 on")
    same = (table == np.roll(table, 1, axis=1)).any(1)
    if same.any():
        raise ValueError(f"{path}: line {int(np.argmax(same)) + 1}: an object appears twice")
    return table.astype(np.int32)


def _delimiter(path: Path) -> str | None:
    with open(path, encoding="utf-8", errors="replace") as file:
        return "," if "," in file.readline() else None


def _stems(path: Path, names: tuple[str, ...]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(names)}
    rows = []
    for line, words in enumerate(utf8.text(path.read_bytes(), str(path)).replace(",", " ").splitlines(), 1):
        stems = [Path(word).stem if Path(word).suffix.lower() in ENDINGS else word for word in words.split()]
        if len(stems) != 3:
            raise ValueError(f"{path}: line {line}: three objects expected, {len(stems)} found")
        unknown = [stem for stem in stems if stem not in numbers]
        if unknown:
            raise ValueError(f"{path}: line {line}: no image of {unknown[0]}")
        rows.append([numbers[stem] for stem in stems])
    return np.array(rows, np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class Things(Source):
    """Human odd-one-out answers over the images of objects: two triplets each."""

    table: Path
    images_folder: Path
    ids: Path | None = None
    kind = "triplets"
    votes = "human"

    def names(self) -> tuple[str, ...]:
        return _images(self.images_folder, self.ids)[0]

    def files(self) -> tuple[Path, ...]:
        return _images(self.images_folder, self.ids)[1]

    def images(self) -> int:
        return len(self.names())

    def answers(self) -> np.ndarray:
        """(answers, 3) object numbers, the last one odd."""
        return _answers(self.table, self.names())

    def tasks(self) -> list[Task]:
        return plan(str(self.table), 2 * len(self.answers()), repeated=True)

    def read(self, task: Task) -> Iterator[Triplet | PassedOver]:
        table, files = self.answers(), self.files()
        unnamed = len(files) - len(np.unique(table))
        if self.ids is None and unnamed and not task.start:
            reason = "images of no answer (numbers count images by name; --ids gives another order)"
            yield PassedOver(reason, unnamed)
        for row in range(task.start, task.stop):
            first, second, odd = (files[n] for n in table[row // 2])
            ref, near = (first, second) if row % 2 == 0 else (second, first)
            right = hashlib.blake2b(b"%d" % row, digest_size=1).digest()[0] & 1
            pair = (odd, near) if right else (near, odd)
            yield Triplet(f"{row // 2}{'ab'[row % 2]}", ref, *pair, float(right), 1)

    def describe(self) -> dict:
        files = [self.table, self.images_folder, *([self.ids] if self.ids else [])]
        return {"name": "things", "path": str(self.table), "state": state_of(files)}
