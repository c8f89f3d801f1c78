"""Philox4x32-10, the counter-based generator behind every random choice of the pipeline.

A block is a pure function of (seed, four counters).  So a sample's numbers do not depend on the batch it is
in, on the worker or on the number of ranks.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np

from pipeline.base.compiled import compiled

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@compiled
def philox(seed, c0, c1, c2, c3):
    """Four random 32-bit numbers (as uint64) for a 64-bit `seed` and four 32-bit counters."""
    k0, k1 = np.uint64(seed) & _MASK, np.uint64(seed) >> _SHIFT
    c0, c1 = np.uint64(c0) & _MASK, np.uint64(c1) & _MASK
    c2, c3 = np.uint64(c2) & _MASK, np.uint64(c3) & _MASK
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3
