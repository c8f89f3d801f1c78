"""Triplets: NIGHTS, and those that are drawn from an embedding or a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes as Flat

from dataprep.commands.base import Build, build_splits, check_choice, file_of
from dataprep.sources import nights
from dataprep.sources.download import URL, fetch_nights
from dataprep.sources.drawn.images import Listing
from dataprep.sources.drawn.rule import Rule
from dataprep.sources.drawn.source import Drawn, EmbeddingPrior, MatrixPrior, Prior
from dataprep.sources.drawn.spaces import Metric
from dataprep.target import check_out
from pipeline.base.console import say
from pipeline.formats.nights import PARTS, SPLITS


@dataclass(kw_only=True)
class NightsCommand(Build):
    """Build the splits of a folder in NIGHTS' layout: data.csv, ref/, distort/."""

    source: Path | None = None
    """Folder that holds data.csv."""
    download: Path | None = None
    """Fetch the published data into this folder first (it resumes), and build from there."""
    url: str = URL
    """Where --download finds the data."""
    out: Path = Path("data/nights")
    """Folder to write: triplets-SPLIT.beton."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Any of train, val, test, test_imagenet, test_no_imagenet; a split without rows is an error."""
    min_votes: int | None = None
    """Rows with fewer are left out; by default 6, as the released loader does, if any row has as many."""

    def run(self) -> None:
        check_choice("--splits", self.splits, SPLITS)
        folder = self.source or self.download
        if folder is None or None not in (self.source, self.download):
            raise ValueError("nights: give --source FOLDER or --download FOLDER")
        for split in self.splits:
            check_out(file_of(self.out, split))  # before anything is fetched
        if self.download is not None:
            fetch_nights(folder, self.url)
        sources = {split: nights.Nights(folder, split, self.min_votes) for split in self.splits}
        build_splits(sources, self.out, self)


@dataclass(kw_only=True)
class DrawnCommand(Build):
    """What the commands take that draw triplets from numbers."""

    source: Path
    listing: Flat[Listing]
    rule: Flat[Rule] = field(default_factory=Rule)
    out: Path
    """Folder to write: triplets-SPLIT.beton."""
    splits: tuple[str, ...] = PARTS
    """Any of train, val, test."""
    held_out: float = 0.1
    """Share of the images that is in val, and in test. An image's name decides, so that no image is in two
    splits; triplets are drawn within each."""

    def prior(self) -> Prior:
        raise NotImplementedError

    def run(self) -> None:
        check_choice("--splits", self.splits, PARTS)
        for split in self.splits:
            check_out(file_of(self.out, split))  # before anything is read
        prior = self.prior()
        sources = {split: Drawn(prior, split) for split in self.splits}
        for line in (*prior.notes(), *(source.note() for source in sources.values())):
            say(line)
        build_splits(sources, self.out, self)

    def common(self) -> dict[str, Any]:
        """What priors of all kinds take."""
        values = {"table": self.source, "listing": self.listing, "rule": self.rule}
        return values | {"held_out": self.held_out, "seed": self.settings.seed}


@dataclass(kw_only=True)
class EmbeddingCommand(DrawnCommand):
    """Build triplets drawn from an embedding (SPoSE, a network's features): a row of numbers an image."""

    source: Path
    """N × D numbers: .npy, or rows of text (csv, tsv, blanks)."""
    metric: Metric = "cosine"
    """Distance of two rows: 1 - cosine, euclidean, minus the dot product (SPoSE's own), 1 - correlation."""

    def prior(self) -> Prior:
        return EmbeddingPrior(metric=self.metric, **self.common())


@dataclass(kw_only=True)
class MatrixCommand(DrawnCommand):
    """Build triplets drawn from a matrix of dissimilarities (an RDM of MEG, fMRI or ratings)."""

    source: Path
    """N × N numbers, or scipy's condensed form: .npy, or rows of text (csv, tsv, blanks)."""
    similarity: bool = False
    """Large numbers mean alike."""

    def prior(self) -> Prior:
        return MatrixPrior(similarity=self.similarity, **self.common())
