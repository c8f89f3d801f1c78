"""Parquet files with the images' bytes in a column (bytes, or struct{bytes, path}).

Captions are strings, lists of strings, or CLIP token ids stored as floats (RWKV-CLIP's YFCC15M), which are
checked and taken as they are.  A shard is one or several row groups of some thousand rows together.

K captions of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataprep.samples import Bad, Pair, PairSource, PassedOver, Task
from dataprep.sources import columns
from pipeline.beton.fields import CONTEXT_LENGTH
from pipeline.formats import utf8
from pipeline.text import END, START

_NOT_UTF8 = object()
_TEXTS = ("string", "large_string", "string_view")  # types of a column
_ROWS = 4_000  # least rows of a shard, unless the file ends


class Columns(NamedTuple):
    """The columns of a file that are read."""

    image: str
    captions: tuple[str, ...]
    tokens: bool  # captions are token ids
    status: tuple[str, ...]  # img2dataset's column that says which downloads failed, if there is one


class Row(NamedTuple):
    """Values of one row."""

    status: str | None
    image: Any  # bytes, a dict of bytes and path, or None
    captions: tuple


def find_columns(path: Path, choice: columns.Choice) -> Columns:
    """Find the columns of a parquet file.  Raises ValueError that lists what it has."""
    import pyarrow as arrow

    schema = _open(path).schema_arrow
    binary = [f.name for f in schema if _is_bytes(f.type)]
    if not binary:
        names = ", ".join(schema.names)
        raise ValueError(f"{path}: no column holds image bytes; it has {names}: download the images first")
    usual = columns.BYTES + (binary if len(binary) == 1 else [])  # among several there is no guessing
    image = choice.image_column(binary, usual, f"{path} (columns of bytes)")
    others = [f.name for f in schema if f.name != image]
    captions = choice.caption_columns(others, str(path))
    kinds = [_inner(schema.field(name).type) for name in captions]
    tokens = [arrow.types.is_floating(kind) or arrow.types.is_integer(kind) for kind in kinds]
    for name, kind, number in zip(captions, kinds, tokens):
        if str(kind) not in _TEXTS and not (number and kind != schema.field(name).type):
            raise ValueError(f"{path}: {name} holds {kind}, not text; name captions with --caption-columns")
    if any(tokens) and len(captions) > 1:
        raise ValueError(f"{path}: {', '.join(captions)} are numbers; token ids are read from one column")
    return Columns(image, captions, any(tokens), ("status",) if "status" in schema.names else ())


def _inner(kind):
    """The type of a column's values, inside of lists and dictionaries."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind


def _is_bytes(kind) -> bool:
    import pyarrow as arrow

    if arrow.types.is_struct(kind):
        return any(f.name == "bytes" and _is_bytes(f.type) for f in kind)
    return str(kind) in ("binary", "large_binary", "binary_view")


def has_images(path: Path) -> bool:
    """Whether a parquet file has a column of bytes at all."""
    return any(_is_bytes(field.type) for field in _open(path).schema_arrow)


def _open(path: Path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (arrow.ArrowInvalid, OSError) as error:
        with open(path, "rb") as file:
            first = file.read(64)
        instead = "" if first.startswith(b"PAR1") else utf8.instead(first)
        fault = f"not parquet but {instead}" if instead else f"not a readable parquet file: {error}"
        raise ValueError(f"{path}: {fault}") from None


@dataclass(frozen=True)
class Parquet(PairSource):
    """A list of parquet files, sorted by name."""

    path: Path
    files: tuple[Path, ...]
    choice: columns.Choice
    wanted: int
    without: tuple[Path, ...] = ()  # files beside them without images
    layout = "parquet"

    def most_captions(self) -> int:
        return _most_captions(self)

    def tasks(self) -> list[Task]:
        return list(_plan(self))

    def read(self, task: Task) -> Iterator[Pair | Bad | PassedOver]:
        import pyarrow as arrow

        path = Path(task.path)
        wanted = find_columns(path, self.choice)
        file = _open(path)
        first = sum(file.metadata.row_group(g).num_rows for g in range(task.start))
        for group in range(task.start, task.stop):
            rows, number = file.metadata.row_group(group).num_rows, 0
            try:
                for row in _rows(file, group, wanted):
                    if not row.image and row.status not in (None, "success"):
                        yield PassedOver(f"rows never downloaded ({row.status})")
                    else:
                        yield _sample(f"{path.stem}/{first + number}", row, wanted.tokens)
                    number += 1
            except (arrow.ArrowException, OSError) as error:
                for lost in range(first + number, first + rows):
                    yield Bad(f"{path.stem}/{lost}", "damaged parquet", f"row group {group}: {error}")
            first += rows
        others = [name for name in file.schema_arrow.names if name != wanted.image]
        if note := self.choice.beside(others, str(path)):
            yield PassedOver(note, task.weight)
        if self.without and task == self.tasks()[0]:
            name = self.without[0].name
            yield PassedOver(f"parquet files without image bytes, {name} the first", len(self.without))

    def describe(self) -> dict:
        return self.description(self.path, self.choice, self.files, files=len(self.files))


def _sample(key: str, row: Row, tokens: bool) -> Pair | Bad:
    in_struct = isinstance(row.image, dict)
    image = row.image.get("bytes") if in_struct else row.image
    path = row.image.get("path") if in_struct else None
    if not image:
        detail = f"its bytes are null, there is only a path: {path}; write the parquet with embedded images"
        return Bad(key, "no image", detail if path else "")
    if _NOT_UTF8 in row.captions:
        return Bad(key, "bad caption", "not UTF-8 text")
    if not tokens:
        return Pair(key, image, [text for value in row.captions for text in columns.strings(value)])
    try:
        return Pair(key, image, token_rows(row.captions[0]))
    except ValueError as error:
        return Bad(key, "bad token ids", str(error))


def _rows(file, group: int, wanted: Columns) -> Iterator[Row]:
    """The rows of a row group."""
    names = list(dict.fromkeys((wanted.image, *wanted.captions, *wanted.status)))
    for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=names):
        values = {name: _values(batch.column(name)) for name in names}
        statuses = values[wanted.status[0]] if wanted.status else [None] * len(batch)
        captions = zip(*(values[name] for name in wanted.captions))
        yield from map(Row, statuses, values[wanted.image], captions)


def _values(column) -> list:
    """The column's values in Python; _NOT_UTF8 for text that is not UTF-8."""

    def value(cell):
        try:
            return cell.as_py()
        except UnicodeDecodeError:
            return _NOT_UTF8

    return [value(cell) for cell in column]


def token_rows(value) -> np.ndarray:
    """(K, 77) int32 of CLIP token ids stored as numbers, flat or in rows; ValueError if they are not that."""
    if value is None or not len(value):
        return np.zeros((0, CONTEXT_LENGTH), np.int32)
    numbers = np.asarray(value, np.float64).reshape(-1)
    if len(numbers) > CONTEXT_LENGTH and len(numbers) % CONTEXT_LENGTH:
        raise ValueError(f"{len(numbers)} numbers are not rows of {CONTEXT_LENGTH}")
    if not (np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()):
        raise ValueError("not whole numbers")
    if numbers.min() < 0 or numbers.max() > END:
        raise ValueError(f"an id outside 0…{END}")
    ids = np.zeros((-(-len(numbers) // CONTEXT_LENGTH), CONTEXT_LENGTH), np.int32)
    ids.reshape(-1)[: len(numbers)] = numbers
    ids = ids[ids.any(1)]  # a row of zeros is not a caption
    if not (ids[:, 0] == START).all() or not (ids == END).any(1).all():
        raise ValueError(f"a row does not go from {START} to {END}")
    after = np.arange(CONTEXT_LENGTH) > ids.argmax(1)[:, None]
    return np.where(after, 0, ids)


@cache
def _plan(source: Parquet) -> tuple[Task, ...]:
    tasks: list[Task] = []
    for path in source.files:
        metadata = _open(path).metadata
        start = rows = 0
        for group in range(metadata.num_row_groups):
            rows += metadata.row_group(group).num_rows
            if rows >= _ROWS or (rows and group + 1 == metadata.num_row_groups):
                tasks.append(Task(str(path), start, group + 1, rows, rows))
                start, rows = group + 1, 0
    if not tasks:
        raise ValueError(f"{source.path}: no rows")
    return tuple(tasks)


@cache
def _most_captions(source: Parquet) -> int:
    """The most captions of an image, read from the captions' columns without the images."""
    import pyarrow as arrow

    most = 1
    for path in source.files:
        wanted, file = find_columns(path, source.choice), _open(path)
        names = list(wanted.captions)
        if all(str(file.schema_arrow.field(n).type) in _TEXTS for n in names):
            most = max(most, len(names))
            continue
        groups, limit = range(file.num_row_groups), None
        if wanted.tokens:  # all rows of a file have the same number
            groups, limit = groups[:1], 1
        for group in groups:
            with suppress(arrow.ArrowException, OSError, ValueError):  # reported when its rows are read
                batches = file.iter_batches(batch_size=1024, row_groups=[group], columns=names)
                for batch in islice(batches, limit):
                    counts = [[_count(value) for value in _values(column)] for column in batch.columns]
                    most = max(most, int(np.sum(counts, 0).max(initial=1)))
    return most


def _count(value) -> int:
    """How many captions a cell holds, as texts or as token ids."""
    return len(columns.strings(value)) or (np.size(value) // CONTEXT_LENGTH if isinstance(value, list) else 0)
