"""Conversion of single images, against PIL; hostile and unusual files."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataprep.convert import ImageSettings, Rejected, convert, mean_luma, read_head
from tests.kits.pipeline import damaged_jpegs, pairs_file

KEEP = ImageSettings(size="none")
ANEW = ImageSettings(size="none", passthrough=False, quality=95, subsampling="444")


def pixels(height=48, width=64, seed=0) -> np.ndarray:
    """A smooth coloured picture: JPEG changes it little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind="JPEG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(converted) -> np.ndarray:
    image = simplejpeg.decode_jpeg(converted.jpeg.data)
    assert image.shape[:2] == (converted.jpeg.height, converted.jpeg.width)
    head = read_head(converted.jpeg.data)
    assert head.sof == 0xC0 and len(head.components) == 3
    return image


def assert_close(ours: np.ndarray, theirs: np.ndarray, mean: float = 2.0) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < mean


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(48, 64), (37, 61), (1, 1), (256, 400)])
def test_a_fitting_jpeg_passes_byte_for_byte(size, subsampling):
    data = encoded(pixels(*size), subsampling=subsampling)
    result = convert(data, ImageSettings(size=256))
    assert result.passed and result.jpeg == (data, *size)
    assert abs(result.luma - mean_luma(simplejpeg.decode_jpeg(data))) < 1


@pytest.mark.parametrize(
    "why, data",
    [
        ("progressive", encoded(pixels(), progressive=True)),
        ("grey", encoded(Image.fromarray(pixels()).convert("L"))),
        ("cmyk", encoded(Image.fromarray(pixels()).convert("CMYK"))),
        ("rgb inside", encoded(pixels(), keep_rgb=True)),
        ("png", encoded(pixels(), "PNG")),
        ("webp", encoded(pixels(), "WEBP", lossless=True)),
        ("gif", encoded(Image.fromarray(pixels()).quantize(dither=Image.Dither.NONE), "GIF")),
        ("too large", encoded(pixels(300, 400))),
    ],
)
def test_what_does_not_fit_is_encoded_anew_and_looks_the_same(why, data):
    result = convert(data, ImageSettings(size=256, quality=95, subsampling="444"))
    assert not result.passed
    theirs = Image.open(io.BytesIO(data)).convert("RGB")
    if why == "too large":
        theirs = theirs.resize((341, 256), Image.BICUBIC)
    assert_close(decoded(result), np.asarray(theirs), 3.0)
    assert abs(result.luma - mean_luma(np.asarray(theirs))) < 1


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), size=st.integers(8, 300))
def test_resizing_is_pils_bicubic(height, width, size):
    image = pixels(height, width)
    result = convert(encoded(image, "PNG"), ImageSettings(size=size, quality=98, subsampling="444"))
    scale = min(1.0, size / min(height, width))
    expected = (max(1, round(height * scale)), max(1, round(width * scale)))
    assert (result.jpeg.height, result.jpeg.width) == expected
    theirs = np.asarray(Image.fromarray(image).resize(expected[::-1], Image.BICUBIC))
    assert_close(decoded(result), theirs, 4.0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_as_pil_applies_it(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels(), kind, exif=exif.tobytes())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert_close(decoded(convert(data, ANEW)), upright, 3.0)
    lying = convert(data, ImageSettings(size="none", orientation=False, quality=95, subsampling="444"))
    assert_close(decoded(lying), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 3.0)
    if orientation != 1:  # some decoders would turn it, others not: the tag must not reach the file
        assert not lying.passed


def test_transparency_lies_on_white_and_16_bits_become_8():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (decoded(convert(encoded(clear, "PNG"), ANEW)) >= 254).all()
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert np.abs(decoded(convert(encoded(half, "PNG"), ANEW)).astype(int) - 127).max() <= 2
    deep = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
    assert np.abs(decoded(convert(encoded(deep, "PNG"), ANEW)).astype(int) - (40_000 >> 8)).max() <= 2


def test_caps_hold_before_decoding():
    with pytest.raises(Rejected, match="too many pixels: 64×48"):
        convert(encoded(pixels()), ImageSettings(max_pixels=64 * 48 - 1))
    with pytest.raises(Rejected, match="too many pixels"):
        convert(encoded(pixels(), "PNG"), ImageSettings(max_pixels=64 * 48 - 1))
    with pytest.raises(Rejected, match="too many bytes"):
        convert(encoded(pixels()), ImageSettings(max_bytes=100))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_image_is_named(data):
    with pytest.raises(Rejected, match="empty file|not an image|cannot decode|format not taken: EPS"):
        convert(data, KEEP)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_rejected(kind):
    data = encoded(pixels(200, 200), kind)
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(Rejected):
            convert(data[: int(len(data) * share)], KEEP)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_jpegs_are_rejected_or_decode(data):
    """Whatever comes out is a sound baseline JPEG of the size it says."""
    progressive = data.draw(st.booleans())
    raw = bytearray(encoded(pixels(), progressive=progressive))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = convert(bytes(raw), ImageSettings(size="none", max_pixels=10_000_000))
    except Rejected:
        return
    decoded(result)


def complaint(data: bytes, *how, **options) -> str:
    try:
        simplejpeg.decode_jpeg(data, *how, **options)
    except ValueError as error:
        return str(error)
    return ""


def assert_checked_as_in_full(data: bytes) -> bool:
    """The check of a passed-through JPEG complains of what the full decoding does; whether it is sound."""
    head = read_head(data)
    if head is not None and head.width * head.height > 10**6:
        return False  # a size from a damaged header
    full = complaint(data)
    assert complaint(data, "GRAY", min_height=1, min_width=1) == full
    with contextlib.suppress(Rejected):
        assert not (convert(data, KEEP).passed and full)
    return not full


@pytest.mark.slow
def test_the_check_of_a_passed_jpeg_finds_every_kind_of_damage(tmp_path):
    """All that the tests of the engines inject, at every place."""
    whole = pairs_file(tmp_path / "whole.beton", 360)
    sound = [assert_checked_as_in_full(data) for data in damaged_jpegs(whole, 20).values()]
    assert 20 < sum(sound) < 240  # of 360; these show other pixels, which only a checksum tells


BASELINE = [
    encoded(pixels(40, 56, seed), subsampling=subsampling, optimize=optimize, restart_marker_blocks=restarts)
    for seed, (subsampling, optimize, restarts) in enumerate(
        [("4:2:0", False, 0), ("4:4:4", True, 0), ("4:2:2", False, 2), ("4:2:0", True, 1)]
    )
] + [encoded(np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8), quality=100)]


@st.composite
def battered(draw) -> bytes:
    """A baseline JPEG with up to three faults."""
    data = bytearray(draw(st.sampled_from(BASELINE)))
    for _ in range(draw(st.integers(1, 3))):
        at, few = draw(st.integers(2, max(2, len(data) - 1))), draw(st.integers(1, 4))
        kind = draw(st.sampled_from(["set", "bit", "insert", "delete", "cut", "double"]))
        if kind == "set":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "bit":
            data[at : at + 1] = bytes(byte ^ 1 << few for byte in data[at : at + 1])
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "delete":
            del data[at : at + few]
        elif kind == "cut":
            del data[at:]
        else:
            data[at:at] = data[at : at + 16 * few]
    return bytes(data)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(battered())
def test_the_check_of_a_passed_jpeg_complains_as_the_full_decoding(data):
    assert_checked_as_in_full(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_after_a_start_of_image(tail):
    with contextlib.suppress(Rejected):
        decoded(convert(b"\xff\xd8\xff" + tail, ImageSettings(max_pixels=10_000_000)))


@pytest.mark.parametrize(
    "wrong", [{"size": 4}, {"quality": 0}, {"quality": 101}, {"subsampling": "411"}, {"max_pixels": 0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageSettings(**wrong)


@pytest.mark.slow
def test_odd_images_come_out_right_or_are_named(shared_data):
    """Every hostile file: as PIL sees it, or rejected with a reason."""
    outcomes = {"taken": 0, "rejected": 0}
    for path in sorted((shared_data / "odd_images").rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            result = convert(data, ANEW)
        except Rejected as error:
            assert error.reason
            outcomes["rejected"] += 1
            if path.name not in DEFENSIBLE and "too many" not in error.reason:
                with pytest.raises(Exception):  # noqa: B017 (PIL raises many kinds)
                    pil(data)
            continue
        outcomes["taken"] += 1
        assert_close(decoded(result), pil(data), 8.0)
    assert outcomes["taken"] > 80 and outcomes["rejected"] > 20


# Floating-point pixels have no agreed range; PIL clips them to 0…255.
DEFENSIBLE = {"10ct_32bit_128.tiff"}


def pil(data: bytes) -> np.ndarray:
    """What PIL makes of a file: upright, on white, 16 bits scaled (its own convert clips them)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                deep = np.asarray(image).astype(np.int64)
                return np.repeat((deep >> 8)[..., None], 3, -1)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
