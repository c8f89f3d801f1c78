"""Sample order: where the endless training stream finds its t-th sample.

The stream is epoch after epoch; within an epoch the order is a bijection computed per
position from (seed, epoch), so nothing is stored, any position is found in O(1), and ranks,
restarts and changed batch sizes only read other positions of the same stream.

`random` is a full shuffle.  `block` is for files larger than memory or on network storage:
blocks of consecutive samples in random order, shuffled within a window of some blocks, so
that the disk sees sequential reads of `block` samples and memory needs to hold two windows.  Its
`lanes` share out the blocks: the stream is dealt to them in turns, and each has its own blocks and
windows.  A node whose part of every batch is one lane's turn reads that lane's share of the file
and no more; the lanes belong to the order, so the stream is the same on any number of nodes.
`file` keeps the file's order.

The bijection is a Feistel network over a power of two, walked until it falls below N
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.base.compiled import compiled
from pipeline.philox import philox

KINDS = ("random", "block", "file")
_ROUNDS = 8
_SAMPLES, _BLOCKS, _TAIL = 0x80000001, 0x80000002, 0x80000003  # last counter: what the key is for


@dataclass(frozen=True, kw_only=True)
class Order:
    """How an epoch visits its samples; the others serve kind="block" only.

    block: samples.  window: blocks.  lanes: how many, each `turn` samples at a time; a turn of a global
    batch / lanes gives every batch the same part of each lane.
    """

    kind: str = "random"
    block: int = 2048
    window: int = 32
    lanes: int = 1
    turn: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"order {self.kind!r} is none of {', '.join(KINDS)}")
        if self.block < 1 or self.window < 1:
            raise ValueError(f"order: block {self.block} and window {self.window} must be at least 1")
        if self.lanes < 1 or self.turn < 1:
            raise ValueError(f"order: lanes {self.lanes} and turn {self.turn} must be at least 1")
        if self.lanes > 1 and self.kind != "block":
            raise ValueError(f"order: {self.lanes} lanes, but only the block order has lanes")

    def locate(self, seed: int, samples: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream positions `t` (B,) ≥ 0 of a file of `samples` → (epoch, index in the file), int64 (B,)."""
        if samples < 1:
            raise ValueError("a file without samples has no order")
        t = np.ascontiguousarray(t, np.int64)
        if self.kind == "file":
            return np.divmod(t, samples)
        block = self.block if self.kind == "block" else 0
        return t // samples, _locate(np.uint64(seed), samples, t, block, self.window, self.lanes, self.turn)

    def windows(self, seed: int, samples: int, t: np.ndarray) -> list[list[tuple[int, int]]]:
        """What is to be read for positions `t` (B,), in increasing order, and soon after: windows, in order.

        Each lane's windows up to the first past `t`, as ranges for `expand`.  Empty unless kind="block":
        only there is it worth telling the kernel to read ahead.
        """
        if self.kind != "block":
            return []
        given = self.block, self.window, self.lanes, self.turn
        _, heads = np.unique(t // self.turn % self.lanes, return_index=True)
        found = []
        for at in t[heads].tolist():
            past = False
            while not past:
                past = at > t[-1]
                ranges, following = _window(np.uint64(seed), samples, at, *given)
                found.append((at, [(int(first), int(stop)) for first, stop in ranges]))
                at = following
        return [ranges for _, ranges in sorted(found)]

    def expand(self, first: int, stop: int) -> np.ndarray:
        """The samples of a window's range, int64, in file order."""
        return np.arange(first, stop)


@compiled
def _round_keys(seed, epoch, group, purpose):
    keys = np.empty(_ROUNDS, np.uint64)
    for r in range(0, _ROUNDS, 2):
        a, b, c, d = philox(seed, r, group, epoch, purpose)
        keys[r] = (a << np.uint64(32)) | b
        keys[r + 1] = (c << np.uint64(32)) | d
    return keys


@compiled
def _mix(half, key):
    """A 64-bit hash of half a word under a round key (the finaliser of SplitMix64)."""
    z = half ^ key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
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


@compiled
def _layout(seed, samples, epoch, block):
    """(full blocks, length of the short last block, its slot among all slots: drawn anew each epoch)."""
    full = samples // block
    short = samples - full * block
    word = philox(seed, 0, 0, epoch, _TAIL)[0]
    slot = np.int64((word * np.uint64(full + 1)) >> np.uint64(32)) if short else full + 1
    return full, short, slot


@compiled
def _slot_start(slot, block, short, short_slot):
    return slot * block if slot <= short_slot else (slot - 1) * block + short


@compiled
def _slot_of(position, block, short, short_slot):
    if position < short_slot * block:
        return position // block
    if position < short_slot * block + short:
        return short_slot
    return (position - short) // block + 1


@compiled
def _block_of(slot, full, short_slot, keys):
    """The block a slot shows: the short one is the file's last."""
    if slot == short_slot:
        return full
    return _permute(full, slot if slot < short_slot else slot - 1, keys)


@compiled
def _dealt(t, lane, lanes, turn):
    """How many of the stream's first t positions fall to the lanes before this one."""
    rounds, rest = t // (lanes * turn), t % (lanes * turn)
    return rounds * lane * turn + min(rest, lane * turn)


@compiled
def _place(t, samples, lanes, turn):
    """(lane, its stretch first … stop - 1 of the epoch's slots end to end, the place of position t in it)."""
    begin = t // samples * samples
    lane = t // turn % lanes
    first = _dealt(begin + samples, lane, lanes, turn) - _dealt(begin, lane, lanes, turn)
    stop = _dealt(begin + samples, lane + 1, lanes, turn) - _dealt(begin, lane + 1, lanes, turn)
    before = _dealt(begin, lane + 1, lanes, turn) - _dealt(begin, lane, lanes, turn)
    now = _dealt(t, lane + 1, lanes, turn) - _dealt(t, lane, lanes, turn)
    return lane, first, stop, first + now - before


@compiled
def _window_of(place, first, stop, block, window, short, short_slot):
    """(number of the window in its lane, where it begins, where it stops) for a place of the epoch."""
    begin = _slot_of(first, block, short, short_slot)
    number = (_slot_of(place, block, short, short_slot) - begin) // window
    slot = begin + number * window
    low = _slot_start(slot, block, short, short_slot)
    high = _slot_start(slot + window, block, short, short_slot)
    return number, max(first, low), min(stop, high)


@compiled
def _locate(seed, samples, positions, block, window, lanes, turn):
    out = np.empty(len(positions), np.int64)
    last = np.int64(-1)
    keys = block_keys = np.zeros(_ROUNDS, np.uint64)
    full = short = short_slot = np.int64(0)
    for i in range(len(positions)):
        epoch = positions[i] // samples
        if epoch != last:
            last = epoch
            if block:
                full, short, short_slot = _layout(seed, samples, epoch, block)
                block_keys = _round_keys(seed, epoch, 0, _BLOCKS)
            else:
                keys = _round_keys(seed, epoch, 0, _SAMPLES)
        if not block:
            out[i] = _permute(samples, positions[i] % samples, keys)
            continue
        lane, first, stop, place = _place(positions[i], samples, lanes, turn)
        number, low, high = _window_of(place, first, stop, block, window, short, short_slot)
        keys = _round_keys(seed, epoch, number * lanes + lane, _SAMPLES)
        place = low + _permute(high - low, place - low, keys)
        slot = _slot_of(place, block, short, short_slot)
        start = _block_of(slot, full, short_slot, block_keys) * block
        out[i] = start + place - _slot_start(slot, block, short, short_slot)
    return out


@compiled
def _window(seed, samples, t, block, window, lanes, turn):
    """What the window of position t reads, (blocks, 2), and the position where the lane's next one begins."""
    full, short, short_slot = _layout(seed, samples, t // samples, block)
    keys = _round_keys(seed, t // samples, 0, _BLOCKS)
    lane, first, stop, place = _place(t, samples, lanes, turn)
    _, low, high = _window_of(place, first, stop, block, window, short, short_slot)
    slot = _slot_of(low, block, short, short_slot)
    out = np.empty((_slot_of(high - 1, block, short, short_slot) - slot + 1, 2), np.int64)
    for k in range(len(out)):
        begin = _slot_start(slot + k, block, short, short_slot)
        start = _block_of(slot + k, full, short_slot, keys) * block
        out[k, 0] = start + max(low - begin, 0)
        out[k, 1] = start + min(high, _slot_start(slot + k + 1, block, short, short_slot)) - begin
    before = _dealt(t, lane + 1, lanes, turn) - _dealt(t, lane, lanes, turn) + high - place
    return out, (before // turn * lanes + lane) * turn + before % turn
