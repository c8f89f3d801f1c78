"""NIGHTS triplets, and any set in its layout (`pipeline/formats/nights.py` reads the table)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dataprep.samples import Bad, PassedOver, Source, Task, Triplet, pieces
from pipeline.formats import nights

_SHARD = 2_000  # rows
_SHARD_REPEATED = 200_000  # where triplets share images


def plan(path: str, rows: int, repeated: bool) -> list[Task]:
    """Tasks of a table of triplets; long ones if images are repeated: a shard stores an image once."""
    return pieces(path, rows, _SHARD_REPEATED if repeated else _SHARD)


@cache
def read_rows(table: Path, split: str, min_votes: int | None) -> tuple[nights.Row, ...]:
    """The rows of one split, read once."""
    return nights.read(table, (split,), min_votes)


@dataclass(frozen=True)
class Nights(Source):
    """One split of a folder in NIGHTS' layout; `min_votes` as in `pipeline.formats.nights.read`."""

    folder: Path
    split: str
    min_votes: int | None = None
    kind = "triplets"
    votes = "human"

    def table(self) -> Path:
        return nights.table_of(self.folder)

    def rows(self) -> tuple[nights.Row, ...]:
        return read_rows(self.table(), self.split, self.min_votes)

    def image(self, path: str) -> bytes | Path:
        return self.folder / path

    def tasks(self) -> list[Task]:
        if not self.rows():
            limit = "" if self.min_votes is None else f" with {self.min_votes} votes or more"
            raise ValueError(f"{self.table()}: no row of split {self.split!r}{limit}")
        return plan(str(self.table()), len(self.rows()), self.images() < 3 * len(self.rows()))

    def images(self) -> int:
        return len({path for row in self.rows() for path in row.paths})

    def read(self, task: Task) -> Iterator[Triplet | Bad | PassedOver]:
        for row in self.rows()[task.start : task.stop]:
            ref, left, right = map(self.image, row.paths)
            yield Triplet(row.key, ref, left, right, row.vote, row.votes)
        few = len(read_rows(self.table(), self.split, 0)) - len(self.rows())
        if few and not task.start:
            yield PassedOver("rows with too few votes (--min-votes 0 takes them)", few)

    def describe(self) -> dict:
        table = self.table()
        state = table.stat()
        return {
            "name": "nights", "path": str(self.folder), "split": self.split, "min_votes": self.min_votes,
            table.name: [state.st_size, state.st_mtime_ns],
        }  # fmt: skip
