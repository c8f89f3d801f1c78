"""Two-alternative forced choice: does the image tower find the same image closer as people do?

N triplets (reference, left, right), D width.  Distance is 1 − cosine (paper, equation 1).  Votes may
be fractions: the share of people who preferred right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eval.sets.evalset import BetonImages, FileImages, Member, PreparedImages
from pipeline.beton.fields import Beton
from pipeline.formats import nights

SPLITS = ("val", "test")
CONSTRUCTED = "constructed"  # of `Triplets.voters`: nobody was asked
_IN_WORDS = "constructed, no human vote"  # also what older files have in place of the key


def voters_of(votes: str) -> str:
    """`Triplets.voters` for what a file's `votes` says."""
    return CONSTRUCTED if votes == _IN_WORDS else votes


def describe_votes(voters: str) -> str:
    """Whose votes these are, for people to read."""
    return _IN_WORDS if voters == CONSTRUCTED else voters


@dataclass(frozen=True, eq=False, kw_only=True)
class Triplets:
    """N triplets over U different images.

    images: the U images.  rows (N, 3) int64: reference, left, right in `images`.  vote (N,) float64:
    share that preferred right.  split (N,) of str.  voters: `human`, CONSTRUCTED, or another source in words.
    source: the name of the data set it was built from, where a file tells.  notes: what was left out, for
    the user to read.
    """

    path: Path
    images: FileImages
    rows: np.ndarray
    vote: np.ndarray
    split: np.ndarray
    voters: str
    source: str = ""
    notes: tuple[str, ...] = ()


def _unique(members: Sequence[Member]) -> tuple[list[int], np.ndarray]:
    """(where each different image comes first in `members`, (N, 3) the images' numbers)."""
    number: dict[tuple, int] = {}
    first, rows = [], []
    for i, member in enumerate(members):
        bytes_of = (member.path, member.offset, member.size)
        if bytes_of not in number:
            number[bytes_of] = len(number)
            first.append(i)
        rows.append(number[bytes_of])
    return first, np.array(rows, np.int64).reshape(-1, 3)


def _read_betons(path: Path, files: Sequence[Beton]) -> Triplets:
    """Triplet files of dataprep's, one after the other.  ValueError when one holds no triplets.

    path: the file's, or that of the folder of several.
    """
    sides = ("ref", "left", "right")
    members: list[Member] = []
    sizes: list[list[int]] = []
    checksums: list[int | None] = []
    votes: list[float] = []
    for file in files:
        if file.kind != "triplets":
            raise ValueError(f"--triplets {file.path}: holds {file.kind}, not triplets")
        table = file.rows(np.arange(len(file)))
        spans = [zip(*(column.tolist() for column in table.spans(side))) for side in sides]
        for i, row in enumerate(zip(*spans)):
            for side, (offset, size) in zip(sides, row):
                members.append(Member(file.path, offset, size, f"{side} of sample {i}"))
        sizes += np.stack([table.sizes(side) for side in sides], 1).reshape(-1, 2).tolist()
        known = file.checksummed
        checksums += table.checksums(sides).ravel().tolist() if known else [None] * 3 * len(file)
        votes += table.records["vote"].tolist()
    first, rows = _unique(members)
    voters = [voters_of(str(file.info.get("votes", "votes as given in the file"))) for file in files]
    sources = {str(file.info.get("source", {}).get("name", "")) for file in files}
    return Triplets(
        path=path,
        images=BetonImages(
            [members[i] for i in first], [sizes[i] for i in first], [checksums[i] for i in first]
        ),
        rows=rows,
        vote=np.array(votes),
        split=np.repeat([beton_split(file) for file in files], [len(file) for file in files]),
        voters="; ".join(dict.fromkeys(voters)),
        source=sources.pop() if len(sources) == 1 else "",
        notes=tuple(note for file in files for note in _left_out(file)),
    )


def _left_out(file: Beton) -> tuple[str, ...]:
    """What dataprep counted as not taken into the file."""
    counts = file.info.get("passed_over", {}) | file.info.get("rejected", {})
    listing = ", ".join(f"{count} {what}" for what, count in counts.items())
    return (f"left out when {file.path.name} was built: {listing}",) if listing else ()


def beton_split(file: Beton) -> str:
    """The split that dataprep says a triplet file holds, else that its name says, else `test`."""
    named = file.path.stem.removeprefix("triplets-") if file.path.stem.startswith("triplets-") else "test"
    return str(file.info.get("source", {}).get("split") or named)


def _of_splits(folder: Path, paths: Sequence[Path], splits: Sequence[str]) -> list[Beton]:
    """Those of a folder's triplet files that hold the splits asked for; ValueError when none does."""
    held = [(file, beton_split(file)) for file in map(Beton, paths)]
    chosen = [file for wanted in dict.fromkeys(splits) for file, split in held if split == wanted]
    if not chosen:
        here = ", ".join(f"{file.path.name} ({split})" for file, split in held)
        raise ValueError(f"--triplets {folder}: no split {' or '.join(splits)} among {here}")
    return chosen


def read_nights(folder: Path, splits: Sequence[str]) -> Triplets:
    """A folder laid out as NIGHTS, its table read as dataprep reads it (`pipeline.formats.nights.read`).

    A table without a column `split` is taken as a test set.
    Raises ValueError naming the row whose image is missing or whose votes are no numbers.
    """
    table = nights.table_of(folder)
    by_split = {split: nights.read(table, (split,), unsplit="test") for split in splits}
    triplets = [row for part in by_split.values() for row in part]
    fewer = sum(len(nights.read(table, (s,), 0, unsplit="test")) for s in by_split) - len(triplets)
    if not triplets:
        few = f" with {nights.MIN_VOTES} votes or more; {fewer} have fewer" if fewer else ""
        raise ValueError(f"{table}: no triplet of split {' or '.join(splits)}{few}")
    for row in triplets:
        if missing := [path for path in row.paths if not (folder / path).is_file()]:
            raise ValueError(f"{table}, triplet {row.key}: {folder / missing[0]} is missing")
    members = [Member.whole(folder / path, path) for row in triplets for path in row.paths]
    first, rows = _unique(members)
    return Triplets(
        path=table,
        images=PreparedImages([members[i] for i in first]),
        rows=rows,
        vote=np.array([row.vote for row in triplets]),
        split=np.repeat(list(by_split), [len(part) for part in by_split.values()]),
        voters=f"votes as given in {table.name}",
        notes=(f"{fewer} triplets of fewer than {nights.MIN_VOTES} votes left out",) if fewer else (),
    )


def read(path: Path, splits: Sequence[str] = SPLITS) -> Triplets:
    """A .beton file, or these splits of a folder laid out as NIGHTS or holding triplets-*.beton."""
    path = path.parent if path.name in nights.TABLES else path
    if not path.is_dir():
        return _read_betons(path, [Beton(path)])
    if paths := sorted(path.glob("triplets-*.beton")):
        return _read_betons(path, _of_splits(path, paths, splits))
    if any(any(path.glob(form)) for form in ("p0", "*/p0", "*/*/p0")):
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

    def of(self, split: str) -> Choices:
        """Those of one split ("": all)."""
        rows = self.split == split if split else slice(None)
        return Choices(self.dist[rows], self.vote[rows], self.split[rows])

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
    twoafc_soft: the share of people who are agreed with, which training logs under the same name.
    """
    out: dict[str, float] = {}
    splits = sorted(set(choices.split.tolist()))
    for split in ("", *(splits if len(splits) > 1 else ())):
        part, end = choices.of(split), f"@{split}" if split else ""
        credit = part.credit()
        if (counted := ~np.isnan(credit)).any():
            out[f"twoafc{end}"] = float(credit[counted].mean())
        out[f"twoafc_soft{end}"] = float(part.soft_credit().mean())
        out[f"ceiling{end}"] = float(np.maximum(part.vote, 1 - part.vote).mean())
        out[f"triplets{end}"] = len(part.vote)
    return out
