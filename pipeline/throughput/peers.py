"""Other people's loaders over the same file and the same recipe, for `throughput` only.

Each yields image batches for ever and draws its own random numbers, as its users run it.
The recipe is `AUGMENTS["paper"]`: crop, colour jitter, grayscale, blur, flip, normalise.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator, Iterator
from functools import partial

import numpy as np
import torch

from pipeline.augment import Augment
from pipeline.beton.fields import Beton
from pipeline.throughput.settings import Settings

_EPOCH = 100  # batches, at least


def _blur(sigma: tuple[float, float], image):
    """The blur of MoCo's, DINO's and SLIP's recipes, five times as fast as torchvision's on a CPU."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*sigma))))


class _Images(torch.utils.data.Dataset):
    """open_clip's way: PIL decodes, torchvision transforms, one sample at a time."""

    def __init__(self, file: Beton, augment: Augment, side: int):
        from torchvision import transforms as t
        from torchvision.transforms import InterpolationMode

        a = augment
        jitter = t.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)
        self._file = file
        self._transform = t.Compose([
            t.RandomResizedCrop(side, a.scale, a.ratio, InterpolationMode.BICUBIC),
            t.RandomApply([jitter], a.jitter_p),
            t.RandomGrayscale(a.gray_p),
            t.RandomApply([partial(_blur, a.blur_sigma)], a.blur_p),
            t.RandomHorizontalFlip(a.flip_p),
            t.ToTensor(),
            t.Normalize(a.mean, a.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        return self._transform(Image.open(io.BytesIO(self._file.jpeg(index).tobytes())).convert("RGB"))


def open_clip(file: Beton, settings: Settings, augment: Augment) -> Generator[torch.Tensor]:
    """PIL and torchvision in a DataLoader, as open_clip's CSV and webdataset loaders work on each sample."""
    dataset = _Images(file, augment, settings.image_size)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=1 << 40)
    yield from torch.utils.data.DataLoader(
        dataset, settings.batch_size, sampler=sampler, num_workers=settings.workers, persistent_workers=True
    )


def stock_ffcv(
    file: Beton, settings: Settings, augment: Augment, *, colour: bool = False, normalise: bool = True
) -> Generator[torch.Tensor]:
    """FFCV's own Loader with what it has: crop, flip, normalise; with `colour`, its jitter without hue.

    Without `normalise` its batches are uint8, which leaves that work to somebody else.
    """
    from ffcv import transforms as t
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    mean, std = 255 * np.array(augment.mean), 255 * np.array(augment.std)
    size = settings.image_size, settings.image_size
    operations = [RandomResizedCropRGBImageDecoder(size, augment.scale, augment.ratio)]
    if colour:
        operations += [
            t.RandomBrightness(augment.brightness, augment.jitter_p),
            t.RandomContrast(augment.contrast, augment.jitter_p),
            t.RandomSaturation(augment.saturation, augment.jitter_p),
        ]
    operations.append(t.RandomHorizontalFlip(augment.flip_p))
    if normalise:
        operations.append(t.NormalizeImage(mean, std, np.float32))
    operations += [t.ToTensor(), t.ToTorchImage()]
    pipelines = {name: None for name in file.fields} | {"image": operations}
    # A small file many times over: the start of an epoch costs FFCV more than some batches do.
    indices = np.tile(np.arange(len(file)), -(-_EPOCH * settings.batch_size // len(file)))
    loader = Loader(str(file.path), settings.batch_size, num_workers=settings.workers, os_cache=True,
                    order=OrderOption.RANDOM, pipelines=pipelines, indices=indices)  # fmt: skip
    while True:
        with contextlib.closing(iter(loader)) as epoch:
            for batch_of_columns in epoch:
                yield batch_of_columns[0]


def dali(file: Beton, settings: Settings, augment: Augment, device: str = "cpu") -> Generator[torch.Tensor]:
    """DALI with its own random operators, as its examples do it."""
    pipe = _dali_pipeline(file, settings, augment, device)
    pipe.build()
    while True:
        (out,) = pipe.run()
        yield torch.from_dlpack(out.as_tensor())


def jpegs(file: Beton, batch: int) -> Iterator[tuple[list[np.ndarray]]]:
    rng = np.random.default_rng(0)
    while True:
        rows = file.rows(rng.integers(0, len(file), batch))
        data, start = file.read(*rows.spans("image"))
        yield (np.split(data, start[1:]),)


def _dali_pipeline(file: Beton, settings: Settings, augment: Augment, device: str):
    from nvidia.dali import fn, pipeline_def, types

    a, batch, side = augment, settings.batch_size, settings.image_size
    mean, std = ([255 * v for v in values] for values in (a.mean, a.std))

    @pipeline_def(
        batch_size=batch, num_threads=settings.workers, enable_conditionals=True, seed=1,
        device_id=None if device == "cpu" else torch.cuda.current_device(),
    )  # fmt: skip
    def pipeline():
        (jpeg,) = fn.external_source(
            jpegs(file, batch), num_outputs=1, dtype=types.UINT8, ndim=1, no_copy=True
        )
        image = fn.decoders.image_random_crop(
            jpeg, device="mixed" if device == "gpu" else "cpu", output_type=types.RGB,
            random_area=list(a.scale), random_aspect_ratio=list(a.ratio),
        )  # fmt: skip
        image = fn.resize(image, size=(side, side), interp_type=types.INTERP_CUBIC, antialias=True)
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
