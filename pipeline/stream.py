"""What both engines share: from stream positions to byte ranges and draws, and from pixels to a batch.

`Source` answers for a file "what is sample t and what is to be done to it"; `StreamLoader` is the
loaders' common face, whose whole state is `consumed`.

B batch, V images of a sample (1, or 3 of a triplet), S image side.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import pixels
from pipeline.augment import Augment, Draws, draws
from pipeline.batch import ImageText, Triplet
from pipeline.beton.fields import JPEG_MODE, Beton, Rows
from pipeline.beton.ranges import advise
from pipeline.order import Order

log = logging.getLogger(__name__)

VIEWS = {"pairs": ("image",), "triplets": ("ref", "left", "right")}
_REQUEST = 128 << 10  # bytes; of a longer one Linux reads no more than this, unless a disk is set otherwise
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Plan:
    """A batch before decoding; byte ranges of the stored JPEGs, (B, V) int64. Size 0: not a JPEG."""

    epoch: np.ndarray  # (B,) int64
    index: np.ndarray  # (B,) int64
    start: np.ndarray
    size: np.ndarray
    height: np.ndarray
    width: np.ndarray
    draws: Draws
    rows: Rows

    def decode(
        self, file: Beton, view: int, part: slice, table: np.ndarray, out: np.ndarray, valid: np.ndarray
    ) -> None:
        """`pixels.process` for one view of samples `part` of the batch, written to out[part], valid[part]."""
        drawn = self.draws
        data, start = file.read(self.start[part, view], self.size[part, view])
        pixels.process(
            data, start, self.size[part, view], self.height[part, view],
            self.width[part, view], drawn.box[part, view], drawn.covers, drawn.matrix[part, view],
            drawn.colour[part], drawn.sigma[part], drawn.flip[part], table, out[part], valid[part],
        )  # fmt: skip


class Source:
    """A .beton as a stream of planned samples under one seed, order and augmentation."""

    def __init__(self, file: Beton | str | os.PathLike, augment: Augment, seed: int, order: Order):
        self.file = file if isinstance(file, Beton) else Beton(file)
        self.views = VIEWS[self.file.kind]
        self._columns = (*self.views, "tokens" if self.file.kind == "pairs" else "luma")  # what is read
        self.augment, self.seed, self.order = augment, seed, order
        if not len(self.file):
            raise ValueError(f"{self.file.path}: has no samples")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} must be within 0 … 2**64 - 1")
        self._advised: list = []  # the newest windows
        self._named: set[int] = set()

    def plan(self, t: np.ndarray) -> Plan:
        """Stream positions t (B,) → what to read and what to do to it."""
        epoch, index = self.order.locate(self.seed, len(self.file), t)
        rows = self.file.rows(index)
        start, size = np.stack([rows.spans(v) for v in self.views], -1)
        stored = np.stack([rows.records[v]["mode"] == JPEG_MODE for v in self.views], -1)
        height, width = np.stack([rows.sizes(v) for v in self.views], -1).transpose(1, 0, 2)
        luma = rows.records["luma"][:, None] if len(self.views) == 1 else rows.arrays("luma")
        drawn = draws(self.augment, self.seed, epoch, index, height, width, luma)
        return Plan(epoch, index, start, np.where(stored, size, 0), height, width, drawn, rows)

    def read_ahead(self, t: np.ndarray) -> None:
        """Has the disk read what positions t (B,) will need; in block order whole windows, and the next, too.

        Else it would read one picture after the other, each when it is wanted.
        """
        self._read(self.order.locate(self.seed, len(self.file), t)[1])
        windows = self.order.windows(self.seed, len(self.file), t)
        new = [ranges for w in windows if w not in self._advised for ranges in w]
        self._advised = windows
        if new:  # not in this thread: the kernel takes no more at once than the disk's queue holds
            threading.Thread(target=self._read_blocks, args=(new,), daemon=True).start()

    def _read_blocks(self, ranges: list[tuple[int, int]]) -> None:
        with suppress(ValueError, OSError):  # a bad pointer, a bad disk: the consumer meets it, too
            for first, stop in ranges:
                self._read(self.order.expand(first, stop))

    def _read(self, index: np.ndarray) -> None:
        rows = self.file.rows(index)
        spans = (rows.spans(column) for column in self._columns)
        start, size = (np.concatenate(x) for x in zip(*spans))
        advise(self.file.descriptor, *_requests(start, size))

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
        """Names the samples that did not decode, each once in the log; returns how many there are."""
        for index in plan.index[~valid].tolist():
            if index not in self._named:
                self._named.add(index)
                key = self.file.text("key", index)
                log.warning("%s: sample %d (key %s) does not decode; replaced and masked",
                            self.file.path, index, key)  # fmt: skip
        return int((~valid).sum())


def _requests(start: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads (offset, length) that cover byte ranges (N,); a gap that is shorter than a read is read too."""
    order = np.argsort(start)
    start, stop = start[order], (start + size)[order]
    gaps = np.flatnonzero(start[1:] - stop[:-1] > _REQUEST)
    begin, end = start[np.append(0, gaps + 1)], stop[np.append(gaps, len(stop) - 1)]
    pieces = -(-(end - begin) // _REQUEST)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    at = np.repeat(begin, pieces) + number * _REQUEST
    return at, np.minimum(np.repeat(end, pieces) - at, _REQUEST)


class StreamLoader:
    """An endless, resumable stream of batches; engines implement `_run`.

    file: a .beton of pairs or triplets.  batch_size: samples a rank gets at a time; a global batch
    is batch_size * world_size consecutive samples of the stream and rank r takes the r-th slice.
    consumed: how many samples of the global stream were handed out; the loader's whole state.  Any
    batch size or world size may continue a stream from any `consumed`.  workers: threads.
    dtype: float32, float16 or bfloat16.  Raises ValueError on wrong arguments or an unusable file.
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
        check_arguments(batch_size, image_size, rank, world_size, workers, dtype)
        if consumed < 0:
            raise ValueError(f"consumed {consumed} must not be negative")
        self.source = Source(file, augment, seed, order)
        self.batch_size, self.image_size = batch_size, image_size
        self.rank, self.world_size = rank, world_size
        self.workers, self.dtype = workers, dtype
        self.consumed, self.rejected = consumed, 0
        self._running: weakref.ref | None = None  # weak: dropping the iterator ends its threads

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

    def _count(self) -> Iterator[ImageText | Triplet]:
        for batch, rejected in self._run(self.positions()):
            self.consumed += self.batch_size * self.world_size
            self.rejected += rejected
            yield batch

    def _run(self, positions: Iterator[np.ndarray]) -> Iterator[tuple[ImageText | Triplet, int]]:
        """(batch, how many of its samples were rejected) for each array of stream positions."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the threads of a running iteration; iterating again goes on from `consumed`."""
        running = self._running and self._running()
        if running is not None:
            running.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def check_arguments(
    batch_size: int, image_size: int, rank: int, world_size: int, workers: int, dtype: torch.dtype
) -> None:
    """ValueError for arguments that no loader can serve."""
    if batch_size < 1 or image_size < 1 or workers < 1:
        raise ValueError(
            f"batch_size {batch_size}, image_size {image_size} and workers {workers} must be at least 1"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within a world of {world_size}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype} is none of float32, float16, bfloat16")


def shard_positions(samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[np.ndarray]:
    """One pass in file order: this rank's contiguous share, last partial batch included."""
    first, stop = samples * rank // world_size, samples * (rank + 1) // world_size
    for at in range(first, stop, batch_size):
        yield np.arange(at, min(at + batch_size, stop))
