"""The .beton schema of this project, and reading a .beton without FFCV.

The container is FFCV 1.0's (header version 2): header, field descriptors, one metadata record a sample, data
pages, allocation table.  Stock FFCV reads every file written with these fields.

`Beton` reads such files by pread, tables too, so opening costs no memory per sample.  It does not use a
memory map: a file that is cut short meanwhile would end the process (SIGBUS), and some mounts and memory
limits do not allow one.  numba is loaded by what reads many samples at once (`ranges.py`), not by opening or
writing a file.

Writing: `writer.py`.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"),
     ("num_samples", "<u8"), ("alloc_table_ptr", "<u8")], align=True)  # fmt: skip
DESCRIPTOR = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])

FLOAT, INT, IMAGE, BYTES, ARRAY = 0, 1, 2, 3, 4  # FFCV's type ids
JPEG_MODE = 0  # `mode` of an image stored as JPEG; 1 is raw pixels
METADATA = {
    FLOAT: np.dtype("<f8"),
    INT: np.dtype("<i8"),
    IMAGE: np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")]),
    BYTES: np.dtype([("ptr", "<u8"), ("size", "<u8")]),
    ARRAY: np.dtype("<u8"),
}
ALLOCATES = (IMAGE, BYTES, ARRAY)  # kinds whose value lies in a page, found by pointer

CONTEXT_LENGTH = 77  # token ids of a caption
CHANGED = "its bytes are not those that were written (checksum)"
_FEW = 8  # ranges that are read without compiled code: numba takes a second and 100 MB


@dataclass(frozen=True)
class Field:
    """One column: FFCV `kind`, and for ARRAY its fixed element type and shape."""

    kind: int
    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()

    def arguments(self) -> np.ndarray:
        """The descriptor's 1,024 argument bytes, as FFCV's `to_binary` writes them."""
        out = np.zeros(1024, np.uint8)
        if self.kind == ARRAY:
            header = np.zeros(1, ARRAY_ARGUMENTS)
            header["shape"][0, : len(self.shape)] = self.shape
            described = json.dumps(np.dtype(self.dtype).descr).encode("ascii")
            header["type_length"] = len(described)
            raw = header.tobytes() + described
            out[: len(raw)] = np.frombuffer(raw, np.uint8)
        return out

    @classmethod
    def parse(cls, kind: int, arguments: np.ndarray) -> Field:
        """The inverse of `arguments`; raises ValueError for a kind this project never writes."""
        if kind not in METADATA:
            raise ValueError(f"field type {kind} is none of FFCV's float, int, image, bytes, array")
        if kind != ARRAY:
            return cls(kind)
        header = arguments[: ARRAY_ARGUMENTS.itemsize].view(ARRAY_ARGUMENTS)[0]
        end = ARRAY_ARGUMENTS.itemsize + int(header["type_length"])
        described = arguments[ARRAY_ARGUMENTS.itemsize : end].tobytes()
        try:
            dtype = np.dtype([tuple(d) for d in json.loads(described)])["f0"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"{described[:40]!r} is no element type of an array") from None
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {dtype} holds no plain numbers")
        return cls(ARRAY, dtype, tuple(int(n) for n in header["shape"] if n))


def checksum_column(image: str) -> str:
    """The INT column beside an IMAGE column: XXH3-64 of its stored bytes, as a signed number."""
    return f"{image}_xxh3"


def pairs_schema(captions: int = 1, checksums: bool = True) -> dict[str, Field]:
    """Columns of an image–text file; `captions` rows of CLIP token ids an image, unused rows zero.

    Files made before there were checksums have the same columns without them.
    """
    columns = {
        "image": Field(IMAGE),
        "tokens": Field(ARRAY, np.dtype("<i4"), (captions, CONTEXT_LENGTH)),
        "luma": Field(FLOAT),  # mean luma, 0…255: centre of the contrast operation
        "key": Field(BYTES),  # UTF-8, never empty (a zero-length BytesField corrupts neighbours)
    }
    return columns | _checksums(columns) if checksums else columns


def triplets_schema(checksums: bool = True) -> dict[str, Field]:
    """Columns of a 2AFC file: three images, the fraction of people who preferred `right`."""
    columns = {
        "ref": Field(IMAGE),
        "left": Field(IMAGE),
        "right": Field(IMAGE),
        "vote": Field(FLOAT),  # 0 = left chosen, 1 = right chosen, fractions in between
        "votes": Field(INT),  # how many people answered
        "luma": Field(ARRAY, np.dtype("<f4"), (3,)),  # of ref, left, right
        "key": Field(BYTES),
    }
    return columns | _checksums(columns) if checksums else columns


def pictures_schema() -> dict[str, Field]:
    """Columns of the parts that a file of triplets is made of: its pictures, each once (`triplets.py`)."""
    columns = {"image": Field(IMAGE), "luma": Field(FLOAT), "number": Field(INT)}  # its place in the list
    return columns | _checksums(columns)


def _checksums(columns: dict[str, Field]) -> dict[str, Field]:
    return {checksum_column(name): Field(INT) for name, field in columns.items() if field.kind == IMAGE}


def pointers(records: np.ndarray, kind: int) -> np.ndarray:
    """Where the values of a column of the metadata table lie, for a kind that `ALLOCATES`: a view."""
    return records if kind == ARRAY else records["data_ptr" if kind == IMAGE else "ptr"]


def metadata_dtype(fields: dict[str, Field]) -> np.dtype:
    """The record a sample has in the metadata table (FFCV aligns it, but not the image record)."""
    return np.dtype([(name, METADATA[f.kind]) for name, f in fields.items()], align=True)


class Beton:
    """A finished .beton, open for reading.

    Attributes: `path`, `fields` (name → Field), `dtype` (of a record of the metadata table), `page_size`,
    `size` (bytes), `info` (the JSON beside the file, or {}), `descriptor` (of the open file).
    Raises ValueError with the file's name when it is not a whole FFCV file.  So do all methods when it was
    cut short meanwhile; they raise OSError when the disk fails.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; dataprep/build_ffcv.py makes one")
        self.descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor).atexit = False  # threads may still read then
        self.size = os.fstat(self.descriptor).st_size
        if self.size < HEADER.itemsize:
            raise ValueError(f"{self.path}: too short for a .beton header")
        (header,) = self._table(HEADER, 0, 1)
        if header["version"] != VERSION:
            raise ValueError(f"{self.path}: not an FFCV file of version {VERSION}")
        if not 0 < int(header["alloc_table_ptr"]) <= self.size:
            raise ValueError(f"{self.path}: unfinished or truncated .beton; build the file again")
        self._num_samples = int(header["num_samples"])
        self.page_size = int(header["page_size"])
        self._allocations_at = int(header["alloc_table_ptr"])
        self.fields = self._read_fields(int(header["num_fields"]))
        self.dtype = metadata_dtype(self.fields)
        self._metadata_at = HEADER.itemsize + len(self.fields) * DESCRIPTOR.itemsize
        if self._metadata_at + self._num_samples * self.dtype.itemsize > self._allocations_at:
            raise ValueError(f"{self.path}: the metadata table is cut short; build the file again")
        self._pointed = [n for n, f in self.fields.items() if f.kind in ALLOCATES]
        self._allocated = (self.size - self._allocations_at) // ALLOCATION.itemsize
        if self._allocated < self._num_samples * len(self._pointed):
            raise ValueError(f"{self.path}: the allocation table is cut short; build the file again")

    def check_length(self) -> None:
        """ValueError if the file is shorter than when it was opened; takes half a microsecond."""
        now = os.fstat(self.descriptor).st_size
        if now < self.size:
            raise ValueError(
                f"{self.path}: was cut short from {self.size:,} to {now:,} bytes while it was read; "
                "build or copy it again"
            )

    def read(self, start: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the byte ranges (N,) int64 in one array of bytes, and where each begins in it."""
        to, done = np.append(0, np.cumsum(size)), 0
        begin, data = to[:-1], np.empty(to[-1], np.uint8)
        if len(start) > _FEW:  # neighbours are read at once
            heads = np.flatnonzero(start != np.append(-1, start + size)[:-1])
            start, to = start[heads], np.append(begin[heads], len(data))
        if len(start) > _FEW:
            from pipeline.beton.ranges import pread_ranges

            done = pread_ranges(self.descriptor, start, to, data)
        for n in range(done, len(start)):  # few; or one that failed, and those after it
            self._read(int(start[n]), data.data[to[n] : to[n + 1]])
        return data, begin

    def _read(self, at: int, out: memoryview) -> None:
        """Fills `out` with what lies from `at` on."""
        while len(out):
            try:
                done = os.preadv(self.descriptor, [out], at)
            except OSError as error:
                raise OSError(f"{self.path}: {error.strerror}, {len(out)} bytes at {at}") from None
            if not done:
                self.check_length()
                raise ValueError(f"{self.path}: ends before byte {at:,}, where something should lie")
            at, out = at + done, out[done:]

    def _table(self, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        """The table of `count` rows of `dtype` that begins at `start`."""
        return self.read(np.array([start]), np.array([count * dtype.itemsize]))[0].view(dtype)

    def _rows(self, dtype: np.dtype, start: int, index: np.ndarray, each: int) -> np.ndarray:
        """(*index, each): of the table of `dtype` that begins at `start`, whose samples have `each` rows."""
        width = each * dtype.itemsize
        at = start + index.ravel() * width
        return self.read(at, np.full_like(at, width))[0].view(dtype).reshape(*index.shape, each)

    def _read_fields(self, count: int) -> dict[str, Field]:
        if HEADER.itemsize + count * DESCRIPTOR.itemsize > self._allocations_at:
            raise ValueError(f"{self.path}: the field descriptors are cut short")
        try:
            return {
                bytes(d["name"]).split(b"\0")[0].decode("ascii"): Field.parse(
                    int(d["type_id"]), d["arguments"])
                for d in self._table(DESCRIPTOR, HEADER.itemsize, count)
            }  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def __len__(self) -> int:
        return self._num_samples

    def __reduce__(self):
        return Beton, (self.path,)  # a worker process opens the file anew

    @cached_property
    def info(self) -> dict:
        """ValueError where the JSON is damaged, or another program's."""
        beside = self.path.with_suffix(".json")
        if not beside.is_file():
            return {}
        try:
            info = json.loads(beside.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{beside}: damaged: {error}; build {self.path.name} again") from None
        if not _as_built(info):
            raise ValueError(f"{beside}: not what the build writes; move it away, or build again")
        return info

    @property
    def kind(self) -> str:
        """`pairs` or `triplets`; ValueError for a file with other columns."""
        schemas = {"pairs": pairs_schema(checksums=False), "triplets": triplets_schema(checksums=False)}
        for kind, schema in schemas.items():
            if self._has(schema):
                return kind
        raise ValueError(f"{self.path}: its fields {list(self.fields)} are neither pairs nor triplets")

    @property
    def checksummed(self) -> bool:
        """Whether each image has a checksum; files of stock FFCV and of our older versions have none."""
        return self._has(_checksums(self.fields))

    def _has(self, columns: dict[str, Field]) -> bool:
        return all(n in self.fields and self.fields[n].kind == f.kind for n, f in columns.items())

    # -- tables -------------------------------------------------------------------------

    @property
    def metadata(self) -> np.ndarray:
        """The whole metadata table, read anew: a structured array of one record (`dtype`) a sample."""
        return self._table(self.dtype, self._metadata_at, len(self))

    @property
    def allocations(self) -> np.ndarray:
        """The whole allocation table, read anew; in sample-major order when our writer made the file."""
        return self._table(ALLOCATION, self._allocations_at, self._allocated)

    def rows(self, index: ArrayLike) -> Rows:
        """What the tables say of samples `index` (any shape)."""
        index = np.asarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            bounds = f"{index.min()} … {index.max()}"
            raise IndexError(f"{self.path}: has samples 0 … {len(self) - 1}, not {bounds}")
        return Rows(
            self,
            self._rows(self.dtype, self._metadata_at, index, 1)[..., 0],
            self._rows(ALLOCATION, self._allocations_at, index, len(self._pointed)),
        )

    @cached_property
    def _sorted_allocations(self) -> tuple[np.ndarray, np.ndarray]:
        """(ptr, size) in pointer order: the slow path, for files written by stock FFCV."""
        table = self.allocations
        order = np.argsort(table["ptr"], kind="stable")
        return table["ptr"][order], table["size"][order]

    # -- values -------------------------------------------------------------------------

    def jpeg(self, index: int, name: str = "image") -> np.ndarray:
        """The stored JPEG of one image, uint8."""
        row = self.rows([index])
        if row.records[name]["mode"][0] != JPEG_MODE:
            raise ValueError(f"{self.path}: {name} of sample {index} is stored raw, not as JPEG")
        return self.read(*row.spans(name))[0]

    def text(self, name: str, index: int) -> str:
        """A BYTES column of one sample, as UTF-8."""
        data, _ = self.read(*self.rows([index]).spans(name))
        return data.tobytes().decode("utf-8", "replace")


def _as_built(info) -> bool:
    """Whether what is read of the JSON beside a file has the types that the build writes."""
    try:
        source, captions = (info.get(name, {}) for name in ("source", "captions"))
        counts = [n for name in ("rejected", "passed_over") for n in info.get(name, {}).values()]
        numbers = [captions.get("mean_tokens", 0), *captions.get("lengths", []), *counts]
    except (AttributeError, TypeError):
        return False
    return isinstance(source, dict) and all(isinstance(number, int | float) for number in numbers)


@dataclass(frozen=True)
class Rows:
    """What the tables of a file say of some samples; `index` is their shape."""

    file: Beton
    records: np.ndarray  # index, `Beton.dtype`
    allocations: np.ndarray  # (*index, number of columns that lie in a page), ALLOCATION

    def spans(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the stored bytes of a column lie: (offset, size), int64, of the shape of index.

        Our writer puts the allocations in sample-major order, so a span is one look-up; a file
        in another order is sorted once.
        """
        file = self.file
        ptr = pointers(self.records[name], file.fields[name].kind)
        row = self.allocations[..., file._pointed.index(name)]
        size = row["size"]
        if not (row["ptr"] == ptr).all():
            ptrs, sizes = file._sorted_allocations
            at = np.minimum(np.searchsorted(ptrs, ptr), len(ptrs) - 1)
            if not (ptrs[at] == ptr).all():
                raise ValueError(f"{file.path}: a pointer of {name} is not in the allocation table")
            size = sizes[at]
        ptr, size = ptr.astype(np.int64), size.astype(np.int64)
        if ((ptr < 0) | (size < 0) | (size > file._allocations_at - ptr)).any():
            raise ValueError(f"{file.path}: data of {name} would lie past the data region")
        return ptr, size

    def sizes(self, name: str) -> np.ndarray:
        """(*index, 2) int64: height and width of the images."""
        record = self.records[name]
        return np.stack([record["height"], record["width"]], -1).astype(np.int64)

    def checksums(self, names: Sequence[str]) -> np.ndarray:
        """(*index, len(names)) int64: what the stored bytes of these images had as XXH3-64."""
        return np.stack([self.records[checksum_column(name)] for name in names], -1)

    def arrays(self, name: str) -> np.ndarray:
        """An ARRAY column: (N, *shape) for index (N,)."""
        field, (start, size) = self.file.fields[name], self.spans(name)
        assert field.dtype is not None, f"{name} is no ARRAY"
        width = field.dtype.itemsize * math.prod(field.shape)
        if (size != width).any():
            raise ValueError(f"{self.file.path}: a value of {name} does not have its {width} bytes")
        return self.file.read(start, size)[0].view(field.dtype).reshape(-1, *field.shape)
