"""Writes .beton files without FFCV, and joins shards of them.

The container is FFCV 1.0's (see `fields.py`); stock FFCV reads what is written here.  Beside each image lies
the checksum of its bytes, by which damage to a finished file is found.  FFCV's own
DatasetWriter is not used: a worker that fails, or a full disk, makes it wait for ever, and it truncates its
target before it has anything to put there.

Layout: header, field descriptors, metadata table (as large as the announced capacity), pages from the next
page border on, allocation table.  The allocation table has one row per stored value, in sample-major order.
A sample's own values lie within one page.  Page borders are absolute multiples of the page size, a power of
two.  So a file whose page size grew is valid at the larger size: small aligned pages nest in large ones.
Gaps are left as holes.

Elsewhere: reading (`fields.py`); decoding, resizing and running in parallel, one writer a shard
(`dataprep/convert.py`, `dataprep/build.py`); tokens (`pipeline/text.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from pipeline.base.files import replacing
from pipeline.beton import fields as f

PAGE_SIZE = 8 << 20  # FFCV's default
MAX_PAGE_SIZE = 1 << 31  # the header holds it in 32 bits, and it must be a power of two
_CHUNK = 4096  # records kept in memory before they are written
_COPY = 16 << 20  # bytes copied at a time


class Jpeg(NamedTuple):
    """Value of an IMAGE column: the bytes as they are stored, and the size in pixels."""

    data: bytes
    height: int
    width: int


def checksum(data: bytes) -> int:
    """XXH3-64 of an image's stored bytes as the file holds it: a signed number of 64 bits."""
    digest = xxhash.xxh3_64_intdigest(data)
    return digest - 2**64 if digest >= 2**63 else digest


def head(schema: Mapping[str, f.Field], samples: int, page_size: int, table: int) -> bytes:
    """Header and field descriptors; `table` is where the allocations lie, 0 in an unfinished file."""
    header = np.zeros(1, f.HEADER)
    header["version"], header["num_fields"] = f.VERSION, len(schema)
    header["page_size"], header["num_samples"], header["alloc_table_ptr"] = page_size, samples, table
    descriptors = np.zeros(len(schema), f.DESCRIPTOR)
    for row, (name, field) in zip(descriptors, schema.items()):
        encoded = name.encode("ascii")
        if len(encoded) > 16:
            raise ValueError(f"field name {name!r} is longer than the 16 bytes that FFCV stores")
        row["type_id"] = field.kind
        row["name"][: len(encoded)] = np.frombuffer(encoded, np.uint8)
        row["arguments"] = field.arguments()
    return header.tobytes() + descriptors.tobytes()


def align(offset: int, border: int) -> int:
    """The first multiple of `border` that is not below `offset`."""
    return -(-offset // border) * border


@contextlib.contextmanager
def writing(
    path: str | os.PathLike,
    schema: Mapping[str, f.Field],
    capacity: int,
    *,
    page_size: int = PAGE_SIZE,
) -> Iterator[Writer]:
    """A Writer of `path`; the file appears, whole, when the block ends without an error.

    `capacity` is the greatest number of samples that will come: room for their metadata is left at
    the head of the file.  Raises ValueError when no sample came, OSError when the disk is full.
    """
    with replacing(path) as temporary, open(temporary, "wb", buffering=1 << 20) as file:
        with tempfile.TemporaryFile(dir=temporary.parent) as table:
            writer = Writer(file, table, schema, capacity, page_size)
            yield writer
            if not writer.samples:
                raise ValueError(f"{path}: no samples to write")
            writer.finish()


class Writer:
    """Appends samples to an open file in bounded memory; made by `writing`."""

    def __init__(self, file, table, schema: Mapping[str, f.Field], capacity: int, page_size: int):
        if page_size & (page_size - 1) or not 4096 <= page_size <= MAX_PAGE_SIZE:
            raise ValueError(f"page_size must be a power of two from 4096 to 2^31, not {page_size}")
        self.schema, self.samples = dict(schema), 0
        self._file, self._table, self._capacity, self._page = file, table, capacity, page_size
        self._metadata = np.zeros(_CHUNK, f.metadata_dtype(self.schema))
        self._pointed = [n for n, field in self.schema.items() if field.kind in f.ALLOCATES]
        columns = {n: f.checksum_column(n) for n in self._pointed}
        self._checksums = {n: column for n, column in columns.items() if column in self.schema}
        self._allocations = np.zeros((_CHUNK, len(self._pointed)), f.ALLOCATION)
        self._start = len(head(self.schema, 0, page_size, 0))
        self._end = align(self._start + capacity * self._metadata.itemsize, page_size)
        self._file.seek(self._end)

    def add(self, sample: Mapping[str, Any]) -> None:
        """Append one sample: Jpeg for IMAGE, bytes for BYTES, ndarray for ARRAY, number otherwise.

        Checksums are not taken from it: they are computed from the bytes that are stored.
        """
        assert self.samples < self._capacity, "more samples than announced"
        blobs = {name: self._blob(name, sample[name]) for name in self._pointed}
        spans = self._store(blobs)
        values = dict(sample) | {column: checksum(blobs[name]) for name, column in self._checksums.items()}
        record: list[Any] = []  # numbers, and tuples of them
        for name, field in self.schema.items():
            value = values[name]
            if field.kind == f.IMAGE:
                record.append((f.JPEG_MODE, value.width, value.height, spans[name][0]))
            elif field.kind == f.BYTES:
                record.append(spans[name])
            else:
                record.append(spans[name][0] if field.kind == f.ARRAY else value)
        slot = self.samples % _CHUNK
        self._metadata[slot] = tuple(record)
        self._allocations[slot] = [(self.samples, *spans[name]) for name in self._pointed]
        self.samples += 1
        if slot + 1 == _CHUNK:
            self._flush(_CHUNK)

    def _blob(self, name: str, value) -> bytes:
        """The bytes to store for one value, checked against the schema."""
        field = self.schema[name]
        if field.kind == f.IMAGE:
            if not (0 < value.height <= 65_535 and 0 < value.width <= 65_535):
                raise ValueError(f"{name}: {value.width}×{value.height} pixels do not fit 16-bit sizes")
            value = value.data
        elif field.kind == f.ARRAY:
            if value.dtype != field.dtype or value.shape != field.shape:
                raise ValueError(
                    f"{name}: {value.dtype} {value.shape} where the file has {field.dtype} {field.shape}"
                )
            value = value.tobytes()
        if not value:
            raise ValueError(f"{name}: an empty value would corrupt its neighbours in FFCV")
        return value

    def _store(self, blobs: dict[str, bytes]) -> dict[str, tuple[int, int]]:
        """Write the values into one page; name → (offset, size)."""
        self._turn_page(sum(map(len, blobs.values())))
        spans = {}
        for name, blob in blobs.items():
            spans[name] = (self._end, len(blob))
            self._file.write(blob)
            self._end += len(blob)
        return spans

    def _turn_page(self, size: int) -> None:
        """Move to the next page when `size` bytes do not fit this one; larger pages if none would do."""
        while size > self._page:
            self._page *= 2
            if self._page > MAX_PAGE_SIZE:
                raise ValueError(f"a sample of {size} bytes is larger than FFCV's largest page")
        if self._end % self._page + size > self._page:
            self._end = align(self._end, self._page)
            self._file.seek(self._end)

    def _flush(self, count: int) -> None:
        """Move the `count` newest records from memory to the file."""
        start = self._start + (self.samples - count) * self._metadata.itemsize
        pwrite(self._file.fileno(), self._metadata[:count].tobytes(), start)
        self._table.write(self._allocations[:count].tobytes())

    def finish(self) -> None:
        """Write the allocation table and, last, the header that makes the file valid."""
        self._flush(self.samples % _CHUNK)
        table = align(self._end, 8)
        self._file.seek(table)
        self._table.seek(0)
        shutil.copyfileobj(self._table, self._file, _COPY)
        self._file.flush()
        pwrite(self._file.fileno(), head(self.schema, self.samples, self._page, table), 0)


def pwrite(descriptor: int, data: bytes, offset: int) -> None:
    """os.pwrite until all is written (a nearly full disk writes a part first, then raises)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


# -- joining ----------------------------------------------------------------------------------


def join(shards: Sequence[str | os.PathLike], out: str | os.PathLike, keep: Sequence[np.ndarray] = ()) -> int:
    """Join .beton files of one schema into `out`, in order, without touching the stored bytes.

    Pages are copied, pointers and sample numbers rebased; memory does not grow with the number of
    samples.  `keep`, one boolean array a shard, leaves samples out (their bytes stay in the pages).
    Returns the number of samples.  Raises ValueError when a shard is unfinished or of another schema.
    """
    parts = [Part(path, keep[i] if len(keep) else None) for i, path in enumerate(shards)]
    parts = [part for part in parts if part.samples]
    if not parts:
        raise ValueError(f"{out}: no samples to write")
    schema = parts[0].schema
    for part in parts:
        if part.schema != schema:
            raise ValueError(f"{part.path}: its columns differ from those of {parts[0].path}")
    samples, page = sum(part.samples for part in parts), max(part.page for part in parts)
    start = len(head(schema, samples, page, 0))
    end = align(start + samples * f.metadata_dtype(schema).itemsize, page)
    for part in parts:
        end = part.move_after(end)
    first, table = 0, align(end, 8)
    with replacing(out) as temporary, open(temporary, "w+b", buffering=0) as file:
        for part in parts:
            copy_range(part.path, part.low, part.high, file.fileno(), part.low + part.shift)
            for records, rows in part.tables():
                rows["sample_id"] = np.arange(first, first + len(rows))[:, None]
                pwrite(file.fileno(), records.tobytes(), start + first * records.itemsize)
                pwrite(file.fileno(), rows.tobytes(), table + first * rows.strides[0])
                first += len(rows)
        os.fsync(file.fileno())  # the header makes the file valid, so it goes last
        pwrite(file.fileno(), head(schema, samples, page, table), 0)
    return samples


class Part:
    """One shard on its way into a joined file: its data region [low, high) moves by `shift`.

    The shard is opened for each pass and closed again: there may be thousands.
    """

    def __init__(self, path: str | os.PathLike, keep: np.ndarray | None):
        beton = f.Beton(path)
        self.path, self.schema, self.page, self._keep = beton.path, beton.fields, beton.page_size, keep
        assert keep is None or len(keep) == len(beton)
        self.samples = len(beton) if keep is None else int(np.count_nonzero(keep))
        allocations = beton.allocations
        self.low = int(allocations["ptr"].min())
        self.high = int((allocations["ptr"] + allocations["size"]).max())
        self.shift = 0

    def move_after(self, end: int) -> int:
        """Put the shard's region at or after `end`; returns its end.

        A region moves by a multiple of its page size, so that nothing comes to cross a page border.
        """
        self.shift = align(end - self.low, self.page)
        return self.high + self.shift

    def tables(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rebased records and allocation rows of the samples that are kept, a chunk at a time."""
        beton, shift = f.Beton(self.path), np.array(self.shift).astype(np.uint64)
        keep = np.ones(len(beton), np.bool_) if self._keep is None else self._keep
        for start in range(0, len(beton), _CHUNK):
            rows = beton.rows(start + np.flatnonzero(keep[start : start + _CHUNK]))
            rows.allocations["ptr"] += shift
            for name, field in self.schema.items():
                if field.kind in f.ALLOCATES:
                    f.pointers(rows.records[name], field.kind)[...] += shift
            yield rows.records, rows.allocations


def copy_range(source: Path, low: int, high: int, target: int, offset: int) -> None:
    """Copy bytes [low, high) of a file to `offset` of the descriptor `target`.

    By os.copy_file_range, which shares the blocks instead of copying where the file system can;
    by read and write where it is not supported.  Holes stay holes where the file system knows of them.
    """
    shift = offset - low
    with open(source, "rb", buffering=0) as file:
        while low < high:
            low, stop = _data_from(file.fileno(), low, high)
            while low < stop:
                done = _copy_some(file.fileno(), target, low, low + shift, min(_COPY, stop - low))
                if not done:
                    raise ValueError(f"{source}: became shorter while it was read")
                low += done


def _data_from(file: int, low: int, high: int) -> tuple[int, int]:
    """The first stretch within [low, high) that is no hole; all of it on a file system without holes."""
    with contextlib.suppress(OSError):
        low = os.lseek(file, low, os.SEEK_DATA)
        return low, min(os.lseek(file, low, os.SEEK_HOLE), high)
    return low, high


def _copy_some(source: int, target: int, low: int, offset: int, size: int) -> int:
    """Copy at most `size` bytes between descriptors; how many were copied."""
    with contextlib.suppress(OSError):  # what fails here, the calls below do, or say why not
        done = os.copy_file_range(source, target, size, low, offset)
        if done:
            return done
    chunk = os.pread(source, size, low)
    pwrite(target, chunk, offset)
    return len(chunk)
