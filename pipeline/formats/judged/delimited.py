"""Delimited tables of judgements (csv, tsv, whole numbers in lines): the one reader for all judged sets.

Columns are found by name, never by place.  What would shift a value or lose a row is refused, with the row
and the column named: rows are the lines of the file, counted from 1 with the header.  So a row may not
take two lines, and a text with a line end in quotation marks is refused too.

What the columns mean is not known here.
"""

from __future__ import annotations

import csv
import io
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.formats import utf8

_AT_ONCE = 1 << 16  # rows parsed before their other columns are dropped: bounds the memory of a long table
_WHOLE = 2.0**53  # float64 holds every whole number up to here


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text as they were read, N rows; `line` (N,) int64 says in which line a row stands.

    An optional column that the file does not have is not in `columns`.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    line: np.ndarray

    def text(self, name: str) -> list[str]:
        """A column's N texts, without blanks around them."""
        return [value.strip() for value in self.columns[name]]

    def number(self, name: str, low: float, high: float) -> np.ndarray:
        """A column's numbers, (N,) float64.  ValueError names the first that is none from low to high."""
        values = self.columns[name]
        try:
            found = np.fromiter(map(float, values), np.float64, len(values))
        except ValueError:
            found = np.array([_number(value) for value in values])
        self.check(name, (found >= low) & (found <= high), f"a number from {low:g} to {high:g} is expected")
        return found

    def integer(self, name: str, low: int, high: int) -> np.ndarray:
        """A column's whole numbers, (N,) int64; 3.0 is one.  ValueError as in `number`."""
        found = self.number(name, low, high)
        self.check(name, found == np.floor(found), f"a whole number from {low} to {high} is expected")
        return found.astype(np.int64)

    def images(self, *names: str) -> tuple[tuple[str, ...], np.ndarray]:
        """The U different paths of the columns, as they come, and which stands where: (N, columns) int32.

        ValueError for one that is empty or leads out of the folder.
        """
        columns = [self.text(name) for name in names]
        place = {path: number for number, path in enumerate(dict.fromkeys(chain(*columns)))}
        wrong = {path for path in place if not is_inside(path)}
        for name, column in zip(names, columns):
            right = np.array([path not in wrong for path in column]) if wrong else np.ones(len(column), bool)
            self.check(name, right, "the path of an image inside the folder is expected")
        rows = [np.fromiter(map(place.__getitem__, column), np.int32, len(column)) for column in columns]
        return tuple(place), np.stack(rows, axis=1)

    def check(self, name: str, right: np.ndarray, expected: str) -> None:
        """ValueError that names the first row of a column that is not right, (N,) bool, and what it holds."""
        if not right.all():
            row = int(np.argmin(right))
            raise ValueError(
                f"{self.path}: row {self.line[row]}: {name} is {self.columns[name][row]!r}; {expected}"
            )


def columns(
    path: Path, names: Sequence[str], *, delimiter: str | None = None, optional: Sequence[str] = ()
) -> Table:
    """The named columns of a table with a header.  Blank lines are passed over, other columns not kept.

    delimiter: None is a tab in a .tsv, else a comma.
    Raises ValueError: no such file, not UTF-8, no row, a column missing or there twice, a row with more or
    fewer fields than the header, quotation marks that do not pair up in a line.
    """
    data = _bytes(path)
    delimiter = delimiter or ("\t" if path.suffix == ".tsv" else ",")
    try:
        parts = _parts(data, delimiter)
        header = [name.strip() for name in next(parts, [[]])[0]]
        places = _places(header, names, optional, delimiter)
        kept: dict[str, list[str]] = {name: [] for name in places}
        lines: list[int] = []
        start = 2
        for rows in parts:
            lines += _full(rows, len(header), start)
            filled = [row for row in rows if _is_filled(row)]
            for name, place in places.items():
                kept[name] += [sys.intern(row[place]) for row in filled]  # a path comes often, held once
            start += len(rows)
        if not lines:
            raise ValueError("no row below the header")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Table(path, kept, np.array(lines, np.int64))


def numbers(path: Path, columns: int, *, delimiter: str | None = None) -> np.ndarray:
    """Whole numbers, (N, columns) int64, of a text without a header: row n is line n + 1.

    delimiter: None is a comma if the first line has one, else blanks and tabs.
    1.0e+00 is a whole number too: numpy.savetxt writes them so.
    Raises ValueError that names the first line which is not `columns` whole numbers; a blank line is none,
    unless it is at the end.
    """
    data = _bytes(path)
    if not data.strip():
        raise ValueError(f"{path}: it is empty; lines of {columns} whole numbers are expected")
    delimiter = delimiter or ("," if b"," in data.split(b"\n", 1)[0] else None)
    separator = None if delimiter in (None, " ", "\t") else delimiter
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = np.loadtxt(text, np.float64, comments=None, delimiter=separator, ndmin=2)
        whole = bool(np.all((found == np.floor(found)) & (np.abs(found) < _WHOLE)))
    except (ValueError, Warning):
        found, whole = np.empty((0, 0)), False
    lines = 1 + data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip().count(b"\n")
    if not whole or found.shape != (lines, columns):
        raise ValueError(f"{path}: {_wrong_line(data, columns, separator)}")
    return found.astype(np.int64)


def repeats(rows: np.ndarray, number: np.ndarray) -> tuple[str, ...]:
    """A note about judgements of the very same images, which all count: rows (N, k), number (N,) their names.

    Empty if there are none.  The order of the images matters: (0, 1, 2) does not repeat (0, 2, 1).
    """
    order = np.lexsort(rows.T[::-1])
    again = np.flatnonzero((rows[order[1:]] == rows[order[:-1]]).all(axis=1)) + 1  # stable: the later of two
    if not again.size:
        return ()
    first = again[np.argmin(number[order[again]])]
    here, before = number[order[first]], number[order[first - 1]]
    return (f"rows whose images an earlier row has too: {again.size} (first: row {here}, as row {before})",)


def used(images: Sequence[str], rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The images that rows (N, k) still name after some were left out, and the rows over them, int32."""
    left, place = np.unique(rows, return_inverse=True)
    return tuple(images[image] for image in left), place.reshape(rows.shape).astype(np.int32)


def is_inside(path: str) -> bool:
    """Whether the path of an image stays inside the folder that it is relative to."""
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    data = path.read_bytes()
    utf8.text(data, str(path))
    return data


def _reader(data: bytes, delimiter: str) -> Any:  # csv's own type has no public name
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    return csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)


def _parts(data: bytes, delimiter: str) -> Iterator[list[list[str]]]:
    """The header alone, then the rows, some at once; ValueError if a row takes more than one line."""
    reader, read, size = _reader(data, delimiter), 0, 1
    while rows := _next(reader, size, data, delimiter):
        read += len(rows)
        if reader.line_num != read:
            raise ValueError(_quotes(data, delimiter))
        yield rows
        size = _AT_ONCE


def _next(reader: Any, size: int, data: bytes, delimiter: str) -> list[list[str]]:
    try:
        return list(islice(reader, size))
    except csv.Error:
        raise ValueError(_quotes(data, delimiter)) from None


def _quotes(data: bytes, delimiter: str) -> str:
    """Says in which row the quotation marks do not pair up, once it is known that they do not."""
    reader, line = _reader(data, delimiter), 0
    try:
        for line, _ in enumerate(reader, 1):
            if reader.line_num != line:
                return f"row {line}: a quotation mark opens here and closes in another line"
    except csv.Error as error:
        return f"row {line + 1}: its quotation marks do not pair up ({error})"
    raise AssertionError("all quotation marks pair up")


def _places(
    header: Sequence[str], names: Sequence[str], optional: Sequence[str], delimiter: str
) -> dict[str, int]:
    wanted = [*names, *(name for name in optional if name in header)]
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise ValueError(f"row 1: more than one column is called {', '.join(twice)}")
    missing = [name for name in names if name not in header]
    if missing:
        other = next((mark for mark in "\t;,|" if mark != delimiter and mark in "".join(header)), "")
        advice = f"; {delimiter!r} was expected between columns, not {other!r}" if other else ""
        raise ValueError(
            f"row 1: no column {', '.join(missing)}; it has {', '.join(header) or 'none'}{advice}"
        )
    return {name: header.index(name) for name in wanted}


def _is_filled(row: Sequence[str]) -> bool:
    return len(row) > 1 or bool(row and row[0])


def _full(rows: Sequence[Sequence[str]], width: int, start: int) -> list[int]:
    """The lines of the rows that are not blank; ValueError for one that is not as wide as the header."""
    filled = [line for line, row in enumerate(rows, start) if _is_filled(row)]
    wrong = next((line for line in filled if len(rows[line - start]) != width), None)
    if wrong is not None:
        count = len(rows[wrong - start])
        raise ValueError(f"row {wrong}: {count} fields, the header has {width}; a delimiter in a text?")
    return filled


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def _wrong_line(data: bytes, columns: int, delimiter: str | None) -> str:
    for number, line in enumerate(re.split("\r\n|\r|\n", data.decode("utf-8-sig").rstrip()), 1):
        fields = [field.strip() for field in line.split(delimiter)]
        values = [_number(field) for field in fields]
        if len(values) != columns or not all(v == np.floor(v) and abs(v) < _WHOLE for v in values):
            return f"row {number}: {line[:80]!r}; {columns} whole numbers are expected"
    return f"not lines of {columns} whole numbers"
