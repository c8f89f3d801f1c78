"""The DALI engine, on the CPU or the GPU: one graph, the same stream and draws as the FFCV engine.

JPEG bytes are read to memory that DALI gets without another copy.  Every random number comes in as an
argument, so DALI keeps no state worth saving.  On a CPU the engine is the GPU path's twin for tests, and
slower than `ffcv_loader`.

A loader's batch is V * B images, which know nothing of triplets, and goes through DALI in pieces of at most
`PIECE` images and `PIXELS` pixels.  So DALI's memory does not grow with the batch, nor with large images.

The pieces go in turn to `GRAPHS` graphs.  nvJPEG runs a kernel for each image, one after the other, and
beside a training step each waits for the step's kernel that is running.  Several graphs have that many
kernels waiting at a time, in queues of their own (32 of the GPU's: `machine.settle`).

`next` waits for DALI.  Training calls it in a thread of its own (train/device/prefetch.py).
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from pipeline import pixels
from pipeline.augment import lookup_table, mean_colour, normalise
from pipeline.base.compiled import compiled
from pipeline.base.console import Failed
from pipeline.batch import ImageText, Triplet
from pipeline.beton.fields import Beton
from pipeline.blur import blur
from pipeline.dali_graph import QUEUE, define, inputs_of, typical_size
from pipeline.screen import Screen
from pipeline.stream import Plan, Source, StreamLoader, as_numpy, delayed, values_of

log = logging.getLogger(__name__)

PIECE = 256  # images
GRAPHS = {"cpu": 1, "gpu": 8}
PIXELS = 1 << 25  # of whole images in a piece, or one image: 0.1 GB decoded, in each graph
_IN_A_ROW = 3  # pieces given up: what is at fault is not an image
_FATAL = ("CUDA", "out of memory", "bad_alloc", "allocat")  # in DALI's words for the GPU's own faults


class DALIFailed(Failed):
    """The graph does not work here, or the GPU does not."""


class DALILoader(StreamLoader):
    """`StreamLoader` on DALI; `device` is "cpu", "gpu", or None for the GPU where there is one.

    On the GPU the images are there already, on the stream that is current when `next` is called; the other
    columns are on the CPU.  An image that DALI cannot decode costs the time to do its piece on the CPU, and
    `repaired` counts such pieces.  Raises DALIFailed where that would hide a fault of the graph or the GPU.
    """

    def __init__(self, file: Beton | str | os.PathLike, *, device: str | None = None, **arguments: Any):
        super().__init__(file, **arguments)
        self.device = _device(device)
        self._faults = _Faults()

    @property
    def repaired(self) -> int:
        """Pieces that DALI gave up, done by the CPU engine."""
        return self._faults.total

    def _run(self, positions: Iterator[np.ndarray]) -> Iterator[tuple[ImageText | Triplet, int]]:
        source, side = self.source, self.image_size
        pending: deque[tuple[int, _Piece]] = deque()  # given to the graph of that number, in order

        def pieces() -> Iterator[_Piece]:
            for plan, screened in _screened(source, positions, screen):
                yield from _pieces(_Batch(source, plan, *screened(), side, self.dtype, self.device))

        def feed(graph: int) -> Iterator[tuple]:
            for piece in ready:
                pending.append((graph, piece))
                yield piece.arguments

        with closing(Screen(source, self.workers)) as screen:
            ready = pieces()
            pipes = self._built([feed(graph) for graph in range(GRAPHS[self.device])])
            for pipe in pipes:
                pipe.schedule_run()  # as many pieces as it prepares ahead
            yield from iter(
                lambda: self._next_batch(pipes, pending), None
            )  # unlike a loop, it keeps no batch

    def _built(self, feeds: Sequence[Iterator[tuple]]) -> list:
        """A graph for each of these."""
        source, threads = self.source, max(1, self.workers // len(feeds))
        most = min(PIECE, self.batch_size * len(source.views))
        typical = typical_size(source.file, source.views[0])
        settings = (most, self.image_size, threads, self.device, typical)
        pipes = [define(source.augment, feed, *settings) for feed in feeds]
        try:
            for pipe in pipes:
                pipe.build()
        except (RuntimeError, MemoryError) as error:
            raise _failed("cannot be set up", error) from error
        return pipes

    def _next_batch(
        self, pipes: Sequence, pending: deque[tuple[int, _Piece]]
    ) -> tuple[ImageText | Triplet, int] | None:
        """The next batch, when its last piece is there; None at the end."""
        while pending:
            graph, piece = pending.popleft()
            try:
                (levels,) = pipes[graph].outputs()
            except (RuntimeError, MemoryError) as error:
                self._faults.add(error)
                piece.batch.repair(piece.part)  # DALI has dropped it and goes on with the next one
            else:
                self._faults.in_a_row = 0
                piece.batch.take(piece.part, levels)
                del levels
            pipes[graph].schedule_run()
            if piece.last:
                return piece.batch.finish()
        return None


def _device(name: str | None) -> str:
    if name not in (None, "cpu", "gpu"):
        raise ValueError(f"device {name!r} is neither cpu nor gpu")
    if name == "gpu" and not torch.cuda.is_available():
        raise ValueError("device gpu: torch finds no CUDA GPU here; use cpu, or the ffcv engine")
    return name or ("gpu" if torch.cuda.is_available() else "cpu")


class _Faults:
    """Counts the pieces that DALI gives up, and ends the run where repairing them would hide a fault."""

    def __init__(self) -> None:
        self.total = self.in_a_row = 0
        self._reported: set[str] = set()

    def add(self, error: Exception) -> None:
        """Count and log it; raises DALIFailed."""
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        cause = _cause(error)
        if isinstance(error, MemoryError) or any(word in cause for word in _FATAL):
            raise _failed("cannot go on", error) from error
        if self.in_a_row == _IN_A_ROW:
            raise _failed(f"failed {_IN_A_ROW} times in a row", error) from error
        kind = re.sub(r"\d+", "N", cause)
        if kind not in self._reported:
            self._reported.add(kind)
            log.warning("DALI gave up a piece of a batch, which the CPU engine does instead: %s", cause)
        elif self.total & (self.total - 1) == 0:
            log.warning("DALI has given up %d pieces so far", self.total)


def _cause(error: Exception) -> str:
    """DALI's words between the graph's source, which it quotes, and the news that the graph is not valid."""
    cause = str(error).rsplit("encountered:", 1)[-1].split("Current pipeline object")[0]
    return " ".join(cause.split())[:400].rstrip(" :")


def _failed(how: str, error: Exception) -> DALIFailed:
    way_out = "the FFCV engine decodes on the CPU (in training: --engine ffcv)"
    return DALIFailed(f"DALI {how}: {_cause(error)}; {way_out}")


def _screened(
    source: Source, positions: Iterator[np.ndarray], screen: Screen
) -> Iterator[tuple[Plan, Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]]]:
    """(plan, `Screen.begin` of it) for each array of positions.

    The screen is some batches ahead, and the disk some batches ahead of the screen.
    """

    def requested(t: np.ndarray) -> np.ndarray:
        source.read_ahead.request(t)
        return t

    plans = map(source.plan, delayed(map(requested, positions), QUEUE))
    return delayed(((plan, screen.begin(plan)) for plan in plans), QUEUE)


class _Batch:
    """A batch on its way through DALI; N = V * B images, view by view.

    data, start: the JPEGs' bytes, and where each begins.  readable (V, B) bool.
    """

    def __init__(
        self, source: Source, plan: Plan, data: np.ndarray, start: np.ndarray, readable: np.ndarray,
        side: int, dtype: torch.dtype, device: str,
    ):  # fmt: skip
        self.source, self.plan, self.side = source, plan, side
        self.valid = readable.copy()
        self._replaced = np.flatnonzero(~readable.ravel())
        self._sigma = np.tile(plan.draws.sigma, len(source.views))
        self.arguments = self._arguments(data, start, device)
        self._dtype, self._device = dtype, torch.device("cuda" if device == "gpu" else "cpu")
        self._images: torch.Tensor | None = None

    def _arguments(self, data: np.ndarray, start: np.ndarray, device: str) -> dict[str, Any]:
        """The graph's inputs for the N images; of those that are not readable, a placeholder's."""
        draws, views = self.plan.draws, len(self.source.views)
        jpegs = [data[a : a + n] for a, n in zip(start.tolist(), self.plan.size.T.ravel().tolist())]
        box = np.ascontiguousarray(draws.box.swapaxes(0, 1)).reshape(-1, 4)
        for i in self._replaced.tolist():
            jpegs[i], box[i] = _placeholder(), (0, 0, 8, 8)
        # Where resizing begins and ends, as shares of (height, width): (0, 1) and (1, 0) of a mirrored image.
        ends = np.tile(draws.flip, views)[:, None] * np.array([0, 1], np.float32)
        arguments = {
            "jpeg": jpegs,
            "corner": np.ascontiguousarray(box[:, :2]),
            "size": np.ascontiguousarray(box[:, 2:]),
            "first": ends,
            "last": 1 - ends,
            "matrix": np.ascontiguousarray(draws.matrix.swapaxes(0, 1)).reshape(-1, 3, 4),
            "blurred": self._sigma > 0,
            "sigma": np.maximum(self._sigma, np.float32(0.1)),  # zeros are not looked at
        }
        if draws.covers:
            grid = [pixels.covering(h, w, self.side) for h, w in box[:, 2:].tolist()]
            whole, cut = np.split(np.array(grid, np.int32), 2, 1)
            arguments |= {"whole": whole.astype(np.float32), "cut": np.ascontiguousarray(cut)}
        return {name: arguments[name] for name in inputs_of(self.source.augment, device)}

    @property
    def images(self) -> torch.Tensor:
        """(N, S, S, 3), made when the first piece is there."""
        if self._images is None:
            shape = (self.valid.size, self.side, self.side, 3)
            self._images = torch.empty(shape, dtype=self._dtype, device=self._device)
        return self._images

    def take(self, part: slice, levels) -> None:
        """DALI's result for `part`: copied, blurred on a GPU, and normalised unless levels are wanted."""
        images = self.images[part]
        copied = images if self._dtype == torch.uint8 else torch.empty_like(images, dtype=torch.uint8)
        _copy(levels, copied)
        if images.is_cuda:
            blur(copied, self._sigma[part])
        if self._dtype == torch.uint8:
            return
        table = lookup_table(self.source.augment, self._dtype)
        if images.is_cuda:
            values = normalise(copied.permute(0, 3, 1, 2), table.to(images.device))
            images.copy_(values.permute(0, 2, 3, 1))
        else:  # one pass: 0.13 ms an image of 224 px, where `normalise` takes 1.9
            _look_up(copied.numpy(), as_numpy(table), as_numpy(images))

    def repair(self, part: slice) -> None:
        """`part` by the CPU engine, which judges each image by itself."""
        pixels.load_decoder()
        file, values = self.source.file, values_of(self.source.augment, self._dtype)
        images = torch.empty_like(self.images[part], device="cpu")
        out, batch = as_numpy(images), self.valid.shape[1]
        for view in range(len(self.valid)):
            first, stop = (min(max(i - view * batch, 0), batch) for i in (part.start, part.stop))
            samples, own = slice(first, stop), slice(*(view * batch + i - part.start for i in (first, stop)))
            if first < stop:
                self.plan.decode(view, samples, file, values, out[own], self.valid[view, samples])
        self.images[part] = images.to(self._device)

    def finish(self) -> tuple[ImageText | Triplet, int]:
        """The batch, and how many of its samples were rejected."""
        blank = mean_colour(self.source.augment, self._dtype).tolist()
        for i in self._replaced.tolist():
            # Unlike a mask or a list of positions, this is nothing that the GPU must be waited for.
            for channel, value in zip(self.images[i].unbind(-1), blank):
                channel.fill_(value)
        images = self.images.view(*self.valid.shape, *self.images.shape[1:]).permute(0, 1, 4, 2, 3)
        whole = np.all(self.valid, 0)
        return self.source.batch(self.plan, images, whole), self.source.report(self.plan, whole)


@dataclass(frozen=True)
class _Piece:
    """What DALI gets at a time; kept until its result is out, since nothing was copied."""

    batch: _Batch
    part: slice  # of the batch's N images
    arguments: tuple

    @property
    def last(self) -> bool:
        return self.part.stop == self.batch.valid.size


def _pieces(batch: _Batch) -> Iterator[_Piece]:
    whole = (batch.plan.height * batch.plan.width).T.ravel()
    ends = np.cumsum(np.where(batch.valid.ravel(), whole, 64))
    start = before = 0
    while start < len(ends):
        within = int(np.searchsorted(ends, before + PIXELS, "right"))
        part = slice(start, min(max(within, start + 1), start + PIECE))
        yield _Piece(batch, part, tuple(values[part] for values in batch.arguments.values()))
        start, before = part.stop, int(ends[part.stop - 1])


@cache
def _placeholder() -> np.ndarray:
    """The bytes of an 8 x 8 JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


@compiled
def _look_up(images, table, out):
    """`pixels.look_up` for images (N, S, S, 3) uint8 → out (N, S, S, 3), as they are."""
    for n in range(len(images)):
        pixels.look_up(images[n], False, table, out[n])


def _copy(levels, images: torch.Tensor) -> None:
    """DALI's output to images (N, S, S, 3) uint8, on the current stream; waits for it.

    Not by DLPack: a buffer that torch holds goes back to DALI through a thread of DALI's, which spins on a
    core until the GPU is idle.
    """
    assert [*images.shape] == [len(levels), *levels.shape()[0]] and images.is_contiguous()
    target = ctypes.c_void_p(images.data_ptr())
    if images.is_cuda:
        stream = ctypes.c_void_p(torch.cuda.current_stream(images.device).cuda_stream)
        levels.copy_to_external(target, stream, non_blocking=False)
    else:
        levels.copy_to_external(target)
