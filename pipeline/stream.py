"""What both engines share: the stream of samples, from positions to batches.

The way of a sample through a loader:

1. `StreamLoader.positions` counts the stream's positions t that are this rank's batches.
2. `ReadAhead.request` (readahead.py) has the disk read what they will need.
3. `Source.plan` makes a `Plan` of a batch:  `Order.locate` (order.py) turns t into (epoch, index),
   `Beton.rows` (beton/fields.py) looks up where the JPEGs lie, and `sample_draws` (augment.py) draws, from
   (seed, epoch, index) alone, the crop box, colour, blur, flip and caption of each sample.
4. The engine makes the images.  `FFCVLoader` (ffcv_loader.py): `Plan.decode` reads the bytes, compares
   their checksums (beton/checksum.py) and calls `process` (pixels.py) in threads.  `DALILoader`
   (dali_loader.py): `Screen` (screen.py) finds damaged JPEGs, then a DALI graph (dali_graph.py) decodes and
   augments the others.
5. `Source.batch` adds the other columns: an `ImageText` or a `Triplet` (batch.py).
6. `StreamLoader` counts `consumed`, its whole state, and hands the batch out.

B batch, V images of a sample (1, or 3 of a triplet), S image side.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline import pixels
from pipeline.augment import AUGMENTS, Augment, Draws, lookup_table, mean_colour, sample_draws
from pipeline.batch import ImageText, Triplet
from pipeline.beton import checksum
from pipeline.beton.fields import CHANGED, JPEG_MODE, Beton, Rows
from pipeline.order import Order
from pipeline.readahead import ReadAhead

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")

VIEWS = {"pairs": ("image",), "triplets": ("ref", "left", "right")}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


@dataclass(frozen=True)
class Plan:
    """A batch before decoding; what is said of the stored JPEGs is (B, V) int64. Size 0: not a JPEG."""

    epoch: np.ndarray  # (B,) int64
    index: np.ndarray  # (B,) int64
    start: np.ndarray
    size: np.ndarray
    height: np.ndarray
    width: np.ndarray
    checksum: np.ndarray | None  # None: a file without
    intact: np.ndarray  # (B, V) bool, written by who reads the bytes: whether they have the checksum
    draws: Draws
    rows: Rows

    def decode(
        self, view: int, part: slice, file: Beton, values: pixels.Values, out: np.ndarray, valid: np.ndarray
    ) -> None:
        """`pixels.process` for one view of samples `part`; written to out (N, S, S, 3), valid (N,)."""
        size, intact = self.size[part, view], self.intact[part, view]
        data, start = file.read(self.start[part, view], size)
        if self.checksum is not None:
            checksum.matching(data, start, size, self.checksum[part, view], intact)
        jpegs = pixels.Jpegs(data, start, size, self.height[part, view], self.width[part, view], intact)
        pixels.process(jpegs, self.draws.of_view(view, part), values, out, valid)


def as_numpy(x: torch.Tensor) -> np.ndarray:
    """The memory of a CPU tensor; 16-bit floats as int16, since numpy has no bfloat16."""
    return (x.view(torch.int16) if x.itemsize == 2 else x).numpy()


def values_of(augment: Augment, dtype: torch.dtype) -> pixels.Values:
    """What `Plan.decode` needs to make images of `dtype`, as `as_numpy` sees it."""
    return pixels.Values(as_numpy(lookup_table(augment, dtype)), as_numpy(mean_colour(augment, dtype)))


def delayed(items: Iterator[_Item], by: int) -> Iterator[_Item]:
    """`items`, each once `by` more of them are known: what they started goes on meanwhile."""
    waiting: deque[_Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > by:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


class Source:
    """A .beton as a stream of planned samples under one seed, order and augmentation."""

    def __init__(self, file: Beton | str | os.PathLike, augment: Augment, seed: int, order: Order):
        self.file = file if isinstance(file, Beton) else Beton(file)
        self.views = VIEWS[self.file.kind]
        self.augment, self.seed, self.order = augment, seed, order
        if not len(self.file):
            raise ValueError(f"{self.file.path}: has no samples")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} must be within 0 … 2**64 - 1")
        if self.file.checksummed:
            checksum.load()
        columns = (*self.views, "tokens" if self.file.kind == "pairs" else "luma")
        self.read_ahead = ReadAhead(self.file, order, seed, columns)
        self._named: set[int] = set()

    def plan(self, t: np.ndarray) -> Plan:
        """Stream positions t (B,) → what to read and what to do to it."""
        epoch, index = self.order.locate(self.seed, len(self.file), t)
        rows = self.file.rows(index)
        start, size = np.stack([rows.spans(v) for v in self.views], -1)
        stored = np.stack([rows.records[v]["mode"] == JPEG_MODE for v in self.views], -1)
        height, width = np.stack([rows.sizes(v) for v in self.views], -1).transpose(1, 0, 2)
        luma = rows.records["luma"][:, None] if len(self.views) == 1 else rows.arrays("luma")
        draws = sample_draws(self.augment, self.seed, epoch, index, height, width, luma)
        sums = rows.checksums(self.views) if self.file.checksummed else None
        intact, size = np.ones(start.shape, np.bool_), np.where(stored, size, 0)
        return Plan(epoch, index, start, size, height, width, sums, intact, draws, rows)

    def batch(self, plan: Plan, images: torch.Tensor, valid: np.ndarray) -> ImageText | Triplet:
        """images (V, B, 3, S, S) and valid (B,), with the other columns of the samples."""
        self.file.check_length()
        index, ok = torch.from_numpy(plan.index), torch.from_numpy(valid)
        if len(self.views) == 1:
            tokens = torch.from_numpy(self._captions(plan))
            return ImageText(images=images[0], tokens=tokens, index=index, valid=ok)
        vote = torch.from_numpy(plan.rows.records["vote"].astype(np.float32))
        ref, left, right = images
        return Triplet(ref=ref, left=left, right=right, vote=vote, index=index, valid=ok)

    def _captions(self, plan: Plan) -> np.ndarray:
        """The drawn caption of each sample: (B, 77) int32; rows without a start token are unused."""
        rows = plan.rows.arrays("tokens")
        count = np.maximum((rows[:, :, 0] != 0).sum(1), 1)
        chosen = (plan.draws.choice * count).astype(np.int64)
        return np.ascontiguousarray(rows[np.arange(len(rows)), chosen])

    def report(self, plan: Plan, valid: np.ndarray) -> int:
        """Log the samples that were refused, each once; returns how many there are."""
        for row in np.flatnonzero(~valid):
            index, intact = int(plan.index[row]), plan.intact[row].all()
            if index not in self._named:
                self._named.add(index)
                fault = "does not decode" if intact else CHANGED
                log.warning("%s: sample %d (key %s): %s; replaced and masked",
                            self.file.path, index, self.file.text("key", index), fault)  # fmt: skip
        return int((~valid).sum())


class StreamLoader:
    """An endless, resumable stream of batches; engines implement `_run`.

    file: a .beton of pairs or triplets.  batch_size: samples of one rank's batch.  A global batch is
    batch_size * world_size consecutive samples of the stream, and rank r takes the r-th slice.
    consumed: how many samples of the global stream were handed out, which is the loader's whole state.  Any
    batch size or world size may continue a stream from any `consumed`.  workers: threads that decode.
    dtype: float32, float16 or bfloat16 for normalised images; uint8 for the levels 0 … 255, which
    `augment.normalise` turns into these.  Raises ValueError on wrong arguments or an unusable file.
    """

    def __init__(
        self,
        file: Beton | str | os.PathLike,
        *,
        batch_size: int,
        image_size: int,
        augment: Augment,
        seed: int,
        order: Order = Order(),  # noqa: B008  (frozen)
        rank: int = 0,
        world_size: int = 1,
        consumed: int = 0,
        workers: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        if batch_size < 1 or image_size < 1 or workers < 1:
            raise ValueError(
                f"batch_size {batch_size}, image_size {image_size} and workers {workers} must be at least 1"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not within a world of {world_size}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype} is none of float32, float16, bfloat16, uint8")
        if consumed < 0:
            raise ValueError(f"consumed {consumed} must not be negative")
        self.source = Source(file, augment, seed, order)
        self.batch_size, self.image_size = batch_size, image_size
        self.rank, self.world_size = rank, world_size
        self.workers, self.dtype = workers, dtype
        self.consumed, self.rejected = consumed, 0
        self._running: weakref.ref[Generator] | None = None  # weak: dropping the iterator ends its threads

    @classmethod
    def one_pass(
        cls,
        file: Beton | str | os.PathLike,
        *,
        augment: Augment = AUGMENTS["eval"],
        seed: int = 0,
        **arguments: Any,
    ) -> Iterator[ImageText | Triplet]:
        """One pass in file order, last partial batch included; rank r gets the r-th contiguous share.

        Takes the loader's other arguments, without `order` and `consumed`.  The draws, if `augment` has
        any, are those of epoch 0.
        """
        loader = cls(file, augment=augment, seed=seed, order=Order(kind="file"), **arguments)
        samples = len(loader.source.file)
        first, stop = (samples * share // loader.world_size for share in (loader.rank, loader.rank + 1))
        starts = range(first, stop, loader.batch_size)
        positions = (np.arange(start, min(start + loader.batch_size, stop)) for start in starts)
        return (batch for batch, _ in loader._run(positions))

    def positions(self) -> Iterator[np.ndarray]:
        """The stream positions of this rank's batches, from `consumed` on."""
        first = self.consumed + self.rank * self.batch_size
        while True:
            yield np.arange(first, first + self.batch_size)
            first += self.batch_size * self.world_size

    def __iter__(self) -> Iterator[ImageText | Triplet]:
        """Batches from `consumed` on, for ever. A second iterator ends the first."""
        self.close()
        running = self._count()
        self._running = weakref.ref(running)
        return running

    def _count(self) -> Generator[ImageText | Triplet]:
        for batch, rejected in self._run(self.positions()):
            self.consumed += self.batch_size * self.world_size
            self.rejected += rejected
            yield batch

    def _run(self, positions: Iterator[np.ndarray]) -> Iterator[tuple[ImageText | Triplet, int]]:
        """(batch, how many of its samples were rejected) for each array of stream positions."""
        raise NotImplementedError

    def close(self) -> None:
        """End the threads of a running iteration; iterating again goes on from `consumed`."""
        running = self._running() if self._running else None
        if running is not None:
            running.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
