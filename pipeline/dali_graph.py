"""The DALI graph of one augmentation, for the CPU or the GPU: stored JPEGs in, augmented images out.

Defining a graph needs no driver and no GPU, so tests look at the GPU's too.  What feeds it, and what
becomes of its output: `dali_loader.py`.

S image side.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.augment import Augment

QUEUE = 2  # batches DALI prepares ahead
HARDWARE_SHARE = 1.0  # of a batch's JPEGs for the GPU's decoding engine, where it has one


def inputs_of(augment: Augment) -> dict[str, tuple[str, int]]:
    """The graph's inputs, name → (DALI's type, dimensions of one); only those that this augmentation uses."""
    inputs = {"jpeg": ("UINT8", 1), "corner": ("INT32", 1), "size": ("INT32", 1), "flip": ("INT32", 0)}
    if augment.crop == "centre":
        inputs |= {"whole": ("FLOAT", 1), "cut": ("INT32", 1)}
    if augment.jitter_p or augment.gray_p:
        inputs |= {"coloured": ("BOOL", 0), "matrix": ("FLOAT", 2)}
    if augment.blur_p:
        inputs |= {"blurred": ("BOOL", 0), "sigma": ("FLOAT", 0)}
    return inputs


def define(
    augment: Augment, source, batch_size: int, side: int, dtype: torch.dtype, workers: int, device: str
):
    """The DALI pipeline, not built yet, over an iterator of `_Submitted.arguments`; device "cpu" or "gpu".

    Building needs the device's driver, defining and serialising does not.
    """
    from nvidia.dali import fn, pipeline_def, types

    inputs = inputs_of(augment)
    kinds, dimensions = zip(*inputs.values())
    mean, std = ([255 * v for v in values] for values in (augment.mean, augment.std))
    out = types.FLOAT16 if dtype == torch.float16 else types.FLOAT  # DALI has no bfloat16

    @pipeline_def(enable_conditionals=True)
    def pipeline():
        values = fn.external_source(
            source=source, num_outputs=len(inputs), dtype=[getattr(types, kind) for kind in kinds],
            ndim=list(dimensions), no_copy=True,
        )  # fmt: skip
        sample = dict(zip(inputs, values))
        image = _resized(sample, device, side)
        # DALI's own conditionals: a part of the batch.
        if "matrix" in sample and sample["coloured"]:
            image = fn.coord_transform(image, MT=sample["matrix"], dtype=types.UINT8)
        if "sigma" in sample and sample["blurred"]:
            image = fn.gaussian_blur(image, sigma=sample["sigma"])  # window 2 ceil(3 sigma) + 1
        if dtype == torch.uint8:
            return fn.flip(image, horizontal=sample["flip"])
        return fn.crop_mirror_normalize(
            image, mirror=sample["flip"], mean=mean, std=std, dtype=out, output_layout="HWC"
        )  # HWC in memory is channels_last

    number = torch.cuda.current_device() if device == "gpu" and torch.cuda.is_available() else None
    return pipeline(batch_size=batch_size, num_threads=workers, device_id=number, prefetch_queue_depth=QUEUE)


def _resized(sample: dict, device: str, side: int):
    """The box of a JPEG at side x side; on the CPU only the box is decoded."""
    from nvidia.dali import fn, types

    how: dict[str, Any] = {
        "output_type": types.RGB,
        "adjust_orientation": False,  # a stored image is upright, whatever its EXIF says; PIL's way too
        "jpeg_fancy_upsampling": True,
    }
    box: dict[str, Any] = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}
    if device == "gpu":
        # Whole: nvImageCodec 0.9 cannot decode regions (its issue 55), and the JPEG engine, which must read
        # all of the entropy-coded data for a region too, gains nothing from one.
        image = fn.decoders.image(sample["jpeg"], device="mixed", hw_decoder_load=HARDWARE_SHARE, **how)
        image = fn.slice(image, sample["corner"], sample["size"], **box)
    else:
        image = fn.decoders.image_slice(
            sample["jpeg"], sample["corner"], sample["size"], device="cpu", **box, **how
        )
    cubic = {"interp_type": types.INTERP_CUBIC, "antialias": True}
    if "whole" not in sample:
        return fn.resize(image, size=(side, side), **cubic)
    image = fn.resize(image, size=sample["whole"], **cubic)
    return fn.slice(image, start=sample["cut"], shape=[side, side], axis_names="HW")
