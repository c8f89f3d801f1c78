"""What a source is, and what it delivers: `Pair`, `Triplet`, `Bad`, `PassedOver`.

To add a source:
1. Subclass `Source` in `dataprep/sources/`, as a frozen dataclass of picklable values (worker processes get a
   copy).  `sources/bapps.py` is a short example of triplets, `sources/sidecars.py` one of pairs.
2. Triplets get a command of their own in `build_ffcv.py`; a layout of pairs is recognised and opened in
   `sources/pairs.py`.
3. Test it in `tests/dataprep/` on a small folder of the genuine shape, with damage in it.

Not here: how samples are converted and written (`shard.py`), reading files (`sources/`).

K captions of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np


class Task(NamedTuple):
    """A piece of a source that becomes one shard."""

    path: str
    start: int  # `start` and `stop` are in the source's own unit: rows, bytes, row groups
    stop: int
    most: int  # upper bound of its samples; 0: `Source.most` tells it
    weight: int  # its share of the work: samples, or bytes where samples cannot be counted
    line: int = 1  # of a table of lines: the number of the line at `start`


class Pair(NamedTuple):
    """An image (its bytes, or a path) and its captions (strings, or (K, 77) token ids)."""

    key: str
    image: bytes | str | Path
    captions: list[str] | np.ndarray


class Triplet(NamedTuple):
    """Three images (bytes, or paths), and the fraction of `votes` people who preferred `right`."""

    key: str
    ref: bytes | Path
    left: bytes | Path
    right: bytes | Path
    vote: float
    votes: int


class Bad(NamedTuple):
    """A sample that the source cannot deliver; it is counted and listed as rejected."""

    key: str
    reason: str
    detail: str = ""


class PassedOver(NamedTuple):
    """Something in a source that was never a sample; it is counted, and is no reject."""

    reason: str
    number: int = 1


class Source(ABC):
    """Where samples come from."""

    kind: Literal["pairs", "triplets"]
    votes = ""
    """Of triplets: where their votes come from, for the JSON."""

    @property
    def captions(self) -> int:
        """K of the file; 0 for triplets."""
        return 0

    @abstractmethod
    def tasks(self) -> list[Task]:
        """The same tasks every time.  Raises ValueError for what is wrong with the source as a whole."""

    def most(self, task: Task) -> int:
        """Upper bound of the samples of `task`, where `Task.most` is 0; may read the whole piece."""
        return task.most

    @abstractmethod
    def images(self) -> int | None:
        """How many images will be stored, to estimate the space; None if that is not known."""

    @abstractmethod
    def read(self, task: Task) -> Iterator[Pair | Triplet | Bad | PassedOver]:
        """The samples of a task, in their order."""

    @abstractmethod
    def describe(self) -> dict:
        """`name`, `path` and what else goes into the JSON: enough to tell whether the source has changed."""
