"""Parquet files with the images' bytes in a column (bytes, or struct{bytes, path}).

Captions are strings, lists of strings, or, in RWKV-CLIP's YFCC15M, CLIP token ids stored as floats:
those are taken as they are, after a check.  Row groups, some thousand rows together, are the shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataprep.shard import Bad, Left, Pair, Task
from dataprep.sources import columns
from pipeline.beton.fields import CONTEXT_LENGTH
from pipeline.formats import utf8
from pipeline.text import END, START

_NOT_UTF8 = object()
_ROWS = 4_000  # at least so many rows a shard, unless the file ends


class Shape(NamedTuple):
    """What a file's schema says."""

    image: str
    captions: tuple[str, ...]
    tokens: bool  # captions are token ids
    status: tuple[str, ...]  # img2dataset's column that tells which downloads failed, if there is one


def shape(path: Path, choice: columns.Choice) -> Shape:
    """Find the columns of a parquet file; ValueError names what there is."""
    import pyarrow as arrow

    schema = _open(path).schema_arrow
    binary = [f.name for f in schema if _is_bytes(f.type)]
    if not binary:
        there = ", ".join(schema.names)
        raise ValueError(f"{path}: no column holds image bytes; it has {there}: download the images first")
    usual = columns.BYTES + (binary if len(binary) == 1 else [])  # of several it is not guessed
    image = choice.image_column(binary, usual, f"{path} (columns of bytes)")
    others = [f.name for f in schema if f.name != image]
    captions = choice.caption_columns(others, str(path))
    kinds = [_inner(schema.field(name).type) for name in captions]
    tokens = [arrow.types.is_floating(kind) or arrow.types.is_integer(kind) for kind in kinds]
    for name, kind, number in zip(captions, kinds, tokens):
        text = arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or str(kind) == "string_view"
        if not text and not (number and kind != schema.field(name).type):
            raise ValueError(f"{path}: {name} holds {kind}, not text; name captions with --caption-columns")
    if any(tokens) and len(captions) > 1:
        raise ValueError(f"{path}: {', '.join(captions)} are numbers; token ids are read from one column")
    return Shape(image, captions, any(tokens), ("status",) if "status" in schema.names else ())


def _inner(kind):
    """The type of what a column holds, in lists or a dictionary or neither."""
    import pyarrow as arrow

    lists = arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list
    while any(known(kind) for known in (*lists, arrow.types.is_dictionary)):
        kind = kind.value_type
    return kind


def _is_bytes(kind) -> bool:
    import pyarrow as arrow

    if arrow.types.is_struct(kind):
        return any(f.name == "bytes" and _is_bytes(f.type) for f in kind)
    binary = arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)
    return binary or str(kind) == "binary_view"


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
        told = "" if first.startswith(b"PAR1") else utf8.instead(first)
        raise ValueError(
            f"{path}: not parquet but {told}" if told else f"{path}: not a readable parquet file: {error}"
        ) from None


@dataclass(frozen=True)
class Parquet:
    """A list of parquet files, in the order of their names."""

    path: Path
    files: tuple[Path, ...]
    choice: columns.Choice
    wanted: int
    without: tuple[Path, ...] = ()  # files beside them in which there are no images
    kind = "pairs"

    @property
    def captions(self) -> int:
        return self.wanted or min(_most_captions(self), columns.MOST_CAPTIONS)

    def tasks(self) -> list[Task]:
        return list(_plan(self))

    def images(self) -> int:
        return sum(task.weight for task in self.tasks())

    def read(self, task: Task) -> Iterator[Pair | Bad | Left]:
        import pyarrow as arrow

        path = Path(task.path)
        found = shape(path, self.choice)
        file = _open(path)
        first = sum(file.metadata.row_group(g).num_rows for g in range(task.start))
        for group in range(task.start, task.stop):
            rows, number = file.metadata.row_group(group).num_rows, 0
            try:
                for state, image, captions in _rows(file, group, found):
                    if not image and state not in (None, "success"):
                        yield Left(f"rows never downloaded ({state})")
                    else:
                        yield self._sample(f"{path.stem}/{first + number}", image, captions, found.tokens)
                    number += 1
            except (arrow.ArrowException, OSError) as error:
                for row in range(first + number, first + rows):
                    yield Bad(f"{path.stem}/{row}", "damaged parquet", f"row group {group}: {error}")
            first += rows
        others = [name for name in file.schema_arrow.names if name != found.image]
        if told := self.choice.beside(others, str(path)):
            yield Left(told, task.weight)
        if self.without and task == self.tasks()[0]:
            name = self.without[0].name
            yield Left(f"parquet files without image bytes, {name} the first", len(self.without))

    def _sample(self, key: str, image, captions: tuple, tokens: bool) -> Pair | Bad:
        path = image.get("path") if isinstance(image, dict) else None
        image = image.get("bytes") if isinstance(image, dict) else image
        if not image:
            told = f"its bytes are null, only a path is there: {path}; write the parquet with embedded images"
            return Bad(key, "no image", told if path else "")
        if _NOT_UTF8 in captions:
            return Bad(key, "bad caption", "not UTF-8 text")
        if not tokens:
            return Pair(key, image, [text for value in captions for text in columns.strings(value)])
        try:
            return Pair(key, image, token_rows(captions[0]))
        except ValueError as error:
            return Bad(key, "bad token ids", str(error))

    def describe(self) -> dict:
        return {
            "name": "pairs", "layout": "parquet", "path": str(self.path), "files": len(self.files),
            "captions": self.captions, "columns": vars(self.choice), "state": columns.state_of(self.files),
        }  # fmt: skip


def _rows(file, group: int, found: Shape) -> Iterator[tuple]:
    """(state, image, captions) of each row of a row group."""
    wanted = list(dict.fromkeys((found.image, *found.captions, *found.status)))
    for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=wanted):
        held = {name: _values(batch.column(name)) for name in wanted}
        states = held[found.status[0]] if found.status else [None] * len(batch)
        yield from zip(states, held[found.image], zip(*(held[name] for name in found.captions)))


def _values(column) -> list:
    """The column's values as Python's; _NOT_UTF8 for text that is none."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(value) for value in column]


def _value(value):
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8


def token_rows(value) -> np.ndarray:
    """(K, 77) int32 of CLIP token ids stored as numbers, flat or in rows; ValueError if they are none."""
    if value is None or not len(value):
        return np.zeros((0, CONTEXT_LENGTH), np.int32)
    numbers = np.asarray(value, np.float64).reshape(-1)
    if len(numbers) > CONTEXT_LENGTH and len(numbers) % CONTEXT_LENGTH:
        raise ValueError(f"{len(numbers)} numbers are no rows of {CONTEXT_LENGTH}")
    if not (np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()):
        raise ValueError("not whole numbers")
    if numbers.min() < 0 or numbers.max() > END:
        raise ValueError(f"an id outside 0…{END}")
    ids = np.zeros((-(-len(numbers) // CONTEXT_LENGTH), CONTEXT_LENGTH), np.int32)
    ids.reshape(-1)[: len(numbers)] = numbers
    ids = ids[ids.any(1)]  # a row of zeros is no caption
    if not (ids[:, 0] == START).all() or not (ids == END).any(1).all():
        raise ValueError(f"a row does not go from {START} to {END}")
    after = np.arange(CONTEXT_LENGTH) > ids.argmax(1)[:, None]
    return np.where(after, 0, ids)


@cache
def _plan(source: Parquet) -> tuple[Task, ...]:
    tasks = []
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
    """The most captions of an image: read from the captions' columns, without the images."""
    import pyarrow as arrow

    most = 1
    for path in source.files:
        found, file = shape(path, source.choice), _open(path)
        names = list(found.captions)
        if all(str(file.schema_arrow.field(n).type) in ("string", "large_string") for n in names):
            most = max(most, len(names))
            continue
        groups, batches = range(file.num_row_groups), None
        if found.tokens:  # every row of a file has as many
            groups, batches = groups[:1], 1
        for group in groups:
            with suppress(arrow.ArrowException, OSError, ValueError):  # told of its rows when they are read
                read = file.iter_batches(batch_size=1024, row_groups=[group], columns=names)
                for batch in islice(read, batches):
                    counts = [[_count(value) for value in _values(column)] for column in batch.columns]
                    most = max(most, int(np.sum(counts, 0).max(initial=1)))
    return most


def _count(value) -> int:
    """How many captions a cell holds, as texts or as token ids."""
    return len(columns.strings(value)) or (np.size(value) // CONTEXT_LENGTH if isinstance(value, list) else 0)
