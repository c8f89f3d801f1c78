"""Files of every format to pixels: limits before memory, true reasons, upright or not, the encoder."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataprep import build_ffcv, convert
from pipeline.formats import pictures
from pipeline.formats.pictures import Rejected, read

BIG = 30_000  # a side; 900 million pixels


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    rng = np.random.default_rng(7)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.BICUBIC).convert(mode)


def big_png() -> bytes:
    """A PNG whose header says BIG × BIG."""
    data = saved(photo(), "PNG")
    chunk = b"IHDR" + struct.pack(">II", BIG, BIG) + data[24:29]
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    new = struct.pack(form, *values)
    return data[:at] + new + data[at + len(new) :]


def bombs() -> dict[str, bytes]:
    """Small files that announce very many pixels."""
    png, rgb = big_png(), photo()
    icon = struct.pack("<HHH", 0, 1, 1) + bytes([16, 16, 0, 0]) + struct.pack("<HHII", 1, 32, len(png), 22)
    dib = saved(rgb, "DIB")
    gif, tiff = saved(rgb, "GIF"), saved(rgb, "TIFF")
    jpeg, webp = saved(rgb, "JPEG"), saved(rgb, "WEBP", save_all=True, append_images=[photo().rotate(9)])
    wide = b'/* XPM */\nstatic char * x[] = {\n"30000 30000 1 1",\n"a c #000000",\n'
    packed = tiff.replace(struct.pack("<HHII", 256, 4, 1, 40), struct.pack("<HHII", 256, 4, 1, BIG))
    packed = packed.replace(struct.pack("<HHII", 257, 4, 1, 20), struct.pack("<HHII", 257, 4, 1, BIG))
    return {
        "png": png,
        "gif, the screen": patched(gif, 6, "<HH", BIG, BIG),
        "gif, the frame": gif.replace(b"," + struct.pack("<HHHH", 0, 0, 40, 20),
                                      b"," + struct.pack("<HHHH", 0, 0, BIG, BIG)),
        "ico": icon + png,
        "icns": b"icns" + struct.pack(">I4sI", 16 + len(png), b"ic09", 8 + len(png)) + png,
        "cur": struct.pack("<3H4B2H2I", 0, 2, 1, 255, 255, 0, 0, 0, 0, len(dib), 22)
        + patched(dib, 4, "<ii", BIG, 2 * BIG),
        "webp": patched(webp, 24, "<I", BIG // 2)[:27] + struct.pack("<I", BIG // 2)[:3] + webp[30:],
        "bmp": patched(saved(rgb, "BMP"), 18, "<ii", BIG, BIG),
        "tiff": packed,
        "jpeg": patched(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", BIG, BIG),
        "ppm": b"P6 30000 30000 255\n" + bytes(100),
        "jpeg2000": jpeg2000(),
        "psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, BIG, BIG, 8, 3) + bytes(100),
        "dds": patched(saved(rgb, "DDS"), 12, "<II", BIG, BIG),
        "qoi": b"qoif" + struct.pack(">II", BIG, BIG) + bytes([3, 0]) + b"\xfd" * 1000,
        "sgi": patched(saved(rgb, "SGI"), 6, ">HH", BIG, BIG),
        "pcx": patched(saved(rgb, "PCX"), 8, "<HH", BIG, BIG),
        "xpm": wide,
        "xbm": b"#define x_width 30000\n#define x_height 30000\nstatic char x_bits[] = {\n0x00};\n",
        "sun": b"\x59\xa6\x6a\x95" + struct.pack(">7I", BIG, BIG, 24, 0, 2, 0, 0) + bytes(100),
        "tga": patched(saved(rgb, "TGA"), 12, "<HH", BIG, BIG),
        "fli": fli(),
        "blp": b"BLP2" + struct.pack("<IBBBBII", 1, 2, 0, 0, 0, BIG, BIG) + bytes(2000),
        "ftex": b"FTEX" + struct.pack("<i6i", 0, BIG, BIG, 1, 1, 1, 32) + struct.pack("<i", 4) + bytes(100),
    }  # fmt: skip


def jpeg2000() -> bytes:
    data = saved(photo(), "JPEG2000", no_jp2=True)
    return patched(data, data.index(b"\xff\x51") + 6, ">II", BIG, BIG)


def fli() -> bytes:
    head = struct.pack("<IHHHHHHI", 200, 0xAF12, 1, BIG, BIG, 8, 3, 10).ljust(128, b"\0")
    return head + struct.pack("<IHH", 16, 0xF1FA, 0).ljust(72, b"\0")


WATCHED = """
import json, resource
from dataprep.convert import ImageSettings, Rejected, convert
from tests.pipeline.test_pictures import bombs, photo, saved

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

told = {}
convert(saved(photo(), "PNG"), ImageSettings())  # whatever is loaded once
for name, data in bombs().items():
    before = memory()
    try:
        convert(data, ImageSettings())
        told[name] = "taken", 0
    except Rejected as error:
        told[name] = str(error), memory() - before
print(json.dumps(told))
"""


@pytest.mark.slow
def test_no_format_gets_memory_for_pixels_past_the_limit():
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", WATCHED]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    for name, (why, kilobytes) in json.loads(done.stdout).items():
        assert why.startswith("too many pixels"), (name, why)
        assert kilobytes < 50_000, (name, kilobytes)


def test_evaluation_has_the_limit_too():
    for name, data in bombs().items():
        with pytest.raises(Rejected, match="too many pixels"):
            read(data), name


# -- what is taken, and the true reason where it is not -----------------------------------------

WRITABLE = ["PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "ICNS", "DDS", "QOI", "SGI",
            "PCX", "IM", "MPO", "AVIF", "TGA"]  # fmt: skip


@pytest.mark.parametrize("kind", WRITABLE)
def test_every_format_is_read_as_pil_reads_it(kind):
    if kind not in Image.SAVE:
        Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    image = photo(size=(1024, 1024) if kind == "ICNS" else (64, 64))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind in ("MPO", "AVIF") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of IM
        data = saved(image, kind, **options)
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(read(data), theirs)
    assert np.abs(theirs.astype(int) - np.asarray(image)).mean() < (12 if kind == "GIF" else 3)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "format not taken: HEIC"),
        (b"\xff\x0a" + bytes(30), "format not taken: JPEG XL"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format not taken: EPS"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "format not taken: PDF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "format not taken: SVG"),
        (b"SIMPLE  =                    T" + bytes(100), "format not taken: FITS"),
        (b"<!DOCTYPE html><html>404</html>", "not an image: a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "not an image: a pointer of Git LFS"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "not an image: a video"),
        (b"PK\x03\x04" + bytes(40), "not an image: a zip archive"),
        (b"hello, world, this is text", "not an image: starts with"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "cannot decode: begins as PNG does"),
    ],
)
def test_the_reason_is_the_true_one(data, reason):
    with pytest.raises(Rejected) as caught:
        read(data)
    assert str(caught.value).startswith(reason)


def test_a_jpeg_of_more_bits_is_named():
    data = saved(photo(), "JPEG")
    at = data.index(b"\xff\xc0")
    with pytest.raises(Rejected, match="format not taken: a JPEG of 12 bits"):
        read(data[:at] + b"\xff\xc1" + data[at + 2 : at + 4] + b"\x0c" + data[at + 5 :])


@pytest.mark.parametrize(
    "kind, values, words",
    [("i2", [-5, 300], "signed 16-bit pixels"), ("i4", [-5, 300], "signed 32-bit pixels"),
     ("i4", [0, 70_000], "32-bit pixels .0 to 70000."), ("f4", [0, 0.5], "floating-point pixels")],
)  # fmt: skip
def test_pixels_without_an_agreed_range_are_named(kind, values, words):
    with pytest.raises(Rejected, match=f"{words}.* no agreed range"):
        read(raw_tiff(np.array([values], kind)))


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bits_of_either_order_become_eight(order):
    values = np.array([[0, 255, 256, 40_000, 65_535]], "u2")
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)
    assert np.array_equal(read(raw_tiff(values, order)), expected)


def raw_tiff(values: np.ndarray, order: str = "<") -> bytes:
    """An uncompressed grey TIFF of these values; its pixels follow the header."""
    height, width = values.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height,
            279: len(pixels), 339: kinds[values.dtype.kind]}  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_the_help_lists_the_formats():
    listed = build_ffcv.__doc__.partition("Images: ")[2].partition(";")[0]
    assert listed.replace("\n", " ").replace(",", "").split() == pictures.FORMATS


# -- turned or not --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind, options",
    [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PNG", {}), ("WEBP", {"lossless": True}),
     ("JPEG", {}), ("AVIF", {})],
)  # fmt: skip
def test_pixels_stay_as_they_lie_where_that_is_asked_for(kind, options, orientation):
    image, exif = photo(), Image.Exif()
    lying = read(saved(image, kind, **options), upright=False)
    exif[0x0112] = orientation
    data = saved(image, kind, exif=exif.tobytes() if kind != "TIFF" else exif, **options)
    upright = read(data)
    assert np.abs(read(data, upright=False).astype(int) - lying).max() <= (3 if kind == "AVIF" else 0)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(upright, expected)


# -- the encoder ------------------------------------------------------------------------------------

# Below quality 96, simplejpeg stores it with every level inverted.
INVERTED = "00111100 00111100 11100011 11000011 11000011 11100111 01111110 00111110"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), cell=st.sampled_from([1, 2, 3]),
    quality=st.sampled_from([60, 75, 90, 95, 98]), subsampling=st.sampled_from(["420", "422", "444"]),
)  # fmt: skip
def test_black_and_white_is_stored_as_well_as_pil_does(seed, cell, quality, subsampling):
    """Blocks of 0 and 255 overflow libjpeg's fast transform."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 2, (24, 40)), np.ones((cell, cell))).astype(np.uint8) * 255
    image[:8, :8] = 255 * np.array([[int(c) for c in row] for row in INVERTED.split()], np.uint8)
    image = np.repeat(image[..., None], 3, -1)
    data = convert.encode(
        image, convert.ImageSettings(size="none", quality=quality, subsampling=subsampling)
    ).jpeg.data
    theirs = convert.encode_with_pil(image, quality, subsampling)
    worst, limit = (np.abs(pictures.decode_jpeg(d).astype(int) - image) for d in (data, theirs))
    assert worst.max() <= limit.max() + 1 and worst.mean() <= limit.mean() + 0.1
    assert data == theirs or not importlib.util.find_spec("cv2")  # of one libjpeg


# -- what is said meanwhile ---------------------------------------------------------------------------


def test_what_pillow_and_libtiff_say_is_told_with_the_pictures_name(tmp_path, capfd):
    """A taken picture's warnings are counted and listed under its key; a rejected one's are in its reject."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05"  # five entries are announced, none is there
    (tmp_path / "odd.png").write_bytes(saved(photo(), "PNG", exif=exif))
    tiff = saved(photo(size=(64, 64)), "TIFF", compression="tiff_lzw")
    (tmp_path / "cut.tif").write_bytes(tiff[:8] + bytes(200) + tiff[208:])
    (tmp_path / "fine.png").write_bytes(saved(photo(), "PNG"))
    names = ["odd.png", "cut.tif", "fine.png"]
    (tmp_path / "in.csv").write_text("image,caption\n" + "".join(f"{name},words\n" for name in names))
    out = tmp_path / "out.beton"
    arguments = ["pairs", "--source", str(tmp_path / "in.csv"), "--out", str(out), "--workers", "1"]
    assert build_ffcv.main([*arguments, "--max-rejects", "0.5"]) == 0
    printed = capfd.readouterr()
    assert "site-packages" not in printed.err and "Corrupt" not in printed.err and ".tif:" not in printed.err
    assert "1 warnings about images" in printed.out
    (row,) = map(json.loads, out.with_suffix(".warnings.jsonl").read_text().splitlines())
    assert row["key"] == "odd.png" and "EXIF" in row["warning"]
    assert sum(json.loads(out.with_suffix(".json").read_text())["warned"].values()) == 1
    (row,) = map(json.loads, out.with_suffix(".rejects.jsonl").read_text().splitlines())
    assert row["key"] == "cut.tif" and row["reason"] == "cannot decode"
