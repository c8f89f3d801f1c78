"""Image–caption sources: recognises the layout of a folder or file and makes its reader.

tars     webdataset, img2dataset (`tars.py`)         parquet  with image bytes (`parquet.py`)
table    csv, tsv, json lines, json + image files    zips     SLIP's zip folders + such a table
files    images with .txt or .json beside them (`sidecars.py`)
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dataprep import columns
from dataprep.members import Reading
from dataprep.parquet import Parquet, has_images, shape
from dataprep.shard import Source
from dataprep.sidecars import Sidecars, folders, has_pairs
from dataprep.tables import ENDINGS, Table, TableFile, Zips
from dataprep.tars import Tars
from pipeline import tars, utf8

Layout = Literal["auto", "tars", "parquet", "table", "zips", "files"]
ZIP_INDEX = ("index", "photo_index", "id", "photoid")  # columns with SLIP's photo number


def open_pairs(
    path: Path,
    *,
    layout: Layout = "auto",
    images: Path | None = None,
    choice: columns.Choice = columns.Choice(),  # noqa: B008 (frozen)
    captions: int = 0,
    lines: bool = False,
    max_bytes: int = 64 << 20,
) -> Source:
    """The source at `path`; `images` is the folder of images where it is not the table's own.

    path: a file or folder, or several of tars or parquet: `{00000..00041}.tar`, `*.tar`, `ONE::OTHER`.
    lines: every line of a .txt is a caption of its own; a retrieval set of clip-benchmark's says so itself.
    Raises ValueError when nothing there is recognised, or columns are missing.
    """
    paths = named(str(path))
    if captions < 0:
        raise ValueError(f"captions must be 0 (all) or more, not {captions}")
    kinds = {recognise(one, images) for one in paths} if layout == "auto" else {layout}
    chosen = kinds.pop()
    if kinds or (len(paths) > 1 and chosen not in ("tars", "parquet")):
        raise ValueError(f"{path}: several sources are read together where all are tars, or all parquet")
    reading = Reading(choice, lines or any(map(_is_retrieval, paths)))
    if chosen == "tars":
        return Tars(path, _files(paths, tars.ENDINGS), reading, captions, max_bytes)
    if chosen == "parquet":
        files = _files(paths, (".parquet",))
        shape(files[0], choice)
        return Parquet(path, files, choice, captions)
    if chosen == "files":
        return Sidecars(paths[0], reading, captions)
    table = _table(paths[0])
    folder = images or table.parent
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    if chosen == "zips":
        return Zips(TableFile(table, choice, ZIP_INDEX), folder, captions, max_bytes)
    return Table(TableFile(table, choice), folder, captions)


# -- names ----------------------------------------------------------------------------------------


def named(source: str) -> list[Path]:
    """The files and folders that a source names; ValueError for those that are not there."""
    if os.path.exists(source):
        return [Path(source)]
    out: list[Path] = []
    for one in (word for part in source.split("::") for word in _braces(part)):
        if re.match(r"(pipe|s3|gs|https?|hf):", one):
            raise ValueError(f"{source}: remote sources are not read; copy the files to a disk first")
        found = [one] if os.path.exists(one) else sorted(glob.glob(one))
        if not found:
            raise ValueError(f"{one}: no such file or folder" + (f" (of {source})" if one != source else ""))
        out += map(Path, found)
    return out


def _braces(pattern: str) -> Iterator[str]:
    """`x{08..11}y` and `x{a,b}y` written out, as shells and webdataset do it."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        yield pattern
        return
    first, last, words = found.groups()
    if words is None:
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)
        words = ",".join(f"{number:0{len(first) if first[0] == '0' else 0}d}" for number in numbers)
    for word in words.split(","):
        yield from _braces(pattern[: found.start()] + word + pattern[found.end() :])


# -- recognising ----------------------------------------------------------------------------------


def recognise(path: Path, images: Path | None) -> Layout:
    """The layout of what lies at `path`."""
    if path.is_file():
        if path.name.lower().endswith(tars.ENDINGS):
            return "tars"
        if path.suffix == ".parquet":
            return "parquet"
        if path.suffix in (*ENDINGS, ".txt"):  # Flickr8k's captions.txt is a csv
            return "zips" if _has_zips(images or path.parent) else "table"
    elif _some(path, tars.ENDINGS):
        return "tars"
    elif (found := _some(path, (".parquet",))) and has_images(found):
        return "parquet"
    elif _tables(path):
        return "zips" if _has_zips(images or path) else "table"
    elif has_pairs(path):
        return "files"
    elif _some(path, ENDINGS):
        return "table"  # in a folder within: which one is asked
    raise ValueError(
        f"{path}: no webdataset tars, no parquet with image bytes, no table of captions "
        f"({', '.join(ENDINGS)}), no images with .txt or .json beside them found; --layout forces one"
    )


def _is_retrieval(path: Path) -> bool:
    """Whether this is (part of) a retrieval set of clip-benchmark's, whose .txt are lines of captions."""
    told = [place / "dataset_type.txt" for place in (path, path.parent, path.parent.parent)]
    texts = (utf8.text(file.read_bytes(), str(file)) for file in told if file.is_file())
    return any(text.strip().lower() == "retrieval" for text in texts)


def _inside(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Files with these endings in a folder and all folders in it, without hidden ones, in no order."""
    for place in folders(folder):
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name[0] != "." and entry.name.lower().endswith(endings) and not entry.is_dir():
                    yield Path(entry.path)


def _some(folder: Path, endings: tuple[str, ...]) -> Path | None:
    return min(_inside(folder, endings), default=None)


def _has_zips(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("[0-9][0-9]/[0-9][0-9][0-9].zip"), None) is not None


def _files(paths: list[Path], endings: tuple[str, ...]) -> tuple[Path, ...]:
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(_inside(path, endings))
        if not found:
            raise ValueError(f"{path}: no {endings[0]} files")
        files += found
    return tuple(dict.fromkeys(files))


def _tables(folder: Path) -> list[Path]:
    """Tables of captions in a folder: no statistics of img2dataset's, no text that belongs to one image."""
    names = [name for name in os.listdir(folder) if name[0] != "."]
    stems = {Path(name).stem for name in names if name.lower().endswith(tars.PICTURES)}
    tables = (Path(name) for name in names if name.endswith(ENDINGS) and not name.endswith("_stats.json"))
    return sorted(folder / name for name in tables if name.stem not in stems)


def _table(path: Path) -> Path:
    if path.is_file():
        return path
    tables = _tables(path)
    if len(tables) != 1:
        there = tables or sorted(_inside(path, ENDINGS))[:8]
        names = ", ".join(str(file.relative_to(path)) for file in there) or "none"
        raise ValueError(f"{path}: which table of captions? found {names}; give the file itself as --source")
    return tables[0]
