"""THINGS odd-one-out judgements as 2AFC triplets over object images.

Three forms: triplets as rows of three object numbers from 0, the last one the odd one (SPoSE, VICE);
rows of three image stems, the third one odd (DreamSim); and a SPoSE embedding, from which triplets
are drawn with the vote that its model gives.

A human answer (a, b, odd) becomes two rows: with a as reference, b was preferred over odd; with b as
reference, a was.  Which of the two stands left is drawn from the row's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataprep.columns import state_of
from dataprep.nights import plan
from dataprep.shard import Task, Triplet
from pipeline import utf8
from pipeline.tars import PICTURES


@cache
def _images(folder: Path, ids: Path | None) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """(names, image files) of the objects, in the order of `ids` or else of their names.

    An object's image is NAME.jpg, or the first in the folder NAME.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of object images")
    there = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    folders = (path for path in there if path.is_dir())
    files = {path.name: min(filter(_is_image, path.iterdir()), default=None) for path in folders}
    files |= {path.stem: path for path in reversed(there) if _is_image(path)}
    names = sorted(files) if ids is None else utf8.text(ids.read_bytes(), str(ids)).split()
    # A file that is missing is told when it is read.
    return tuple(names), tuple(files.get(name) or folder / f"{name}.jpg" for name in names)


def _is_image(path: Path) -> bool:
    return path.name[0] != "." and _has_ending(path.name) and path.is_file()


def _has_ending(name: str) -> bool:
    return Path(name).suffix[1:].lower() in PICTURES


@cache
def _answers(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """(N, 3) int32 object numbers, the third one odd; ValueError names the line that is wrong."""
    try:
        table = np.loadtxt(path, np.int64, ndmin=2, delimiter=_delimiter(path), encoding="utf-8-sig")
    except ValueError:
        table = _stems(path, names)
    except OSError:
        raise ValueError(f"{path}: no such file") from None
    if table.shape[1] != 3 or not len(table):
        raise ValueError(f"{path}: rows of three objects expected, it has {table.shape[1]} columns")
    wrong = (table < 0) | (table >= len(names))
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(1))[0])
        raise ValueError(f"{path}: line {row + 1}: {table[row].tolist()}, there are {len(names)} objects")
    return table.astype(np.int32)


def _delimiter(path: Path) -> str | None:
    with open(path, encoding="utf-8", errors="replace") as file:
        return "," if "," in file.readline() else None


def _stems(path: Path, names: tuple[str, ...]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(names)}
    rows = []
    for line, words in enumerate(utf8.text(path.read_bytes(), str(path)).replace(",", " ").splitlines(), 1):
        stems = [Path(word).stem if _has_ending(word) else word for word in words.split()]
        if len(stems) != 3:
            raise ValueError(f"{path}: line {line}: three objects expected, {len(stems)} found")
        unknown = [stem for stem in stems if stem not in numbers]
        if unknown:
            raise ValueError(f"{path}: line {line}: no image of {unknown[0]}")
        rows.append([numbers[stem] for stem in stems])
    return np.array(rows, np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class Things:
    """Human odd-one-out answers: two triplets each."""

    answers: Path
    images_folder: Path
    ids: Path | None = None
    kind = "triplets"
    votes = "human"
    captions = 0

    def table(self) -> np.ndarray:
        return _answers(self.answers, _images(self.images_folder, self.ids)[0])

    def tasks(self) -> list[Task]:
        return plan(str(self.answers), 2 * len(self.table()), repeated=True)

    def images(self) -> int:
        return len(_images(self.images_folder, self.ids)[0])

    def read(self, task: Task) -> Iterator[Triplet]:
        _, files = _images(self.images_folder, self.ids)
        table = self.table()
        for row in range(task.start, task.stop):
            first, second, odd = (files[n] for n in table[row // 2])
            ref, near = (first, second) if row % 2 == 0 else (second, first)
            right = hashlib.blake2b(b"%d" % row, digest_size=1).digest()[0] & 1
            pair = (odd, near) if right else (near, odd)
            yield Triplet(f"{row // 2}{'ab'[row % 2]}", ref, *pair, float(right), 1)

    def describe(self) -> dict:
        files = [self.answers, self.images_folder, *([self.ids] if self.ids else [])]
        return {"name": "things", "path": str(self.answers), "state": state_of(files)}


@dataclass(frozen=True)
class Spose:
    """Triplets drawn from a SPoSE embedding: `count` of them, from `seed`.

    The model says that of three objects the pair (i, j) is seen as most similar with a probability in
    proportion to exp(x_i·x_j); so with a as reference, c is preferred over b with the probability
    sigmoid(x_a·x_c − x_a·x_b) (Hebart et al. 2020, eq. 1–2).
    """

    embedding: Path
    images_folder: Path
    count: int
    seed: int = 0
    ids: Path | None = None
    kind = "triplets"
    votes = "by the SPoSE model of human answers, no human vote of its own"
    captions = 0

    def vectors(self) -> np.ndarray:
        """(objects, dimensions)."""
        try:
            vectors = np.loadtxt(self.embedding, ndmin=2, encoding="utf-8-sig")
        except OSError:
            raise ValueError(f"{self.embedding}: no such file") from None
        except ValueError as error:
            raise ValueError(f"{self.embedding}: {error}") from None
        if len(vectors) != self.images():
            there = f"{self.images()} images are in {self.images_folder}"
            raise ValueError(f"{self.embedding}: {len(vectors)} objects, but {there}")
        return vectors

    def tasks(self) -> list[Task]:
        if self.count < 1 or self.images() < 3:
            raise ValueError("things: --count must be at least 1, and there must be three objects")
        self.vectors()
        return plan(str(self.embedding), self.count, repeated=True)

    def images(self) -> int:
        return len(_images(self.images_folder, self.ids)[0])

    def read(self, task: Task) -> Iterator[Triplet]:
        _, files = _images(self.images_folder, self.ids)
        vectors = self.vectors()
        for row in range(task.start, task.stop):
            rng = np.random.default_rng([self.seed, row])
            a, b, c = rng.choice(len(files), 3, replace=False)
            vote = 1 / (1 + np.exp(vectors[a] @ vectors[b] - vectors[a] @ vectors[c]))
            yield Triplet(str(row), files[a], files[b], files[c], float(vote), 0)

    def describe(self) -> dict:
        files = [self.embedding, self.images_folder, *([self.ids] if self.ids else [])]
        told = {"name": "things", "path": str(self.embedding), "count": self.count, "seed": self.seed}
        return told | {"state": state_of(files)}
