"""One image file's bytes → the JPEG that is stored: decode, check, orient, resize, re-encode.

Every image is decoded once in full, so that what cannot be decoded never reaches training.  A JPEG
that already fits is kept byte for byte; for it the full entropy decoding is the check, which tells the
mean luma too (`jpeg_scan.py`); libjpeg judges what that does not vouch for.

Not here: captions (`pipeline/text.py`), where images come from (`sources.py`, `triplets.py`).

H, W height and width in pixels.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from dataprep.writer import Jpeg

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG
# What PIL may try: no format that starts a program (EPS) or is a document rather than a picture.
FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA"]
# Sampling factors of three components, as bytes of the frame header.
_SUBSAMPLINGS = {
    b"\x11\x11\x11": "444", b"\x21\x11\x11": "422", b"\x22\x11\x11": "420",
    b"\x12\x11\x11": "440", b"\x41\x11\x11": "411",
}  # fmt: skip
_LONGEST = 65_500  # libjpeg's limit


class Rejected(ValueError):
    """A sample that cannot be taken: `reason` groups, `detail` tells."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, " ".join(detail.split())[:300]

    def __reduce__(self):
        return Rejected, (self.reason, self.detail)


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
    """Turn images upright by their EXIF orientation; otherwise the stored pixels are kept as they lie."""
    passthrough: bool = True
    """Keep a baseline RGB JPEG that already fits byte for byte."""
    max_pixels: int = 100_000_000
    """Larger images are rejected before they are decoded (decompression bombs)."""
    max_bytes: int = 64 << 20
    """Larger files are rejected before they are decoded."""

    def __post_init__(self):
        if self.size != "none" and not 8 <= self.size <= _LONGEST:
            raise ValueError(f"size must be from 8 to {_LONGEST} pixels or none, not {self.size}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, not {self.quality}")
        if self.subsampling not in ("420", "422", "444"):
            raise ValueError(f"subsampling must be 420, 422 or 444, not {self.subsampling}")
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise ValueError("max_pixels and max_bytes must be positive")


@dataclass(frozen=True)
class Converted:
    """What is stored of one image."""

    jpeg: Jpeg
    luma: float  # mean, 0…255
    passed: bool  # the source's own bytes


def convert(data: bytes, settings: ImageSettings) -> Converted:
    """Decode and check `data`, an image file of any common format; raises Rejected."""
    if not data:
        raise Rejected("empty file")
    if len(data) > settings.max_bytes:
        raise Rejected("too many bytes", f"{len(data)}, the limit is {settings.max_bytes}")
    head = read_head(data)
    if head is None:
        return encode(_decode_with_pil(data, settings), settings)
    _check_pixels(head.width, head.height, settings)
    orientation = _orientation(data) if head.has_app1 else 1
    if settings.passthrough and orientation == 1 and _fits(head, settings):
        try:
            return Converted(Jpeg(data, head.height, head.width), _checked_luma(data, head), True)
        except ValueError as error:
            _refuse_garbage(error)
            return encode(_decode_with_pil(data, settings), settings)
    if head.plain:
        try:
            pixels = simplejpeg.decode_jpeg(data)
            if settings.orientation and orientation != 1:
                pixels = _turn(pixels, orientation)
            return encode(pixels, settings)
        except ValueError as error:
            _refuse_garbage(error)
    return encode(_decode_with_pil(data, settings), settings)


def encode(pixels: np.ndarray, settings: ImageSettings) -> Converted:
    """Resize (H, W, 3) uint8 RGB pixels and encode them as baseline JPEG."""
    pixels = _resize(pixels, settings.size)
    height, width = pixels.shape[:2]
    if max(height, width) > _LONGEST:
        raise Rejected("too long a side", f"{width}×{height}, JPEG ends at {_LONGEST}")
    data = simplejpeg.encode_jpeg(pixels, settings.quality, "RGB", settings.subsampling, fastdct=False)
    return Converted(Jpeg(data, height, width), mean_luma(pixels), False)


def mean_luma(pixels: np.ndarray) -> float:
    """Mean luma, 0…255, of (H, W, 3) RGB pixels."""
    rows = pixels.reshape(len(pixels), -1).sum(0, dtype=np.uint32)  # over H first: it vectorises
    return float(rows.reshape(-1, 3).sum(0) @ LUMA / (pixels.size // 3))


def _resize(pixels: np.ndarray, size: int | Literal["none"]) -> np.ndarray:
    """Scale the short side down to `size`, bicubic and antialiased: torch's, equal to PIL's ±1."""
    height, width = pixels.shape[:2]
    if size == "none" or min(height, width) <= size:
        return np.ascontiguousarray(pixels)
    import torch  # only where it is needed: it is slow to load

    scale = size / min(height, width)
    target = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = torch.from_numpy(np.require(pixels, requirements="CW"))[None].permute(0, 3, 1, 2)
    image = torch.nn.functional.interpolate(image, target, mode="bicubic", antialias=True)
    return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())


def _check_pixels(width: int, height: int, settings: ImageSettings) -> None:
    if not width or not height:
        raise Rejected("cannot decode", f"its header says {width}×{height} pixels")
    if width * height > settings.max_pixels:
        raise Rejected("too many pixels", f"{width}×{height}, the limit is {settings.max_pixels}")


# -- JPEG -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """What a JPEG's markers say before its data."""

    width: int
    height: int
    sof: int  # the frame's marker: 0xC0 baseline, 0xC2 progressive, …
    precision: int  # bits
    components: tuple[int, ...]  # their ids
    subsampling: str | None  # as simplejpeg names it; None if unusual
    adobe: int | None  # colour transform of the Adobe marker
    has_app1: bool  # EXIF or XMP is there

    @property
    def plain(self) -> bool:
        """libjpeg-turbo's fast interface takes it: 8-bit Huffman-coded grey or colour."""
        return self.sof in (0xC0, 0xC1, 0xC2) and self.precision == 8 and len(self.components) in (1, 3)


def read_head(data: bytes) -> Head | None:
    """Walk the markers up to the frame header; None if `data` is no JPEG or has none."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, adobe, app1 = 2, None, False
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these carry no length
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1:
            app1 = True
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _frame(marker, body, adobe, app1)
        elif marker in (0xDA, 0xD9):
            return None
        at += 2 + length
    return None


def _frame(marker: int, body: bytes, adobe: int | None, app1: bool) -> Head | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    precision, height, width, count = struct.unpack(">BHHB", body[:6])
    ids, factors = tuple(body[6 : 6 + 3 * count : 3]), body[7 : 7 + 3 * count : 3]
    sampling = _SUBSAMPLINGS.get(factors)
    return Head(width, height, marker, precision, ids, sampling, adobe, app1)


def _fits(head: Head, settings: ImageSettings) -> bool:
    """A baseline 8-bit YCbCr JPEG, small enough, that every decoder reads alike."""
    ycbcr = len(head.components) == 3 and head.adobe in (None, 1) and head.components != (82, 71, 66)
    small = settings.size == "none" or min(head.width, head.height) <= settings.size
    baseline = head.sof == 0xC0 and head.precision == 8 and head.subsampling is not None
    return ycbcr and small and baseline and max(head.width, head.height) <= _LONGEST


def _checked_luma(data: bytes, head: Head) -> float:
    """Entropy-decode a JPEG in full; its mean luma, within about 0.5 of 255, from the blocks' means.

    Raises simplejpeg's ValueError on any fault in the data.
    """
    from pipeline import jpeg_scan  # with its compiler only where it is needed: that takes 100 MB

    luma = jpeg_scan.mean_luma(data)
    if luma is not None:
        return luma
    blocks = simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)[..., 0]
    down, across = (_coverage(n, m) for n, m in zip((head.height, head.width), blocks.shape))
    return float(down @ blocks @ across)


@lru_cache(maxsize=4096)
def _coverage(length: int, blocks: int) -> np.ndarray:
    """The share of the side that each block covers; the last one may stick out."""
    side = -(-length // blocks)
    weights = np.full(blocks, side, np.float32)
    weights[-1] = length - side * (blocks - 1)
    return weights / length


def _refuse_garbage(error: ValueError) -> None:
    """PIL ignores broken entropy-coded data and would hand on garbage; other complaints it judges well."""
    message = str(error)
    if "Huffman" in message or "progression" in message:
        raise Rejected("cannot decode", message) from None


def _orientation(data: bytes) -> int:
    """EXIF (or XMP) orientation 1…8, as PIL reads it; 1 where there is none or it is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            value = image.getexif().get(0x0112, 1)
    except Exception:  # PIL's parsers raise almost anything on damaged metadata; pixels may be fine
        return 1
    return value if value in range(1, 9) else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to (H, W, 3)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


# -- everything else --------------------------------------------------------------------------


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decode_with_pil(data: bytes, settings: ImageSettings) -> np.ndarray:
    """(H, W, 3) uint8 by PIL: first frame, transparency on white, 16 bits reduced to 8."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked, below
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_formats()) as image:
            warnings.simplefilter("ignore")  # what PIL warns of is checked, or does no harm
            _check_pixels(*image.size, settings)
            image.load()
            orientation = image.getexif().get(0x0112, 1) if settings.orientation else 1
            pixels = np.asarray(_to_rgb(image))
    except Rejected:
        raise
    except Image.UnidentifiedImageError:
        raise Rejected("not an image", f"starts with {data[:8]!r}") from None
    except Exception as error:  # hostile files make PIL raise almost anything
        raise Rejected("cannot decode", f"{type(error).__name__}: {error}") from None
    return _turn(pixels, orientation) if orientation in range(2, 9) else pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise Rejected("cannot decode", "32-bit pixels have no agreed range")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Rejected("cannot decode", "floating-point pixels have no agreed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
