"""Rows of a csv or tsv, each with its offset in the file, so that reading can begin at any row.

csv: strict RFC 4180 quoting.  tsv: one line is one row, and a quotation mark is an ordinary character,
unless it can only be csv's quoting (as pandas writes it): the field holds doubled marks, a tab or a line end,
and is closed properly.  A quotation mark that swallows what looks like rows is a fault of its line; the lines
after it are read.

Not here: which columns are wanted; whether a caption is UTF-8 (other bytes become surrogates).
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.formats import utf8

_LINES, _BYTES = 1_000, 1 << 20  # longest field in quotation marks
_LONG = 1 << 24  # bytes; a longer line is no row


class Head(NamedTuple):
    """The first line of a table."""

    names: list[str]
    delimiter: str
    quoted: bool  # its writer puts everything in quotation marks
    offset: int  # of the first row


class Row(NamedTuple):
    """One row; `fault` says why it cannot be taken."""

    offset: int
    line: int
    fields: list[str]
    fault: str = ""


def head(path: Path) -> Head:
    """Column names and delimiter.  Raises ValueError naming what is wrong with the file as a whole."""
    with open(path, "rb") as file:
        first = file.readline(_LONG)
    utf8.check(first, str(path))
    if b"\r" in first.rstrip(b"\r\n"):
        raise ValueError(f"{path}: its lines end as on old Macs, in CR alone; tr '\\r' '\\n' mends that")
    text = first.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
    if not text.strip():
        raise ValueError(f"{path}: no header line")
    delimiter = max("\t,;|", key=text.count)
    try:
        names = _parsed(text, delimiter)
    except csv.Error as error:
        raise ValueError(f"{path}: its header line is no csv: {error}") from None
    return Head(names, delimiter, text.startswith('"'), len(first))


def rows(path: Path, table: Head, image: int, start: int, stop: int | None, line: int) -> Iterator[Row]:
    """The rows that begin at offsets from `start` (0: the first) before `stop`.

    image: the column that names the image.  line: the number of the line at `start`, if `start` is not 0.
    """
    delimiter, columns = table.delimiter, len(table.names)
    with open(path, "rb") as file:
        offset, line = (start, line) if start else (table.offset, 2)
        file.seek(offset)
        while stop is None or offset < stop:
            raw = file.readline(_LONG)
            if not raw:
                return
            size, lines, fault = len(raw), 1, ""
            text = raw.decode("utf-8", "surrogateescape")
            if '"' in text:
                fields, more, fault = _quoted(file, text, table, image)
                size, lines = size + sum(map(len, more)), lines + len(more)
                file.seek(offset + size)  # it may have read on in vain
            else:
                fields = text.rstrip("\r\n").split(delimiter)
            if len(fields) != columns:
                fault = fault or _count(fields, table)
            if any(fields):  # else an empty line, or separators alone, as spreadsheets leave them
                yield Row(offset, line, fields, fault)
            offset += size
            line += lines


def _parsed(text: str, delimiter: str) -> list[str]:
    """The fields of one row, of any length; csv.Error if it is not csv."""
    limit = csv.field_size_limit(_LONG)  # of the process
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(limit)


def _count(fields: list[str], table: Head) -> str:
    """What is wrong with the number of fields of a row: else a caption cut at a comma would go unnoticed."""
    if len(fields) <= len(table.names) or not any(fields[len(table.names) :]):
        return ""
    name = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}[table.delimiter]
    return f"{len(fields)} fields where the header has {len(table.names)}: {name} in a field without quotes?"


def _quoted(file: BinaryIO, text: str, table: Head, image: int) -> tuple[list[str], list[bytes], str]:
    """(fields, further lines taken, fault) of the row that begins with `text`, which has a quotation mark."""
    fields, more, fault = _csv(file, text, table.delimiter)
    if more and not fault and any(_like_row(raw, fields, table, image) for raw in more):
        fault = f"a quotation mark opens here and closes {len(more)} lines on, after what looks like rows"
    if table.delimiter != "\t":
        return (text.rstrip("\r\n").split(table.delimiter), [], fault) if fault else (fields, more, "")
    plain = text.rstrip("\r\n").split("\t")
    if fault or (len(fields) != len(table.names) and len(plain) == len(table.names)):
        return plain, [], ""
    if len(fields) == len(plain) and not more and not table.quoted:
        fields = [a if b[:1] == '"' and re.search('["\r\n]', a) else b for a, b in zip(fields, plain)]
    return fields, more, ""


def _csv(file: BinaryIO, text: str, delimiter: str) -> tuple[list[str], list[bytes], str]:
    """As `_quoted`, by csv's rules; reads on in `file` until the quotation marks are closed."""
    more: list[bytes] = []
    size = len(text)
    while True:
        try:
            return _parsed(text, delimiter), more, ""
        except csv.Error as error:
            if "unexpected end" not in str(error):
                return [], [], f"its quotation marks do not pair up ({error})"
        while raw := file.readline(_BYTES):
            more.append(raw)
            size += len(raw)
            text += raw.decode("utf-8", "surrogateescape")
            if b'"' in raw or len(more) > _LINES or size > _BYTES:
                break
        if not raw or len(more) > _LINES or size > _BYTES:
            return [], [], "a quotation mark opens here and never closes"


def _like_row(raw: bytes, fields: list[str], table: Head, image: int) -> bool:
    """Whether a line inside quotation marks looks like a row: enough fields, and the same kind of image."""
    inside = raw.decode("utf-8", "surrogateescape").rstrip("\r\n").split(table.delimiter)
    if len(inside) < len(table.names) or len(fields) <= image:
        return False
    kind = _kind(fields[image])
    return bool(kind) and _kind(inside[image].strip('"')) == kind


def _kind(image: str) -> str:
    return "number" if image.isdecimal() else os.path.splitext(image)[1].lower()
