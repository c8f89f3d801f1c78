"""An image file's bytes → RGB pixels, as images are prepared for a .beton; and the test of those in one.

`read` is what the build stores, before resizing: upright, transparency on white, 16 bits reduced to 8.
Evaluation reads the triplets of a folder with it, so that a model sees the same images in the folder and in
the .beton made of it.  `stored` is what an image of a .beton must pass: the build, `verify`, evaluation and,
by their own call of libjpeg, both engines agree on it.

All of this is thread-safe: no global setting is changed during a call.  Elsewhere: resizing and encoding
(`dataprep/convert.py`).

H, W height and width in pixels.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.formats.markers import is_frame, next_segment

MAX_PIXELS = 100_000_000
# What PIL may try: no format that starts a program (EPS), or holds a document or measurements.
# A TGA cannot be recognised by its first bytes, so it comes last.
FORMATS = [
    "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "ICNS",
    "CUR", "PSD", "DDS", "QOI", "SGI", "PCX", "XPM", "XBM", "SUN", "MSP", "IM", "BLP", "FLI", "FTEX", "TGA",
]  # fmt: skip
_ICC, _EXIF, _ADOBE = 0xE2, 0xE1, 0xEE
_ORIENTATION, _BITS = 0x0112, 0x0102  # TIFF's tags
# Sampling factors of three components, as bytes of the frame header.
_SUBSAMPLINGS = {
    b"\x11\x11\x11": "444", b"\x21\x11\x11": "422", b"\x22\x11\x11": "420",
    b"\x12\x11\x11": "440", b"\x41\x11\x11": "411",
}  # fmt: skip
# libjpeg's words for damage among the pixels, after which PIL goes on and returns garbage.
_GARBAGE = ("Huffman", "progression", "arithmetic", "remature end", "instead of RST")


class Rejected(ValueError):
    """A sample that cannot be taken: `reason` is one of a few, `detail` says what is wrong with this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, " ".join(detail.split())[:300]

    def __reduce__(self):
        return Rejected, (self.reason, self.detail)


def read(data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 of an image file of any of FORMATS; raises Rejected.

    upright: turned by the EXIF orientation, otherwise as the pixels lie in the file.
    """
    head = read_head(data)
    if head is not None and head.precision != 8:
        raise Rejected("format not taken", f"a JPEG of {head.precision} bits, not 8; convert it first")
    if head is not None and head.plain:
        check_pixels(head.width, head.height, max_pixels)
        try:
            pixels = decode_jpeg(data)
        except ValueError as error:
            refuse_garbage(error)
        else:
            return turn(pixels, jpeg_orientation(data)) if upright and head.has_app1 else pixels
    return _read_with_pil(data, max_pixels, upright)


def stored(data: bytes, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 of a .beton's JPEG; ValueError if an engine would refuse it.

    That is: another size than the table's, or any complaint of libjpeg's (part of the image is missing).
    """
    head = read_head(data)
    if head is None:
        raise ValueError("not a JPEG")
    check_size(head, height, width)
    return decode_jpeg(data)


def check_size(head: Head, height: int, width: int) -> None:
    """ValueError for another size than the table's."""
    if (head.height, head.width) != (height, width):
        raise ValueError(f"it has {head.width}×{head.height} pixels, the table says {width}×{height}")


def check_pixels(width: int, height: int, most: int) -> None:
    """Rejected for an image without pixels, or with more than `most`."""
    if not width or not height:
        raise Rejected("cannot decode", f"its header says {width}×{height} pixels")
    if width * height > most:
        raise Rejected("too many pixels", f"{width}×{height}, the limit is {most}")


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to (H, W, 3); one that is none of 1…8 changes nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


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


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment before a JPEG's data, its marker and length included."""
    if data[:3] != b"\xff\xd8\xff":
        return
    marker, start, stop = next_segment(data, 2)
    while marker:
        yield marker, start, stop
        marker, start, stop = next_segment(data, stop)


def read_head(data: bytes) -> Head | None:
    """Walk the markers up to the frame header; None if `data` is no JPEG or has none."""
    adobe, app1 = None, False
    for marker, start, stop in _segments(data):
        body = data[start + 4 : stop]
        if marker == _EXIF:
            app1 = True
        elif marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif is_frame(marker):
            return _frame(marker, body, adobe, app1)
    return None


def _frame(marker: int, body: bytes, adobe: int | None, app1: bool) -> Head | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    precision, height, width, count = struct.unpack(">BHHB", body[:6])
    ids, factors = tuple(body[6 : 6 + 3 * count : 3]), body[7 : 7 + 3 * count : 3]
    sampling = _SUBSAMPLINGS.get(factors)
    return Head(width, height, marker, precision, ids, sampling, adobe, app1)


def decode_jpeg(data: bytes, *arguments, **options) -> np.ndarray:
    """simplejpeg's `decode_jpeg`, whatever the colour profile; raises ValueError on any other complaint.

    libjpeg complains of an incomplete profile, before it decodes.  That is frequent and harms no pixel, and
    no other decoder here looks at it.
    """
    try:
        return simplejpeg.decode_jpeg(data, *arguments, **options)
    except ValueError:
        if b"ICC_PROFILE\0" not in data:
            raise
        return simplejpeg.decode_jpeg(_without_profile(data), *arguments, **options)


def _without_profile(data: bytes) -> bytes:
    kept, at = [], 0
    for marker, start, stop in _segments(data):
        if marker == _ICC:
            kept.append(data[at:start])
            at = stop
    return b"".join([*kept, data[at:]])


def refuse_garbage(error: ValueError) -> None:
    """Rejected where libjpeg's complaint means lost pixels; PIL judges the other complaints well."""
    if any(word in str(error) for word in _GARBAGE):
        raise Rejected("cannot decode", str(error)) from None


def jpeg_orientation(data: bytes) -> int:
    """EXIF (or XMP) orientation 1…8, as PIL reads it; 1 where there is none or it is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return _orientation(image)
    except Exception:  # as below
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL's parsers raise almost anything on damaged metadata; pixels may be fine
        return 1
    return value if value in range(1, 9) else 1


# -- everything else --------------------------------------------------------------------------


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _read_with_pil(data: bytes, max_pixels: int, upright: bool) -> np.ndarray:
    """By PIL: the first frame, transparency on white, 16 bits reduced to 8."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            check_pixels(*image.size, max_pixels)
            if image.format == "TIFF":  # PIL turns these itself, while it loads them
                orientation = 1 if upright else _undone(_orientation(image))
            image.load()
            check_pixels(*image.size, max_pixels)  # ICO and ICNS hold files of other sizes
            if image.format != "TIFF":
                orientation = _orientation(image) if upright else 1
            return turn(np.asarray(_to_rgb(image)), orientation)
    except Rejected:
        raise
    except Image.UnidentifiedImageError:
        raise _unidentified(data) from None
    except Image.DecompressionBombError as error:  # PIL's own limit, which it looks at before it allocates
        pixels = re.findall(r"\d+", str(error))[0]
        raise Rejected("too many pixels", f"{pixels}, the limit is {max_pixels}") from None
    except Exception as error:  # hostile files make PIL raise almost anything
        raise Rejected("cannot decode", f"{type(error).__name__}: {error}") from None


def _undone(orientation: int) -> int:
    """The orientation that undoes this one."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_high_bytes(image)).convert("RGB")
    if image.mode == "F":
        raise Rejected("cannot decode", "floating-point pixels have no agreed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _high_bytes(image: Image.Image) -> np.ndarray:
    """16-bit grey as 8 bits; PIL has wider and signed pixels in these modes, without an agreed white."""
    values = np.asarray(image).astype(np.int64)
    low, high = values.min(), values.max()
    if low < 0 or high > 65_535:
        bits = getattr(image, "tag_v2", {}).get(_BITS, (32,))[0]
        kind = f"{'signed ' if low < 0 else ''}{bits}-bit pixels ({low} to {high})"
        raise Rejected("cannot decode", f"{kind} have no agreed range")
    return (values >> 8).astype(np.uint8)


# -- what is no image ---------------------------------------------------------------------------

_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_PICTURES = {  # first bytes of images that PIL does not know
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"%PDF": "PDF", b"II\xbc": "JPEG XR",
    b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"gimp xcf": "XCF", b"AT&TFORM": "DjVu",
    b"\xab\x4b\x54\x58": "KTX", b"<svg": "SVG", b"FLIF": "FLIF", b"BPG\xfb": "BPG",
}  # fmt: skip
_OTHERS = {  # what comes in an image's place
    b"<!doctype html": "a web page", b"<html": "a web page", b"<?xml": "XML",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
    b"\x1f\x8b": "gzip data", b"PK\x03\x04": "a zip archive", b"{": "JSON",
    b"\xd0\xcf\x11\xe0": "an Office document", b"\x1aE\xdf\xa3": "a video",
}  # fmt: skip


def _unidentified(data: bytes) -> Rejected:
    """Why PIL knew no format that it may try, as far as the first bytes tell."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return Rejected("format not taken", "HEIC; convert it to JPEG or PNG first")
    for first, name in _PICTURES.items():
        if data.startswith(first) or (first == b"<svg" and b"<svg" in data[:2048].lower()):
            return Rejected("format not taken", f"{name}; convert it to JPEG or PNG first")
    for name, (_, accepts) in list(Image.OPEN.items()):
        accepted = accepts(data[:16]) if accepts and len(data) >= 16 else False
        if isinstance(accepted, str):  # of FORMATS, but this build of Pillow was made without it
            return Rejected("format not taken", accepted)
        if accepted and name in FORMATS:
            return Rejected("cannot decode", f"begins as {name} does, but Pillow cannot open it")
        if accepted:
            return Rejected("format not taken", f"{name}; convert it to JPEG or PNG first")
    kind = next((name for first, name in _OTHERS.items() if start.startswith(first.lower())), None)
    kind = "a video" if data[4:8] == b"ftyp" else kind
    return Rejected("not an image", f"{kind + ', ' if kind else ''}starts with {data[:8]!r}")
