"""`compiled`: numba's `njit` as this project uses it: without Python's lock, and cached where possible."""

from __future__ import annotations

import os
from functools import partial

from numba import config, njit

from pipeline.base.machine import private_folder


def _probe() -> int:
    return 0


def _caches() -> bool:
    try:
        return njit(cache=True)(_probe)() == 0
    except (RuntimeError, OSError):  # numba has no place for it; a full disk; files of another user
        return False


def _find_cache() -> bool:
    """Whether compiled code can be cached: beside the source or at home, as numba does, else below $TMPDIR.

    Without this check, numba raises while a module is imported if the checkout and the home are read-only.
    """
    if _caches():
        return True
    folder = private_folder()
    if folder is None:
        return False
    os.environ["NUMBA_CACHE_DIR"] = config.CACHE_DIR = str(folder / "numba")  # children inherit it
    return _caches()


compiled = partial(njit, nogil=True, cache=_find_cache())
