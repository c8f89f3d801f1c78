"""k nearest neighbours on frozen features, weighted as in DINO.

N training images, M test images, D width, K classes.  A neighbour's vote weighs exp(cosine / 0.07), as in
facebookresearch/dino `eval_knn.py` (`knn_classifier`).  There a tie of votes goes to whichever class a sort
leaves first, here to the first of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TEMPERATURE = 0.07
KS = (1, 20)
_HELD = 2**26  # cosines at a time: 256 MB


def predict(train: Tensor, labels: np.ndarray, test: Tensor, classes: int, ks: Sequence[int] = KS) -> dict:
    """{k: (M,) int64 predicted classes}; of fewer than k training images all vote.

    train (N, D), test (M, D): float32 unit rows on one device.  labels (N,) int64 below `classes`.
    """
    voters, most = torch.from_numpy(labels).to(train.device), min(max(ks), len(train))
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in test.split(max(1, _HELD // len(train))):
        cosines, nearest = (rows @ train.T).topk(most, dim=1)
        votes, weights = voters[nearest], (cosines / TEMPERATURE).exp()
        tally, every = rows.new_zeros(len(rows), classes), torch.arange(len(rows), device=rows.device)
        for place in range(most):  # one neighbour a row at a time: the order of the sums is fixed
            tally[every, votes[:, place]] += weights[:, place]
            for k in ks:
                if place + 1 == min(k, most):
                    parts[k].append(tally.argmax(1))
    return {k: torch.cat(part).cpu().numpy() for k, part in parts.items()}
