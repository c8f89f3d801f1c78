"""What `python -m pipeline.throughput` measures: its flags, and what becomes of them for one part."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.augment import AUGMENTS, Augment


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A .beton of pairs (dataprep/build_ffcv.py makes one); or none, with --synthetic."""
    synthetic: int = 0
    """Measure on a file of so many made-up photographs instead."""
    augment: str = "paper"
    """Preset of the parts with "full" augmentation."""
    image_size: int = 224
    batch_size: int = 128
    workers: tuple[int, ...] = ()
    """Threads or processes of each loader, one number after the other (default: 1 and all cores)."""
    gpu_batch: int = 512
    """Batch of the parts that decode on a GPU; a batch of 128 does not fill its JPEG engine."""
    gpu_workers: int = 4
    """Threads of DALI in those parts."""
    rounds: int = 3
    """Every part has a turn in every round; ratios are of turns in the same round."""
    seconds: float = 1.0
    """Least length of a turn."""
    parts: tuple[str, ...] = ()
    """Only these; "all" for every one that this machine can run (default: decoding, and what ratios need)."""
    cold: bool = False
    """Drop the file from memory before each turn, so that it comes from the disk, and tell how much does."""
    simulate: int = 0
    """Also time the first batch of a sparse file of so many samples (15,000,000 need 2 GB of disk)."""
    plot: Path | None = None
    """A PNG of the rates."""

    def check(self) -> None:
        """ValueError for what cannot be measured (apart from construction: tyro would frame the line)."""
        if (self.file is None) == (not self.synthetic):
            raise ValueError("name a .beton file, or give --synthetic N for one of made-up photographs")
        if self.augment not in AUGMENTS:
            raise ValueError(f"augment {self.augment!r} is none of {', '.join(AUGMENTS)}")
        counts = self.image_size, self.batch_size, *self.workers, self.gpu_batch, self.gpu_workers
        if min(*counts, self.rounds) < 1 or self.seconds <= 0:
            raise ValueError("sizes, batches, workers, rounds and seconds must be positive")

    def worker_counts(self) -> list[int]:
        """The numbers of workers to measure with, each once."""
        return list(dict.fromkeys(self.workers or (1, len(os.sched_getaffinity(0)))))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One part as it is measured."""

    part: str
    """Its name in `parts.PARTS`."""
    file: Path
    workers: int
    batch_size: int
    image_size: int
    augment: Augment
    seconds: float = 1.0
    """Least length of a turn."""
    cold: bool = False
    """The file is dropped from memory before the first batch."""
