"""The CPU engine: FFCV's decoder and our compiled operations, run by threads of our own.

FFCV's own Loader is not used: it hangs on any exception, ignores the decoder's result, compiles
anew for each loader and draws its random numbers in the threads.  Here a sample's pixels depend
on (seed, epoch, index) alone, an exception in a thread is raised to the consumer, and threads end
with the iteration, the loader or the process.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from pipeline import pixels
from pipeline.augment import AUGMENTS, Augment, lookup_table
from pipeline.batch import ImageText, Triplet
from pipeline.beton.fields import Beton
from pipeline.order import Order
from pipeline.stream import Plan, Source, StreamLoader, check_arguments, shard_positions

_CHUNK = 16  # samples a thread takes at a time: some 10 ms of work


class FFCVLoader(StreamLoader):
    """`StreamLoader` on the CPU; batches are channels_last and belong to the consumer.

    pin: images in page-locked memory, for copies to a GPU beside its work (needs CUDA).
    """

    def __init__(self, file: Beton | str | os.PathLike, *, pin: bool = False, **arguments):
        super().__init__(file, **arguments)
        if pin and not torch.cuda.is_available():
            raise ValueError("pin: torch finds no CUDA GPU here, and page-locked memory needs its driver")
        self.pin = pin

    def _run(self, positions):
        ahead = _prefetch(self.batch_size, self.workers)
        work = _Work(self.source, self.image_size, self.dtype, None if self.pin else _Buffers(ahead + 4))
        return _batches(work, positions, self.workers, ahead)


def once(
    file: Beton | str | os.PathLike,
    *,
    batch_size: int,
    image_size: int,
    augment: Augment = AUGMENTS["eval"],
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Iterator[ImageText | Triplet]:
    """One pass in file order, last partial batch included; rank r gets the r-th contiguous share.

    The draws, if `augment` has any, are those of epoch 0.
    """
    check_arguments(batch_size, image_size, rank, world_size, workers, dtype)
    source = Source(file, augment, seed, Order(kind="file"))
    positions = shard_positions(len(source.file), batch_size, rank, world_size)
    ahead = _prefetch(batch_size, workers)
    batches = _batches(_Work(source, image_size, dtype, _Buffers(ahead + 4)), positions, workers, ahead)
    return (batch for batch, _ in batches)


def _prefetch(batch_size: int, workers: int) -> int:
    """Batches in the making or waiting: two, or as many as give every thread two chunks."""
    return max(2, -(-2 * workers * _CHUNK // batch_size))


def _batches(work: _Work, positions: Iterator[np.ndarray], workers: int, ahead: int):
    """(batch, rejected) for each array of positions, `ahead` of them before the consumer."""
    pixels.load_decoder()
    pool = _Pool(work, workers)
    pending: deque[_Job] = deque()
    try:
        for t in itertools.chain(positions, itertools.repeat(None)):
            if t is not None:
                pending.append(pool.submit(t))
                if len(pending) < ahead:
                    continue
            if not pending:
                return
            yield work.finish(pending.popleft())
    finally:
        pool.close()


class _Job:
    """A batch in the making; jobs and their chunks are done in the order of `number`."""

    def __init__(self, number: int, positions: np.ndarray):
        self.number, self.positions = number, positions
        self.plan: Plan | None = None
        self.images: torch.Tensor | None = None  # (V, B, 3, S, S)
        self.values: np.ndarray | None = None  # the same memory as (V, B, S, S, 3)
        self.valid: np.ndarray | None = None  # (V, B)
        self.left = 0  # chunks to do
        self.error: BaseException | None = None
        self.done = threading.Event()


class _Pool:
    """Threads at work; they hold no reference to the pool, so that it can be collected."""

    def __init__(self, work: _Work, workers: int):
        threads = [threading.Thread(target=work.run, daemon=True, name=f"ffcv-{i}") for i in range(workers)]
        for thread in threads:
            thread.start()
        self._work, self._numbers = work, itertools.count()
        # Also run at exit of the interpreter, before it tears down what the threads use.
        self.close = weakref.finalize(self, _Pool._end, work, threads)

    def submit(self, positions: np.ndarray) -> _Job:
        job = _Job(next(self._numbers), positions)
        self._work.put(_READ, job.number, job)
        self._work.put(job.number, _PLAN, job)
        return job

    @staticmethod
    def _end(work: _Work, threads: list[threading.Thread]) -> None:
        work.stopping = True
        for number in range(len(threads)):
            work.put(_END, number, None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()


_END, _READ = -2, -1  # before all jobs: to end a thread, to have the disk read for a job to come
_PLAN = -1  # the chunk number that stands for planning a job


class _Work:
    """What the threads do, and share: plans jobs and decodes their chunks, oldest first.

    Page-locked memory is torch's, which knows when the GPU has read it; `_Buffers` could not.
    """

    def __init__(self, source: Source, side: int, dtype: torch.dtype, buffers: _Buffers | None):
        self.source, self.side, self.dtype = source, side, dtype
        table = lookup_table(source.augment, dtype)
        self.table = table.numpy() if dtype == torch.float32 else table.view(torch.int16).numpy()
        self.buffers = buffers  # None: page-locked memory, whose reuse torch manages
        self.stopping = False
        self._lock = threading.Lock()
        self._queue: queue.PriorityQueue = queue.PriorityQueue()

    def put(self, number: int, chunk: int, job: _Job | None) -> None:
        self._queue.put((number, chunk, job))  # no two have both numbers alike, so jobs are not compared

    def run(self) -> None:
        """A thread's life."""
        while True:
            number, chunk, job = self._queue.get()
            if self.stopping:
                return
            try:
                if number == _READ:
                    self.source.read_ahead(job.positions)
                elif chunk == _PLAN:
                    self._prepare(job)
                else:
                    self._decode(job, chunk)
            except BaseException as error:  # handed to the consumer, whatever it is
                job.error = error
                job.done.set()
            del job

    def _prepare(self, job: _Job) -> None:
        job.plan = self.source.plan(job.positions)
        shape = (len(self.source.views), len(job.positions), self.side, self.side, 3)
        if self.buffers is None:
            values = torch.empty(shape, dtype=self.dtype, pin_memory=True)
            job.values = values.view(torch.int16 if values.itemsize == 2 else torch.float32).numpy()
        else:
            job.values = self.buffers.take(shape, self.table.dtype)
            values = torch.from_numpy(job.values).view(self.dtype)
        job.images = values.permute(0, 1, 4, 2, 3)
        job.valid = np.zeros(shape[:2], np.bool_)
        chunks = range(0, len(job.positions), _CHUNK)
        job.left = len(chunks)
        for chunk in chunks:
            self.put(job.number, chunk, job)

    def _decode(self, job: _Job, first: int) -> None:
        part = slice(first, first + _CHUNK)
        for v in range(len(self.source.views)):
            job.plan.decode(self.source.file, v, part, self.table, job.values[v], job.valid[v])
        with self._lock:
            job.left -= 1
            last = job.left == 0
        if last:
            job.values = None
            job.done.set()

    def finish(self, job: _Job) -> tuple[ImageText | Triplet, int]:
        """Waits for a job; (batch, rejected). Raises what a thread raised."""
        job.done.wait()
        if job.error is not None:
            raise job.error
        valid = job.valid.all(0)
        return self.source.batch(job.plan, job.images, valid), self.source.report(job.plan, valid)


class _Buffers:
    """Memory for images, used again once no tensor of the consumer refers to it.

    New memory costs a page fault per 4 KiB, about a fifth of the whole work on an image.
    """

    def __init__(self, keep: int):
        self._free: deque[np.ndarray] = deque(maxlen=keep)  # what a consumer hoarded goes back to the system

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = None
        if memory is None or memory.nbytes < nbytes:
            memory = np.empty(nbytes, np.uint8)
        return np.asarray(_Lent(memory, self._free))[:nbytes].view(dtype).reshape(shape)


class _Lent:
    """The base of every array and tensor over `memory`; the last one to go gives it back.

    An array as base would not do: numpy lets a view of a view refer to the first owner only.
    """

    def __init__(self, memory: np.ndarray, free: deque[np.ndarray]):
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._free.append(self._memory)
