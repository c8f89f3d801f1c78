"""Image–caption sources: recognises the layout of a folder or file and opens it.

tars     webdataset, img2dataset (`tars.py`)
parquet  with image bytes (`parquet.py`)
table    csv, tsv, JSON lines or JSON, and image files (`tables.py`)
zips     the same, and SLIP's zip folders (`tables.py`)
files    images with .txt or .json beside them (`sidecars.py`)
"""

from __future__ import annotations

import contextlib
import glob
import heapq
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from dataprep.samples import Pair, Source
from dataprep.sources import columns
from dataprep.sources.members import Reading
from dataprep.sources.parquet import Parquet, find_columns, has_images
from dataprep.sources.sidecars import Sidecars, built, folders, has_pairs
from dataprep.sources.tables import ENDINGS, Table, TableFile, Zips
from dataprep.sources.tars import Tars
from pipeline.formats import tars, utf8

Layout = Literal["auto", "tars", "parquet", "table", "zips", "files"]
_SPLIT = re.compile(r"(?:^|[/_.-])(train|val|valid|validation|dev|test)(?:20\d\d)?(?=[/_.-]|$)", re.I)
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}|\w\+\w")
_DATASETS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}  # Hugging Face's
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
    """The source at `path`.

    path: a file or folder; several of tars or parquet: `{00000..00041}.tar`, `*.tar`, `ONE::OTHER`.
    images: the folder of images, if it is not the table's folder.
    lines: every line of a .txt is a caption of its own; clip-benchmark's retrieval sets say so themselves.
    Raises ValueError if nothing there is recognised, or columns are missing.
    """
    paths = named(str(path))
    if captions < 0:
        raise ValueError(f"captions must be 0 (all) or more, not {captions}")
    layouts = {recognise(path, images) for path in paths} if layout == "auto" else {layout}
    chosen = layouts.pop()
    if layouts or (len(paths) > 1 and chosen not in ("tars", "parquet")):
        raise ValueError(f"{path}: several sources are read together only if all are tars, or all parquet")
    reading = Reading(choice, lines or any(map(_is_retrieval, paths)))
    if chosen == "tars":
        return Tars(path, _files(paths, tars.ENDINGS), reading, captions, max_bytes)
    if chosen == "parquet":
        parquets = _files(paths, (".parquet",))
        files = tuple(filter(has_images, parquets)) or parquets[:1]
        find_columns(files[0], choice)  # raises now what is wrong with them
        without = tuple(sorted(set(parquets) - set(files)))
        return Parquet(path, files, choice, captions, without)
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
    """The files and folders that a source names; ValueError for those that do not exist."""
    if os.path.exists(source):
        return [Path(source)]
    paths: list[Path] = []
    for pattern in (pattern for part in source.split("::") for pattern in _braces(part)):
        if re.match(r"(pipe|s3|gs|https?|hf):", pattern):
            raise ValueError(f"{source}: remote sources are not read; copy the files to a disk first")
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            origin = f" (of {source})" if pattern != source else ""
            raise ValueError(f"{pattern}: no such file or folder{origin}")
        paths += map(Path, matches)
    return paths


def _braces(pattern: str) -> Iterator[str]:
    """`x{08..11}y` and `x{a,b}y` written out, as shells and webdataset do it."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        yield pattern
        return
    first, last, words = match.groups()
    if words is None:
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)
        words = ",".join(f"{number:0{len(first) if first[0] == '0' else 0}d}" for number in numbers)
    for word in words.split(","):
        yield from _braces(pattern[: match.start()] + word + pattern[match.end() :])


# -- recognising ----------------------------------------------------------------------------------


def recognise(path: Path, images: Path | None) -> Layout:
    """The layout of the file or folder `path`."""
    if path.is_file():
        if path.name.lower().endswith(tars.ENDINGS):
            return "tars"
        if path.suffix.lower() == ".parquet":
            return "parquet"
        if path.suffix.lower() in (*ENDINGS, ".txt"):  # Flickr8k's captions.txt is a csv
            return "zips" if _has_zips(images or path.parent) else "table"
    elif _first(path, tars.ENDINGS):
        return "tars"
    elif any(map(_shows_images, _first(path, (".parquet",)))):
        return "parquet"
    elif _tables(path):
        return "zips" if _has_zips(images or path) else "table"
    elif has_pairs(path):
        return "files"
    elif {file.name for file in _first(path, ENDINGS)} - _DATASETS:
        return "table"  # in a subfolder: `_table` asks which one
    else:
        for file in _first(path, (".parquet",)):
            has_images(file)  # raises for a damaged one
    raise ValueError(
        f"{path}: no webdataset tars, no parquet with image bytes, no table of captions "
        f"({', '.join(ENDINGS)}), no images with .txt or .json beside them found"
        f"{_instead(path)}; --layout forces one"
    )


def _shows_images(parquet: Path) -> bool:
    with contextlib.suppress(ValueError):  # damaged, but perhaps not part of the source
        return has_images(parquet)
    return False


_INSTEAD = {
    ".txt": "texts (a table of captions: name the file itself)",
    ".parquet": "parquet without a column of image bytes (of URLs: download them with img2dataset first)",
    ".gz": "packed files (gunzip them)",
    ".bz2": "packed files (bunzip2 them)",
    ".zip": "zips (unpack them)",
    ".arrow": "arrow files (datasets: Dataset.to_parquet writes what is read here)",
    ".xlsx": "a spreadsheet (save it as csv in UTF-8)",
}


def _instead(path: Path) -> str:
    """What else is there, and how it becomes readable."""
    files = [path] if path.is_file() else _first(path, tuple(_INSTEAD))
    kinds = {_INSTEAD.get(file.suffix.lower(), "") for file in files} - {""}
    return "; found instead: " + ", ".join(sorted(kinds)) if kinds else ""


def notes(source: Source, path: Path) -> Iterator[str]:
    """What the user should know of a source before it is built, because it may not be intended."""
    if isinstance(source, Tars) and path.is_dir() and any(map(_shows_images, _first(path, (".parquet",), 1))):
        yield "there are parquet files with images too, which are not read: --layout parquet reads them"
    files = [os.path.relpath(task.path, path) for task in source.tasks()] if path.is_dir() else []
    splits = {split.lower() for file in files for split in _SPLIT.findall(file)}
    if len(splits) > 1:
        yield f"several splits ({', '.join(sorted(splits))}) are taken together: --source names one"
    if isinstance(source, Table | Zips):
        yield from _notes_on_columns(source)
    samples = [s for s in islice(source.read(source.tasks()[0]), 200) if isinstance(s, Pair)]
    captions = [text for sample in samples if isinstance(sample.captions, list) for text in sample.captions]
    encoded = next(filter(_ENCODED.search, captions), "")
    if encoded and not any(re.search(r"\s", text) for text in captions):
        yield f"captions look URL-encoded ({encoded[:60]}): decode them first (urllib.parse.unquote_plus)"


def _notes_on_columns(source: Table | Zips) -> Iterator[str]:
    names = source.table.names()
    if "split" in names:
        yield "rows of every split are taken: the column split is not looked at"
    images = [name for name in columns.PATHS if name in names] if isinstance(source, Table) else []
    if len(images) > 1 and not source.table.choice.image:
        yield f"images are those of column {images[0]}, not of {', '.join(images[1:])} (--image-column)"


# -- searching folders ----------------------------------------------------------------------------


def _is_retrieval(path: Path) -> bool:
    """Whether this is (part of) one of clip-benchmark's retrieval sets, whose .txt are lines of captions."""
    files = [folder / "dataset_type.txt" for folder in (path, path.parent, path.parent.parent)]
    texts = (utf8.text(file.read_bytes(), str(file)) for file in files if file.is_file())
    return any(text.strip().lower() == "retrieval" for text in texts)


def _inside(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Files with these endings in a folder and all its subfolders, without hidden ones, in no order."""
    for path in folders(folder):
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name[0] != "." and entry.name.lower().endswith(endings) and not entry.is_dir():
                    yield Path(entry.path)


def _first(folder: Path, endings: tuple[str, ...], most: int = 32) -> list[Path]:
    return heapq.nsmallest(most, _inside(folder, endings))


def _has_zips(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("[0-9][0-9]/[0-9][0-9][0-9].zip"), None) is not None


def _files(paths: list[Path], endings: tuple[str, ...]) -> tuple[Path, ...]:
    files: list[Path] = []
    for path in paths:
        inside = [path] if path.is_file() else sorted(_inside(path, endings))
        if not inside:
            raise ValueError(f"{path}: no {endings[0]} files")
        files += inside
    return tuple(dict.fromkeys(files))


def _tables(folder: Path) -> list[Path]:
    """Tables of captions in a folder; not img2dataset's statistics, nor texts that belong to one image."""
    entries = [name for name in os.listdir(folder) if name[0] != "."]
    names = sorted(set(entries) - built(entries) - _DATASETS)
    images = [name for name in names if name.lower().endswith(tars.PICTURES)]
    stems = {*images, *(Path(name).stem for name in images)}
    tables = (Path(name) for name in names if name.lower().endswith(ENDINGS))
    return [folder / n for n in tables if n.stem not in stems and not n.name.endswith("_stats.json")]


def _table(path: Path) -> Path:
    if path.is_file():
        return path
    tables = _tables(path)
    if len(tables) != 1:
        candidates = tables or sorted(_inside(path, ENDINGS))[:8]
        names = ", ".join(str(file.relative_to(path)) for file in candidates) or "none"
        raise ValueError(f"{path}: which table of captions? found {names}; give the file itself as --source")
    return tables[0]
