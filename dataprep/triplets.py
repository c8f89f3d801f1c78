"""Triplets as a table over pictures: what a source of them is, and how its file is put together.

The pictures are converted like pairs are, in tasks and shards, each picture once (`Pictures`).  The table
stays in the process that builds, and is written last (`pipeline/beton/triplets.py`).

N triplets over U pictures.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from dataprep.samples import Picture, Source, Task, pieces
from pipeline.base.files import replacing
from pipeline.beton.fields import Beton
from pipeline.beton.triplets import Some, table_bytes, write_triplets

_SHARD = 4_000  # pictures


@dataclass(frozen=True, eq=False, kw_only=True)
class Triplets:
    """N triplets: rows (N, 3) int32 are reference, left, right among `names` (U).

    names: what the source knows the pictures by.
    vote (N,) float64: the share that preferred right.
    votes (N,) int32: how many were asked; 0 where it is unknown, or nobody was.
    key (N,) bytes: a name of each.
    passed_over: how much was never taken, by reason.
    """

    names: Sequence[str]
    rows: np.ndarray
    vote: np.ndarray
    votes: np.ndarray
    key: np.ndarray
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self, which: np.ndarray) -> Triplets:
        """Those of `which` (N,) bool, over the pictures that they show."""
        return replace(
            self, rows=self.rows[which], vote=self.vote[which], votes=self.votes[which], key=self.key[which]
        ).compact()

    def compact(self) -> Triplets:
        """The same triplets over the pictures that they show, in the order of `names`."""
        shown = np.zeros(len(self.names), np.bool_)
        shown[self.rows.ravel()] = True
        number = np.cumsum(shown, dtype=np.int32) - 1
        names = [self.names[i] for i in np.flatnonzero(shown).tolist()]
        key = self.key.astype(f"S{np.strings.str_len(self.key).max(initial=1)}")  # as wide as it must be
        return replace(self, names=names, rows=number[self.rows], key=key)

    @property
    def table_bytes(self) -> int:
        """What they take in a file, beside the pictures."""
        return table_bytes(len(self), self.key.dtype.itemsize)


class TripletSource(ABC):
    """Where triplets come from."""

    kind = "triplets"
    votes: str
    """Where their votes come from, for the JSON."""

    @abstractmethod
    def triplets(self) -> Triplets:
        """The same ones every time.  Raises ValueError for what is wrong with the source as a whole."""

    @abstractmethod
    def picture(self, name: str) -> bytes | Path:
        """A picture by its name in the table."""

    @abstractmethod
    def describe(self) -> dict:
        """`name`, `path` and what else goes into the JSON: enough to tell whether the source has changed."""


@dataclass(frozen=True)
class Pictures(Source):
    """The pictures of a source of triplets, whose names are in the file `listing`."""

    origin: TripletSource
    path: str  # of the origin, for messages
    listing: Path
    count: int
    kind = "pictures"

    def tasks(self) -> list[Task]:
        return pieces(self.path, self.count, _SHARD)

    def read(self, task: Task) -> Iterator[Picture]:
        names = np.load(self.listing, mmap_mode="r")[task.start : task.stop].tolist()
        for number, name in enumerate(names, task.start):
            name = name.decode("utf-8", "surrogateescape")
            yield Picture(name, self.origin.picture(name), number)

    def describe(self) -> dict:
        return self.origin.describe()

    def write_listing(self, names: Sequence[str]) -> None:
        """Leave the names where workers read them: they need no table."""
        encoded = np.array([name.encode("utf-8", "surrogateescape") for name in names])
        with replacing(self.listing) as temporary, open(temporary, "wb") as file:
            np.save(file, encoded)


def pictures_of(source: TripletSource, triplets: Triplets, listing: Path) -> Pictures:
    """The stream of the pictures that `triplets` show."""
    return Pictures(source, str(source.describe()["path"]), listing, len(triplets.names))


# -- putting the file together ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Placed:
    """Which triplets can be written, given the pictures that were stored.

    at (U,) int32: a picture's place in the shards, -1 where it was rejected.  kept (K,): numbers of triplets
    whose pictures are all there.  lost: how many are not, by the reason of the first picture that is missing.
    """

    triplets: Triplets
    shards: Sequence[Path]
    at: np.ndarray
    kept: np.ndarray
    lost: Counter
    rejects: list[dict]  # of pictures, each with the number of triplets that it takes along

    def write(self, out: Path) -> None:
        """Write the file."""
        table = self.triplets

        def take(part: slice) -> Some:
            chosen = self.kept[part]
            return Some(
                self.at[table.rows[chosen]], table.vote[chosen], table.votes[chosen], table.key[chosen]
            )

        write_triplets(self.shards, out, len(self.kept), table.key.dtype.itemsize, take)


def place(triplets: Triplets, shards: Sequence[Path], rejects: Sequence[Path]) -> Placed:
    """Find what the shards hold of the pictures; rejects: their lists, files of JSON lines."""
    at, done = np.full(len(triplets.names), -1, np.int32), 0
    for shard in shards:
        numbers = Beton(shard).metadata["number"]
        at[numbers] = np.arange(done, done + len(numbers))
        done += len(numbers)
    missing = at[triplets.rows] < 0
    whole = ~missing.any(1)
    lost = np.flatnonzero(~whole)
    first = triplets.rows[lost, missing[lost].argmax(1)]
    rows = [json.loads(line) for path in rejects for line in path.read_text().splitlines()]
    reasons = {row["key"]: row["reason"] for row in rows}
    counts = Counter(reasons[triplets.names[number]] for number in first.tolist())
    shown = Counter(triplets.names[number] for row in triplets.rows[lost].tolist() for number in set(row))
    for row in rows:
        row["triplets"] = shown[row["key"]]
    return Placed(triplets, shards, at, np.flatnonzero(whole), counts, rows)


@cache
def triplets_of(source: TripletSource) -> Triplets:
    """`source.triplets()`, once in a process."""
    return source.triplets()
