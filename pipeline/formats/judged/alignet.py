"""AligNet's ten million computed odd-one-out answers on ImageNet's train images: an .npz of three arrays.

Layout (github.com/google-deepmind/alignet, README.md, data.py and metrics.py):
- `filenames` (n, 3) text: the last one is the odd one;
- `similarities` (n, 3): those of the pairs (0, 1), (0, 2), (1, 2), so the first is the largest.  (Of the
  order the README says no more than that the third is below the others, which would leave the odd one open;
  metrics.py "assumes that the last object in the triplet is the ooo" and wants the first to be the largest.)
- `indices` (n, 3): numbers of the images in tfds' `imagenet2012`, train.
A name is that of tfds' field file_name, n01440764_10026.JPEG (tensorflow/datasets,
imagenet2012_dataset_builder.py); with a folder in front it is taken as it is.

The release was not at hand: how its arrays are typed is from these sources, not verified.  Two open reports
(issues 9 and 10 of the repository) doubt that its images and similarities belong together; what a table shows
of that is checked here.

Not here: whether the images exist.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pipeline.formats.judged.forms import OddOnes

_IMAGES = 1_281_167  # ILSVRC2012's train images
_WIDEST = 256  # bytes of a name; 4 a character
_AT_ONCE = 1 << 24  # bytes of names in memory at once
_MOST_AGAINST = 0.1  # a table sorted as documented has none, one in no order two thirds
_KINDS = {"f": "floats", "iu": "whole numbers", "US": "text"}
_NAME = re.compile(r"(?:[\w-]+/)*n\d{8}_\d+\.JPE?G", re.ASCII | re.IGNORECASE)
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


class _Header(NamedTuple):
    rows: int
    by_column: bool  # Fortran's order: all first images, then all second ones
    dtype: np.dtype


def read(table: Path, images: Path, temperature: float | None = None) -> OddOnes:
    """The answers of `table`, in its order; rows that hold an image twice are left out.

    images: ILSVRC2012's train folder, with a folder for each synset (n01440764/n01440764_10026.JPEG).
    temperature: None takes the last image for the odd one.  Else the odd one is uncertain: its shares are the
        softmax of similarity / temperature, where an image's similarity is that of the two others.  The
        authors' losses.py takes this softmax at temperature 1.
    Raises ValueError: arrays that are not as documented, with the row; a name that stands for two images; a
    table whose similarities contradict its order in more than a tenth of the rows (`notes` counts fewer).
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}: a number above 0 is expected")
    try:
        with zipfile.ZipFile(table) as archive:
            similarities = _numbers(archive, "similarities", "f")
            indices = _numbers(archive, "indices", "iu")
            _check_numbers(similarities, indices)
            notes, odd = _odd(similarities, temperature)
            del similarities
            names, rows = _images(archive, indices)
    except FileNotFoundError:
        raise ValueError(f"{table}: no such file") from None
    except _FAULTS as error:
        raise ValueError(f"{table}: not a whole .npz ({error}); download it again") from None
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from None
    if not (images / names[0]).parent.is_dir():
        raise ValueError(
            f"{images}: no folder {Path(names[0]).parent} in it; ILSVRC2012's train folder is expected"
        )
    number = np.arange(len(rows))
    same = (rows == rows[:, [1, 2, 0]]).any(axis=1)
    if same.any():
        notes += [f"{same.sum():,} of {len(rows):,} rows left out: an image is in it twice"]
        rows, number, odd = rows[~same], number[~same], odd[~same]
    return OddOnes(
        folder=images, images=names, rows=rows, number=number, notes=tuple(notes), voters="AligNet, computed",
        group=np.zeros(len(rows), "U1"), odd=odd, votes=np.zeros(len(rows), np.int32),
    )  # fmt: skip


def _odd(similarities: np.ndarray, temperature: float | None) -> tuple[list[str], np.ndarray]:
    """What is to be said of the order, and the shares of the odd one, (n, 3) float64."""
    count, notes = len(similarities), []
    against = int((similarities[:, 0] < similarities[:, 1:].max(axis=1)).sum())
    found = f"in {against:,} of {count:,} rows the similarities make another image than the last the odd one"
    if against > _MOST_AGAINST * count:
        raise ValueError(f"{found}; it is not sorted as AligNet is (s01 of [s01, s02, s12] the largest)")
    if against:
        notes += [f"{found}; {'kept' if temperature else 'the last is taken'}"]
    if temperature is None:
        return notes, np.broadcast_to(np.array([0.0, 0.0, 1.0]), (count, 3))
    odd = similarities[:, ::-1].astype(np.float64)  # s12 belongs to image 0, s02 to 1, s01 to 2
    odd -= odd.max(axis=1, keepdims=True)
    odd /= temperature
    np.exp(odd, out=odd)
    odd /= odd.sum(axis=1, keepdims=True)
    return notes, odd


def _check_numbers(similarities: np.ndarray, indices: np.ndarray) -> None:
    if len(similarities) != len(indices):
        raise ValueError(f"similarities has {len(similarities)} rows, indices {len(indices)}")
    for name, array, right, expected in (
        ("similarities", similarities, np.isfinite(similarities), "numbers are expected"),
        ("indices", indices, (indices >= 0) & (indices < _IMAGES), f"0 to {_IMAGES - 1} are expected"),
    ):
        if not right.all():
            row = int(np.argmin(right.all(axis=1)))
            raise ValueError(f"row {row}: {name} is {array[row].tolist()}; {expected}")


def _images(archive: zipfile.ZipFile, indices: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The paths of the images used, and the rows (n, 3) int32 that count them.

    The indices say which names are the same, so 30 million names are never sorted nor held at once; that each
    index has one name and each name one index is checked.
    """
    with _opened(archive, "filenames", "US") as (file, header):
        if header.rows != len(indices):
            raise ValueError(f"filenames has {header.rows} rows, indices {len(indices)}")
        if header.dtype.itemsize > _WIDEST:
            raise ValueError(f"filenames is of type {header.dtype}; names this long are none of ImageNet's")
        by_index, used = _by_index(file, header, indices)
    places = np.flatnonzero(used)
    names = _text(by_index[places])
    wrong = next((n for n, name in enumerate(names) if not _NAME.fullmatch(name)), None)
    if wrong is not None:
        row = int(np.argmax((indices == places[wrong]).any(axis=1)))
        message = "a name like n01440764_10026.JPEG is expected"
        raise ValueError(f"row {row}: filenames has {names[wrong]!r}; {message}")
    if len(set(names)) < len(names):
        raise ValueError("indices has several numbers for one of filenames")
    compact = np.cumsum(used, dtype=np.int32) - 1
    folders = (name if "/" in name else f"{name[:9]}/{name}" for name in names)
    return tuple(folders), compact[indices]


def _by_index(file: IO[bytes], header: _Header, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The name that each index has, and which indices there are; ValueError if one has two names."""
    names, used = np.zeros(_IMAGES, header.dtype), np.zeros(_IMAGES, bool)
    flat = indices.ravel("F" if header.by_column else "C")
    step = max(1, _AT_ONCE // header.dtype.itemsize)
    for start in range(0, len(flat), step):
        where = flat[start : start + step]
        part = np.frombuffer(_exactly(file, len(where) * header.dtype.itemsize), header.dtype)
        new = np.flatnonzero(~used[where])[::-1]  # the first of a name twice stays: it is written last
        names[where[new]] = part[new]
        used[where] = True
        wrong = names[where] != part
        if wrong.any():
            at = start + int(np.argmax(wrong))
            row = at % header.rows if header.by_column else at // 3
            raise ValueError(
                f"row {row}: index {flat[at]} has another name than in another row: {part[at - start]!s}"
            )
    _check_end(file)
    return names, used


def _text(names: np.ndarray) -> list[str]:
    try:
        return (np.char.decode(names, "ascii") if names.dtype.kind == "S" else names).tolist()
    except ValueError:
        raise ValueError("filenames holds characters that are in no name of ImageNet's") from None


def _numbers(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    """A whole array (n, 3) of the archive."""
    with _opened(archive, name, kinds) as (file, header):
        data = _exactly(file, header.rows * 3 * header.dtype.itemsize)
        _check_end(file)
    flat = np.frombuffer(data, header.dtype)
    return flat.reshape(3, -1).T if header.by_column else flat.reshape(-1, 3)


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str, kinds: str) -> Iterator[tuple[IO[bytes], _Header]]:
    """An array (n, 3) of the archive, at its first value; ValueError if it is another or a pickle."""
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"no array {name}; it has {', '.join(archive.namelist()) or 'none'}")
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, by_column, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(
                f"{name} is a pickle of objects, which is not opened; save it as an array of {_KINDS[kinds]}"
            )
        if dtype.kind not in kinds or shape[1:] != (3,) or not shape[0]:
            raise ValueError(f"{name} is {dtype} {shape}; (n, 3) {_KINDS[kinds]} is expected")
        yield file, _Header(shape[0], by_column, dtype)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("cut short")
    return data


def _check_end(file: IO[bytes]) -> None:
    if file.read(1):  # reading to the end also checks the sum over the data
        raise ValueError("an array has more values than its header says")
