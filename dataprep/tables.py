"""Captions in a csv, tsv, json lines or json file; images as files, or in SLIP's zip folders.

A table of any length is read once to find where each shard begins (and how many captions an image
has); a shard then reads its own stretch.  Rows that follow each other with the same image are its
several captions.
"""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dataprep import columns
from dataprep.shard import Bad, Pair, Task

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
SHARD = 4_000  # images a shard

csv.field_size_limit(1 << 24)


class Record(NamedTuple):
    """One row: where it begins, which image it names, its captions; `fault` if it cannot be read."""

    offset: int
    number: int  # line, or item, counted from 1
    image: str
    captions: list[str]
    fault: str = ""


class Index(NamedTuple):
    """Where the shards begin, images in each, and the most captions of one image."""

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    end: int
    most: int


@dataclass(frozen=True)
class TableFile:
    """A table on disk and the columns to read of it."""

    path: Path
    choice: columns.Choice
    image_names: tuple[str, ...] = tuple(columns.PATHS)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """The rows that begin at offsets from `start` (0: the first) before `stop`."""
        if self._is_array():
            return self._items(start, stop)
        return self._json_lines(start, stop) if self._is_json() else self._csv(start, stop)

    def _is_json(self) -> bool:
        return self.path.suffix in (".jsonl", ".ndjson", ".json")

    def _is_array(self) -> bool:
        if self.path.suffix != ".json":
            return False
        with open(self.path, "rb") as file:
            return file.read(64).lstrip()[:1] == b"["

    # -- csv and tsv --------------------------------------------------------------------------

    def head(self) -> tuple[list[str], str, int]:
        """Column names, delimiter, and offset of the first row, of a csv or tsv."""
        with open(self.path, "rb") as file:
            lines = _Lines(file, 0)
            first = file.readline().decode("utf-8-sig", "surrogateescape")
            if not first.strip():
                raise ValueError(f"{self.path}: no header line")
            delimiter = max("\t,;", key=first.count)
            file.seek(0)
            names = next(csv.reader(lines, delimiter=delimiter))
            return names, delimiter, lines.offset

    def _csv(self, start: int, stop: int | None) -> Iterator[Record]:
        names, delimiter, first = self.head()
        image = names.index(self.choice.image_column(names, self.image_names, str(self.path)))
        captions = [names.index(name) for name in self.choice.caption_columns(names, str(self.path))]
        with open(self.path, "rb") as file:
            file.seek(max(start, first))
            lines = _Lines(file, max(start, first))
            rows = csv.reader(lines, delimiter=delimiter)
            while stop is None or lines.offset < stop:
                offset = lines.offset
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Record(offset, rows.line_num, "", [], str(error))
                    continue
                if row:
                    short = max(image, *captions) >= len(row)
                    fault = f"{len(row)} fields where the header has {len(names)}" if short else ""
                    name = row[image] if image < len(row) else ""
                    yield Record(
                        offset, rows.line_num, name, [row[i] for i in captions if i < len(row)], fault
                    )

    # -- json -----------------------------------------------------------------------------------

    def _json_lines(self, start: int, stop: int | None) -> Iterator[Record]:
        with open(self.path, "rb") as file:
            file.seek(start)
            number = 0
            while stop is None or file.tell() < stop:
                offset, line, number = file.tell(), file.readline(), number + 1
                if not line:
                    return
                if line.strip():
                    yield self._object(offset, number, line)

    def _object(self, offset: int, number: int, line: bytes | dict) -> Record:
        try:
            row = json.loads(line) if isinstance(line, bytes) else line
        except ValueError as error:
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
        return Record(offset, number, str(image), captions)

    def _items(self, start: int, stop: int | None) -> Iterator[Record]:
        for number, row in enumerate(_load(self.path)[start:stop], start):
            yield self._object(number, number + 1, row)

    # -- shards -----------------------------------------------------------------------------------

    def groups(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Records with the captions of following records of the same image taken in."""
        held = None
        for record in self.records(start, stop):
            if held and not held.fault and not record.fault and record.image == held.image:
                held.captions.extend(record.captions)
                continue
            if held:
                yield held
            held = record
        if held:
            yield held


class _Lines:
    """Lines of a binary file as text, for csv, with the offset after the last one."""

    def __init__(self, file, offset: int):
        self.file, self.offset = file, offset

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.offset += len(line)
        return line.decode("utf-8-sig" if self.offset == len(line) else "utf-8", "surrogateescape")


@cache
def _load(path: Path) -> list:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    return rows


@cache
def index(table: TableFile) -> Index:
    """Read a table once, to cut it into shards of whole images."""
    starts, counts, most, count = [], [], 1, 0
    for record in table.groups():
        if count % SHARD == 0:
            starts.append(record.offset)
            counts.append(0)
        count += 1
        counts[-1] += 1
        most = max(most, len(record.captions))
    if not count:
        raise ValueError(f"{table.path}: no rows")
    end = len(_load(table.path)) if table._is_array() else table.path.stat().st_size
    return Index(tuple(starts), tuple(counts), end, most)


def _tasks(table: TableFile) -> list[Task]:
    found = index(table)
    stops = (*found.starts[1:], found.end)
    return [Task(str(table.path), *row, row[2]) for row in zip(found.starts, stops, found.counts)]


def _captions(table: TableFile, wanted: int) -> int:
    return wanted or min(index(table).most, columns.MOST_CAPTIONS)


@dataclass(frozen=True)
class _Rows:
    """Captions in a table, and images elsewhere."""

    table: TableFile
    folder: Path  # relative names start here
    wanted: int  # captions an image; 0: as many as there are
    kind = "pairs"

    @property
    def captions(self) -> int:
        return _captions(self.table, self.wanted)

    def tasks(self) -> list[Task]:
        return _tasks(self.table)

    def images(self) -> int:
        return sum(task.weight for task in self.tasks())


@dataclass(frozen=True)
class Table(_Rows):
    """Images as files that the table names."""

    def read(self, task: Task) -> Iterator[Pair | Bad]:
        for record in self.table.groups(task.start, task.stop):
            if record.fault:
                yield Bad(f"offset {record.offset}", "bad row", record.fault)
            elif not record.image:
                yield Bad(f"offset {record.offset}", "bad row", "it names no image")
            else:
                yield Pair(record.image, os.path.join(self.folder, record.image), record.captions)

    def describe(self) -> dict:
        return {"layout": "table"} | _described(self)


@dataclass(frozen=True)
class Zips(_Rows):
    """SLIP's layout: photo 12345678 is 678.jpg in 12/345.zip; titles and descriptions in a table."""

    max_bytes: int

    def read(self, task: Task) -> Iterator[Pair | Bad]:
        opened: dict[Path, zipfile.ZipFile | None] = {}
        try:
            for record in self.table.groups(task.start, task.stop):
                yield self._photo(record, opened)
        finally:
            _close(opened.values())

    def _photo(self, record: Record, opened: dict) -> Pair | Bad:
        """One photograph, from its zip; `opened` keeps the last zip open."""
        digits = record.image.removesuffix(".jpg").zfill(8)
        if record.fault or not (digits.isdecimal() and len(digits) == 8):
            return Bad(f"offset {record.offset}", "bad row", record.fault or f"{record.image!r} is no index")
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
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            ValueError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            return Bad(digits, "unreadable zip", f"{path}: {error}")

    def describe(self) -> dict:
        return {"layout": "zips"} | _described(self)


def _described(source: Table | Zips) -> dict:
    path = source.table.path
    return {
        "name": "pairs", "path": str(path), "images": str(source.folder), "captions": source.captions,
        "columns": vars(source.table.choice), "state": columns.state_of([path]),
    }  # fmt: skip


def _close(files: Iterable[zipfile.ZipFile | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
