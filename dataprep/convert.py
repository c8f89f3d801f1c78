"""An image file → the JPEG that is stored: read, decode, check, orient, resize, re-encode.

Every image is decoded once in full, so that an image which cannot be decoded never reaches training.  A
JPEG that already fits is kept byte for byte.  Its check is libjpeg's decoding at an eighth of the size, which
reads all of the entropy-coded data, complains as the full decoding does, and gives the mean luma too.

Not here: from bytes to pixels (`pipeline/formats/pictures.py`), captions (`pipeline/text.py`), where images
come from (the sources).

H, W height and width in pixels.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pipeline.beton.writer import Jpeg
from pipeline.formats import pictures
from pipeline.formats.pictures import Head, Rejected, read_head

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LONGEST = 65_500  # libjpeg's limit
_NOT_OF_IMAGES = (Image.DecompressionBombWarning, DeprecationWarning)  # the limit of pixels is ours


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are stored."""

    size: int | Literal["none"] = 256
    """Short side in pixels; larger images are scaled down to it, smaller ones stay; none keeps all."""
    quality: int = 90
    """JPEG quality where an image is encoded anew."""
    subsampling: Literal["420", "422", "444"] = "420"
    """Chroma subsampling where an image is encoded anew: 420, 422 or 444."""
    orientation: bool = True
    """Turn images upright by their EXIF orientation; otherwise pixels stay as they are stored."""
    passthrough: bool = True
    """Keep a baseline RGB JPEG that already fits byte for byte."""
    max_pixels: int = pictures.MAX_PIXELS
    """Larger images are rejected before they are decoded (decompression bombs)."""
    max_bytes: int = 64 << 20
    """Larger files are rejected before they are decoded."""

    def __post_init__(self) -> None:
        if self.size != "none" and not 8 <= self.size <= _LONGEST:
            raise ValueError(f"size must be from 8 to {_LONGEST} pixels or none, not {self.size}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, not {self.quality}")
        if self.subsampling not in ("420", "422", "444"):
            raise ValueError(f"subsampling must be 420, 422 or 444, not {self.subsampling}")
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise ValueError("max_pixels and max_bytes must be positive")


class Converted(NamedTuple):
    """What is stored of one image."""

    jpeg: Jpeg
    luma: float  # mean, 0…255
    passed: bool  # the source's own bytes
    warned: tuple[str, ...] = ()  # what Pillow and libtiff said of an image that was stored nevertheless


# -- reading --------------------------------------------------------------------------------


def read_image(image: bytes | str | Path, settings: ImageSettings) -> bytes:
    """The bytes of an image file; Rejected if it is missing, unreadable or too large."""
    if isinstance(image, bytes):
        return image
    try:
        with open(image, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Rejected("unreadable file", f"{image}: a device or pipe")
            _check_bytes(status.st_size, settings)
            return file.read()
    except FileNotFoundError:
        raise Rejected("missing file", f"{image}{_why_missing(str(image))}") from None
    except Rejected:
        raise
    except (OSError, ValueError) as error:  # a folder, no permission, an impossible name
        raise Rejected("unreadable file", f"{image}: {error}") from None


def _check_bytes(size: int, settings: ImageSettings) -> None:
    if size > settings.max_bytes:
        raise Rejected("too many bytes", f"{size}, the limit is {settings.max_bytes}")


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a pipe without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _why_missing(path: str) -> str:
    """What may be wrong with the name of a file that is not there."""
    if "\\" in path:
        return "; folders are separated by / here, not by Windows' \\"
    if any(os.path.exists(unicodedata.normalize(form, path)) for form in ("NFC", "NFD")):
        return "; it is there, but its name is encoded in another way (Unicode's NFC and NFD)"
    return ""


# -- converting -----------------------------------------------------------------------------


def convert(data: bytes, settings: ImageSettings) -> Converted:
    """Decode and check `data`, an image file of any of `pictures.FORMATS`; raises Rejected.

    Changes Pillow's limit of pixels, and for TIFF the process's stderr, for the time of the call: for a
    process of one thread.
    """
    if not data:
        raise Rejected("empty file")
    _check_bytes(len(data), settings)
    with _guarded(data, settings.max_pixels) as messages:
        converted = _passed(data, settings)
        if converted is None:
            pixels = pictures.read(data, max_pixels=settings.max_pixels, upright=settings.orientation)
            converted = encode(pixels, settings)
    return converted._replace(warned=tuple(messages)) if messages else converted


def _passed(data: bytes, settings: ImageSettings) -> Converted | None:
    """The file as it is, if it is a JPEG that can be stored so; Rejected if it should be but is damaged."""
    head = read_head(data)
    if head is None or not settings.passthrough or not _fits(head, settings):
        return None
    pictures.check_pixels(head.width, head.height, settings.max_pixels)
    if head.has_app1 and pictures.jpeg_orientation(data) != 1:
        return None  # some decoders would turn it, others not: the tag must not reach the file
    try:
        return Converted(Jpeg(data, head.height, head.width), _checked_luma(data, head), True)
    except ValueError as error:
        pictures.refuse_garbage(error)
        return None


@contextmanager
def _guarded(data: bytes, max_pixels: int) -> Iterator[list[str]]:
    """What decoders say of an image in the meantime, instead of on the terminal; and Pillow's limit is ours.

    Pillow warns above its limit and refuses above twice that, before it allocates; our own check comes after
    it has opened a file.  A Rejected that leaves the block takes the messages along: they often say more than
    Pillow's error.
    """
    messages: list[str] = []
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, -(-max_pixels // 2)
    recorded = warnings.catch_warnings(record=True, action="always")
    try:
        with recorded as caught, _libtiff_lines(messages) if data[:4] in _TIFF else nullcontext():
            yield messages
    except Rejected as error:
        details = [error.detail, *_distinct(messages, caught)]
        raise Rejected(error.reason, "; ".join(details)) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before
    messages[:] = _distinct(messages, caught)


def _distinct(messages: list[str], caught: list[warnings.WarningMessage]) -> list[str]:
    told = [str(warning.message) for warning in caught if not issubclass(warning.category, _NOT_OF_IMAGES)]
    return list(dict.fromkeys(" ".join(line.split()) for line in (*told, *messages)))


@contextmanager
def _libtiff_lines(messages: list[str]) -> Iterator[None]:
    """libtiff writes to the process's stderr itself; that goes to `messages`."""
    try:
        terminal = os.dup(2)
    except OSError:  # a process without stderr
        terminal = None
    if terminal is None:
        yield
        return
    sys.stderr.flush()
    with open(os.memfd_create("stderr"), "w+b") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            messages += file.read(10_000).decode("utf-8", "replace").splitlines()


def encode(pixels: np.ndarray, settings: ImageSettings) -> Converted:
    """Resize (H, W, 3) uint8 RGB pixels and encode them as baseline JPEG."""
    pixels = _resize(pixels, settings.size)
    height, width = pixels.shape[:2]
    if max(height, width) > _LONGEST:
        raise Rejected("too long a side", f"{width}×{height}, JPEG ends at {_LONGEST}")
    data = _encoder()(pixels, settings.quality, settings.subsampling)
    return Converted(Jpeg(data, height, width), mean_luma(pixels), False)


@cache
def _encoder() -> Callable[[np.ndarray, int, str], bytes]:
    """OpenCV's JPEG encoder, as in stock FFCV; Pillow's where OpenCV cannot be loaded.

    Pillow's is slower and equal to the byte.  Not simplejpeg's: below quality 96 it always takes libjpeg's
    fast transform, which overflows in some blocks of black and white and stores them inverted.
    """
    try:
        import cv2  # it needs libGL, which a bare container does not have
    except ImportError:
        return encode_with_pil
    cv2.setNumThreads(1)
    factor = cv2.IMWRITE_JPEG_SAMPLING_FACTOR
    factors = {"444": 0x111111, "422": 0x211111, "420": 0x221111}

    def encode_with_cv2(pixels: np.ndarray, quality: int, subsampling: str) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, factor, factors[subsampling]]
        good, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
        assert good
        return data.tobytes()

    return encode_with_cv2


def encode_with_pil(pixels: np.ndarray, quality: int, subsampling: str) -> bytes:
    """JPEG bytes of (H, W, 3) uint8 RGB pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=":".join(subsampling))
    return out.getvalue()


def mean_luma(pixels: np.ndarray) -> float:
    """Mean luma, 0…255, of (H, W, 3) RGB pixels."""
    rows = pixels.reshape(len(pixels), -1).sum(0, dtype=np.uint32)  # over H first: it vectorises
    return float(rows.reshape(-1, 3).sum(0) @ LUMA / (pixels.size // 3))


def _resize(pixels: np.ndarray, size: int | Literal["none"]) -> np.ndarray:
    """Scale the short side down to `size`, bicubic and antialiased: torch's, equal to PIL's ±1."""
    height, width = pixels.shape[:2]
    if size == "none" or min(height, width) <= size:
        return np.ascontiguousarray(pixels)
    import torch  # slow to load: only where it is needed

    scale = size / min(height, width)
    target = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = torch.from_numpy(np.require(pixels, requirements=("C", "W")))[None].permute(0, 3, 1, 2)
    image = torch.nn.functional.interpolate(image, target, mode="bicubic", antialias=True)
    return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())


def _fits(head: Head, settings: ImageSettings) -> bool:
    """Whether it is small enough, and a baseline 8-bit YCbCr JPEG, which all decoders read alike."""
    ycbcr = len(head.components) == 3 and head.adobe in (None, 1) and head.components != (82, 71, 66)
    small = settings.size == "none" or min(head.width, head.height) <= settings.size
    baseline = head.sof == 0xC0 and head.precision == 8 and head.subsampling is not None
    return ycbcr and small and baseline and max(head.width, head.height) <= _LONGEST


def _checked_luma(data: bytes, head: Head) -> float:
    """Entropy-decode a JPEG in full; returns its mean luma from the blocks' means, within about 0.5 of 255.

    Raises simplejpeg's ValueError on any fault in the data.
    """
    blocks = pictures.decode_jpeg(data, "GRAY", min_height=1, min_width=1)[..., 0]
    down, across = (_coverage(n, m) for n, m in zip((head.height, head.width), blocks.shape))
    return float(down @ blocks @ across)


@lru_cache(maxsize=4096)
def _coverage(length: int, blocks: int) -> np.ndarray:
    """The share of the side that each block covers; the last one may stick out."""
    side = -(-length // blocks)
    weights = np.full(blocks, side, np.float32)
    weights[-1] = length - side * (blocks - 1)
    return weights / length
