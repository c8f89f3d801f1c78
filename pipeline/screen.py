"""Which stored JPEGs are sound: for decoders that do not report it.

DALI returns garbage without an error for most images whose middle is damaged, and some end the process
(2.4, on the CPU).  So damage is found before DALI gets a JPEG.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline import pixels
from pipeline.base.compiled import compiled
from pipeline.beton import checksum
from pipeline.stream import Plan, Source

_CHUNK = 32  # images a thread decodes at a time: some 10 ms of work
_UNSEEN, _SOUND, _DAMAGED = 0, 1, 2

Screened = tuple[np.ndarray, np.ndarray, np.ndarray]


@compiled
def _compare_sizes(data, start, size, height, width, ok):
    """Set ok (N,) bool to False where the header of a JPEG (N,) in `data` does not have its size."""
    for n in range(len(start)):
        h, w = pixels.jpeg_size(data[start[n] : start[n] + size[n]])
        ok[n] &= h == height[n] and w == width[n]


class Screen:
    """Reads and judges the images of batches, in `workers` threads of its own.

    Checksums are compared at every read, of the very bytes that DALI gets.  In a file without them, libjpeg
    decodes each image when it is first met and its verdict is remembered: later damage goes unnoticed.
    """

    def __init__(self, source: Source, workers: int):
        self._file = source.file
        self._pool = ThreadPoolExecutor(workers, "screen")
        if not self._file.checksummed:
            pixels.load_decoder()
            self._verdicts = np.zeros((len(source.file), len(source.views)), np.uint8)

    def begin(self, plan: Plan) -> Callable[[], Screened]:
        """Start reading and judging the images of a batch; the returned function waits for both.

        It returns the JPEGs, view by view as `Beton.read` does, and which of them are readable, (V, B) bool.
        """
        if plan.checksum is not None:
            return self._pool.submit(self._compared, plan).result
        rows, views = np.nonzero(self._verdicts[plan.index] == _UNSEEN)
        tasks = [
            self._pool.submit(self._judge, plan, rows[a : a + _CHUNK], views[a : a + _CHUNK])
            for a in range(0, len(rows), _CHUNK)
        ]
        read = self._pool.submit(self._file.read, plan.start.T.ravel(), plan.size.T.ravel())

        def finish() -> Screened:
            data, start = read.result()
            for task in tasks:
                task.result()
            return data, start, (self._verdicts[plan.index] == _SOUND).T

        return finish

    def _compared(self, plan: Plan) -> Screened:
        assert plan.checksum is not None
        start, size, height, width = (a.T.ravel() for a in (plan.start, plan.size, plan.height, plan.width))
        data, start = self._file.read(start, size)
        readable = np.empty(plan.start.T.shape, np.bool_)
        checksum.matching(data, start, size, plan.checksum.T.ravel(), readable.ravel())
        plan.intact[:] = readable.T
        _compare_sizes(data, start, size, height, width, readable.ravel())
        return data, start, readable

    def _judge(self, plan: Plan, rows: np.ndarray, views: np.ndarray) -> None:
        start, size, *shape = (a[rows, views] for a in (plan.start, plan.size, plan.height, plan.width))
        data, start = self._file.read(start, size)
        sound = pixels.decodable(data, start, size, *shape)
        self._verdicts[plan.index[rows], views] = np.where(sound, _SOUND, _DAMAGED)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
