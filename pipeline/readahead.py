"""Tells the kernel which parts of a .beton will be needed, so that the disk reads them before they are.

Without it the disk would read one image after the other, each when it is decoded.  Reading itself is
`Beton.read`'s business.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from pipeline.beton.fields import Beton
from pipeline.beton.ranges import advise
from pipeline.order import Order

REQUEST = 128 << 10  # bytes; of a longer request Linux reads no more, unless a disk is set otherwise


class ReadAhead:
    """Reads ahead `columns` of a file for positions of the stream."""

    def __init__(self, file: Beton, order: Order, seed: int, columns: Sequence[str]):
        self._file, self._order, self._seed, self._columns = file, order, seed, columns
        self._windows: list[list[tuple[int, int]]] = []  # those asked for by the newest call

    def request(self, t: np.ndarray) -> threading.Thread | None:
        """Ask for the samples at positions t (B,); in block order also for their windows and the next ones.

        New windows are asked for in a thread, which is returned: the kernel takes no more requests at once
        than the disk's queue holds, and the caller would wait for it.
        """
        self._advise(self._order.locate(self._seed, len(self._file), t)[1])
        windows = self._order.windows(self._seed, len(self._file), t)
        new = [ranges for window in windows if window not in self._windows for ranges in window]
        self._windows = windows
        if not new:
            return None
        thread = threading.Thread(target=self._advise_ranges, args=(new,), daemon=True)
        thread.start()
        return thread

    def _advise_ranges(self, ranges: list[tuple[int, int]]) -> None:
        with suppress(ValueError, OSError):  # a bad pointer or disk: the decoding threads meet and report it
            for first, stop in ranges:
                self._advise(self._order.expand(len(self._file), first, stop))

    def _advise(self, index: np.ndarray) -> None:
        rows = self._file.rows(index)
        spans = (rows.spans(column) for column in self._columns)
        start, size = (np.concatenate(arrays) for arrays in zip(*spans))
        advise(self._file.descriptor, *_requests(start, size))


def _requests(start: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads (offset, length) that cover byte ranges (N,); a gap shorter than a read is read as well."""
    order = np.argsort(start)
    start, stop = start[order], (start + size)[order]
    gaps = np.flatnonzero(start[1:] - stop[:-1] > REQUEST)
    begin, end = start[np.append(0, gaps + 1)], stop[np.append(gaps, len(stop) - 1)]
    pieces = -(-(end - begin) // REQUEST)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = np.repeat(begin, pieces) + number * REQUEST
    return offset, np.minimum(np.repeat(end, pieces) - offset, REQUEST)
