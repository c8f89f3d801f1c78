"""Which image belongs to which row of an embedding or a matrix, and which split it is in.

An image's split depends on its name alone.  So no image of one split is in another, and that holds between
files too: drawn by other rules, from another seed, or from another prior over the same images.

Not here: the numbers of the rows (`spaces.py`).
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeline.formats.judged.named import find, images_below, read_names


class Images(NamedTuple):
    """The images of a space in the order of its rows."""

    files: tuple[Path, ...]  # where there is none, the name that it should have
    names: tuple[str, ...]  # path in the folder without its ending
    faults: dict[int, tuple[str, str]]  # number → why it cannot be used: (a reason to count, a line)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Which image belongs to which row."""

    images: Path
    """Folder of the images."""
    names: Path | None = None
    """Text with an image a line, in the order of the rows: a path in --images, a name without its ending, or
    a folder there, whose first image is taken. By default all images in --images, sorted by path."""
    skip_unusable: bool = False
    """Leave out images without a file, without finite numbers, or equal to an image before them; and pairs of
    a matrix that are not finite. By default each is an error."""


def list_images(listing: Listing, size: int, table: Path) -> Images:
    """The images of `size` rows.  Raises ValueError for another number, or if their order is unsure."""
    folder = listing.images
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    if listing.names is None:
        files = images_below(folder)
        _check_count(len(files), size, f"{folder}: {len(files):,} images", table)
        _check_order(folder, files)
        where, faults = [str(path) for path in files], {}
    else:
        lines = _lines(listing.names)
        _check_count(len(lines), size, f"{listing.names}: {len(lines):,} names", table)
        found = find(folder, [name for _, name in lines])
        files = [path or folder / name for path, (_, name) in zip(found, lines)]
        where = [f"{listing.names}: line {line}: {name}" for line, name in lines]
        faults = {
            row: ("images without a file", f"{where[row]}: no such image in {folder}, nor a folder of images")
            for row, path in enumerate(found)
            if path is None
        }
    for row, first in _copies(files, faults).items():
        faults[row] = "images equal to one before", f"{where[row]}: the same image as {where[first]}"
    names = (path.relative_to(folder) if path.is_relative_to(folder) else path for path in files)
    return Images(tuple(files), tuple(name.with_suffix("").as_posix() for name in names), faults)


def _lines(names: Path) -> list[tuple[int, str]]:
    if not names.is_file():
        raise ValueError(f"{names}: no such file")
    return read_names(names)


def _check_count(count: int, size: int, have: str, table: Path) -> None:
    if count == size:
        return
    hint = " (is the first a heading?)" if count == size + 1 and have.endswith("names") else ""
    raise ValueError(
        f"{have}{hint}, but {table} has {size:,} rows: one image a row, in their order, by --names"
    )


def _check_order(folder: Path, files: list[Path]) -> None:
    """ValueError where images are counted and 10.jpg comes before 2.jpg: rows may be sorted by number."""
    counted: dict[str, list[list[int]]] = defaultdict(list)
    for path in files:
        name = str(path.relative_to(folder))
        counted[re.sub(r"\d+", "#", name)].append([int(number) for number in re.findall(r"\d+", name)])
    for name, numbers in counted.items():
        if numbers != sorted(numbers) and any(_counts(set(column)) for column in zip(*numbers)):
            raise ValueError(
                f"{folder}: {name} sorted by name is another order than by number (10 comes before 2): "
                "say the order of the rows with --names"
            )


def _counts(numbers: set[int]) -> bool:
    """Whether numbers count something, with few gaps, and are no identifiers."""
    return len(numbers) > 2 and max(numbers) - min(numbers) < 2 * len(numbers)


def _copies(files: list[Path], faults: dict[int, tuple[str, str]]) -> dict[int, int]:
    """Number of an image → number of the first one with the same bytes; only sizes that repeat are read."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for row, path in enumerate(files):
        if row not in faults:
            sizes[path.stat().st_size].append(row)
    first: dict[str, int] = {}
    out = {}
    for row in sorted(row for rows in sizes.values() if len(rows) > 1 for row in rows):
        digest = sha256(files[row])
        if digest in first:
            out[row] = first[digest]
        first.setdefault(digest, row)
    return out


@cache
def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_of(name: str, held_out: float) -> str:
    """The split of an image: its name's hash is a number in [0, 1); test, val, train from below."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    number = int.from_bytes(digest, "big") / 2**64
    return "test" if number < held_out else "val" if number < 2 * held_out else "train"
