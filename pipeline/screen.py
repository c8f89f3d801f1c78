"""Which stored JPEGs decode without complaint: for decoders that do not report it.

DALI returns garbage without an error for most images whose middle is damaged, and some end the process
(2.4, on the CPU).  The FFCV engine looks at its decoder's result.  Here the same is found out before DALI
gets a JPEG: by the scan of `jpeg_scan.py`, and where that does not vouch for it, by that very decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline import jpeg_scan, pixels
from pipeline.stream import Plan, Source

_CHUNK = 32  # images a thread takes at a time: some 10 ms of work
_UNSEEN, _SOUND, _DAMAGED = 0, 1, 2


class Screen:
    """Judges the images of a file in threads of its own, each when it is first met; verdicts are remembered.

    Damage that is done to the file after that first look goes unnoticed.
    """

    def __init__(self, source: Source, workers: int):
        self._file = source.file
        self._verdicts = np.zeros((len(source.file), len(source.views)), np.uint8)  # 15 MB for 15 M pairs
        self._pool = ThreadPoolExecutor(workers, "screen")

    def begin(self, plan: Plan) -> Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Start judging and reading the images of a batch; the returned function waits for both.

        It returns the JPEGs, view by view as `Beton.read` does, and which of them are readable, (V, B) bool.
        """
        rows, views = np.nonzero(self._verdicts[plan.index] == _UNSEEN)
        tasks = [
            self._pool.submit(self._judge, plan, rows[a : a + _CHUNK], views[a : a + _CHUNK])
            for a in range(0, len(rows), _CHUNK)
        ]

        read = self._pool.submit(self._file.read, plan.start.T.ravel(), plan.size.T.ravel())

        def finish() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            data, start = read.result()
            for task in tasks:
                task.result()
            return data, start, (self._verdicts[plan.index] == _SOUND).T

        return finish

    def _judge(self, plan: Plan, rows: np.ndarray, views: np.ndarray) -> None:
        start, size, *shape = (a[rows, views] for a in (plan.start, plan.size, plan.height, plan.width))
        data, start = self._file.read(start, size)
        jpegs = (start, size, *shape)
        sound = jpeg_scan.vouch(data, jpeg_scan.words_of(data), *jpegs)
        rest = np.flatnonzero(~sound)
        if len(rest):
            pixels.load_decoder()
            sound[rest] = pixels.decodable(data, *(a[rest] for a in jpegs))
        self._verdicts[plan.index[rows], views] = np.where(sound, _SOUND, _DAMAGED)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
