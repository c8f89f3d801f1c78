"""NIGHTS triplets, and any set in its layout (`pipeline/formats/nights.py` reads the table)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataprep.triplets import Triplets, TripletSource
from pipeline.formats import nights


@cache
def read_rows(table: Path, split: str, min_votes: int | None) -> tuple[nights.Row, ...]:
    """The rows of one split, read once."""
    return nights.read(table, (split,), min_votes)


@dataclass(frozen=True)
class Nights(TripletSource):
    """One split of a folder in NIGHTS' layout; `min_votes` as in `pipeline.formats.nights.read`."""

    folder: Path
    split: str
    min_votes: int | None = None
    votes = "human"

    def table(self) -> Path:
        return nights.table_of(self.folder)

    def rows(self) -> tuple[nights.Row, ...]:
        return read_rows(self.table(), self.split, self.min_votes)

    def picture(self, name: str) -> bytes | Path:
        return self.folder / name

    def triplets(self) -> Triplets:
        rows = self.rows()
        if not rows:
            limit = "" if self.min_votes is None else f" with {self.min_votes} votes or more"
            raise ValueError(f"{self.table()}: no row of split {self.split!r}{limit}")
        number: dict[str, int] = {}
        shown = [number.setdefault(path, len(number)) for row in rows for path in row.paths]
        few = len(read_rows(self.table(), self.split, 0)) - len(rows)
        return Triplets(
            names=list(number),
            rows=np.array(shown, np.int32).reshape(-1, 3),
            vote=np.array([row.vote for row in rows]),
            votes=np.array([row.votes for row in rows], np.int32),
            key=np.array([row.key.encode("utf-8", "surrogateescape") for row in rows]),
            passed_over={"rows with too few votes (--min-votes 0 takes them)": few} if few else {},
        )

    def describe(self) -> dict:
        table = self.table()
        state = table.stat()
        return {
            "name": "nights", "path": str(self.folder), "split": self.split, "min_votes": self.min_votes,
            table.name: [state.st_size, state.st_mtime_ns],
        }  # fmt: skip
