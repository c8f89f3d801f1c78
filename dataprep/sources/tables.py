"""Captions in a csv, tsv, json lines or json file; images as files, or in SLIP's zip folders.

A table of any length is read once to find where each shard begins (and how many captions an image
has); a shard then reads its own stretch.  Rows that follow each other with the same image are its
several captions.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataprep.shard import Bad, Left, Pair, Task
from dataprep.sources import columns, delimited, documents

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SHARD = 4_000  # images a shard

_LOOKED_AT = 1_000_000  # images of which it is seen whether they come again
_SURROGATES = re.compile("[\ud800-\udfff]")
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)
_URL = re.compile(r"(https?|s3|gs|ftp)://", re.IGNORECASE)
_BASE64 = re.compile(r"data:image/|[A-Za-z0-9+/]{300}")  # no name of a file is as long


class Record(NamedTuple):
    """One row: where it begins, which image it names, its captions; `fault` if it cannot be read."""

    offset: int
    number: int  # line, or item, counted from 1
    image: str
    captions: list[str]
    fault: str = ""


class Index(NamedTuple):
    """Where the shards begin (offsets, lines), images in each, the most captions of one image."""

    starts: tuple[int, ...]
    lines: tuple[int, ...]
    counts: tuple[int, ...]
    end: int
    most: int
    again: int  # images that come again after others, among the first _LOOKED_AT


@dataclass(frozen=True)
class TableFile:
    """A table on disk and the columns to read of it."""

    path: Path
    choice: columns.Choice
    image_names: tuple[str, ...] = tuple(columns.PATHS)

    def records(self, start: int = 0, stop: int | None = None, line: int = 1) -> Iterator[Record]:
        """The rows that begin at offsets from `start` (0: the first), its line `line`, to before `stop`."""
        if not self._is_json():
            return self._delimited(start, stop, line)
        return self._json_lines(start, stop, line) if self._items() is None else self._rows(start, stop)

    def _is_json(self) -> bool:
        return self.path.suffix.lower() in (".jsonl", ".ndjson", ".json")

    def _items(self) -> list | None:
        return documents.items(self.path) if self._is_json() else None

    def unit(self) -> str:
        """What `number` counts."""
        return "line" if self._items() is None else "item"

    def end(self) -> int:
        """Where the last row ends."""
        items = self._items()
        return self.path.stat().st_size if items is None else len(items)

    def beside(self) -> str:
        """What to say of columns of captions that are not taken."""
        names = self.names()
        return self.choice.beside(names, str(self.path)) if names else ""

    def names(self) -> list[str]:
        """Columns, by the header or the first record."""
        return list(self._first()) if self._is_json() else delimited.head(self.path).names

    def _first(self) -> dict:
        items = self._items()
        if items is None:
            with open(self.path, "rb") as file:
                return documents.parsed(next(filter(bytes.strip, file), b""))
        return items[0] if items and isinstance(items[0], dict) else {}

    def _delimited(self, start: int, stop: int | None, line: int) -> Iterator[Record]:
        table = delimited.head(self.path)
        names, where = table.names, str(self.path)
        image = names.index(self.choice.image_column(names, self.image_names, where))
        captions = [names.index(name) for name in self.choice.caption_columns(names, where)]
        least = max(image, *captions)
        for offset, number, fields, fault in delimited.rows(self.path, table, image, start, stop, line):
            if len(fields) <= least:
                fault = fault or f"{len(fields)} fields where the header has {len(names)}"
                yield Record(offset, number, "", [], fault)
                continue
            said = [text for i in captions for text in _cell(fields[i])]
            yield Record(offset, number, fields[image], said, fault or _not_utf8(said))

    # -- json -----------------------------------------------------------------------------------

    def _json_lines(self, start: int, stop: int | None, number: int) -> Iterator[Record]:
        with open(self.path, "rb") as file:
            file.seek(start)
            while stop is None or file.tell() < stop:
                offset, line = file.tell(), file.readline()
                if not line:
                    return
                if line.strip():
                    yield self._object(offset, number, line)
                number += 1

    def _object(self, offset: int, number: int, line: bytes | dict) -> Record:
        try:
            row = json.loads(line) if isinstance(line, bytes) else line
        except (ValueError, RecursionError) as error:
            return Record(offset, number, "", [], f"not JSON: {error}")
        if not isinstance(row, dict):
            return Record(offset, number, "", [], "not a JSON object")
        where = f"{self.path}: record {number}"
        try:
            image = row[self.choice.image_column(list(row), self.image_names, where)]
            names = self.choice.caption_columns(list(row), where)
        except ValueError as error:
            if offset == 0:
                raise  # already the first record lacks it: the wrong file, or other names
            return Record(offset, number, "", [], str(error))
        captions = [text for name in names for text in columns.strings(row[name])]
        fault = "" if isinstance(image, str | int | None) else f"no name of an image: {image!r:.80}"
        name = "" if image is None else str(image)
        odd = [row[n] for n in names if not isinstance(row[n], str | list | None)]
        if odd and not captions:
            fault = fault or f"its caption is no text: {odd[0]!r:.80}"
        return Record(offset, number, name, captions, fault or columns.half_character([name, *captions]))

    def _rows(self, start: int, stop: int | None) -> Iterator[Record]:
        for number, row in enumerate(self._items()[start:stop], start):
            yield self._object(number, number + 1, row)

    # -- shards -----------------------------------------------------------------------------------

    def groups(self, start: int = 0, stop: int | None = None, line: int = 1) -> Iterator[Record]:
        """Records with the captions of following records of the same image taken in."""
        held = None
        for record in self.records(start, stop, line):
            if held and record.image and record.image == held.image and not (held.fault or record.fault):
                held.captions.extend(record.captions)
                continue
            if held:
                yield held
            held = record
        if held:
            yield held


def _cell(said: str) -> list[str]:
    """The captions in a cell: one, or a list as Python or JSON write it (Flickr30k's `raw`, pandas)."""
    if said[:2] in ("['", '["') and said[-2:] in ("']", '"]'):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                several = read(said)
                if all(isinstance(text, str) for text in several):
                    return several
    return [said]


def _not_utf8(captions: list[str]) -> str:
    """What is wrong with captions that hold bytes which are no UTF-8; their letters cannot be known."""
    for caption in captions:
        if not caption.isascii() and _SURROGATES.search(caption):
            shown = caption[:40].encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x")
            return f"not UTF-8: '{shown}'; save the table as UTF-8 (from Windows: iconv -f CP1252 -t UTF-8)"
    return ""


@cache
def index(table: TableFile) -> Index:
    """Read a table once, to cut it into shards of whole images."""
    starts, lines, counts, most, count = [], [], [], 1, 0
    images = array("q")
    for record in table.groups():
        if count % SHARD == 0:
            starts.append(record.offset)
            lines.append(record.number)
            counts.append(0)
        count += 1
        counts[-1] += 1
        most = max(most, len(record.captions))
        if count <= _LOOKED_AT and record.image and not record.fault:
            images.append(hash(record.image))
    if not count:
        raise ValueError(f"{table.path}: no rows")
    again = int((np.diff(np.sort(np.array(images, np.int64))) == 0).sum())
    return Index(tuple(starts), tuple(lines), tuple(counts), table.end(), most, again)


@dataclass(frozen=True)
class _Rows:
    """Captions in a table, and images elsewhere."""

    table: TableFile
    folder: Path  # relative names start here
    wanted: int  # captions an image; 0: as many as there are
    kind = "pairs"

    @property
    def captions(self) -> int:
        return self.wanted or min(index(self.table).most, columns.MOST_CAPTIONS)

    def tasks(self) -> list[Task]:
        path, found = str(self.table.path), index(self.table)
        stops = (*found.starts[1:], found.end)
        rows = zip(found.starts, stops, found.counts, found.lines)
        return [Task(path, start, stop, count, count, line) for start, stop, count, line in rows]

    def images(self) -> int:
        return sum(task.weight for task in self.tasks())

    def _beside(self, task: Task) -> list[Left]:
        told = self.table.beside()
        return [Left(told, task.weight)] if told else []

    def describe(self) -> dict:
        path, again = self.table.path, index(self.table).again
        return ({"images_again": again} if again else {}) | {
            "name": "pairs", "layout": self.layout, "path": str(path), "images": str(self.folder),
            "captions": self.captions, "columns": vars(self.table.choice), "state": columns.state_of([path]),
        }  # fmt: skip


@dataclass(frozen=True)
class Table(_Rows):
    """Images as files that the table names."""

    layout = "table"

    def read(self, task: Task) -> Iterator[Pair | Bad | Left]:
        for record in self.table.groups(task.start, task.stop, task.line):
            where = f"{self.table.unit()} {record.number}"
            if record.fault or not record.image:
                yield Bad(where, "bad row", record.fault or "it names no image")
            elif _URL.match(record.image):
                told = "download the images first (img2dataset), or name the column of files: --image-column"
                yield Bad(where, "image is a URL", f"{record.image[:120]}; {told}")
            elif _BASE64.match(record.image):
                told = "write it to a file and name that, or put its bytes into parquet"
                yield Bad(where, "image is base64", f"{record.image[:24]}…; {told}")
            else:
                yield Pair(record.image, os.path.join(self.folder, record.image), record.captions)
        yield from self._beside(task)


@dataclass(frozen=True)
class Zips(_Rows):
    """SLIP's layout: photo 12345678 is 678.jpg in 12/345.zip; titles and descriptions in a table."""

    max_bytes: int
    layout = "zips"

    def read(self, task: Task) -> Iterator[Pair | Bad | Left]:
        opened: dict[Path, zipfile.ZipFile | None] = {}
        try:
            for record in self.table.groups(task.start, task.stop, task.line):
                yield self._photo(record, opened)
        finally:
            _close(opened.values())
        yield from self._beside(task)

    def _photo(self, record: Record, opened: dict) -> Pair | Bad:
        """One photograph, from its zip; `opened` keeps the last zip open."""
        digits = record.image.removesuffix(".jpg").zfill(8)
        if record.fault or not (digits.isdecimal() and len(digits) == 8):
            where = f"{self.table.unit()} {record.number}"
            return Bad(where, "bad row", record.fault or f"{record.image!r} is no index")
        path = self.folder / digits[:2] / f"{digits[2:5]}.zip"
        try:
            if path not in opened:
                _close(opened.values())
                opened.clear()
                opened[path] = None
                opened[path] = zipfile.ZipFile(path)
            if opened[path] is None:
                return Bad(digits, "unreadable zip", str(path))
            info = opened[path].getinfo(f"{digits[5:]}.jpg")
            if info.file_size > self.max_bytes:
                return Bad(digits, "too many bytes", f"{info.file_size}, the limit is {self.max_bytes}")
            return Pair(digits, opened[path].read(info), record.captions)
        except FileNotFoundError:
            return Bad(digits, "missing file", str(path))
        except KeyError:
            return Bad(digits, "missing file", f"{path}: no {digits[5:]}.jpg in it")
        except _ZIP_FAULTS as error:
            return Bad(digits, "unreadable zip", f"{path}: {error}")


def _close(files: Iterable[zipfile.ZipFile | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
