"""Files of made-up photographs, for measuring: as many samples as wanted, in no time.  Not for training.

The images have the statistics of photographs that matter for speed: a falling spectrum, correlated colours,
some 30 KB as JPEG at 256 x 384, as real ones.  A few distinct ones stand for all.  A file of millions is
sparse: only the samples that will be read have bytes.  So the pages are not `beton.writer.Writer`'s, which
writes all samples; the head is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

from pipeline.base.files import replacing
from pipeline.beton import fields as f
from pipeline.beton.writer import PAGE_SIZE, align, checksum, head
from pipeline.text import END, START

HEIGHT, WIDTH = 256, 384
_STRIDE = 1 << 16  # bytes from sample to sample; divides the page, so that none crosses a border
_CHUNK = 1 << 20  # records written at a time


def photographs(count: int) -> list[bytes]:
    """`count` JPEGs of quality 90 whose amplitude falls as f ** -1.5, chosen for the size of real files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)
    amplitude = np.maximum(np.hypot(fy, fx), 1 / HEIGHT) ** -1.5
    jpegs = []
    for _ in range(count):
        planes = [
            np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), (HEIGHT, WIDTH))
            for _ in range(3)
        ]
        bright, red, blue = (plane / plane.std() for plane in planes)
        rgb = np.stack([bright + 0.2 * red, bright, bright + 0.2 * blue], -1)
        file = io.BytesIO()
        Image.fromarray((120 + 50 * rgb).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
    return jpegs


def write(
    path: str | os.PathLike, jpegs: Sequence[bytes], samples: int, filled: np.ndarray | None = None
) -> None:
    """A .beton of `samples` pairs, sample i showing jpegs[i % len(jpegs)] of `photographs`.

    filled: the samples whose bytes are written (all by default); the others are holes.
    """
    schema = f.pairs_schema(1)
    record = f.metadata_dtype(schema)
    records = len(head(schema, samples, PAGE_SIZE, 0))  # where they begin
    base = align(records + samples * record.itemsize, PAGE_SIZE)
    sizes, sums = np.array([len(jpeg) for jpeg in jpegs]), np.array([checksum(jpeg) for jpeg in jpegs])
    tokens = np.zeros(f.CONTEXT_LENGTH, "<i4")
    tokens[:16] = [START, *range(320, 334), END]
    tail = tokens.nbytes + 16
    if sizes.max() + tail > _STRIDE:
        raise ValueError(f"synthetic: an image of {sizes.max()} bytes does not fit {_STRIDE}")
    table = base + samples * _STRIDE
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for first in range(0, samples, _CHUNK):
            index = np.arange(first, min(first + _CHUNK, samples))
            size, start = sizes[index % len(jpegs)], base + index * _STRIDE
            rows = _records(record, start, size, tokens.nbytes)
            rows[f.checksum_column("image")] = sums[index % len(jpegs)]
            file.seek(records + first * record.itemsize)
            file.write(rows.tobytes())
            file.seek(table + first * 3 * f.ALLOCATION.itemsize)
            file.write(_allocations(index, start, size, tokens.nbytes).tobytes())
        for i in range(samples) if filled is None else filled.tolist():
            file.seek(base + i * _STRIDE)
            file.write(jpegs[i % len(jpegs)] + tokens.tobytes() + b"%016d" % i)
        file.seek(0)
        file.write(head(schema, samples, PAGE_SIZE, table))


def _records(record: np.dtype, start: np.ndarray, size: np.ndarray, tokens_size: int) -> np.ndarray:
    out = np.zeros(len(start), record)
    out["image"]["mode"], out["image"]["height"], out["image"]["width"] = f.JPEG_MODE, HEIGHT, WIDTH
    out["image"]["data_ptr"], out["tokens"], out["luma"] = start, start + size, 120.0
    out["key"]["ptr"], out["key"]["size"] = start + size + tokens_size, 16
    return out


def _allocations(index: np.ndarray, start: np.ndarray, size: np.ndarray, tokens_size: int) -> np.ndarray:
    """Image, tokens and key of each sample, in the order of the columns."""
    out = np.zeros((len(index), 3), f.ALLOCATION)
    out["sample_id"] = index[:, None]
    out["ptr"] = np.stack([start, start + size, start + size + tokens_size], -1)
    out["size"] = np.stack([size, np.full_like(size, tokens_size), np.full_like(size, 16)], -1)
    return out
