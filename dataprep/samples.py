"""What a source is, and what it delivers: `Pair`, `Picture`, `Bad`, `PassedOver`.

To add a source:
1. Subclass `PairSource`, or for triplets `TripletSource` (`triplets.py`), in `dataprep/sources/`, as a frozen
   dataclass of picklable values (worker processes get a copy).  `sources/nights.py` is a short example of
   triplets, `sources/sidecars.py` one of pairs.
2. Triplets get a command of their own in `build_ffcv.py`; a layout of pairs is recognised and opened in
   `sources/pairs.py`.
3. Test it in `tests/dataprep/` on a small folder of the genuine shape, with damage in it.

Not here: how samples are converted and written (`shard.py`), reading files (`sources/`).

K captions of an image.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

MOST_CAPTIONS = 16  # of an image; more are taken for a fault of the source, unless --captions is given


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


class Picture(NamedTuple):
    """An image that triplets show (its bytes, or a path), by its number in their list."""

    key: str
    image: bytes | Path
    number: int


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

    kind: Literal["pairs", "pictures"]

    @property
    def captions(self) -> int:
        """K of the file; 0 for pictures."""
        return 0

    @abstractmethod
    def tasks(self) -> list[Task]:
        """The same tasks every time.  Raises ValueError for what is wrong with the source as a whole."""

    def most(self, task: Task) -> int:
        """Upper bound of the samples of `task`, where `Task.most` is 0; may read the whole piece."""
        return task.most

    def images(self) -> int | None:
        """How many images will be stored, to estimate the space; None if that is not known.

        By default one for each unit of the tasks' weights.
        """
        return sum(task.weight for task in self.tasks())

    @abstractmethod
    def read(self, task: Task) -> Iterator[Pair | Picture | Bad | PassedOver]:
        """The samples of a task, in their order."""

    @abstractmethod
    def describe(self) -> dict:
        """`name`, `path` and what else goes into the JSON: enough to tell whether the source has changed."""


class PairSource(Source):
    """Images with captions in one of the layouts that `sources/pairs.py` recognises."""

    kind = "pairs"
    layout: str
    wanted: int
    """Captions an image; 0: as many as the image with the most has."""

    @property
    def captions(self) -> int:
        return self.wanted or min(self.most_captions(), MOST_CAPTIONS)

    def most_captions(self) -> int:
        """The most captions of an image, at least 1.  By default among the first samples."""
        return _most_captions(self)

    def description(self, path: Path, choice: object, files: Iterable[Path], /, **more: object) -> dict:
        """For `describe`: what all layouts tell.  choice: the user's columns."""
        return {
            "name": "pairs", "layout": self.layout, "path": str(path), **more,
            "captions": self.captions, "columns": vars(choice), "state": state_of(files),
        }  # fmt: skip


@cache
def _most_captions(source: PairSource) -> int:
    samples = islice(source.read(source.tasks()[0]), 200)
    return max([1, *(len(sample.captions) for sample in samples if isinstance(sample, Pair))])


def pieces(path: str, samples: int, each: int) -> list[Task]:
    """Tasks of at most `each` of the samples, which are numbered from 0."""
    starts = range(0, samples, each)
    return [Task(path, start, start + n, n, n) for start in starts if (n := min(each, samples - start))]


def state_of(files: Iterable[Path]) -> str:
    """A digest of files' names, sizes and times, which must be unchanged when a build is resumed."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a broken link: its sample is rejected when it is read
            state = "none"
        digest.update(f"{path.name}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
