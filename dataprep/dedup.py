"""Which samples of some shards have image files that came before."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def first_copies(shards: list[Path]) -> list[np.ndarray]:
    """Which samples of each shard are the first with these bytes; one boolean array a shard."""
    hashes = [np.load(shard.with_suffix(".hashes.npy")) for shard in shards]
    borders = np.cumsum([len(h) for h in hashes])
    everything = np.concatenate(hashes)
    order = np.lexsort((everything[:, 1], everything[:, 0]))  # stable: the first copy comes first
    repeated = (everything[order[1:]] == everything[order[:-1]]).all(1)
    first = np.ones(len(everything), bool)
    first[order[1:][repeated]] = False
    return np.split(first, borders[:-1])
