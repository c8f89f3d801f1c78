"""What `python -m pipeline.throughput` measures, as its flags say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.augment import AUGMENTS


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
    workers: int = 1
    """Threads or processes of each loader."""
    seconds: float = 4.0
    """Length of each of the three windows of a part."""
    parts: tuple[str, ...] = ()
    """Only these parts (all by default)."""
    cold: bool = False
    """Drop the file from memory before each part, so that it comes from the disk, and tell how much does."""
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
        if min(self.image_size, self.batch_size, self.workers) < 1 or self.seconds <= 0:
            raise ValueError("image_size, batch_size, workers and seconds must be positive")
