"""Each compiled operation against PIL or torchvision; worst case and mean are stated here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

from pipeline import pixels
from pipeline.augment import Augment, sample_draws
from tests.kits.pipeline import picture

SHAPES = [(60, 64), (256, 384), (100, 500), (3, 5), (1, 1), (1, 40), (40, 1)]


def resized(image, box, side, covers=False):
    out = np.empty((side, side, 3), np.uint8)
    scratch = np.full(pixels.scratch_size(*image.shape[:2], side), np.nan, np.float32)
    pixels.resize(image, *box, covers, scratch, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("side", [7, 32, 224])
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_is_pils_bicubic(shape, side):
    image = picture(1, *shape)
    ours = resized(image, (0, 0, *shape), side).astype(int)
    theirs = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    error = np.abs(ours - theirs)
    assert error.max() <= 2 and error.mean() < 0.01


@settings(max_examples=60, deadline=None)
@given(data=st.data(), side=st.integers(1, 40))
def test_resize_of_a_box_is_pils_crop_then_resize(data, side):
    """Nothing outside of the box is seen, and no scratch value that was not written.

    Noise is the hardest picture: PIL passes tall pictures vertically first, and each pass clips.
    """
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    ours = resized(image, (top, left, h, w), side).astype(int)
    box = Image.fromarray(image).crop((left, top, left + w, top + h))
    error = np.abs(ours - np.asarray(box.resize((side, side), Image.Resampling.BICUBIC)))
    assert error.max() <= 40 and error.mean() < 2
    if h <= w:
        assert error.max() <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
@example(1, 60, 33)
@example(60, 1, 33)
def test_covering_is_torchvisions_resize_and_centre_crop(height, width, side):
    from torchvision.transforms import functional as F

    image = picture(2, height, width)
    ours = resized(image, (0, 0, height, width), side, covers=True).astype(int)
    whole = F.resize(Image.fromarray(image), side, F.InterpolationMode.BICUBIC)
    theirs = np.asarray(F.center_crop(whole, [side, side]))
    # As for a box: PIL passes tall pictures vertically first, and each pass clips.
    error = np.abs(ours - theirs)
    assert error.max() <= (2 if height <= width else 40) and error.mean() < 2


@pytest.mark.slow
def test_photographs_are_resized_as_pil_does(shared_data):
    errors = []
    for path in sorted((shared_data / "photos").glob("*.jpg"))[:20]:
        image = np.asarray(Image.open(path).convert("RGB"))
        ours = resized(image, (0, 0, *image.shape[:2]), 224).astype(int)
        theirs = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
        errors.append(np.abs(ours - theirs))
    assert np.mean(errors) < 0.05 and np.max(errors) <= 10


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.37, 2.0, 9.9])
@pytest.mark.parametrize("side", [1, 5, 33, 64])
def test_blur_is_torchvisions(side, sigma):
    image = picture(2, side, side)
    radius = min(math.ceil(3 * np.float32(sigma)), side - 1)  # DALI's, kept inside the image
    expected = torch.from_numpy(image.copy()).permute(2, 0, 1)
    if radius:
        expected = F.gaussian_blur(expected, [2 * radius + 1] * 2, [sigma] * 2)
    ours, scratch = image.copy(), np.full(pixels.scratch_size(side, side, side), np.nan, np.float32)
    pixels.blur(ours, np.float32(sigma), scratch)
    assert np.abs(ours.astype(int) - expected.permute(1, 2, 0).numpy()).max() <= 1


def test_matrix_is_the_matrix():
    image, m = picture(3, 40, 40), np.random.default_rng(0).normal(0, 0.7, (3, 4)).astype(np.float32)
    m[:, 3] *= 100
    expected = np.rint(np.clip(image @ m[:, :3].T.astype(np.float64) + m[:, 3], 0, 255))
    pixels.recolour(image, m)
    assert np.abs(image - expected).max() <= 1


def run(data, height, width, side=16, dtype=np.float32, intact=True):
    """`process` of one JPEG with nothing but a resize; (values, valid)."""
    pixels.load_decoder()
    values = pixels.Values(np.tile(np.arange(256, dtype=dtype), (3, 1)), np.array([11, 22, 33], dtype))
    out, valid = np.full((1, side, side, 3), 77, dtype), np.zeros(1, bool)
    one = np.ones(1, np.int64)
    stored, sizes = np.frombuffer(data or b"\0", np.uint8), (height * one, width * one)
    draws = sample_draws(Augment(), 0, 0, 0 * one, *(s[:, None] for s in sizes), np.zeros((1, 1)))
    jpegs = pixels.Jpegs(stored, 0 * one, len(data) * one, *sizes, np.full(1, intact))
    pixels.process(jpegs, draws.of_view(0, slice(None)), values, out, valid)
    return out[0], valid[0]


def good(height=16, width=16, **options):
    return simplejpeg.encode_jpeg(picture(5, height, width), 90, **options)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["444", "422", "420", "411"])
def test_decoding_equals_pil_to_the_bit(sampling):
    import io

    data = good(colorsubsampling=sampling)
    values, valid = run(data, 16, 16)
    assert valid
    assert np.array_equal(values, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"\xff\xd8", b"<html>not found</html>", good()[:200], good()[:-20], b"\0" + good(),
     good()[:300] + b"\xff\xd9", good(16, 24), good(8, 8)],
    ids=["empty", "byte", "start", "html", "cut", "tail", "shifted", "early-end", "wider", "smaller"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_what_does_not_decode_becomes_blank(data, dtype):
    values, valid = run(data, 16, 16, dtype=dtype)
    assert not valid and (values == [11, 22, 33]).all()


def test_what_has_another_checksum_becomes_blank_though_it_would_decode():
    values, valid = run(good(), 16, 16, intact=False)
    assert not valid and (values == [11, 22, 33]).all()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(1, 10**6))
def test_any_damage_is_survived(at, value, cut):
    data = bytearray(good())
    data[at % len(data)] = value
    run(bytes(data[: cut % len(data) + 1]), 16, 16)
    values, valid = run(bytes(data), 16, 16)
    assert valid or (values == [11, 22, 33]).all()


def test_hostile_files_are_survived(shared_data):
    for path in sorted(p for p in (shared_data / "odd_images").rglob("*") if p.is_file()):
        data = path.read_bytes()
        height, width = pixels.jpeg_size(np.frombuffer(data or b"\0", np.uint8))
        if 0 < height * width < 10_000_000:
            run(data, height, width)
