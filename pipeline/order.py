"""Sample order: where the endless training stream finds its t-th sample.

The stream is epoch after epoch.  Within an epoch the order is a bijection, computed per position from
(seed, epoch).  Nothing is stored, any position is found in O(1), and ranks, restarts and changed batch
sizes only read other positions of the same stream.

* `file` keeps the file's order.
* `random` is a full shuffle: for files that fit into memory or lie on a local SSD.
* `block` is for files larger than memory, or on network storage.  It puts blocks of consecutive samples in
  random order and shuffles the samples within windows of some blocks.  The disk sees sequential reads, and
  memory needs to hold two windows.

Who needs `lanes`: training on several nodes, from a file in block order that each node reads over the
network.  With one lane every node reads all of the file, as each batch takes its samples from one window
and every node has a part of the batch.  With as many lanes as nodes, each node reads only the blocks of its
own lane.  One node needs one lane.

    one epoch, blocks in random order:   B7 B2 B9 B4 | B0 B5 B1 B8      window = 2 blocks
    two lanes, each with its half:       lane 0: [B7 B2] [B9 B4]        shuffled within each [window]
                                         lane 1: [B0 B5] [B1 B8]
    the stream, dealt out in turns:      |lane 0|lane 1|lane 0|lane 1| …
    batches of two nodes:                |    batch 0  |    batch 1  |   turn = batch / lanes

Lanes belong to the order, not to the nodes, so the stream is the same on any number of nodes.

The bijection is a Feistel network over a power of two, walked until it falls below N
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.base.compiled import compiled
from pipeline.philox import philox

KINDS = ("random", "block", "file")
_ROUNDS = 8
_SAMPLES, _BLOCKS, _TAIL = 0x80000001, 0x80000002, 0x80000003  # last counter: what the key is for


@dataclass(frozen=True)
class Subset:
    """A fixed draw of `samples` samples out of a file; a smaller one lies inside a larger one of its seed."""

    samples: int
    seed: int

    def members(self, total: int) -> np.ndarray:
        """(samples,) int64: which of a file's `total` samples, in increasing order."""
        if not 1 <= self.samples <= total:
            raise ValueError(f"order: a subset of {self.samples} out of {total} samples")
        return _members(self.samples, self.seed, total)


@lru_cache(maxsize=2)
def _members(samples: int, seed: int, total: int) -> np.ndarray:
    _, index = Order().locate(seed, total, np.arange(samples))  # the head of a permutation
    return np.sort(index)


@dataclass(frozen=True, kw_only=True)
class Order:
    """How an epoch visits the samples of a file, or those of a `subset` of it.

    block: samples in a block, which for a subset are members that follow each other.  window: blocks in a
    window.  lanes, turn: so many lanes get `turn` samples of the stream each, again and again; a turn of a
    global batch / lanes gives every batch the same part of each lane.  These four serve kind="block" only.
    views: each sample comes so many times in a row, every time with draws of its own.
    """

    kind: str = "random"
    block: int = 2048
    window: int = 32
    lanes: int = 1
    turn: int = 1
    views: int = 1
    subset: Subset | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"order {self.kind!r} is none of {', '.join(KINDS)}")
        if self.block < 1 or self.window < 1:
            raise ValueError(f"order: block {self.block} and window {self.window} must be at least 1")
        if self.lanes < 1 or self.turn < 1:
            raise ValueError(f"order: lanes {self.lanes} and turn {self.turn} must be at least 1")
        if self.views < 1:
            raise ValueError(f"order: views {self.views} must be at least 1")
        if self.lanes > 1 and self.kind != "block":
            raise ValueError(f"order: {self.lanes} lanes, but only the block order has lanes")

    def locate(self, seed: int, total: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stream positions `t` (B,) ≥ 0 → (epoch, index in a file of `total` samples), each (B,) int64.

        The epoch is the draws': with several views, each pass over the file has as many.
        """
        if total < 1:
            raise ValueError("a file without samples has no order")
        samples = self._visited(total)
        t, view = np.divmod(np.ascontiguousarray(t, np.int64), self.views)
        if self.kind == "file":
            epoch, index = np.divmod(t, samples)
        else:
            block = self.block if self.kind == "block" else 0
            epoch = t // samples
            index = _locate(np.uint64(seed), samples, t, block, self.window, self.lanes, self.turn)
        return epoch * self.views + view, index if self.subset is None else self.subset.members(total)[index]

    def _visited(self, total: int) -> int:
        """How many samples of a file an epoch has."""
        return total if self.subset is None else self.subset.samples

    def windows(self, seed: int, total: int, t: np.ndarray) -> list[list[tuple[int, int]]]:
        """The windows that positions `t` (B,), which increase, need now, and the next one of each lane.

        They come in the order in which the stream reaches them.  A window is a list of ranges (first, stop),
        of which `expand` tells the samples.  Empty unless kind="block": elsewhere nothing is worth reading
        before its batch is planned.
        """
        if self.kind != "block":
            return []
        sizes, t = (self.block, self.window, self.lanes, self.turn), t // self.views
        _, heads = np.unique(t // self.turn % self.lanes, return_index=True)
        windows = []
        for position in t[heads].tolist():
            past = False
            while not past:
                past = position > t[-1]
                ranges, following = _window(np.uint64(seed), self._visited(total), position, *sizes)
                windows.append((position, [(int(first), int(stop)) for first, stop in ranges]))
                position = following
        return [ranges for _, ranges in sorted(windows)]

    def expand(self, total: int, first: int, stop: int) -> np.ndarray:
        """The samples of a window's range, int64, in file order."""
        return np.arange(first, stop) if self.subset is None else self.subset.members(total)[first:stop]


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
    """Where x of 0 … n-1 goes under the bijection of `keys`."""
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
    """How many of the stream's first t positions belong to the lanes before this one."""
    rounds, rest = t // (lanes * turn), t % (lanes * turn)
    return rounds * lane * turn + min(rest, lane * turn)


@compiled
def _lane_of(t, samples, lanes, turn):
    """(lane, its part first … stop - 1 of the epoch's samples in block order, the offset of t there)."""
    begin = t // samples * samples
    lane = t // turn % lanes
    first = _dealt(begin + samples, lane, lanes, turn) - _dealt(begin, lane, lanes, turn)
    stop = _dealt(begin + samples, lane + 1, lanes, turn) - _dealt(begin, lane + 1, lanes, turn)
    before = _dealt(begin, lane + 1, lanes, turn) - _dealt(begin, lane, lanes, turn)
    now = _dealt(t, lane + 1, lanes, turn) - _dealt(t, lane, lanes, turn)
    return lane, first, stop, first + now - before


@compiled
def _window_of(offset, first, stop, block, window, short, short_slot):
    """(number of the window in its lane, where it begins, where it stops) for an offset within the epoch."""
    begin = _slot_of(first, block, short, short_slot)
    number = (_slot_of(offset, block, short, short_slot) - begin) // window
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
        lane, first, stop, offset = _lane_of(positions[i], samples, lanes, turn)
        number, low, high = _window_of(offset, first, stop, block, window, short, short_slot)
        keys = _round_keys(seed, epoch, number * lanes + lane, _SAMPLES)
        offset = low + _permute(high - low, offset - low, keys)
        slot = _slot_of(offset, block, short, short_slot)
        start = _block_of(slot, full, short_slot, block_keys) * block
        out[i] = start + offset - _slot_start(slot, block, short, short_slot)
    return out


@compiled
def _window(seed, samples, t, block, window, lanes, turn):
    """What the window of position t reads, (blocks, 2), and the position where the lane's next one begins."""
    full, short, short_slot = _layout(seed, samples, t // samples, block)
    keys = _round_keys(seed, t // samples, 0, _BLOCKS)
    lane, first, stop, offset = _lane_of(t, samples, lanes, turn)
    _, low, high = _window_of(offset, first, stop, block, window, short, short_slot)
    slot = _slot_of(low, block, short, short_slot)
    out = np.empty((_slot_of(high - 1, block, short, short_slot) - slot + 1, 2), np.int64)
    for k in range(len(out)):
        begin = _slot_start(slot + k, block, short, short_slot)
        start = _block_of(slot + k, full, short_slot, keys) * block
        out[k, 0] = start + max(low - begin, 0)
        out[k, 1] = start + min(high, _slot_start(slot + k + 1, block, short, short_slot)) - begin
    before = _dealt(t, lane + 1, lanes, turn) - _dealt(t, lane, lanes, turn) + high - offset
    return out, (before // turn * lanes + lane) * turn + before % turn
