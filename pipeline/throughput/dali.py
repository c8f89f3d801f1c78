"""DALI with its own random operators, as its examples do it, for `throughput` only; the `paper` recipe."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from pipeline.beton.fields import Beton
from pipeline.throughput.decoders import jpegs
from pipeline.throughput.settings import Case


def random_crop(file: Beton, case: Case, device: str = "cpu", whole: bool = False) -> Generator[torch.Tensor]:
    """The full recipe; the decoder takes the random crop only, or (`whole`) everything."""
    pipe = _pipeline(file, case, device, whole)
    pipe.build()
    while True:
        (out,) = pipe.run()
        yield torch.from_dlpack(out.as_tensor())


def _pipeline(file: Beton, case: Case, device: str, whole: bool):
    from nvidia.dali import fn, pipeline_def, types

    a = case.augment
    mean, std = ([255 * v for v in values] for values in (a.mean, a.std))
    number = None if device == "cpu" else torch.cuda.current_device()

    @pipeline_def(
        batch_size=case.batch_size, num_threads=case.workers, enable_conditionals=True, seed=1,
        device_id=number,
    )  # fmt: skip
    def pipeline():
        source = jpegs(file, case.batch_size)
        (jpeg,) = fn.external_source(source, num_outputs=1, dtype=types.UINT8, ndim=1, no_copy=True)
        image = _cropped(jpeg, case, device, whole)
        if fn.random.coin_flip(probability=a.jitter_p, dtype=types.BOOL):
            image = fn.color_twist(
                image,
                brightness=fn.random.uniform(range=(1 - a.brightness, 1 + a.brightness)),
                contrast=fn.random.uniform(range=(1 - a.contrast, 1 + a.contrast)),
                saturation=fn.random.uniform(range=(1 - a.saturation, 1 + a.saturation)),
                hue=fn.random.uniform(range=(-360 * a.hue, 360 * a.hue)),
            )
        if fn.random.coin_flip(probability=a.gray_p, dtype=types.BOOL):
            image = fn.saturation(image, saturation=0.0)
        if fn.random.coin_flip(probability=a.blur_p, dtype=types.BOOL):
            image = fn.gaussian_blur(image, sigma=fn.random.uniform(range=a.blur_sigma))
        return fn.crop_mirror_normalize(
            image, mirror=fn.random.coin_flip(probability=a.flip_p), mean=mean, std=std,
            dtype=types.FLOAT, output_layout="CHW",
        )  # fmt: skip

    return pipeline()


def _cropped(jpeg, case: Case, device: str, whole: bool):
    from nvidia.dali import fn, types

    how: dict[str, Any] = {"device": "mixed" if device == "gpu" else "cpu", "output_type": types.RGB}
    box: dict[str, Any] = {
        "random_area": list(case.augment.scale),
        "random_aspect_ratio": list(case.augment.ratio),
    }
    to = {"size": (case.image_size, case.image_size), "interp_type": types.INTERP_CUBIC, "antialias": True}
    if whole:
        return fn.random_resized_crop(fn.decoders.image(jpeg, **how), **box, **to)
    return fn.resize(fn.decoders.image_random_crop(jpeg, **box, **how), **to)
