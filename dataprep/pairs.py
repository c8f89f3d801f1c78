"""Image–caption sources: recognises the layout of a folder or file and makes its reader.

tars     webdataset, img2dataset (`tars.py`)         parquet  with image bytes (`parquet.py`)
table    csv, tsv, json lines, json + image files    zips     SLIP's zip folders + such a table
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dataprep import columns
from dataprep.parquet import Parquet, has_images, shape
from dataprep.shard import Source
from dataprep.tables import ENDINGS, Table, TableFile, Zips
from dataprep.tars import Tars

Layout = Literal["auto", "tars", "parquet", "table", "zips"]
ZIP_INDEX = ("index", "photo_index", "id", "photoid")  # columns with SLIP's photo number


def open_pairs(
    path: Path,
    *,
    layout: Layout = "auto",
    images: Path | None = None,
    choice: columns.Choice = columns.Choice(),  # noqa: B008 (frozen)
    captions: int = 0,
    max_bytes: int = 64 << 20,
) -> Source:
    """The source at `path`; `images` is the folder of images where it is not the table's own.

    Raises ValueError when nothing there is recognised, or columns are missing.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if captions < 0:
        raise ValueError(f"captions must be 0 (all) or more, not {captions}")
    chosen = recognise(path, images) if layout == "auto" else layout
    if chosen == "tars":
        files = _files(path, ".tar")
        return Tars(path, files, choice, captions, max_bytes)
    if chosen == "parquet":
        files = _files(path, ".parquet")
        shape(files[0], choice)
        return Parquet(path, files, choice, captions)
    table = _table(path)
    folder = images or table.parent
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    if chosen == "zips":
        return Zips(TableFile(table, choice, ZIP_INDEX), folder, captions, max_bytes)
    return Table(TableFile(table, choice), folder, captions)


def recognise(path: Path, images: Path | None) -> Layout:
    """The layout of what lies at `path`."""
    if path.is_file():
        if path.suffix == ".tar":
            return "tars"
        if path.suffix == ".parquet":
            return "parquet"
        if path.suffix in ENDINGS:
            return "zips" if _has_zips(images or path.parent) else "table"
    elif _some(path, "*.tar"):
        return "tars"
    elif (found := _some(path, "*.parquet")) and has_images(found):
        return "parquet"
    elif any(_some(path, f"*{ending}") for ending in ENDINGS):
        return "zips" if _has_zips(images or path) else "table"
    raise ValueError(
        f"{path}: no webdataset tars, no parquet with image bytes, no table of captions "
        f"({', '.join(ENDINGS)}) found; --layout forces one"
    )


def _some(folder: Path, pattern: str) -> Path | None:
    return min(folder.glob(pattern), default=None) or min(folder.glob(f"*/{pattern}"), default=None)


def _has_zips(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("[0-9][0-9]/[0-9][0-9][0-9].zip"), None) is not None


def _files(path: Path, ending: str) -> tuple[Path, ...]:
    files = [path] if path.is_file() else [*path.glob(f"*{ending}"), *path.glob(f"*/*{ending}")]
    if not files:
        raise ValueError(f"{path}: no {ending} files")
    return tuple(sorted(files))


def _table(path: Path) -> Path:
    if path.is_file():
        return path
    tables = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    if len(tables) != 1:
        names = ", ".join(file.name for file in tables) or "none"
        raise ValueError(f"{path}: which table of captions? found {names}; give the file itself as --source")
    return tables[0]
