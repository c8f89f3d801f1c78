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
_LOOKED_AT = 1 << 18  # samples whose pictures are told apart at a time
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


def _check(
    path: Path, decode: bool, first: np.ndarray | None, task: int, step: Callable[[int], None]
) -> Faults:
    """Check the samples of stretch `task`; first: as `_first_shown` returns it."""
    beton, faults = f.Beton(path), Faults()
    indices = np.arange(task * _CHUNK, min((task + 1) * _CHUNK, len(beton)))
    rows = beton.rows(indices)
    fresh = np.ones((len(indices), 1), np.bool_) if first is None else first[indices]
    _check_images(rows, decode, indices, fresh, faults)
    step(len(indices))
    for row in np.flatnonzero(rows.spans("key")[1] == 0):
        faults.add(int(indices[row]), "key", "empty")
    if beton.kind == "pairs":
        _check_tokens(rows, indices, faults)
    else:
        _check_votes(rows, indices, faults)
    return faults


def _check_images(rows: f.Rows, decode: bool, indices: np.ndarray, fresh: np.ndarray, faults: Faults) -> None:
    """fresh (N, columns of images): which are to be checked."""
    beton, images = rows.file, image_columns(rows.file)
    lumas = rows.records["luma"][:, None] if len(images) == 1 else rows.arrays("luma")
    for column, name in enumerate(images):
        start, size = rows.spans(name)
        sides = rows.sizes(name)
        sums = rows.checksums([name])[:, 0].tolist() if beton.checksummed else [None] * len(indices)
        for row in np.flatnonzero(fresh[:, column]).tolist():
            data = beton.read(start[row : row + 1], size[row : row + 1])[0].tobytes()
            height, width = sides[row].tolist()
            image, index = check_image(data, height, width, sums[row], decode), int(indices[row])
            if image.fault:
                faults.add(index, name, image.fault, image.detail)
            elif image.luma is not None and abs(image.luma - lumas[row, column]) > _LUMA:
                faults.add(index, name, "stored mean luma is wrong", f"the pixels have {image.luma:.1f}")


def _first_shown(beton: f.Beton) -> np.ndarray:
    """(N, columns of images) bool: where the table first says this of these bytes; so a picture that many
    triplets show is read once, and what only one of them says of it is found."""
    names = image_columns(beton)
    out, seen = np.zeros((len(beton), len(names)), np.bool_), np.empty(0, np.uint64)
    for start in range(0, len(beton), _LOOKED_AT):
        records = beton.rows(np.arange(start, min(start + _LOOKED_AT, len(beton)))).records
        said = np.stack([_digest(records, name, beton.checksummed) for name in names], 1)
        new, where = np.unique(said.ravel(), return_index=True)
        out[start : start + len(said)].ravel()[where[~np.isin(new, seen)]] = True
        seen = np.union1d(seen, new)
    return out


def _digest(records: np.ndarray, name: str, checksummed: bool) -> np.ndarray:
    """(N,) uint64: a hash of all that the table says of an image."""
    told = [records[name][part].astype(np.uint64) for part in ("data_ptr", "width", "height")]
    told += [records[f.checksum_column(name)].view(np.uint64)] if checksummed else []
    out = np.zeros(len(records), np.uint64)
    for value in told:
        out = (out ^ value) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


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
    first = None if beton.kind == "pairs" else _first_shown(beton)
    check = partial(_check, path, decode, first)
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
