"""Writes a .beton of triplets whose pictures are stored once: a sample points to three of them.

Ten million triplets over a million pictures take the pictures and 0.3 KB a triplet.  The file is one of
`triplets_schema`, read by both engines and by stock FFCV; only the latter's QUASI_RANDOM order, which expects
a sample to lie in one page, is not for it.

Layout: as in `writer.py`; behind the pictures' pages come those of luma and key, in slots of one size.

P pictures, N triplets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.base.files import replacing
from pipeline.beton import fields as f
from pipeline.beton.writer import Part, align, copy_range, head, pwrite

SIDES = ("ref", "left", "right")
_CHUNK = 1 << 16  # triplets in memory at a time
_STORED = np.dtype(
    [
        ("ptr", "<u8"),
        ("size", "<u8"),
        ("checksum", "<i8"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("luma", "<f4"),
    ]
)


class Some(NamedTuple):
    """Some triplets, n of them."""

    rows: np.ndarray  # (n, 3) integers: ref, left, right among the P pictures
    vote: np.ndarray  # (n,) share that preferred right
    votes: np.ndarray  # (n,) how many were asked
    key: np.ndarray  # (n,) bytes of one width, none empty


def write_triplets(
    shards: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    count: int,
    width: int,
    take: Callable[[slice], Some],
) -> None:
    """Write `count` triplets over the pictures of `shards` (files of `pictures_schema`), in their order.

    width: of the keys, in bytes.  take(slice) gives the triplets of that slice.  Memory: 32 bytes a picture.
    Raises ValueError when there is no triplet, OSError when the disk is full.
    """
    if not count:
        raise ValueError(f"{out}: no samples to write")
    schema, parts = f.triplets_schema(), [Part(path, None) for path in shards]
    page = max(part.page for part in parts)
    start = len(head(schema, count, page, 0))
    end = align(start + count * f.metadata_dtype(schema).itemsize, page)
    for part in parts:
        end = part.move_after(end)
    values = _Values(end, page, width)
    pictures, table = _stored(parts), align(values.at(np.array([count - 1]))[0] + values.slot, 8)
    with replacing(out) as temporary, open(temporary, "w+b", buffering=0) as file:
        for part in parts:
            copy_range(part.path, part.low, part.high, file.fileno(), part.low + part.shift)
        for stretch in values.stretches(count):
            some = take(stretch)
            at = values.at(np.arange(stretch.start, stretch.stop))
            records, rows = _tables(schema, pictures, some, at, stretch.start)
            pwrite(file.fileno(), _slots(pictures, some, values.slot), int(at[0]))
            pwrite(file.fileno(), records.tobytes(), start + stretch.start * records.itemsize)
            pwrite(file.fileno(), rows.tobytes(), table + stretch.start * rows.strides[0])
        os.fsync(file.fileno())  # the header makes the file valid, so it goes last
        pwrite(file.fileno(), head(schema, count, page, table), 0)


def table_bytes(count: int, width: int) -> int:
    """What a file takes for `count` triplets beside the pictures."""
    each = f.metadata_dtype(f.triplets_schema()).itemsize + (len(SIDES) + 2) * f.ALLOCATION.itemsize
    return count * (each + 12 + width)


class _Values(NamedTuple):
    """Where the luma and the key of a triplet lie: slots from `start` on, none across a page border."""

    start: int
    page: int
    width: int

    @property
    def slot(self) -> int:
        return 12 + self.width

    @property
    def first(self) -> int:
        """How many slots fit in the rest of the first page."""
        return -self.start % self.page // self.slot

    def at(self, number: np.ndarray) -> np.ndarray:
        """(n,) int64: where the slots of these triplets begin."""
        page, within = np.divmod(number - self.first, self.page // self.slot)
        later = align(self.start, self.page) + page * self.page + within * self.slot
        return np.where(number < self.first, self.start + number * self.slot, later)

    def stretches(self, count: int) -> Iterator[slice]:
        """All triplets in slices, each within a page."""
        borders = [0, *range(self.first, count, self.page // self.slot), count]
        for first, last in zip(borders, borders[1:]):
            last = min(last, count)
            yield from (slice(at, min(at + _CHUNK, last)) for at in range(first, last, _CHUNK))


def _stored(parts: Sequence[Part]) -> np.ndarray:
    """(P,) _STORED: the pictures of all parts where they will lie."""
    out, done = np.empty(sum(part.samples for part in parts), _STORED), 0
    for part in parts:
        for records, rows in part.tables():
            some = out[done : done + len(records)]
            some["ptr"], some["size"] = records["image"]["data_ptr"], rows["size"][:, 0]
            some["width"], some["height"] = records["image"]["width"], records["image"]["height"]
            some["luma"], some["checksum"] = records["luma"], records[f.checksum_column("image")]
            done += len(records)
    return out


def _tables(
    schema: dict[str, f.Field], pictures: np.ndarray, some: Some, at: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Records (n,) and allocations (n, 5) of some triplets, numbered from `first`; their values lie `at`."""
    records = np.zeros(len(at), f.metadata_dtype(schema))
    rows = np.zeros((len(at), len(SIDES) + 2), f.ALLOCATION)
    rows["sample_id"] = np.arange(first, first + len(at))[:, None]
    for column, side in enumerate(SIDES):
        shown, image = pictures[some.rows[:, column]], records[side]
        image["mode"], image["data_ptr"] = f.JPEG_MODE, shown["ptr"]
        image["width"], image["height"] = shown["width"], shown["height"]
        records[f.checksum_column(side)] = shown["checksum"]
        rows["ptr"][:, column], rows["size"][:, column] = shown["ptr"], shown["size"]
    records["vote"], records["votes"], records["luma"] = some.vote, some.votes, at
    records["key"]["ptr"], records["key"]["size"] = at + 12, np.strings.str_len(some.key)
    rows["ptr"][:, 3], rows["size"][:, 3] = at, 12
    rows["ptr"][:, 4], rows["size"][:, 4] = at + 12, records["key"]["size"]
    return records, rows


def _slots(pictures: np.ndarray, some: Some, slot: int) -> bytes:
    """The stored values of some triplets: three lumas and the key, padded."""
    out = np.zeros(len(some.rows), np.dtype([("luma", "<f4", 3), ("key", f"S{slot - 12}")]))
    out["luma"], out["key"] = pictures["luma"][some.rows], some.key
    return out.tobytes()
