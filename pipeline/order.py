"""Sample order: where the endless training stream finds its t-th sample.

The stream is epoch after epoch; within an epoch the order is a bijection computed per
position from (seed, epoch), so nothing is stored, any position is found in O(1), and ranks,
restarts and changed batch sizes only read other positions of the same stream.

`random` is a full shuffle.  `block` is for files larger than memory or on network storage:
blocks of consecutive samples in random order, shuffled within a window of some blocks, so
that the disk sees sequential reads of `block` samples and memory needs to hold one window.  Every
node reads every block: blocks of its own would make the global batches depend on the number of nodes.
`file` keeps the file's order.

The bijection is a Feistel network over a power of two, walked until it falls below N
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.philox import philox

KINDS = ("random", "block", "file")
_ROUNDS = 8
_SAMPLES, _BLOCKS, _TAIL = 0x80000001, 0x80000002, 0x80000003  # last counter: what the key is for


@dataclass(frozen=True, kw_only=True)
class Order:
    """How an epoch visits its samples; `block` (samples) and `window` (blocks) serve kind="block" only."""

    kind: str = "random"
    block: int = 2048
    window: int = 32

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"order {self.kind!r} is none of {', '.join(KINDS)}")
        if self.block < 1 or self.window < 1:
            raise ValueError(f"order: block {self.block} and window {self.window} must be at least 1")

    def locate(self, seed: int, samples: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream positions `t` (B,) ≥ 0 of a file of `samples` → (epoch, index in the file), int64 (B,)."""
        if samples < 1:
            raise ValueError("a file without samples has no order")
        t = np.ascontiguousarray(t, np.int64)
        epoch, position = np.divmod(t, samples)
        if self.kind == "file":
            return epoch, position
        block = self.block if self.kind == "block" else 0
        return epoch, _locate(np.uint64(seed), samples, epoch, position, block, self.window)

    def reads(self, seed: int, samples: int, t: int) -> list[tuple[int, int]]:
        """The ranges of samples (first, stop) that the window holding stream position `t` reads.

        Empty unless kind="block": only there is it worth telling the kernel to read ahead.
        """
        if self.kind != "block":
            return []
        epoch, position = divmod(t, samples)
        return [tuple(r) for r in _reads(np.uint64(seed), samples, epoch, position, self.block, self.window)]


@njit(nogil=True, cache=True)
def _round_keys(seed, epoch, group, purpose):
    keys = np.empty(_ROUNDS, np.uint64)
    for r in range(0, _ROUNDS, 2):
        a, b, c, d = philox(seed, r, group, epoch, purpose)
        keys[r] = (a << np.uint64(32)) | b
        keys[r + 1] = (c << np.uint64(32)) | d
    return keys


@njit(nogil=True, cache=True)
def _mix(half, key):
    """A 64-bit hash of half a word under a round key (the finaliser of SplitMix64)."""
    z = half ^ key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True)
def _permute(n, x, keys):
    """Place x of 0 … n-1 under the bijection of `keys`."""
    bits = 8  # fewer would not mix within the rounds
    while (1 << bits) < n:
        bits += 1
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(bits) - low_bits)) - np.uint64(1)
    word = np.uint64(x)
    while True:
        low, high = word & low_mask, word >> low_bits
        for r in range(0, _ROUNDS, 2):
            low ^= _mix(high, keys[r]) & low_mask
            high ^= _mix(low, keys[r + 1]) & high_mask
        word = (high << low_bits) | low
        if word < np.uint64(n):
            return np.int64(word)


@njit(nogil=True, cache=True)
def _layout(seed, samples, epoch, block):
    """(full blocks, length of the short last block, its slot among all slots: drawn anew each epoch)."""
    full = samples // block
    short = samples - full * block
    word = philox(seed, 0, 0, epoch, _TAIL)[0]
    slot = np.int64((word * np.uint64(full + 1)) >> np.uint64(32)) if short else full + 1
    return full, short, slot


@njit(nogil=True, cache=True)
def _slot_start(slot, block, short, short_slot):
    return slot * block if slot <= short_slot else (slot - 1) * block + short


@njit(nogil=True, cache=True)
def _slot_of(position, block, short, short_slot):
    if position < short_slot * block:
        return position // block
    if position < short_slot * block + short:
        return short_slot
    return (position - short) // block + 1


@njit(nogil=True, cache=True)
def _block_of(slot, full, short_slot, keys):
    """The block a slot shows: the short one is the file's last."""
    if slot == short_slot:
        return full
    return _permute(full, slot if slot < short_slot else slot - 1, keys)


@njit(nogil=True, cache=True)
def _window_bounds(position, samples, block, window, full, short, short_slot):
    """(window number, its first position, its length) for a position of the epoch."""
    number = _slot_of(position, block, short, short_slot) // window
    first = _slot_start(number * window, block, short, short_slot)
    slots = full + (1 if short else 0)
    stop = samples
    if (number + 1) * window < slots:
        stop = _slot_start((number + 1) * window, block, short, short_slot)
    return number, first, stop - first


@njit(nogil=True, cache=True)
def _locate(seed, samples, epochs, positions, block, window):
    out = np.empty(len(positions), np.int64)
    last = np.int64(-1)
    keys = block_keys = np.zeros(_ROUNDS, np.uint64)
    full = short = short_slot = np.int64(0)
    for i in range(len(positions)):
        epoch, position = epochs[i], positions[i]
        if epoch != last:
            last = epoch
            if block:
                full, short, short_slot = _layout(seed, samples, epoch, block)
                block_keys = _round_keys(seed, epoch, 0, _BLOCKS)
            else:
                keys = _round_keys(seed, epoch, 0, _SAMPLES)
        if not block:
            out[i] = _permute(samples, position, keys)
            continue
        number, first, length = _window_bounds(position, samples, block, window, full, short, short_slot)
        keys = _round_keys(seed, epoch, number, _SAMPLES)
        place = first + _permute(length, position - first, keys)
        slot = _slot_of(place, block, short, short_slot)
        start = _block_of(slot, full, short_slot, block_keys) * block
        out[i] = start + place - _slot_start(slot, block, short, short_slot)
    return out


@njit(nogil=True, cache=True)
def _reads(seed, samples, epoch, position, block, window):
    full, short, short_slot = _layout(seed, samples, epoch, block)
    keys = _round_keys(seed, epoch, 0, _BLOCKS)
    number = _slot_of(position, block, short, short_slot) // window
    slots = full + (1 if short else 0)
    first = number * window
    out = np.empty((min(window, slots - first), 2), np.int64)
    for k in range(len(out)):
        start = _block_of(first + k, full, short_slot, keys) * block
        out[k, 0], out[k, 1] = start, min(start + block, samples)
    return out
