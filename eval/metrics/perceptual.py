"""Two-alternative forced choice: does the image tower see two pictures as alike as people do?

N triplets (reference, left, right), D width.  Distance is 1 − cosine (paper, equation 1).  Votes may
be fractions: the share of people who preferred right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eval.sets.evalset import JoinedImages
from eval.sets.prepared import BetonImages, PreparedImages
from pipeline.beton.fields import Beton
from pipeline.formats import nights

SPLITS = ("val", "test")


@dataclass(frozen=True, eq=False)
class Triplets:
    """N triplets over U different images.

    images: the U images.  rows (N, 3) int64: reference, left, right in `images`.  vote (N,) float64:
    share that preferred right.  split (N,) of str.  votes_are: whose votes these are, in words.  notes: what
    was left out, for the user to read.
    """

    path: Path
    images: PreparedImages | JoinedImages
    rows: np.ndarray
    vote: np.ndarray
    split: np.ndarray
    votes_are: str
    notes: tuple[str, ...] = ()


def _unique(members: list[tuple]) -> tuple[list[tuple], np.ndarray]:
    """The members that differ in their first three fields, and (N, 3) their numbers."""
    number: dict[tuple, int] = {}
    rows = np.array([number.setdefault(m[:3], len(number)) for m in members], np.int64).reshape(-1, 3)
    found = {m[:3]: m for m in members}
    return [found[key] for key in number], rows


def read_beton(path: Path) -> Triplets:
    """A triplet file of dataprep's.  ValueError when it holds no triplets."""
    file = Beton(path)
    if file.kind != "triplets":
        raise ValueError(f"--triplets {path}: holds {file.kind}, not triplets")
    index = np.arange(len(file))
    table = file.rows(index)
    spans = {name: table.spans(name) for name in ("ref", "left", "right")}
    sizes = {name: table.sizes(name).tolist() for name in spans}
    members = [
        (file.path, int(spans[n][0][i]), int(spans[n][1][i]), f"{n} of sample {i}", sizes[n][i])
        for i in index
        for n in ("ref", "left", "right")
    ]
    found, rows = _unique(members)
    images = BetonImages([m[:4] for m in found], [m[4] for m in found])
    vote = table.records["vote"].astype(np.float64)
    split = np.full(len(file), beton_split(file))
    votes_are = str(file.info.get("votes", "votes as given in the file"))
    return Triplets(file.path, images, rows, vote, split, votes_are, _left_out(file))


def _left_out(file: Beton) -> tuple[str, ...]:
    """What dataprep counted as not taken into the file."""
    counts = file.info.get("passed_over", {}) | file.info.get("rejected", {})
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    return (f"left out when {file.path.name} was built: {told}",) if told else ()


def beton_split(file: Beton) -> str:
    """The split that dataprep says a triplet file holds, else that its name says, else `test`."""
    named = file.path.stem.removeprefix("triplets-") if file.path.stem.startswith("triplets-") else "test"
    return str(file.info.get("source", {}).get("split") or named)


def read_betons(folder: Path, files: list[Path], splits: Sequence[str] = SPLITS) -> Triplets:
    """The splits asked for of a folder of triplets-*.beton, one after the other; ValueError when none is."""
    found = [(path, beton_split(Beton(path))) for path in files]
    parts = [read_beton(path) for asked in dict.fromkeys(splits) for path, split in found if split == asked]
    if not parts:
        here = ", ".join(f"{path.name} ({split})" for path, split in found)
        raise ValueError(f"--triplets {folder}: no split {' or '.join(splits)} among {here}")
    images = JoinedImages([p.images for p in parts])
    rows = np.concatenate([p.rows + start for p, start in zip(parts, images.starts)])
    vote, split = (np.concatenate([getattr(p, name) for p in parts]) for name in ("vote", "split"))
    votes_are = "; ".join(dict.fromkeys(p.votes_are for p in parts))
    return Triplets(folder, images, rows, vote, split, votes_are, tuple(n for p in parts for n in p.notes))


def read_nights(folder: Path, splits: Sequence[str] = SPLITS) -> Triplets:
    """A folder laid out as NIGHTS, its table read as dataprep reads it (`pipeline.formats.nights.read`).

    A table without a column `split` is taken as a test set.
    Raises ValueError naming the row whose picture is missing or whose votes are no numbers.
    """
    table = nights.table_of(folder)
    by_split = {split: nights.read(table, (split,), unsplit="test") for split in splits}
    found = [row for part in by_split.values() for row in part]
    if not found:
        raise ValueError(f"{table}: no triplet of split {' or '.join(splits)}")
    members = [(folder / path, 0, -1, path) for row in found for path in row.paths]
    for number, (picture, *_) in enumerate(members):
        if not picture.is_file():
            raise ValueError(f"{table}, triplet {found[number // 3].key}: {picture} is missing")
    pictures, rows = _unique(members)
    vote = np.array([row.vote for row in found])
    split = np.repeat(list(by_split), [len(part) for part in by_split.values()])
    fewer = sum(len(nights.read(table, (s,), 0, unsplit="test")) for s in by_split) - len(found)
    notes = (f"{fewer} triplets of fewer than {nights.MIN_VOTES} votes left out",) if fewer else ()
    votes_are = f"votes as given in {table.name}"
    return Triplets(table, PreparedImages(pictures), rows, vote, split, votes_are, notes)


def read(path: Path, splits: Sequence[str] = SPLITS) -> Triplets:
    """A .beton file, or these splits of a folder laid out as NIGHTS or holding triplets-*.beton."""
    path = path.parent if path.name in nights.TABLES else path
    if not path.is_dir():
        return read_beton(path)
    if files := sorted(path.glob("triplets-*.beton")):
        return read_betons(path, files, splits)
    if next((found for form in ("p0", "*/p0", "*/*/p0") for found in path.glob(form)), None):
        raise ValueError(
            f"--triplets {path}: BAPPS; dataprep/build_ffcv.py bapps makes the .beton to evaluate"
        )
    return read_nights(path, splits)


@dataclass(frozen=True)
class Choices:
    """dist (N, 2) float32 from the reference to left and right; vote (N,); split (N,)."""

    dist: np.ndarray
    vote: np.ndarray
    split: np.ndarray

    def prefers_right(self) -> np.ndarray:
        """(N,) 1 where right is nearer, 0 where left is, 0.5 at an exact tie."""
        left, right = self.dist.T
        return np.where(right < left, 1.0, np.where(right > left, 0.0, 0.5))

    def credit(self) -> np.ndarray:
        """(N,) agreement with the majority: 1, 0, or 0.5 at a tie of distances; NaN where votes are even."""
        choice, vote = self.prefers_right(), self.vote
        agrees = np.where(vote > 0.5, choice, 1 - choice)
        return np.where(vote == 0.5, np.nan, agrees)

    def soft_credit(self) -> np.ndarray:
        """(N,) the share of people the model agrees with."""
        choice = self.prefers_right()
        return choice * self.vote + (1 - choice) * (1 - self.vote)


def choose(triplets: Triplets, features: Tensor) -> Choices:
    """features (U, D), unit rows of `triplets.images`."""
    ref, left, right = (features[triplets.rows[:, i]] for i in range(3))
    dist = np.stack([(1 - (ref * x).sum(1)).numpy() for x in (left, right)], 1)
    return Choices(dist, triplets.vote, triplets.split)


def metrics(choices: Choices) -> dict[str, float]:
    """twoafc and twoafc_soft, ceiling (the best possible twoafc_soft), triplets; by split too.

    twoafc: agreement with the majority, over the triplets that have one; a tie of distances counts half.
    twoafc_soft: the share of people who are agreed with, what training logs under the same name.
    """
    credit, soft = choices.credit(), choices.soft_credit()
    ceiling = np.maximum(choices.vote, 1 - choices.vote)
    out: dict[str, float] = {}
    splits = sorted(set(choices.split.tolist()))
    for name in ["", *(splits if len(splits) > 1 else [])]:
        rows = np.ones(len(credit), bool) if not name else choices.split == name
        end = f"@{name}" if name else ""
        counted = rows & ~np.isnan(credit)
        if counted.any():
            out[f"twoafc{end}"] = float(credit[counted].mean())
        out[f"twoafc_soft{end}"] = float(soft[rows].mean())
        out[f"ceiling{end}"] = float(ceiling[rows].mean())
        out[f"triplets{end}"] = int(rows.sum())
    return out
