"""What `throughput` measures: parts of the loaders and peers, each an endless iterator, a batch at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import pipeline
from pipeline.augment import Augment
from pipeline.beton.fields import Beton
from pipeline.order import Order
from pipeline.throughput import peers
from pipeline.throughput.settings import Settings


@dataclass(frozen=True)
class Part:
    """One line of the table."""

    title: str
    make: Callable[[Beton, Settings, Augment], Generator]
    gpu: bool = False  # needs a GPU; measured by the clock instead of CPU-seconds


def _engine(
    name: str, file: Beton, settings: Settings, augment: Augment, *, stock: bool = False, **arguments: Any
) -> Generator:
    """A loader of ours, by its name; stock: without what stock FFCV does not do, or only slowly."""
    augment = dataclasses.replace(augment, jitter_p=0.0, gray_p=0.0, blur_p=0.0) if stock else augment
    return iter(getattr(pipeline, name)(
        file, batch_size=settings.batch_size, image_size=settings.image_size, seed=1, augment=augment,
        workers=settings.workers, **arguments,
    ))  # fmt: skip


_ffcv, _dali = partial(_engine, "FFCVLoader"), partial(_engine, "DALILoader")


def _batches_of_indices(file: Beton, settings: Settings) -> Iterator[np.ndarray]:
    first = 0
    while True:
        yield Order().locate(1, len(file), np.arange(first, first + settings.batch_size))[1]
        first += settings.batch_size


def _read(file: Beton, settings: Settings, augment: Augment) -> Generator:
    for index in _batches_of_indices(file, settings):
        yield file.read(*file.rows(index).spans("image"))


def _decode(file: Beton, settings: Settings, augment: Augment) -> Generator:
    from pipeline import pixels

    pixels.load_decoder()
    for index in _batches_of_indices(file, settings):
        rows = file.rows(index)
        (start, size), sides = rows.spans("image"), rows.sizes("image")
        data, start = file.read(start, size)
        out = np.empty(sides.prod(1).max() * 3, np.uint8)
        for a, n, (h, w) in zip(start.tolist(), size.tolist(), sides.tolist()):
            pixels.decode(data[a : a + n], h, w, out)
        yield index


def _pack(file: Beton, settings: Settings, augment: Augment) -> Generator:
    from pipeline.packing import pack

    for index in _batches_of_indices(file, settings):
        yield pack(torch.from_numpy(np.ascontiguousarray(file.rows(index).arrays("tokens")[:, 0])))


def _gpu_decode(file: Beton, settings: Settings, augment: Augment) -> Generator:
    """The mixed decoder alone, whole images: the part of the work that has a limit of its own."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=settings.batch_size, num_threads=settings.workers,
                  device_id=torch.cuda.current_device())  # fmt: skip
    def pipeline():
        source = peers.jpegs(file, settings.batch_size)
        (jpeg,) = fn.external_source(source, num_outputs=1, dtype=types.UINT8, ndim=1, no_copy=True)
        return fn.decoders.image(jpeg, device="mixed", output_type=types.RGB)

    pipe = pipeline()
    pipe.build()
    while True:
        yield pipe.run()


PARTS = {
    "read": Part("read bytes", _read),
    "decode": Part("decode", _decode),
    "pack": Part("pack captions", _pack),
    "ffcv_crop": Part("FFCV engine, crop + flip", partial(_ffcv, stock=True)),
    "ffcv": Part("FFCV engine, full", _ffcv),
    "ffcv_uint8": Part("FFCV engine, full, uint8", partial(_ffcv, dtype=torch.uint8)),
    "ffcv_block": Part("FFCV engine, full, block order", partial(_ffcv, order=Order(kind="block"))),
    "dali_cpu_crop": Part("DALI engine cpu, crop + flip", partial(_dali, stock=True, device="cpu")),
    "dali_cpu": Part("DALI engine cpu, full", partial(_dali, device="cpu")),
    "peer_open_clip": Part("PIL + torchvision DataLoader, full", peers.open_clip),
    "peer_ffcv": Part("stock FFCV Loader, crop + flip", peers.stock_ffcv),
    "peer_ffcv_uint8": Part("stock FFCV Loader, not normalised", partial(peers.stock_ffcv, normalise=False)),
    "peer_ffcv_colour": Part("stock FFCV Loader, + its colour", partial(peers.stock_ffcv, colour=True)),
    "peer_dali_cpu": Part("DALI cpu, its own random operators", peers.dali),
    "gpu_decode": Part("DALI gpu, decode only", _gpu_decode, gpu=True),
    "dali_gpu": Part(
        "DALI engine gpu, full, uint8", partial(_dali, device="gpu", dtype=torch.uint8), gpu=True
    ),
    "peer_dali_gpu": Part("DALI gpu, its own random operators", partial(peers.dali, device="gpu"), gpu=True),
}  # fmt: skip

# name of the ratio → (ours, the best of these peers)
RATIOS = {
    "ffcv_vs_open_clip": ("ffcv", ("peer_open_clip",)),
    "ffcv_vs_dali_cpu": ("ffcv", ("dali_cpu", "peer_dali_cpu")),
    "ffcv_vs_stock_ffcv": ("ffcv_crop", ("peer_ffcv",)),
}
