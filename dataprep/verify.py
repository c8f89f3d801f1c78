"""`verify`: reads every sample of a finished .beton back and reports what is wrong.

The build decoded every image before it stored it.  So where a file has checksums, it is enough to compare
each image's bytes with them; `decode` decodes the images again as well.

Not here: building; what a loader makes of the samples; describing a file (`summary.py`).

N samples, K captions of an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataprep.convert import mean_luma
from dataprep.pool import run
from pipeline import text
from pipeline.base.console import Progress, say
from pipeline.beton import fields as f
from pipeline.beton.writer import checksum
from pipeline.formats import pictures

_CHUNK = 2_000  # samples a task
_SHOWN = 20  # faults that are named
_LUMA = 16.0  # of 255: the mean was taken before the encoding, which shifts noise and saturated colours


@dataclass
class Faults:
    """What is wrong with some samples."""

    counts: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)  # the first ones

    def add(self, index: int, name: str, fault: str, detail: str = "") -> None:
        self.counts[f"{name}: {fault}"] += 1
        if len(self.named) < _SHOWN:
            self.named.append(f"sample {index}: {name}: {fault}{': ' + detail if detail else ''}")

    def extend(self, other: Faults) -> None:
        self.counts.update(other.counts)
        self.named.extend(other.named)


class ImageCheck(NamedTuple):
    """What is found of a stored image; `fault` is empty for a sound one."""

    fault: str
    detail: str = ""
    luma: float | None = None  # mean, 0…255, of the decoded pixels


def _check(path: Path, decode: bool, task: int, step: Callable[[int], None]) -> Faults:
    """Check the samples of stretch `task`."""
    beton, faults = f.Beton(path), Faults()
    indices = np.arange(task * _CHUNK, min((task + 1) * _CHUNK, len(beton)))
    rows = beton.rows(indices)
    _check_images(rows, decode, indices, faults, step)
    for index in indices.tolist():
        if not beton.text("key", index):
            faults.add(index, "key", "empty")
    if beton.kind == "pairs":
        _check_tokens(rows, indices, faults)
    else:
        _check_votes(rows, indices, faults)
    return faults


def _check_images(
    rows: f.Rows, decode: bool, indices: np.ndarray, faults: Faults, step: Callable[[int], None]
) -> None:
    beton, images = rows.file, image_columns(rows.file)
    lumas = rows.records["luma"][:, None] if len(images) == 1 else rows.arrays("luma")
    for column, name in enumerate(images):
        told = [name, f.checksum_column(name)] if beton.checksummed else [name]
        known: dict[tuple, ImageCheck] = {}  # a shared image is checked once a stretch
        start, size = rows.spans(name)
        sides = rows.sizes(name).tolist()
        for row, (index, key) in enumerate(zip(indices.tolist(), rows.records[told].tolist())):
            if key not in known:
                data = beton.read(start[row : row + 1], size[row : row + 1])[0].tobytes()
                (height, width), expected = sides[row], key[1] if beton.checksummed else None
                known[key] = check_image(data, height, width, expected, decode)
                step(1 if column == 0 else 0)
            image = known[key]
            if image.fault:
                faults.add(index, name, image.fault, image.detail)
            elif image.luma is not None and abs(image.luma - lumas[row, column]) > _LUMA:
                faults.add(index, name, "stored mean luma is wrong", f"the pixels have {image.luma:.1f}")


def image_columns(beton: f.Beton) -> list[str]:
    """Names of the columns that hold images."""
    return [name for name, column in beton.fields.items() if column.kind == f.IMAGE]


def check_image(
    data: bytes, height: int, width: int, expected: int | None = None, decode: bool = True
) -> ImageCheck:
    """Judge a stored image by what the file's table says of it, `expected` being its checksum.

    decode: decode it in full, as the engines do; otherwise its checksum and its header are compared alone.
    """
    if expected is not None and checksum(data) != expected:
        return ImageCheck(f.CHANGED)
    head = pictures.read_head(data)
    if head is None or head.sof != 0xC0 or len(head.components) != 3:
        return ImageCheck("not a baseline RGB JPEG")
    try:
        if decode:
            return ImageCheck("", luma=mean_luma(pictures.stored(data, height, width)))
        pictures.check_size(head, height, width)
    except ValueError as error:
        return ImageCheck("engines refuse it", str(error))
    return ImageCheck("")


def _check_tokens(rows: f.Rows, indices: np.ndarray, faults: Faults) -> None:
    tokens = rows.arrays("tokens")  # (N, K, 77)
    lengths = text.lengths(tokens)
    used = tokens[..., 0] != 0
    position = np.arange(f.CONTEXT_LENGTH)
    starts = tokens[..., 0] == text.START
    ends = np.take_along_axis(tokens, lengths[..., None] - 1, -1)[..., 0] == text.END
    zero_after = (np.where(position >= lengths[..., None], tokens, 0) == 0).all(-1)
    sound = np.where(used, starts & ends & zero_after, ~tokens.any(-1))
    for row in np.flatnonzero(~used[:, 0]):
        faults.add(int(indices[row]), "tokens", "no caption")
    for row in np.flatnonzero(~sound.all(-1)):
        faults.add(int(indices[row]), "tokens", "not start, words, end, zeros")


def _check_votes(rows: f.Rows, indices: np.ndarray, faults: Faults) -> None:
    vote, votes = rows.records["vote"], rows.records["votes"]
    for row in np.flatnonzero(~((vote >= 0) & (vote <= 1))):
        faults.add(int(indices[row]), "vote", "not a fraction", str(vote[row]))
    for row in np.flatnonzero(votes < 0):
        faults.add(int(indices[row]), "votes", "negative")


def verify(path: Path, workers: int, decode: bool = False) -> Faults:
    """Check every sample of `path`, and that its JSON describes this file; prints what is wrong.

    decode: decode every image in full, besides comparing checksums; without checksums it is done anyway.
    """
    beton, faults = f.Beton(path), Faults()
    assert beton.kind  # ValueError for a file with other columns
    if beton.info.get("samples", len(beton)) != len(beton):
        faults.add(-1, "json", "gives another number of samples", str(beton.info["samples"]))
    if beton.info.get("bytes", beton.size) != beton.size:
        faults.add(-1, "json", "gives another length of the file", str(beton.info["bytes"]))
    decode = decode or not beton.checksummed
    tasks = range(-(-len(beton) // _CHUNK))
    weights = [min(_CHUNK, len(beton) - _CHUNK * task) for task in tasks]
    progress = Progress(path.name, len(beton))
    check = partial(_check, path, decode)
    run(check, tasks, weights, workers, progress, lambda _, more: faults.extend(more))
    for line in faults.named[:_SHOWN]:
        say(line)
    total = sum(faults.counts.values())
    for fault, count in faults.counts.most_common():
        say(f"{count:,} × {fault}")
    done = "checksums compared" if beton.checksummed else "no checksums in it"
    done += ", every image decoded" if decode else "; --decode decodes every image too"
    say(f"{path}: {len(beton):,} samples, {f'{total:,} faults' if total else 'all sound'} ({done})")
    return faults
