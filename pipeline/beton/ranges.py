"""What is done to many byte ranges of an open file at once: compiled, and free of Python's lock."""

from __future__ import annotations

import os

from numba import types

from pipeline.base.compiled import compiled

_pread = types.ExternalFunction("pread", types.int64(types.int32, types.intp, types.int64, types.int64))
_fadvise = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)


@compiled
def pread_ranges(file, start, to, out):
    """Reads from `start` (N,) on to out[to[n] : to[n + 1]]; returns how many were read before one failed."""
    for n in range(len(start)):
        at, place = start[n], to[n]
        while place < to[n + 1]:
            done = _pread(file, out.ctypes.data + place, to[n + 1] - place, at)
            if done <= 0:
                return n
            at, place = at + done, place + done
    return len(start)


@compiled
def advise(file, start, size):
    """posix_fadvise(WILLNEED) for ranges (N,)."""
    for n in range(len(start)):
        _fadvise(file, start[n], size[n], os.POSIX_FADV_WILLNEED)
