"""Compares stored bytes with their checksums in compiled code: XXH3-64, without Python's lock.

The function is the one that `xxhash.xxh3_64_intdigest` calls (the writer's), taken from that package's
extension: 2 to 3 microseconds for 30 KB.  Files without checksums are read without the package.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module

import llvmlite.binding as llvm
import numpy as np
from numba import types

from pipeline.base.compiled import compiled

_NAME = "perceptual_initialization_xxh3_64"
# The fastest for this processor, which xxhash has from 4.1 on; before, the one for any processor.
_EXPORTED = ("XXH3_64bits_dispatch", "XXH3_64bits")
_xxh3 = types.ExternalFunction(_NAME, types.uint64(types.intp, types.uint64))


@cache
def load() -> None:
    """Make the function known to compiled code; call it before `matching`.

    Raises ValueError when xxhash is not installed, or has no such function.
    """
    try:
        library = ctypes.CDLL(str(import_module("xxhash._xxhash").__file__))
    except ImportError:
        raise ValueError(
            "xxhash is not installed, and the file's checksums need it: pip install xxhash"
        ) from None
    functions = [getattr(library, name) for name in _EXPORTED if hasattr(library, name)]
    if not functions:
        raise ValueError("this xxhash exports no XXH3_64bits: install a version that pyproject.toml allows")
    llvm.add_symbol(_NAME, ctypes.cast(functions[0], ctypes.c_void_p).value)


@compiled
def matching(data, start, size, expected, out):
    """Write to out (N,) bool whether the bytes data[start : start + size] have the checksum `expected`.

    data: (bytes,) uint8.  start, size, expected: (N,) int64.
    """
    for n in range(len(start)):
        out[n] = _xxh3(data.ctypes.data + start[n], size[n]) == np.uint64(expected[n])
