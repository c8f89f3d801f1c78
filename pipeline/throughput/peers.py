"""Other people's loaders over the same file and the same recipe, for `throughput` only.

Each yields image batches for ever and draws its own random numbers, as its users run it.
The recipe is `AUGMENTS["paper"]`: crop, colour jitter, grayscale, blur, flip, normalise.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Generator
from functools import partial

import numpy as np
import torch

from pipeline.beton.fields import Beton
from pipeline.throughput.settings import Case

_EPOCH = 100  # batches, at least


def _blur(sigma: tuple[float, float], image):
    """The blur of MoCo's, DINO's and SLIP's recipes, five times as fast as torchvision's on a CPU."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*sigma))))


class _Images(torch.utils.data.Dataset):
    """One sample at a time: what `transform` makes of a JPEG's bytes."""

    def __init__(self, file: Beton, transform: Callable[[bytes], torch.Tensor]):
        self._file, self._transform = file, transform

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._transform(self._file.jpeg(index).tobytes())


def _data_loader(
    file: Beton, case: Case, transform: Callable[[bytes], torch.Tensor], start: Callable | None = None
) -> Generator[torch.Tensor]:
    """torch's DataLoader with `workers` processes, each calling `start` with its number first."""
    dataset = _Images(file, transform)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=1 << 40)
    yield from torch.utils.data.DataLoader(
        dataset, case.batch_size, sampler=sampler, num_workers=case.workers, persistent_workers=True,
        worker_init_fn=start,
    )  # fmt: skip


def open_clip(file: Beton, case: Case) -> Generator[torch.Tensor]:
    """PIL and torchvision in a DataLoader, as open_clip's CSV and webdataset loaders work on each sample."""
    from torchvision import transforms as t
    from torchvision.transforms import InterpolationMode

    a = case.augment
    jitter = t.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)
    recipe = t.Compose([
        t.RandomResizedCrop(case.image_size, a.scale, a.ratio, InterpolationMode.BICUBIC),
        t.RandomApply([jitter], a.jitter_p),
        t.RandomGrayscale(a.gray_p),
        t.RandomApply([partial(_blur, a.blur_sigma)], a.blur_p),
        t.RandomHorizontalFlip(a.flip_p),
        t.ToTensor(),
        t.Normalize(a.mean, a.std),
    ])  # fmt: skip
    yield from _data_loader(file, case, partial(_by_pil, recipe))


def _by_pil(recipe: Callable, jpeg: bytes) -> torch.Tensor:
    from PIL import Image

    return recipe(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def albumentationsx(file: Beton, case: Case) -> Generator[torch.Tensor]:
    """AlbumentationsX (AGPL: benchmarks only) in a DataLoader, decoding by simplejpeg.

    OpenCV's cubic resize does not smooth; where it makes smaller, its area resize is taken.
    """
    import albumentations as a
    import cv2
    from albumentations.pytorch import ToTensorV2

    r = case.augment
    around = ((1 - v, 1 + v) for v in (r.brightness, r.contrast, r.saturation))
    size = case.image_size, case.image_size
    crop = {"interpolation": cv2.INTER_CUBIC, "area_for_downscale": "image"}
    recipe = a.Compose([
        a.RandomResizedCrop(size, r.scale, r.ratio, **crop),
        a.ColorJitter(*around, (-r.hue, r.hue), p=r.jitter_p),
        a.ToGray(p=r.gray_p),
        a.GaussianBlur((0, 0), r.blur_sigma, p=r.blur_p),
        a.HorizontalFlip(p=r.flip_p),
        a.Normalize(r.mean, r.std),
        ToTensorV2(),
    ], telemetry=False)  # fmt: skip
    yield from _data_loader(file, case, partial(_by_simplejpeg, recipe), _one_thread)


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)


def _by_simplejpeg(recipe: Callable, jpeg: bytes) -> torch.Tensor:
    import simplejpeg

    return recipe(image=simplejpeg.decode_jpeg(jpeg))["image"]


def stock_ffcv(
    file: Beton, case: Case, *, colour: bool = False, normalise: bool = True
) -> Generator[torch.Tensor]:
    """FFCV's own Loader with what it has: crop, flip, normalise; with `colour`, its jitter without hue.

    Without `normalise` its batches are uint8, which leaves that work to somebody else.
    """
    from ffcv import transforms as t
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    augment = case.augment
    mean, std = 255 * np.array(augment.mean), 255 * np.array(augment.std)
    size = case.image_size, case.image_size
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
    indices = np.tile(np.arange(len(file)), -(-_EPOCH * case.batch_size // len(file)))
    loader = Loader(str(file.path), case.batch_size, num_workers=case.workers, os_cache=True,
                    order=OrderOption.RANDOM, pipelines=pipelines, indices=indices)  # fmt: skip
    while True:
        with contextlib.closing(iter(loader)) as epoch:
            for batch_of_columns in epoch:
                yield batch_of_columns[0]
