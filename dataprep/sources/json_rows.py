"""Rows of JSON lines, or of a JSON document: a list, COCO's captions, or an object of image → captions.

Not here: which fields are wanted (`tables.py`).
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pipeline.formats import utf8
from pipeline.formats.captions import from_coco
from pipeline.formats.tars import PICTURES

_MARK = codecs.BOM_UTF8


@cache
def items(path: Path) -> list | None:
    """The rows of a JSON document; None if the file holds one row a line (JSON lines)."""
    with open(path, "rb") as file:
        first = next((line for line in file if line.removeprefix(_MARK).strip()), b"")
        more = file.readline()
    utf8.check(first, str(path))
    start = first.removeprefix(_MARK).lstrip()
    if path.suffix.lower() != ".json" and not start.startswith(b"["):
        return None
    if more.strip() and parsed(first):
        return None
    try:
        data = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        if start.startswith(b"[") or isinstance(error, _Repeated):
            raise ValueError(f"{path}: not JSON: {error}") from None
        return None  # each line is then reported with its own fault
    return data if isinstance(data, list) else _document(path, data)


def rows(path: Path, start: int, stop: int | None, line: int) -> Iterator[tuple[int, int, bytes | dict]]:
    """(offset, number from 1, content) of the rows from offset `start`, in line `line`, to before `stop`.

    Of a document the content is parsed, and an offset counts its items; of JSON lines it is the line itself.
    """
    document = items(path)
    if document is not None:
        yield from ((item, item + 1, row) for item, row in enumerate(document[start:stop], start))
        return
    with open(path, "rb") as file:
        file.seek(start)
        for number, text in enumerate(file, line):
            if stop is not None and start >= stop:
                return
            if text.strip():
                yield start, number, text
            start += len(text)


def names(path: Path) -> list[str]:
    """The fields of the first row; none where it is no JSON object."""
    _, _, row = next(rows(path, 0, None, 1), (0, 0, {}))
    row = parsed(row) if isinstance(row, bytes) else row
    return list(row) if isinstance(row, dict) else []


class _Repeated(ValueError):
    """A name appears twice in one JSON object: Python would keep the last and drop the others."""


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Repeated(f"{repeated!r} appears more than once in one object")
    return row


def parsed(line: bytes) -> dict:
    """The JSON object in a line; empty if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _document(path: Path, data: object) -> list[dict] | None:
    """Rows of one JSON object; None if it is a row itself, or not an object."""
    if not isinstance(data, dict):
        return None
    if isinstance(data.get("images"), list):
        try:
            images = from_coco(data)
        except (KeyError, TypeError):
            raise ValueError(
                f"{path}: not COCO's captions (captions_*.json); Karpathy's files hold all splits: "
                "make a table of the images you want, with columns filepath and caption"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return [{"file_name": name, "caption": captions} for name, captions in images]
    if data and all(name.lower().endswith(PICTURES) for name in data):
        return [{"file_name": name, "caption": captions} for name, captions in data.items()]
    return None
