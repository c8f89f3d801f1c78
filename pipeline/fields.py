"""The .beton schema of this project, and reading a .beton with numpy alone.

The container is FFCV 1.0's (header version 2): header, field descriptors, one metadata
record a sample, data pages, allocation table.  Stock FFCV reads every file written with
these fields.  `Beton` reads such files without FFCV: bytes come straight from the memory
map, so opening costs no memory per sample and every decoder shares one copy of the data.

Writing is dataprep's business (`dataprep/writer.py`).
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

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

CONTEXT_LENGTH = 77


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
        descr = json.loads(arguments[ARRAY_ARGUMENTS.itemsize : end].tobytes())
        shape = tuple(int(n) for n in header["shape"] if n)
        return cls(ARRAY, np.dtype([tuple(d) for d in descr])["f0"], shape)


def pairs_schema(captions: int = 1) -> dict[str, Field]:
    """Columns of an image–text file; `captions` rows of CLIP token ids an image, unused rows zero."""
    return {
        "image": Field(IMAGE),
        "tokens": Field(ARRAY, np.dtype("<i4"), (captions, CONTEXT_LENGTH)),
        "luma": Field(FLOAT),  # mean luma, 0…255: centre of the contrast operation
        "key": Field(BYTES),  # UTF-8, never empty (a zero-length BytesField corrupts neighbours)
    }


def triplets_schema() -> dict[str, Field]:
    """Columns of a 2AFC file: three images, the fraction of people who preferred `right`."""
    return {
        "ref": Field(IMAGE),
        "left": Field(IMAGE),
        "right": Field(IMAGE),
        "vote": Field(FLOAT),  # 0 = left chosen, 1 = right chosen, fractions in between
        "votes": Field(INT),  # how many people answered
        "luma": Field(ARRAY, np.dtype("<f4"), (3,)),  # of ref, left, right
        "key": Field(BYTES),
    }


def metadata_dtype(fields: dict[str, Field]) -> np.dtype:
    """The record a sample has in the metadata table (FFCV aligns it, but not the image record)."""
    return np.dtype([(name, METADATA[f.kind]) for name, f in fields.items()], align=True)


def _mapped(path: Path, descriptor: int) -> mmap.mmap:
    """The whole file, read-only; OSError with its name where the system does not map it."""
    try:
        try:
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # A mount (some of FUSE) without shared maps.  Not ACCESS_COPY: that counts as memory in use.
            return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except OSError as error:
        way = "raise `ulimit -v`" if error.errno == errno.ENOMEM else "copy it to a local disk"
        raise OSError(f"{path}: cannot be mapped into memory ({error.strerror}); {way}") from None


class Beton:
    """A finished .beton, memory-mapped and read-only.

    Attributes: `path`, `fields` (name → Field), `metadata` (structured, one record a sample,
    on the map), `allocations` (the allocation table, on the map; in sample-major order when our
    writer made the file), `page_size`, `info` (the JSON beside the file, or {}), `descriptor` (of the
    open file).  Raises ValueError with the file's name when it is not a whole FFCV file, OSError with it
    when it cannot be mapped.

    To read past the end of a file that was cut short after it was mapped ends the process (SIGBUS).  So
    the methods look at the file's length first (ValueError), and the loaders read JPEGs, which takes them
    longest, through `descriptor`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; dataprep/build_ffcv.py makes one")
        if self.path.stat().st_size < HEADER.itemsize:
            raise ValueError(f"{self.path}: too short for a .beton header")
        self.descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor).atexit = False  # threads may still read then
        self.bytes = np.frombuffer(_mapped(self.path, self.descriptor), np.uint8)
        header = self.bytes[: HEADER.itemsize].view(HEADER)[0]
        self._check_header(header)
        self._num_samples = int(header["num_samples"])
        self.page_size = int(header["page_size"])
        self._table = int(header["alloc_table_ptr"])
        self.fields = self._read_fields(int(header["num_fields"]))
        dtype = metadata_dtype(self.fields)
        start = HEADER.itemsize + len(self.fields) * DESCRIPTOR.itemsize
        stop = start + self._num_samples * dtype.itemsize
        if stop > self._table:
            raise ValueError(f"{self.path}: the metadata table is cut short; build the file again")
        self.metadata = self.bytes[start:stop].view(dtype)
        self._pointed = [n for n, f in self.fields.items() if f.kind in ALLOCATES]
        allocations = self.bytes[self._table :]
        allocations = allocations[: len(allocations) // ALLOCATION.itemsize * ALLOCATION.itemsize]
        self.allocations = allocations.view(ALLOCATION)
        if len(self.allocations) < self._num_samples * len(self._pointed):
            raise ValueError(f"{self.path}: the allocation table is cut short; build the file again")

    def check_length(self) -> None:
        """ValueError if the file is shorter than when it was opened; takes half a microsecond."""
        now = os.fstat(self.descriptor).st_size
        if now < self.bytes.size:
            raise ValueError(
                f"{self.path}: was cut short from {self.bytes.size:,} to {now:,} bytes while it was read; "
                "build or copy it again"
            )

    def _check_header(self, header: np.void) -> None:
        if header["version"] != VERSION:
            raise ValueError(f"{self.path}: not an FFCV file of version {VERSION}")
        if not 0 < int(header["alloc_table_ptr"]) <= self.bytes.size:
            raise ValueError(f"{self.path}: unfinished or truncated .beton; build the file again")

    def _read_fields(self, count: int) -> dict[str, Field]:
        start, stop = HEADER.itemsize, HEADER.itemsize + count * DESCRIPTOR.itemsize
        if stop > self._table:
            raise ValueError(f"{self.path}: the field descriptors are cut short")
        try:
            return {
                bytes(d["name"]).split(b"\0")[0].decode("ascii"): Field.parse(
                    int(d["type_id"]), d["arguments"])
                for d in self.bytes[start:stop].view(DESCRIPTOR)
            }  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def __len__(self) -> int:
        return self._num_samples

    def __reduce__(self):
        return Beton, (self.path,)  # a worker process maps the file anew

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
        parts = ("captions", "rejected", "source", "settings")
        if not isinstance(info, dict) or not all(isinstance(info.get(n, {}), dict) for n in parts):
            raise ValueError(f"{beside}: not what the build writes; move it away, or build again")
        return info

    @property
    def kind(self) -> str:
        """`pairs` or `triplets`; ValueError for a file with other columns."""
        for kind, schema in (("pairs", pairs_schema()), ("triplets", triplets_schema())):
            if all(n in self.fields and self.fields[n].kind == f.kind for n, f in schema.items()):
                return kind
        raise ValueError(f"{self.path}: its fields {list(self.fields)} are neither pairs nor triplets")

    # -- pointers -----------------------------------------------------------------------

    @cached_property
    def _sorted_allocations(self) -> tuple[np.ndarray, np.ndarray]:
        """(ptr, size) in pointer order: the slow path, for files written by stock FFCV."""
        order = np.argsort(self.allocations["ptr"], kind="stable")
        return self.allocations["ptr"][order], self.allocations["size"][order]

    def spans(self, name: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the stored bytes of a column lie: (offset, size), int64, for sample `index` (any shape).

        Our writer puts the allocations in sample-major order, so a span is one look-up; a file
        in another order is sorted once.
        """
        self.check_length()
        index = np.asarray(index, np.int64)
        record = self.metadata[name][index]
        kind = self.fields[name].kind
        if kind == IMAGE:
            ptr = record["data_ptr"]
        else:
            ptr = record["ptr"] if kind == BYTES else record
        row = self.allocations[index * len(self._pointed) + self._pointed.index(name)]
        size = row["size"]
        if not (row["ptr"] == ptr).all():
            ptrs, sizes = self._sorted_allocations
            at = np.minimum(np.searchsorted(ptrs, ptr), len(ptrs) - 1)
            if not (ptrs[at] == ptr).all():
                raise ValueError(f"{self.path}: a pointer of {name} is not in the allocation table")
            size = sizes[at]
        ptr, size = ptr.astype(np.int64), size.astype(np.int64)
        if ptr.size and int((ptr + size).max()) > self._table:
            raise ValueError(f"{self.path}: data of {name} would lie past the data region")
        return ptr, size

    # -- values -------------------------------------------------------------------------

    def jpeg(self, index: int, name: str = "image") -> np.ndarray:
        """The stored JPEG of one image, uint8, a view of the map."""
        if self.metadata[name]["mode"][index] != JPEG_MODE:
            raise ValueError(f"{self.path}: {name} of sample {index} is stored raw, not as JPEG")
        ptr, size = self.spans(name, np.array(index))
        return self.bytes[int(ptr) : int(ptr) + int(size)]

    def arrays(self, name: str, index: np.ndarray) -> np.ndarray:
        """An ARRAY column of samples `index` (N,), gathered: (N, *shape)."""
        field = self.fields[name]
        ptr, _ = self.spans(name, index)
        width = field.dtype.itemsize * int(np.prod(field.shape))
        raw = self.bytes[ptr[:, None] + np.arange(width)]
        return raw.view(field.dtype).reshape(len(ptr), *field.shape)

    def text(self, name: str, index: int) -> str:
        """A BYTES column of one sample, as UTF-8."""
        self.check_length()
        record = self.metadata[name][index]
        start = int(record["ptr"])
        return self.bytes[start : start + int(record["size"])].tobytes().decode("utf-8", "replace")

    def sizes(self, name: str, index: np.ndarray) -> np.ndarray:
        """(N, 2) int64: height and width of the images `index`."""
        self.check_length()
        record = self.metadata[name][np.asarray(index)]
        return np.stack([record["height"], record["width"]], -1).astype(np.int64)
