"""NIGHTS triplets, and any set in its layout: data.csv beside the images that it names.

Columns are read by name (their order varies between releases): left_vote, right_vote, votes,
ref_path, left_path, right_path, and, where a choice needs them, split, is_imagenet and id.  Votes may
be fractions; they are kept, not rounded.  Layout and filter: github.com/ssundaram21/dreamsim.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dataprep.shard import Bad, Task, Triplet

SPLITS = ("train", "val", "test", "test_imagenet", "test_no_imagenet")
COLUMNS = ("left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path")
_SHARD, _SHARD_REPEATED = 2_000, 200_000  # rows a shard; long ones where triplets share images


class Row(NamedTuple):
    """One line of data.csv."""

    key: str
    vote: float  # the fraction that preferred right
    votes: int
    paths: tuple[str, str, str]  # ref, left, right, relative to the folder


@cache
def read_rows(path: Path, split: str | None, min_votes: int) -> tuple[Row, ...]:
    """The rows of one split with at least `min_votes` votes; None takes every split.

    Raises ValueError naming the file, the row and the column.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a NIGHTS folder holds data.csv, ref/ and distort/")
    needed = (
        COLUMNS + (("split",) if split else ()) + (("is_imagenet",) if split and "imagenet" in split else ())
    )
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or ())}"
            )
        try:
            rows = [_row(row, number) for number, row in enumerate(reader, 2) if _in_split(row, split)]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}: {error}") from None
    return tuple(row for row in rows if row.votes >= min_votes)


def _in_split(row: dict, split: str | None) -> bool:
    if split in (None, "train", "val", "test"):
        return split is None or row["split"] == split
    return row["split"] == "test" and _truth(row["is_imagenet"]) == (split == "test_imagenet")


def _truth(value: str) -> bool:
    if value.strip().lower() not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise ValueError(f"is_imagenet is {value!r}, neither True nor False")
    return value.strip().lower() in ("true", "1", "1.0")


def _row(row: dict, number: int) -> Row:
    try:
        left, right, votes = (float(row[name]) for name in COLUMNS[:3])
    except (TypeError, ValueError):
        given = ", ".join(f"{name}={row[name]!r}" for name in COLUMNS[:3])
        raise ValueError(f"row {number}: a vote is not a number ({given})") from None
    if not (left >= 0 and right >= 0 and 0 < left + right < float("inf")):
        raise ValueError(f"row {number}: left_vote {left:g} and right_vote {right:g} prefer neither")
    paths = tuple(row[name] for name in COLUMNS[3:])
    if not all(paths):
        raise ValueError(f"row {number}: an empty path among {', '.join(COLUMNS[3:])}")
    return Row(str(row.get("id") or number - 2), right / (left + right), int(votes), paths)


def plan(path: str, rows: int, repeated: bool) -> list[Task]:
    """Tasks of a table of triplets; long ones where images repeat, so that each is stored once."""
    step = _SHARD_REPEATED if repeated else _SHARD
    starts = range(0, rows, step)
    return [Task(path, s, min(s + step, rows), min(step, rows - s), min(step, rows - s)) for s in starts]


@dataclass(frozen=True)
class Nights:
    """One split of a folder in NIGHTS' layout."""

    folder: Path
    split: str | None
    min_votes: int
    kind = "triplets"
    votes = "human"
    captions = 0

    def rows(self) -> tuple[Row, ...]:
        return read_rows(self.folder / "data.csv", self.split, self.min_votes)

    def tasks(self) -> list[Task]:
        if not self.rows():
            table = self.folder / "data.csv"
            raise ValueError(f"{table}: no row of split {self.split!r} with {self.min_votes} votes or more")
        return plan(str(self.folder / "data.csv"), len(self.rows()), self.images() < 3 * len(self.rows()))

    def images(self) -> int:
        return len({path for row in self.rows() for path in row.paths})

    def read(self, task: Task) -> Iterator[Triplet | Bad]:
        for row in self.rows()[task.start : task.stop]:
            ref, left, right = (self.folder / path for path in row.paths)
            yield Triplet(row.key, ref, left, right, row.vote, row.votes)

    def describe(self) -> dict:
        state = (self.folder / "data.csv").stat()
        return {
            "name": "nights", "path": str(self.folder), "split": self.split, "min_votes": self.min_votes,
            "data.csv": [state.st_size, state.st_mtime_ns],
        }  # fmt: skip
