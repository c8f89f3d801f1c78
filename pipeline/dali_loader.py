"""The DALI engine, on the CPU or the GPU: one graph, the same stream and draws as the FFCV engine.

JPEG bytes are read to memory that DALI gets without another copy.  Every random number comes in as an
argument, so DALI keeps no state worth saving.  On a CPU the engine is the GPU path's twin for tests, and
slower than `ffcv_loader`.

A batch is N = V * B images to DALI, which knows nothing of triplets.
"""

from __future__ import annotations

import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from pipeline import pixels
from pipeline.augment import mean_colour
from pipeline.batch import ImageText, Triplet
from pipeline.beton.fields import Beton
from pipeline.dali_graph import QUEUE, define, inputs_of
from pipeline.screen import Screen
from pipeline.stream import Plan, Source, StreamLoader, as_numpy, delayed, values_of

log = logging.getLogger(__name__)


class DALILoader(StreamLoader):
    """`StreamLoader` on DALI; `device` is "cpu", "gpu", or None for the GPU where there is one.

    On the GPU the images are there already; the other columns are on the CPU.
    """

    def __init__(self, file: Beton | str | os.PathLike, *, device: str | None = None, **arguments: Any):
        super().__init__(file, **arguments)
        self.device = _device(device)

    def _run(self, positions: Iterator[np.ndarray]) -> Iterator[tuple[ImageText | Triplet, int]]:
        source, side, dtype = self.source, self.image_size, self.dtype
        blank = mean_colour(source.augment, dtype).tolist()
        submitted: deque[_Submitted] = deque()
        warned = False

        def feed() -> Iterator[tuple]:
            for plan, screened in _screened(source, positions, screen):
                submitted.append(_submit(source, plan, *screened(), side))
                yield submitted[-1].arguments

        with closing(Screen(source, self.workers)) as screen:
            count = self.batch_size * len(source.views)
            pipe = define(source.augment, feed(), count, side, dtype, self.workers, self.device)
            pipe.build()
            while True:
                try:
                    (out,) = pipe.run()
                except StopIteration:
                    return
                except RuntimeError as error:
                    # DALI drops the batch and goes on with the next one. Ours is next in the queue.
                    if not warned:  # once: a graph that DALI cannot run fails at every batch
                        message = " ".join(str(error).split())[:600]
                        log.warning("DALI gave up a batch, the CPU engine does it and any more: %s", message)
                        warned = True
                    batch = submitted.popleft()
                    images, valid = _repair(source, batch.plan, side, dtype)
                    images = images.cuda() if self.device == "gpu" else images
                else:
                    batch = submitted.popleft()
                    images, valid = _collect(out, batch, dtype, blank)
                whole = np.all(valid, 0)
                rejected = source.report(batch.plan, whole)
                yield source.batch(batch.plan, images, whole), rejected


def _device(name: str | None) -> str:
    if name not in (None, "cpu", "gpu"):
        raise ValueError(f"device {name!r} is neither cpu nor gpu")
    if name == "gpu" and not torch.cuda.is_available():
        raise ValueError("device gpu: torch finds no CUDA GPU here; use cpu, or the ffcv engine")
    return name or ("gpu" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class _Submitted:
    """What DALI got for a batch; kept until its result is out, since nothing was copied."""

    plan: Plan
    arguments: tuple
    readable: np.ndarray  # (V, B) bool


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


def _submit(
    source: Source, plan: Plan, data: np.ndarray, start: np.ndarray, readable: np.ndarray, side: int
) -> _Submitted:
    """The graph's inputs for a plan; images that are not readable (V, B) are exchanged beforehand."""
    draws, views = plan.draws, len(source.views)
    jpegs = [data[a : a + n] for a, n in zip(start.tolist(), plan.size.T.ravel().tolist())]
    box = np.ascontiguousarray(draws.box.swapaxes(0, 1)).reshape(-1, 4)
    for i in np.flatnonzero(~readable.ravel()):
        jpegs[i], box[i] = _placeholder(), (0, 0, 8, 8)
    arguments = {
        "jpeg": jpegs,
        "corner": np.ascontiguousarray(box[:, :2]),
        "size": np.ascontiguousarray(box[:, 2:]),
        "flip": np.tile(draws.flip, views).astype(np.int32),
        "coloured": np.tile(draws.coloured, views),
        "matrix": np.ascontiguousarray(draws.matrix.swapaxes(0, 1)).reshape(-1, 3, 4),
        "blurred": np.tile(draws.sigma > 0, views),
        "sigma": np.maximum(np.tile(draws.sigma, views), np.float32(0.1)),  # zeros are not looked at
    }
    if draws.covers:
        grid = np.array([pixels.covering(h, w, side) for h, w in box[:, 2:].tolist()], np.int32)
        arguments |= {"whole": grid[:, :2].astype(np.float32), "cut": np.ascontiguousarray(grid[:, 2:])}
    return _Submitted(plan, tuple(arguments[n] for n in inputs_of(source.augment)), readable)


@cache
def _placeholder() -> np.ndarray:
    """The bytes of an 8 x 8 JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def _collect(out, job: _Submitted, dtype: torch.dtype, blank: list[float]) -> tuple[torch.Tensor, np.ndarray]:
    """DALI's output as images (V, B, 3, S, S), and valid (V, B); only bfloat16 is a copy."""
    images = torch.from_dlpack(out.as_tensor()).to(dtype)
    images = images.view(*job.readable.shape, *images.shape[1:]).permute(0, 1, 4, 2, 3)
    for view, row in np.argwhere(~job.readable).tolist():
        for channel, value in zip(images[view, row], blank):
            channel.fill_(value)  # unlike a mask or a list of positions, nothing the GPU must be waited for
    return images, job.readable


def _repair(source: Source, plan: Plan, side: int, dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray]:
    """A batch that DALI gave up: done by the CPU engine, which judges each image by itself."""
    pixels.load_decoder()
    images = torch.empty(*plan.start.T.shape, side, side, 3, dtype=dtype)
    valid = np.empty(images.shape[:2], np.bool_)
    plan.decode(slice(None), source.file, values_of(source.augment, dtype), as_numpy(images), valid)
    return images.permute(0, 1, 4, 2, 3), valid
