"""Files of made-up photographs, for measuring: as many samples as wanted, in no time.

The pictures have the statistics of photographs that matter for speed (a falling spectrum,
correlated colours, some 30 KB as JPEG at 256 x 384: the size of real ones), and a few distinct ones
stand for all.  A file of millions is sparse: only the samples that will be read have bytes.  Not
for training.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.beton import fields as f

_PAGE = 8 << 20
_STRIDE = 1 << 16  # bytes from sample to sample; divides the page, so that none crosses a border
_CHUNK = 1 << 20  # records written at a time


def photographs(count: int, seed: int = 0, height: int = 256, width: int = 384) -> list[bytes]:
    """`count` JPEGs of quality 90 whose amplitude falls as f ** -1.5, chosen for the size of real files."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    amplitude = np.maximum(np.hypot(fy, fx), 1 / height) ** -1.5
    jpegs = []
    for _ in range(count):
        planes = [
            np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), (height, width))
            for _ in range(3)
        ]
        bright, red, blue = (plane / plane.std() for plane in planes)
        rgb = np.stack([bright + 0.2 * red, bright, bright + 0.2 * blue], -1)
        file = io.BytesIO()
        Image.fromarray((120 + 50 * rgb).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
    return jpegs


def write(
    path: str | os.PathLike,
    jpegs: Sequence[bytes],
    samples: int,
    *,
    height: int = 256,
    width: int = 384,
    filled: np.ndarray | None = None,
) -> None:
    """A .beton of `samples` pairs, sample i showing jpegs[i % len(jpegs)] of this size.

    filled: the samples whose bytes are written (all by default); the others are holes.
    """
    schema = f.pairs_schema(1)
    record = f.metadata_dtype(schema)
    head = f.HEADER.itemsize + len(schema) * f.DESCRIPTOR.itemsize
    base = -(-(head + samples * record.itemsize) // _PAGE) * _PAGE
    sizes = np.array([len(jpeg) for jpeg in jpegs])
    tokens = np.zeros(f.CONTEXT_LENGTH, "<i4")
    tokens[:16] = [49406, *range(320, 334), 49407]
    tail = tokens.nbytes + 16
    if sizes.max() + tail > _STRIDE:
        raise ValueError(f"synthetic: a picture of {sizes.max()} bytes does not fit {_STRIDE}")
    table = base + samples * _STRIDE
    temporary = Path(f"{path}.tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            for first in range(0, samples, _CHUNK):
                index = np.arange(first, min(first + _CHUNK, samples))
                size, place = sizes[index % len(jpegs)], base + index * _STRIDE
                file.seek(head + first * record.itemsize)
                file.write(_records(record, place, size, tokens.nbytes, height, width).tobytes())
                file.seek(table + first * 3 * f.ALLOCATION.itemsize)
                file.write(_allocations(index, place, size, tokens.nbytes).tobytes())
            for i in range(samples) if filled is None else filled.tolist():
                file.seek(base + i * _STRIDE)
                file.write(jpegs[i % len(jpegs)] + tokens.tobytes() + b"%016d" % i)
            file.seek(0)
            file.write(_head(schema, samples, table))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _records(record: np.dtype, place, size, tokens_size: int, height: int, width: int) -> np.ndarray:
    out = np.zeros(len(place), record)
    out["image"]["mode"], out["image"]["height"], out["image"]["width"] = f.JPEG_MODE, height, width
    out["image"]["data_ptr"], out["tokens"], out["luma"] = place, place + size, 120.0
    out["key"]["ptr"], out["key"]["size"] = place + size + tokens_size, 16
    return out


def _allocations(index, place, size, tokens_size: int) -> np.ndarray:
    """Image, tokens and key of each sample, in the order of the columns."""
    out = np.zeros((len(index), 3), f.ALLOCATION)
    out["sample_id"] = index[:, None]
    out["ptr"] = np.stack([place, place + size, place + size + tokens_size], -1)
    out["size"] = np.stack([size, np.full_like(size, tokens_size), np.full_like(size, 16)], -1)
    return out


def _head(schema: dict[str, f.Field], samples: int, table: int) -> bytes:
    header, descriptors = np.zeros(1, f.HEADER), np.zeros(len(schema), f.DESCRIPTOR)
    header["version"], header["num_fields"] = f.VERSION, len(schema)
    header["page_size"], header["num_samples"], header["alloc_table_ptr"] = _PAGE, samples, table
    for row, (name, field) in zip(descriptors, schema.items()):
        row["type_id"], row["arguments"] = field.kind, field.arguments()
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return header.tobytes() + descriptors.tobytes()
