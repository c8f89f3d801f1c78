"""What `throughput` measures: parts of the loaders and peers, each an endless iterator, a batch at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import pipeline
from pipeline.beton.fields import Beton
from pipeline.dali_graph import HARDWARE_SHARE
from pipeline.order import Order
from pipeline.throughput import dali, decoders, peers, spdl
from pipeline.throughput.settings import Case


@dataclass(frozen=True)
class Part:
    """One line of the table."""

    title: str
    make: Callable[[Beton, Case], Generator]
    gpu: bool = False  # needs one; compared by the clock instead of CPU-seconds
    threads: bool = True  # has workers at all
    named_only: bool = False  # measured only when it is asked for


def _engine(name: str, file: Beton, case: Case, *, stock: bool = False, **arguments: Any) -> Generator:
    """A loader of ours, by its name; stock: without what stock FFCV does not do, or only slowly."""
    augment = case.augment
    augment = dataclasses.replace(augment, jitter_p=0.0, gray_p=0.0, blur_p=0.0) if stock else augment
    return iter(getattr(pipeline, name)(
        file, batch_size=case.batch_size, image_size=case.image_size, seed=1, augment=augment,
        workers=case.workers, **arguments,
    ))  # fmt: skip


_ffcv, _dali = partial(_engine, "FFCVLoader"), partial(_engine, "DALILoader")


def _batches_of_indices(file: Beton, case: Case) -> Iterator[np.ndarray]:
    first = 0
    while True:
        yield Order().locate(1, len(file), np.arange(first, first + case.batch_size))[1]
        first += case.batch_size


def _read(file: Beton, case: Case) -> Generator:
    for index in _batches_of_indices(file, case):
        yield file.read(*file.rows(index).spans("image"))


def _decode(file: Beton, case: Case) -> Generator:
    """Whole images by libjpeg-turbo, a share of the batch in each thread, nothing kept."""
    from pipeline import pixels

    pixels.load_decoder()

    def decode(index: np.ndarray) -> bool:
        rows = file.rows(index)
        start, size = rows.spans("image")
        data, start = file.read(start, size)
        height, width = np.ascontiguousarray(rows.sizes("image").T)
        return pixels.decodable(data, start, size, height, width).all()

    with ThreadPoolExecutor(case.workers) as pool:
        for index in _batches_of_indices(file, case):
            assert all(pool.map(decode, np.array_split(index, case.workers)))
            yield index


def _pack(file: Beton, case: Case) -> Generator:
    from pipeline.packing import pack

    for index in _batches_of_indices(file, case):
        yield pack(torch.from_numpy(np.ascontiguousarray(file.rows(index).arrays("tokens")[:, 0])))


def _gpu_decode(share: float) -> str:
    return f"gpu_decode_{100 * share:.0f}"


PARTS = {
    "read": Part("read bytes", _read, threads=False, named_only=True),
    "decode": Part("decode", _decode),
    "pack": Part("pack captions", _pack, threads=False, named_only=True),
    "ffcv_crop": Part("FFCV engine, crop + flip", partial(_ffcv, stock=True)),
    "ffcv": Part("FFCV engine, full", _ffcv),
    "ffcv_uint8": Part("FFCV engine, full, uint8", partial(_ffcv, dtype=torch.uint8), named_only=True),
    "ffcv_block": Part(
        "FFCV engine, full, block order", partial(_ffcv, order=Order(kind="block")), named_only=True
    ),
    "dali_cpu_crop": Part(
        "DALI engine cpu, crop + flip", partial(_dali, stock=True, device="cpu"), named_only=True
    ),
    "dali_cpu": Part("DALI engine cpu, full", partial(_dali, device="cpu")),
    "peer_open_clip": Part("PIL + torchvision DataLoader, full", peers.open_clip),
    "peer_albumentationsx": Part("AlbumentationsX DataLoader, full", peers.albumentationsx),
    "peer_spdl": Part("SPDL with FFmpeg's filters, full", spdl.spdl),
    "peer_ffcv": Part("stock FFCV Loader, crop + flip", peers.stock_ffcv),
    "peer_ffcv_uint8": Part(
        "stock FFCV Loader, not normalised", partial(peers.stock_ffcv, normalise=False), named_only=True
    ),
    "peer_ffcv_colour": Part(
        "stock FFCV Loader, + its colour", partial(peers.stock_ffcv, colour=True), named_only=True
    ),
    "peer_dali_cpu": Part("DALI cpu, its own random operators", dali.random_crop),
    **{
        _gpu_decode(share): Part(
            f"DALI gpu, decode only, engine share {share:g}", partial(decoders.dali, share=share), gpu=True
        )
        for share in dict.fromkeys((HARDWARE_SHARE, 1.0, 0.9, 0.65, 0.0))
    },
    "dali_gpu": Part(
        "DALI engine gpu, full, uint8", partial(_dali, device="gpu", dtype=torch.uint8), gpu=True
    ),
    "peer_torchvision_gpu": Part("torchvision gpu, decode only, 1 thread", decoders.torchvision, gpu=True),
    "peer_torchcodec_gpu": Part("torchcodec gpu, decode only, 1 thread", decoders.torchcodec, gpu=True),
    "peer_dali_gpu": Part(
        "DALI gpu, decodes random crops", partial(dali.random_crop, device="gpu"), gpu=True
    ),
    "peer_dali_gpu_whole": Part(
        "DALI gpu, decodes whole, random crops", partial(dali.random_crop, device="gpu", whole=True), gpu=True
    ),
}  # fmt: skip

# The decoding alone, which no loader that decodes whole images on that device can pass: by `Part.gpu`.
LIMITS = {False: "decode", True: _gpu_decode(HARDWARE_SHARE)}

# (ours, a peer)
RATIOS = (
    ("ffcv", "peer_open_clip"),
    ("ffcv", "peer_albumentationsx"),
    ("ffcv", "peer_spdl"),
    ("ffcv", "peer_dali_cpu"),
    ("ffcv", "dali_cpu"),
    ("ffcv_crop", "peer_ffcv"),
    ("dali_gpu", "peer_dali_gpu"),
    ("dali_gpu", "peer_dali_gpu_whole"),
    (LIMITS[True], "peer_torchvision_gpu"),
    (LIMITS[True], "peer_torchcodec_gpu"),
)
