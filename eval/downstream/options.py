"""What `python -m eval.downstream` takes.  Imports nothing heavy: `--help` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eval.options import OneModel


@dataclass(frozen=True, kw_only=True)
class Downstream(OneModel):
    """Evaluate a checkpoint's frozen image features on tasks that learn from them, or rank by them."""

    data: Annotated[Path, tyro.conf.arg(metavar="ROOT")]
    """Folder of the sets: classification sets with a training split, FSC-147, Revisited Oxford and Paris,
    folders of query/ and gallery/."""
    datasets: tuple[str, ...] = ()
    """Only these sets; one that is not there is an error."""
    max_unreadable: float = 0.0
    """Share of a classification set's images that may be unreadable and left out; 0 refuses such a set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_unreadable < 1:
            raise ValueError(f"--max-unreadable {self.max_unreadable}: must lie in [0, 1)")
