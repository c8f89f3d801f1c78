"""Captions in a csv, tsv, JSON lines or JSON file; images as files, or in SLIP's zip folders.

A table of any length is read once, to find where each shard begins and how many captions an image has; a
shard then reads its own stretch.  Consecutive rows with the same image are its several captions.

Not here: parsing csv (`delimited.py`) and JSON (`json_rows.py`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import zipfile
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice, pairwise, starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataprep.samples import Bad, Pair, PairSource, PassedOver, Task
from dataprep.sources import columns, delimited, json_rows

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SHARD = 4_000  # images a shard
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_LOOKED_AT = 1_000_000  # images that are searched for repeated ones
_SURROGATES = re.compile("[\ud800-\udfff]")
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)
_URL = re.compile(r"(https?|s3|gs|ftp)://", re.IGNORECASE)
_BASE64 = re.compile(r"data:image/|[A-Za-z0-9+/]{300}")  # no file name is that long


class Record(NamedTuple):
    """One row: where it begins, which image it names, its captions; `fault` says why it cannot be read."""

    offset: int
    number: int  # line, or item, counted from 1
    image: str
    captions: list[str]
    fault: str = ""


class Index(NamedTuple):
    """A table cut into shards, and what reading it once has shown."""

    tasks: tuple[Task, ...]
    most: int  # captions of one image
    repeats: int  # images that come again after others, among the first _LOOKED_AT


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
        return starmap(self._object, json_rows.rows(self.path, start, stop, line))

    def _is_json(self) -> bool:
        return self.path.suffix.lower() in _JSON_LINES

    def _items(self) -> list | None:
        return json_rows.items(self.path) if self._is_json() else None

    def unit(self) -> str:
        """What `number` counts."""
        return "line" if self._items() is None else "item"

    def end(self) -> int:
        """Where the last row ends."""
        items = self._items()
        return self.path.stat().st_size if items is None else len(items)

    def beside(self) -> str:
        """A note on columns of captions that are not taken; empty without any."""
        names = self.names()
        return self.choice.beside(names, str(self.path)) if names else ""

    def names(self) -> list[str]:
        """Columns, from the header or the first record."""
        return json_rows.names(self.path) if self._is_json() else delimited.head(self.path).names

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
            texts = [text for i in captions for text in _cell(fields[i])]
            yield Record(offset, number, fields[image], texts, fault or _not_utf8(texts))

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
                raise  # the very first record lacks it: the wrong file, or other names
            return Record(offset, number, "", [], str(error))
        captions = [text for name in names for text in columns.strings(row[name])]
        fault = "" if isinstance(image, str | int | None) else f"not the name of an image: {image!r:.80}"
        name = "" if image is None else str(image)
        not_texts = [row[n] for n in names if not isinstance(row[n], str | list | None)]
        if not_texts and not captions:
            fault = fault or f"its caption is not text: {not_texts[0]!r:.80}"
        return Record(offset, number, name, captions, fault or columns.half_character([name, *captions]))

    # -- shards -----------------------------------------------------------------------------------

    def groups(self, start: int = 0, stop: int | None = None, line: int = 1) -> Iterator[Record]:
        """Records; consecutive ones of the same image are merged into one with all captions."""
        group = None
        for record in self.records(start, stop, line):
            if group and record.image and record.image == group.image and not (group.fault or record.fault):
                group.captions.extend(record.captions)
                continue
            if group:
                yield group
            group = record
        if group:
            yield group


def _cell(cell: str) -> list[str]:
    """The captions in a cell: one, or a list as Python or JSON write it (Flickr30k's `raw`, pandas)."""
    if cell[:2] in ("['", '["') and cell[-2:] in ("']", '"]'):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                captions = parse(cell)
                if all(isinstance(caption, str) for caption in captions):
                    return captions
    return [cell]


def _not_utf8(captions: list[str]) -> str:
    """What is wrong with captions that hold bytes which are not UTF-8; else empty."""
    for caption in captions:
        if not caption.isascii() and _SURROGATES.search(caption):
            shown = caption[:40].encode("utf-8", "backslashreplace").decode().replace("\\udc", "\\x")
            return f"not UTF-8: '{shown}'; save the table as UTF-8 (from Windows: iconv -f CP1252 -t UTF-8)"
    return ""


@cache
def index(table: TableFile) -> Index:
    """Read a table once, to cut it into shards of whole images."""
    tasks: list[Task] = []
    images = array("q")  # hashes of their names
    most, groups = 1, table.groups()
    while shard := list(islice(groups, SHARD)):
        start, count = shard[0], len(shard)
        tasks.append(Task(str(table.path), start.offset, table.end(), count, count, start.number))
        most = max(most, *(len(record.captions) for record in shard))
        if len(tasks) * SHARD <= _LOOKED_AT:
            images.extend(hash(record.image) for record in shard if record.image and not record.fault)
    if not tasks:
        raise ValueError(f"{table.path}: no rows")
    # A shard ends where the next one begins.
    tasks[:-1] = [task._replace(stop=after.start) for task, after in pairwise(tasks)]
    repeats = int((np.diff(np.sort(np.array(images, np.int64))) == 0).sum())
    return Index(tuple(tasks), most, repeats)


@dataclass(frozen=True)
class _TableSource(PairSource):
    """Captions in a table, and images elsewhere."""

    table: TableFile
    folder: Path  # relative names start here
    wanted: int

    def most_captions(self) -> int:
        return index(self.table).most

    def tasks(self) -> list[Task]:
        return list(index(self.table).tasks)

    def read(self, task: Task) -> Iterator[Pair | Bad | PassedOver]:
        _opened.cache_clear()  # what it tells of a zip that was missing may be so no more
        for record in self.table.groups(task.start, task.stop, task.line):
            yield self._sample(record)
        if note := self.table.beside():
            yield PassedOver(note, task.weight)

    @abstractmethod
    def _sample(self, record: Record) -> Pair | Bad: ...

    def _bad(self, record: Record, reason: str, detail: str) -> Bad:
        return Bad(f"{self.table.unit()} {record.number}", reason, detail)

    def describe(self) -> dict:
        repeats, path = index(self.table).repeats, self.table.path
        again = {"images_again": repeats} if repeats else {}
        return again | self.description(path, self.table.choice, [path], images=str(self.folder))


@dataclass(frozen=True)
class Table(_TableSource):
    """Images as files that the table names."""

    layout = "table"

    def _sample(self, record: Record) -> Pair | Bad:
        if record.fault or not record.image:
            return self._bad(record, "bad row", record.fault or "it names no image")
        if _URL.match(record.image):
            advice = "download the images first (img2dataset), or name the column of files: --image-column"
            return self._bad(record, "image is a URL", f"{record.image[:120]}; {advice}")
        if _BASE64.match(record.image):
            advice = "write it to a file and name that, or put its bytes into parquet"
            return self._bad(record, "image is base64", f"{record.image[:24]}…; {advice}")
        return Pair(record.image, os.path.join(self.folder, record.image), record.captions)


@dataclass(frozen=True)
class Zips(_TableSource):
    """SLIP's layout: photo 12345678 is 678.jpg in 12/345.zip; titles and descriptions are in a table."""

    max_bytes: int
    layout = "zips"

    def _sample(self, record: Record) -> Pair | Bad:
        digits = record.image.removesuffix(".jpg").zfill(8)
        if record.fault or not (digits.isdecimal() and len(digits) == 8):
            fault = record.fault or f"{record.image!r} is not a photo number"
            return self._bad(record, "bad row", fault)
        path, name = self.folder / digits[:2] / f"{digits[2:5]}.zip", f"{digits[5:]}.jpg"
        try:
            archive = _opened(path)
            if isinstance(archive, Exception):
                raise archive.with_traceback(None)
            info = archive.getinfo(name)
            if info.file_size > self.max_bytes:
                return Bad(digits, "too many bytes", f"{info.file_size}, the limit is {self.max_bytes}")
            return Pair(digits, archive.read(info), record.captions)
        except FileNotFoundError:
            return Bad(digits, "missing file", str(path))
        except KeyError:
            return Bad(digits, "missing file", f"{path}: no {name} in it")
        except _ZIP_FAULTS as error:
            return Bad(digits, "unreadable zip", f"{path}: {error}")


@lru_cache(maxsize=1)  # the photos of a zip follow each other
def _opened(path: Path) -> zipfile.ZipFile | Exception:
    """The zip at `path`, or why it cannot be opened: a bad one is not tried again for each of its photos."""
    try:
        return zipfile.ZipFile(path)
    except _ZIP_FAULTS as error:
        return error
