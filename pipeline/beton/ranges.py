"""Operations on many byte ranges of an open file at once: compiled, without Python's lock."""

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
    """Read from `start` (N,) on into out[to[n] : to[n + 1]]; returns how many were read before one failed."""
    for n in range(len(start)):
        source, target = start[n], to[n]
        while target < to[n + 1]:
            done = _pread(file, out.ctypes.data + target, to[n + 1] - target, source)
            if done <= 0:
                return n
            source, target = source + done, target + done
    return len(start)


@compiled
def advise(file, start, size):
    """posix_fadvise(WILLNEED) for ranges (N,)."""
    for n in range(len(start)):
        _fadvise(file, start[n], size[n], os.POSIX_FADV_WILLNEED)
