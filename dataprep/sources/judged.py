"""Data sets of human judgements as sources of triplets; `pipeline/formats/judged/` reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from dataprep.sources.comparisons import as_triplets
from dataprep.sources.drawn.images import part_of
from dataprep.triplets import Triplets, TripletSource
from pipeline.formats.judged.forms import Judged


@dataclass(frozen=True)
class JudgedTriplets(TripletSource):
    """One split of what a reader returns."""

    name: str
    path: Path
    reader: Callable[[], Judged]
    options: tuple[tuple[str, object], ...]
    """What the reader was told, for the JSON."""
    split: str = "train"
    held_out: float | None = None
    """Share of the references in val, and in test, by their names; None: the set is one split."""

    @property
    def votes(self) -> str:  # type: ignore[override]
        return _read(self).voters

    def triplets(self) -> Triplets:
        judged = _read(self)
        triplets = as_triplets(judged)
        if self.held_out is not None:
            parts = np.array([part_of(name, self.held_out) == self.split for name in judged.images])
            triplets = triplets.chosen(parts[triplets.rows[:, 0]])
        if not len(triplets):
            raise ValueError(f"{self.path}: no triplets in split {self.split}")
        return replace(triplets, names=[str(judged.folder / name) for name in triplets.names])

    def notes(self) -> tuple[str, ...]:
        """What the reader left out, for the user to read."""
        return _read(self).notes

    def picture(self, name: str) -> Path:
        return Path(name)  # a worker process need not read the judgements

    def describe(self) -> dict:
        judged = _read(self)
        return {
            "name": self.name, "path": str(self.path), "split": self.split, "held_out": self.held_out,
            "options": dict(self.options), "notes": list(judged.notes), "sha256": _digest(judged),
        }  # fmt: skip


@cache
def _read(source: JudgedTriplets) -> Judged:
    return source.reader()


def _digest(judged: Judged) -> str:
    """Of everything that was read."""
    digest = hashlib.sha256("\0".join(judged.images).encode("utf-8", "surrogateescape"))
    for value in vars(judged).values():
        if isinstance(value, np.ndarray):
            digest.update(value.tobytes())
    return digest.hexdigest()[:16]
