"""Image files by their names in a list: a path, a name without its ending, or a folder of which one is taken.

Not here: whether the files are images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from pipeline.formats import utf8
from pipeline.formats.tars import PICTURES

ENDINGS = tuple(f".{ending}" for ending in PICTURES)


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted by name, hidden ones left out."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.name[0] != ".")
    return sorted(path for path in files if not path.is_dir())


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and all its sub-folders, sorted folder by folder, hidden ones left out."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted([*images_in(folder), *(file for path in inside for file in images_below(path))])


def find(folder: Path, names: Iterable[str]) -> list[Path | None]:
    """The image of each name in `folder`: that file, NAME.jpg, or the first image in the folder NAME."""
    by_stem = cache(_by_stem)
    return [_find(folder / name, by_stem) for name in names]


def _find(path: Path, by_stem: Callable[[Path], dict[str, Path]]) -> Path | None:
    if path.is_file():
        return path
    if named := by_stem(path.parent).get(path.name):
        return named
    return next(iter(images_in(path)), None) if path.is_dir() else None


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder by their names without the ending; of several the first."""
    return {path.stem: path for path in reversed(images_in(folder))} if folder.is_dir() else {}


def read_names(path: Path) -> list[tuple[int, str]]:
    """(number of the line, name) of a text file with a name a line; empty lines are left out."""
    lines = enumerate(utf8.text(path.read_bytes(), str(path)).splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def numbered(folder: Path, ids: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(U names, U paths relative to `folder`) of the objects that the lines of `ids` name, in that order.

    An object without an image keeps its name as the path, so that whoever reads it says that it is missing.
    Raises ValueError that names the line: a name that comes twice, or leads out of the folder.
    """
    if not ids.is_file():
        raise ValueError(f"{ids}: no such file of names, one a line")
    lines = read_names(ids)
    names = tuple(name for _, name in lines)
    if not names:
        raise ValueError(f"{ids}: it is empty; a name a line is expected")
    count = Counter(names)
    for line, name in lines:
        if count[name] > 1:
            raise ValueError(f"{ids}: row {line}: {name} appears more than once")
        if name[0] == "/" or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{ids}: row {line}: {name!r} leads out of {folder}")
    return names, paths(folder, names)


def paths(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """What `find` finds, relative to the folder; the name itself, with an ending, where there is none."""
    missing = (name if Path(name).suffix.lower() in ENDINGS else f"{name}.jpg" for name in names)
    found = zip(find(folder, names), missing)
    return tuple(path.relative_to(folder).as_posix() if path else name for path, name in found)
