"""Triplets drawn from an embedding or a matrix, as a source: one split of what a prior says.

Not here: the numbers (`spaces.py`), the images (`images.py`), the rule (`rule.py`).

M images that can be used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataprep.samples import state_of
from dataprep.sources.drawn.images import Images, Listing, list_images, part_of, sha256
from dataprep.sources.drawn.rule import Rule, Scale, draw, measure
from dataprep.sources.drawn.spaces import Metric, Space, check_matrix, open_embedding, open_matrix
from dataprep.triplets import Triplets, TripletSource


@dataclass(frozen=True, kw_only=True)
class Prior(ABC):
    """Numbers that say how alike images are, the images, and how triplets are drawn."""

    table: Path
    listing: Listing
    rule: Rule
    held_out: float
    """Share of the images in val, and in test."""
    seed: int

    def __post_init__(self) -> None:
        self.rule.check()
        if not 0 <= self.held_out <= 0.5:
            raise ValueError(f"--held-out is a share from 0 to 0.5, not {self.held_out:g}")

    @abstractmethod
    def space(self) -> Space:
        """The numbers, read once.  Raises ValueError for what is wrong with them."""

    def check(self) -> str:
        """A note on what was overlooked, mostly empty.  Raises ValueError for what takes long to find out."""
        return ""

    @abstractmethod
    def describe(self) -> dict:
        """`name`, `distance` and what else there is to say of the numbers, for the JSON."""

    def notes(self) -> list[str]:
        """What a user should know before the build, one line each."""
        note, scale, what = self.check(), _scale(self), self.describe()["distance"]
        lines = [
            f"{self.table}: {self.space().size:,} images, {len(_images(self)[1]):,} are used",
            f"  distance: {what}, its sd {scale.sd:g}; a triplet's two differ by {scale.least:g} or more, "
            f"as in {100 * scale.share:.3g} % of random ones",
        ]
        return [*lines, f"  {note}"] if note else lines


@dataclass(frozen=True, kw_only=True)
class EmbeddingPrior(Prior):
    """Rows of an embedding, and a metric."""

    metric: Metric

    def space(self) -> Space:
        return open_embedding(self.table, self.metric)

    def describe(self) -> dict:
        dimensions = open_embedding(self.table, self.metric).rows.shape[1]
        return {"name": "embedding", "distance": f"{self.metric} of {dimensions} dimensions"}


@dataclass(frozen=True, kw_only=True)
class MatrixPrior(Prior):
    """A matrix of dissimilarities, or of similarities."""

    similarity: bool

    def check(self) -> str:
        return check_matrix(self.table, self.similarity)

    def space(self) -> Space:
        return open_matrix(self.table, self.similarity)

    def describe(self) -> dict:
        return {"name": "matrix", "distance": "minus the similarity" if self.similarity else "as in the file"}


@dataclass(frozen=True)
class Drawn(TripletSource):
    """One split of the triplets that are drawn from a prior."""

    prior: Prior
    split: str

    @property
    def votes(self) -> str:  # type: ignore[override]
        return f"computed from {self.prior.table.name}, no human vote of its own"

    def wanted(self) -> int:
        """Triplets that are asked for."""
        share = 1 if self.split == "train" else self.prior.held_out
        return max(1, round(self.prior.rule.triplets * share))

    def triplets(self) -> Triplets:
        self.prior.check()
        rows, difference = _drawn(self)
        return Triplets(
            names=[str(file) for file in _images(self.prior)[0].files],
            rows=rows.astype(np.int32, copy=False),
            vote=_scale(self.prior).votes(difference),
            votes=np.zeros(len(rows), np.int32),
            key=_keys(rows),
            passed_over=self._left_out(),
        )

    def picture(self, name: str) -> Path:
        return Path(name)

    def note(self) -> str:
        """A line on how much there is."""
        rows = _drawn(self)[0]
        fewer = f", {self.wanted():,} were asked for: there are no more" if len(rows) < self.wanted() else ""
        return f"  {self.split}: {len(rows):,} triplets of {len(np.unique(rows)):,} images{fewer}"

    def describe(self) -> dict:
        prior, scale, images = self.prior, _scale(self.prior), _images(self.prior)[0]
        vote = "1 if right is nearer, 0 if left is"
        if scale.temperature is not None:
            vote = f"1 / (1 + exp((d(ref, right) - d(ref, left)) / {scale.temperature:g}))"
        return prior.describe() | {
            "path": str(prior.table), "sha256": sha256(prior.table), "images": str(prior.listing.images),
            "names": str(prior.listing.names or ""), "state": state_of(images.files),
            "left_out": self._left_out(), "split": self.split, "held_out": prior.held_out, "seed": prior.seed,
            "asked": self.wanted(), "rule": f"|d(ref, left) - d(ref, right)| >= {scale.least:g}, not 0",
            "vote": vote, "sd": scale.sd, "share_of_random_triplets": scale.share, "given": vars(prior.rule),
        }  # fmt: skip

    def _left_out(self) -> dict[str, int]:
        reasons = Counter(reason for reason, _ in _images(self.prior)[0].faults.values())
        return dict(sorted(reasons.items()))


def _keys(rows: np.ndarray) -> np.ndarray:
    """(N,) bytes: a triplet's three rows, with commas."""
    words = rows.astype(bytes)
    return np.strings.add(
        np.strings.add(words[:, 0], b","), np.strings.add(np.strings.add(words[:, 1], b","), words[:, 2])
    )


# -- what is computed once -------------------------------------------------------------------


@cache
def _images(prior: Prior) -> tuple[Images, np.ndarray]:
    """(all images of the rows, (M,) int32 numbers of those that can be used).

    Raises ValueError for the first that cannot be used, unless such images are to be left out.
    """
    space, skip = prior.space(), prior.listing.skip_unusable
    images = list_images(prior.listing, space.size, prior.table)
    unknown, line = space.gaps()
    if images.faults and not skip:
        fault = images.faults[min(images.faults)][1]
        raise ValueError(f"{fault}; --skip-unusable leaves out such images ({len(images.faults):,})")
    if line and not skip:
        raise ValueError(f"{prior.table}: {line}; --skip-unusable leaves them out")
    for row in np.flatnonzero(unknown).tolist():
        images.faults.setdefault(row, ("images without finite numbers", ""))
    usable = np.array([row for row in range(space.size) if row not in images.faults], np.int32)
    if len(usable) < 3:
        raise ValueError(f"{prior.table}: {len(usable)} images that can be used, three are the least")
    return images, usable


@cache
def _scale(prior: Prior) -> Scale:
    usable = _images(prior)[1]
    try:
        return measure(prior.space(), usable, prior.rule)
    except ValueError as error:
        raise ValueError(f"{prior.table}: {error}") from None


@cache
def _drawn(source: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """As `rule.draw`, for the images of the source's split."""
    prior, split = source.prior, source.split
    (images, usable), scale = _images(prior), _scale(prior)
    parts = [part_of(images.names[row], prior.held_out) for row in usable.tolist()]
    own = usable[np.array(parts) == split]
    if len(own) < 3:
        raise ValueError(
            f"{prior.table}: {len(own)} of {len(usable)} images fall to split {split}, three are the least; "
            "choose another --held-out, or --splits train --held-out 0 to train on all"
        )
    drawn = draw(prior.space(), own, source.wanted(), scale, prior.seed)
    if not len(drawn[0]):
        raise ValueError(
            f"{prior.table}: no triplet of the {len(own)} images of split {split} has distances that differ "
            f"by {scale.least:g} or more; lower --margin, or raise --quantile"
        )
    return drawn
