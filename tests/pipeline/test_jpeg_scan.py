"""The scan that vouches for a JPEG, against libjpeg: it never vouches for what libjpeg complains of."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.jpeg_scan import mean_luma


def picture(height: int, width: int, noise: float, seed: int = 0) -> np.ndarray:
    """Between a smooth picture (noise 0) and independent pixels (noise 1)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.BICUBIC), np.float32)
    rough = rng.integers(0, 256, (height, width, 3))
    return (smooth + noise * (rough - smooth)).astype(np.uint8)


def jpeg(pixels: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()


def libjpeg_luma(data: bytes) -> float:
    """From libjpeg's decoding at 1/8 size; raises ValueError on any fault."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    blocks = simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)[..., 0].astype(float)
    rows, columns = (np.minimum(8, n - 8 * np.arange(m)) for n, m in zip((height, width), blocks.shape))
    return float(rows @ blocks @ columns / (height * width))


SHAPES = st.tuples(st.integers(8, 70), st.integers(8, 70))
NOISE = st.sampled_from([0.0, 0.3, 1.0])


@pytest.mark.slow
@given(SHAPES, NOISE, st.integers(1, 100), st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]), st.booleans())
@example((64, 64), 1.0, 100, "4:4:4", False)  # every coefficient is there: blocks without an end code
@example((64, 64), 1.0, 100, "4:4:4", True)  # and with codes of any length
@settings(max_examples=150, deadline=None)
def test_every_sound_jpeg_is_vouched_for(shape, noise, quality, subsampling, optimize):
    data = jpeg(picture(*shape, noise), quality=quality, subsampling=subsampling, optimize=optimize)
    # libjpeg rounds each block's mean to a whole number.
    assert mean_luma(data) == pytest.approx(libjpeg_luma(data), abs=0.51)


@given(SHAPES, NOISE, st.integers(1, 100), st.sampled_from(["440", "411"]))
@settings(max_examples=50, deadline=None)
def test_rarer_samplings_too(shape, noise, quality, subsampling):
    data = simplejpeg.encode_jpeg(picture(*shape, noise), quality, "RGB", subsampling)
    assert mean_luma(data) == pytest.approx(libjpeg_luma(data), abs=0.51)


@pytest.mark.slow
def test_real_photographs(shared_data):
    files = sorted((shared_data / "photos").glob("*.jpg"))
    assert len(files) > 100
    for file in files:
        data = file.read_bytes()
        assert mean_luma(data) == pytest.approx(libjpeg_luma(data), abs=0.51), file


SOUND = [
    jpeg(picture(40, 56, noise, seed), quality=quality, optimize=optimize)
    for seed, (noise, quality, optimize) in enumerate([(0.1, 90, False), (0.4, 75, True), (1.0, 100, False)])
]


@st.composite
def damaged(draw) -> bytes:
    data = bytearray(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(2, len(data) - 1))
        kind = draw(st.sampled_from(["set", "bit", "insert", "delete", "cut", "double"]))
        if kind == "set":
            data[at] = draw(st.integers(0, 255))
        elif kind == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 4))]
        elif kind == "cut":
            del data[max(at, 20) :]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        if len(data) < 8:
            break
    return bytes(data)


@pytest.mark.slow
@given(damaged())
@settings(max_examples=3000, deadline=None)
def test_nothing_is_vouched_for_that_libjpeg_complains_of(data):
    luma = mean_luma(data)
    if luma is not None:
        simplejpeg.decode_jpeg(data)  # in full, and it raises on any warning
        assert luma == pytest.approx(libjpeg_luma(data), abs=0.51)


@pytest.mark.slow
@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_survived(data):
    assert mean_luma(data) is None
    assert mean_luma(SOUND[0][:2] + data) is None
    assert mean_luma(SOUND[0][:400] + data) is None


@pytest.mark.parametrize(
    "why, data",
    [
        ("progressive", jpeg(picture(40, 56, 0.1), progressive=True)),
        ("grey", jpeg(picture(40, 56, 0.1)[..., 0])),
        ("restart markers", jpeg(picture(40, 56, 0.1), restart_marker_blocks=2)),
        ("bytes before the end marker", SOUND[0][:-2] + b"\x00\x00" + SOUND[0][-2:]),
        ("no start marker", b"\0\0" + SOUND[0][2:]),
        ("no end marker", SOUND[0][:-2]),
        ("half of it", SOUND[0][: len(SOUND[0]) // 2]),
        ("a revision of JFIF that is none", SOUND[0].replace(b"JFIF\0\1", b"JFIF\0\2")),
        ("no tables", SOUND[0].replace(b"\xff\xc4", b"\xff\xe9")),
        ("nothing", b""),
    ],
)
def test_what_is_left_to_libjpeg(why, data):
    assert mean_luma(data) is None


def test_bytes_after_the_end_do_not_matter():
    assert mean_luma(SOUND[0] + b"\xff\xd8 a thumbnail, perhaps") == mean_luma(SOUND[0])
