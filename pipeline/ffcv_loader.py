"""The CPU engine: libturbojpeg and our compiled operations, run by a thread pool.

FFCV's own Loader is not used: it hangs on any exception, ignores the decoder's result, compiles anew for
each loader and draws its random numbers in the threads.  Here a sample's pixels depend on (seed, epoch,
index) alone, an exception in a thread is raised to the consumer, and threads end with the iteration, the
loader or the process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline import pixels
from pipeline.batch import ImageText, Triplet
from pipeline.beton.fields import Beton
from pipeline.stream import Plan, StreamLoader, as_numpy, delayed, values_of

_CHUNK = 16  # samples a thread takes at a time: some 10 ms of work


class FFCVLoader(StreamLoader):
    """Reads FFCV files (.beton) without FFCV's Loader: `StreamLoader` on the CPU, in threads of its own.

    Batches are channels_last and belong to the consumer.
    pin: images in page-locked memory, for copies to a GPU beside its work (needs CUDA).
    """

    def __init__(self, file: Beton | str | os.PathLike, *, pin: bool = False, **arguments: Any):
        super().__init__(file, **arguments)
        if pin and not torch.cuda.is_available():
            raise ValueError("pin: torch finds no CUDA GPU here, and page-locked memory needs its driver")
        self.pin = pin

    def _run(self, positions: Iterator[np.ndarray]) -> Iterator[tuple[ImageText | Triplet, int]]:
        """One thread plans the batches in their order, `workers` threads decode the chunks in that order."""
        pixels.load_decoder()
        # Batches in the making or waiting: two, or as many as give every thread two chunks.
        ahead = max(2, -(-2 * self.workers * _CHUNK // self.batch_size))
        planner, decoders = ThreadPoolExecutor(1, "ffcv-plan"), ThreadPoolExecutor(self.workers, "ffcv")
        work = _Work(self, decoders, None if self.pin else _Buffers(ahead + 4))
        started = (planner.submit(work.start, t) for t in positions)
        try:
            yield from map(work.finish, delayed(started, ahead - 1))  # unlike a loop, it keeps no batch
        finally:
            for pool in (planner, decoders):
                pool.shutdown(cancel_futures=True)


@dataclass
class _Batch:
    """A batch whose chunks are being decoded."""

    plan: Plan
    images: torch.Tensor  # (V, B, 3, S, S)
    valid: np.ndarray  # (V, B) bool
    chunks: list[Future]


class _Work:
    """What the threads do.  It must not hold the iterator, whose end is theirs."""

    def __init__(self, loader: FFCVLoader, decoders: ThreadPoolExecutor, buffers: _Buffers | None):
        self._source, self._side, self._dtype = loader.source, loader.image_size, loader.dtype
        self._values = values_of(self._source.augment, self._dtype)
        self._decoders = decoders
        # None: page-locked memory. It is torch's, which knows when the GPU has read it; `_Buffers` could not.
        self._buffers = buffers

    def start(self, t: np.ndarray) -> _Batch:
        """Plan the batch of positions t and put its chunks before the decoding threads."""
        self._source.read_ahead.request(t)
        plan = self._source.plan(t)
        shape = (len(self._source.views), len(t), self._side, self._side, 3)
        if self._buffers is None:
            memory = torch.empty(shape, dtype=self._dtype, pin_memory=True)
            out = as_numpy(memory)
        else:
            out = self._buffers.take(shape, self._values.table.dtype)
            memory = torch.from_numpy(out).view(self._dtype)
        valid = np.zeros(shape[:2], np.bool_)
        parts = (slice(first, first + _CHUNK) for first in range(0, len(t), _CHUNK))
        shared = self._source.file, self._values
        chunks = [
            self._decoders.submit(plan.decode, view, part, *shared, out[view, part], valid[view, part])
            for part in parts
            for view in range(len(out))
        ]
        return _Batch(plan, memory.permute(0, 1, 4, 2, 3), valid, chunks)

    def finish(self, started: Future[_Batch]) -> tuple[ImageText | Triplet, int]:
        """Wait for a batch; (batch, rejected).  Raises what a thread raised."""
        batch = started.result()
        for chunk in batch.chunks:
            chunk.result()
        valid = np.all(batch.valid, 0)
        return self._source.batch(batch.plan, batch.images, valid), self._source.report(batch.plan, valid)


class _Buffers:
    """Memory for images, used again once no tensor of the consumer refers to it.

    New memory costs a page fault per 4 KiB, about a fifth of the whole work on an image.
    """

    def __init__(self, keep: int):
        self._free: deque[np.ndarray] = deque(maxlen=keep)  # what a consumer hoarded goes back to the system

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        memory = self._free.popleft() if self._free else None
        if memory is None or memory.nbytes < nbytes:
            memory = np.empty(nbytes, np.uint8)
        return np.asarray(_Lent(memory, self._free))[:nbytes].view(dtype).reshape(shape)


class _Lent:
    """The base of every array and tensor over `memory`; when the last of them goes, the memory is free again.

    An array as base would not do: numpy lets a view of a view refer to the first owner only.
    """

    def __init__(self, memory: np.ndarray, free: deque[np.ndarray]):
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._free.append(self._memory)
