"""Small .beton files for the pipeline's tests."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from pipeline import pixels as operations
from pipeline.augment import Draws, sample_draws
from pipeline.beton.fields import DESCRIPTOR, HEADER, Beton, pairs_schema, triplets_schema
from pipeline.beton.writer import Jpeg, writing

LUMA = np.array([0.299, 0.587, 0.114])


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colours with some edges, (H, W, 3) uint8: noise alone would judge rounding only."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    top, left = rng.integers(0, height), rng.integers(0, width)
    pixels[top:, left:] = rng.integers(0, 256, 3)
    return pixels


def jpeg(pixels: np.ndarray, subsampling: str = "4:4:4") -> Jpeg:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, subsampling=subsampling)
    return Jpeg(file.getvalue(), *pixels.shape[:2])


def sizes(count: int) -> list[tuple[int, int]]:
    """Landscape, portrait, square, smaller than a target, one row high."""
    kinds = [(60, 90), (90, 60), (64, 64), (21, 33), (7, 5), (1, 40), (130, 50)]
    return [kinds[i % len(kinds)] for i in range(count)]


def overwrite(file: Beton, index: int, data: bytes, name: str = "image") -> None:
    """Damage a finished file: the picture's place holds `data`, cut off or filled up with zeros."""
    start, size = (int(n) for n in file.rows(index).spans(name))
    with open(file.path, "r+b") as stored:
        stored.seek(start)
        stored.write(data[:size].ljust(size, b"\0"))


def pairs_file(
    path: Path, count: int = 20, captions: int = 2, broken: dict[int, bytes] | None = None,
    checksums: bool = True,
) -> Beton:  # fmt: skip
    """`count` pairs; sample i has i % captions + 1 captions; then `broken` comes to lie in pictures' places.

    checksums: False writes the file as older versions did.
    """
    with writing(path, pairs_schema(captions, checksums), count) as writer:
        for i, (height, width) in enumerate(sizes(count)):
            pixels = picture(i, height, width)
            image, tokens = jpeg(pixels), np.zeros((captions, 77), np.int32)
            for row in range(i % captions + 1):
                tokens[row, :3] = 49406, 1000 * row + i, 49407
            luma = float((pixels @ LUMA).mean())
            writer.add({"image": image, "tokens": tokens, "luma": luma, "key": b"key-%d" % i})
    for i, data in (broken or {}).items():
        overwrite(Beton(path), i, data)
    return Beton(path)


SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")
REAL_SIZES = ((256, 384), (384, 256), (256, 256), (257, 391))


def real_file(
    path: Path, count: int, subsamplings: Sequence[str] = SUBSAMPLINGS, distinct: int = 24
) -> Beton:
    """`count` pairs with images of the sizes and kinds that the build stores; `distinct` ones, repeated."""
    images = []
    for i in range(min(distinct, count)):
        pixels = picture(i, *REAL_SIZES[i % len(REAL_SIZES)])
        images.append((jpeg(pixels, subsamplings[i % len(subsamplings)]), float((pixels @ LUMA).mean())))
    tokens = np.zeros((1, 77), np.int32)
    tokens[0, :3] = 49406, 320, 49407
    with writing(path, pairs_schema(1), count) as writer:
        for i in range(count):
            image, luma = images[i % len(images)]
            writer.add({"image": image, "tokens": tokens, "luma": luma, "key": b"key-%d" % i})
    return Beton(path)


def damaged_jpegs(whole: Beton, each: int) -> dict[int, bytes]:
    """Stored JPEGs with every kind of damage at every place, for `pairs_file`: `each` of a kind and place."""
    rng = np.random.default_rng(3)
    kinds = {
        "ones": lambda old: b"\xff" * len(old), "zeros": lambda old: bytes(len(old)),
        "noise": lambda old: rng.bytes(len(old)), "bit": lambda old: bytes([old[0] ^ 16]) + old[1:],
        "lost": lambda old: b"", "doubled": lambda old: old + old,
    }  # fmt: skip
    places = {"head": (0, 0.2), "middle": (0.45, 0.8), "end": (0.9, 1)}
    cases = [(k, p) for k in kinds.values() for p in places.values() for _ in range(each)]
    broken = {}
    for index, (change, (low, high)) in enumerate(cases):
        data = whole.jpeg(index).tobytes()
        at = int(rng.uniform(low, high) * (len(data) - 24))
        broken[index] = data[:at] + change(data[at : at + 24]) + data[at + 24 :]
    return broken


def decodable_but_for_dali(size: int, monkeypatch) -> None:
    """Of a file without checksums: the picture of this size, as if libjpeg read it and DALI did not."""
    judge = operations.decodable
    monkeypatch.setattr(
        operations, "decodable", lambda data, at, n, *sides: judge(data, at, n, *sides) | (n == size)
    )


def triplets_file(
    path: Path, count: int = 12, broken: dict[int, bytes] | None = None, checksums: bool = True
) -> Beton:
    """`count` triplets of one size each; then `broken` comes to lie in left pictures' places."""
    with writing(path, triplets_schema(checksums), count) as writer:
        for i, (height, width) in enumerate(sizes(count)):
            views = [picture(3 * i + v, height, width) for v in range(3)]
            images = dict(zip(("ref", "left", "right"), map(jpeg, views)))
            luma = np.array([(p @ LUMA).mean() for p in views], np.float32)
            writer.add(images | {"vote": i / count, "votes": 4, "luma": luma, "key": b"trip-%d" % i})
    for i, data in (broken or {}).items():
        overwrite(Beton(path), i, data, "left")
    return Beton(path)


def with_wrong_pointers(file: Beton, path: Path) -> Beton:
    """A copy whose pictures are said to lie one byte further on."""
    records = file.metadata
    records["image"]["data_ptr"] += np.uint64(1)
    data = bytearray(file.path.read_bytes())
    start = HEADER.itemsize + len(file.fields) * DESCRIPTOR.itemsize
    data[start : start + records.nbytes] = records.tobytes()
    path.write_bytes(data)
    return Beton(path)


def pil(file: Beton, index: int, name: str = "image") -> Image.Image:
    return Image.open(io.BytesIO(file.jpeg(index, name).tobytes()))


def draws_of(file: Beton, augment, seed: int, epoch, index: Sequence[int]) -> Draws:
    """`sample_draws` for samples of a pairs file."""
    index = np.asarray(index)
    size = file.rows(index).sizes("image")
    luma = file.metadata["luma"][index][:, None]
    return sample_draws(augment, seed, epoch, index, size[:, :1], size[:, 1:], luma)


def apply_reference(image: Image.Image, draws: Draws, row: int, view: int, side: int) -> torch.Tensor:
    """One image's draws applied with PIL and torchvision, operation by operation → uint8 (3, S, S)."""
    top, left, height, width = (int(n) for n in draws.box[row, view])
    image = image.convert("RGB").crop((left, top, left + width, top + height))
    if draws.covers:
        image = F.center_crop(F.resize(image, side, F.InterpolationMode.BICUBIC), [side, side])
    else:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    if draws.coloured[row]:
        m = draws.matrix[row, view].astype(np.float64)
        pixels = np.rint(np.clip(pixels @ m[:, :3].T + m[:, 3], 0, 255)).astype(np.uint8)
    out = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    sigma = float(draws.sigma[row])
    radius = min(math.ceil(3 * np.float32(sigma)), side - 1)  # DALI's, kept inside the image
    if sigma and radius:
        out = F.gaussian_blur(out, [2 * radius + 1] * 2, [sigma, sigma])
    return out.flip(-1) if draws.flip[row] else out
