"""Image–caption sources: recognises the layout of a folder or file and makes its reader.

tars     webdataset, img2dataset (`tars.py`)         parquet  with image bytes (`parquet.py`)
table    csv, tsv, json lines, json + image files    zips     SLIP's zip folders + such a table
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

from dataprep.shard import Bad, Left, Pair, Source
from dataprep.sources import columns
from dataprep.sources.members import Reading
from dataprep.sources.parquet import Parquet, has_images, shape
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
        there = _files(paths, (".parquet",))
        files = tuple(filter(has_images, there)) or there[:1]
        shape(files[0], choice)
        without = tuple(sorted(set(there) - set(files)))
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
        return "table"  # in a folder within: which one is asked
    else:
        any(map(has_images, _first(path, (".parquet",))))  # a damaged one tells
    raise ValueError(
        f"{path}: no webdataset tars, no parquet with image bytes, no table of captions "
        f"({', '.join(ENDINGS)}), no images with .txt or .json beside them found"
        f"{_instead(path)}; --layout forces one"
    )


def _shows_images(parquet: Path) -> bool:
    with contextlib.suppress(ValueError):  # damaged: it may be beside the matter
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
    """What else lies there, and how it becomes readable."""
    files = [path] if path.is_file() else _first(path, tuple(_INSTEAD))
    told = {_INSTEAD.get(file.suffix.lower()) for file in files} - {None}
    return "; found instead: " + ", ".join(sorted(told)) if told else ""


def notes(source: Source, path: Path) -> Iterator[str]:
    """What to say of a source before it is built, because it may not be meant."""
    if isinstance(source, Tars) and path.is_dir() and any(map(_shows_images, _first(path, (".parquet",), 1))):
        yield "parquet files with images lie there too and are not read: --layout parquet reads them"
    files = [os.path.relpath(task.path, path) for task in source.tasks()] if path.is_dir() else []
    splits = {found.lower() for file in files for found in _SPLIT.findall(file)}
    if len(splits) > 1:
        yield f"of several splits ({', '.join(sorted(splits))}), taken together: --source names one"
    names = source.table.names() if isinstance(source, Table | Zips) else []
    if "split" in names:
        yield "rows of every split are taken: the column split is not looked at"
    places = [name for name in columns.PATHS if name in names] if isinstance(source, Table) else []
    if len(places) > 1 and not source.table.choice.image:
        yield f"images are those of column {places[0]}, not of {', '.join(places[1:])} (--image-column)"
    said = [text for raw in islice(source.read(source.tasks()[0]), 200) for text in _texts(raw)]
    encoded = next(filter(_ENCODED.search, said), "")
    if encoded and not any(re.search(r"\s", text) for text in said):
        yield f"captions look URL-encoded ({encoded[:60]}): decode them first (urllib.parse.unquote_plus)"


def _texts(raw: Pair | Bad | Left) -> list[str]:
    return raw.captions if isinstance(raw, Pair) and isinstance(raw.captions, list) else []


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


def _first(folder: Path, endings: tuple[str, ...], most: int = 32) -> list[Path]:
    return heapq.nsmallest(most, _inside(folder, endings))


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
    names = sorted(set(names) - built(names) - _DATASETS)
    pictures = [name for name in names if name.lower().endswith(tars.PICTURES)]
    stems = {*pictures, *(Path(name).stem for name in pictures)}
    tables = (Path(name) for name in names if name.lower().endswith(ENDINGS))
    return [folder / n for n in tables if n.stem not in stems and not n.name.endswith("_stats.json")]


def _table(path: Path) -> Path:
    if path.is_file():
        return path
    tables = _tables(path)
    if len(tables) != 1:
        there = tables or sorted(_inside(path, ENDINGS))[:8]
        names = ", ".join(str(file.relative_to(path)) for file in there) or "none"
        raise ValueError(f"{path}: which table of captions? found {names}; give the file itself as --source")
    return tables[0]
