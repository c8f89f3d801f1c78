"""The DALI graph of an augmentation, for the CPU or the GPU: stored JPEGs in, augmented images out.

On a GPU the blur is left to `blur.py`.  DALI's took 13 ms of a batch of 5,120 (docs/benchmarks.md),
and its conditional left images in many places, each of which DALI then copied by itself.

Defining a graph needs no driver and no GPU, so tests look at the GPU's too.  What feeds it, and what
becomes of its output: `dali_loader.py`.

S image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.augment import Augment
from pipeline.beton.fields import Beton

QUEUE = 2  # batches DALI prepares ahead
HARDWARE_SHARE = 1.0  # of a batch's JPEGs for the GPU's JPEG engine, where it has one; DALI's default is 0.65


class Size(NamedTuple):
    """Pixels of an image."""

    height: int
    width: int


def typical_size(file: Beton, column: str) -> Size:
    """The median sides of a few of the file's images."""
    few = np.linspace(0, len(file) - 1, 64).astype(np.int64)
    return Size(*np.median(file.rows(few).sizes(column), 0).astype(int).tolist())


def inputs_of(augment: Augment, device: str) -> dict[str, tuple[str, int]]:
    """The graph's inputs, name → (DALI's type, dimensions of one); only those that it uses for this."""
    inputs = {"jpeg": ("UINT8", 1), "corner": ("INT32", 1), "size": ("INT32", 1)}
    if augment.flip_p:
        inputs |= {"first": ("FLOAT", 1), "last": ("FLOAT", 1)}
    if augment.crop == "centre":
        inputs |= {"whole": ("FLOAT", 1), "cut": ("INT32", 1)}
    if augment.jitter_p or augment.gray_p:
        inputs |= {"matrix": ("FLOAT", 2)}
    if augment.blur_p and device == "cpu":
        inputs |= {"blurred": ("BOOL", 0), "sigma": ("FLOAT", 0)}
    return inputs


def define(
    augment: Augment, source: Iterator, batch_size: int, side: int, workers: int, device: str, typical: Size
):
    """The DALI pipeline, not built yet; its output is (N, S, S, 3) uint8, N <= batch_size.

    On a GPU nothing is blurred yet.
    source: yields tuples of the inputs that `inputs_of` names, each for N images.  device: "cpu" or "gpu".
    typical: of a stored image.  Building needs the device's driver, defining and serialising does not.
    """
    from nvidia.dali import fn, pipeline_def, types

    inputs = inputs_of(augment, device)
    kinds, dimensions = zip(*inputs.values())

    @pipeline_def(enable_conditionals=True)
    def pipeline():
        values = fn.external_source(
            source=source, num_outputs=len(inputs), dtype=[getattr(types, kind) for kind in kinds],
            ndim=list(dimensions), no_copy=True,
        )  # fmt: skip
        sample = dict(zip(inputs, values))
        image = _resized(sample, device, side, typical)
        if "matrix" in sample:
            image = fn.coord_transform(image, MT=sample["matrix"], dtype=types.UINT8)
        if "sigma" in sample and sample["blurred"]:  # DALI's own conditional: a part of the batch
            image = fn.gaussian_blur(image, sigma=sample["sigma"])  # window 2 ceil(3 sigma) + 1
        return image

    number = torch.cuda.current_device() if device == "gpu" and torch.cuda.is_available() else None
    return pipeline(batch_size=batch_size, num_threads=workers, device_id=number, prefetch_queue_depth=QUEUE)


def decode_whole(jpeg, typical: Size, hardware_share: float = HARDWARE_SHARE):
    """The GPU's decoder over whole JPEGs, as the engine uses it.

    With nvImageCodec 0.9 whole images are the only way.  Regions fail on a GPU (its issue 55), or, of 4:2:0
    images with nvJPEG before 13.2, go to libjpeg on the CPU one by one.  Nor would they help: the JPEG engine
    reads all of the entropy-coded data for a region too.
    """
    from nvidia.dali import fn

    return fn.decoders.image(
        jpeg, device="mixed", hw_decoder_load=hardware_share, **colours(),
        # Memory of the JPEG engine for a whole batch at once, instead of growing in the first ones.
        preallocate_height_hint=typical.height, preallocate_width_hint=typical.width,
        # By default 16 MB of the GPU's and 2 × 8 MB of pinned memory for each thread, of nvJPEG's other
        # decoder.  It gets what the engine does not take, and then allocates what it needs.
        device_memory_padding=0, host_memory_padding=0,
    )  # fmt: skip


def colours() -> dict[str, Any]:
    """How every decoder here makes RGB."""
    from nvidia.dali import types

    return {
        "output_type": types.RGB,
        "adjust_orientation": False,  # a stored image is upright, whatever its EXIF says; PIL's way too
        "jpeg_fancy_upsampling": True,  # of chroma, as libjpeg does it
    }


def _resized(sample: dict, device: str, side: int, typical: Size):
    """The box of a JPEG at side x side, mirrored where its ends are; on the CPU only the box is decoded."""
    from nvidia.dali import fn, types

    box: dict[str, Any] = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}
    if device == "gpu":
        image = fn.slice(decode_whole(sample["jpeg"], typical), sample["corner"], sample["size"], **box)
    else:
        image = fn.decoders.image_slice(
            sample["jpeg"], sample["corner"], sample["size"], device="cpu", **box, **colours()
        )
    cubic: dict[str, Any] = {"interp_type": types.INTERP_CUBIC, "antialias": True}
    if "first" in sample:
        # Resizing from right to left mirrors for nothing.  DALI's flip is a kernel for each image, and each
        # kernel waits for one of the training's.
        cubic |= {"roi_start": sample["first"], "roi_end": sample["last"], "roi_relative": True}
    if "whole" not in sample:
        return fn.resize(image, size=(side, side), **cubic)
    image = fn.resize(image, size=sample["whole"], **cubic)
    return fn.slice(image, start=sample["cut"], shape=[side, side], axis_names="HW")
