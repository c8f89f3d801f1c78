"""A linear probe: how much of people's similarity a linear map of the features could hold.

It is fitted to people, so it says less about the features than the figures without it (arXiv 2510.23321),
and is reported apart.  After the global probe of LukasMut/gLocal (utils/probing/global_probe.py): the
likelihood of people's choices, with a penalty on the squared distance to a multiple of the identity.  There,
similarities are dot products of features that are centred and scaled as a whole; here they are cosines with a
fitted temperature, so that a probe is judged by the same similarity as the features, and the multiple is 1.

U images, D width, N judgements with P pairs each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.alignment import judgements
from eval.alignment.judgements import ODD, Judgements

FOLDS = 5
STEPS, BATCH, RATE, PENALTY = 300, 256, 3e-3, 1e-3
_SHARPNESS = 10.0  # of the choices at the first step: what cosines are multiplied by


@dataclass(frozen=True)
class Probe:
    """mean (D,): of the features it was fitted on.  weight (D, D)."""

    mean: Tensor
    weight: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(U, D) unit rows."""
        return F.normalize((features - self.mean) @ self.weight, dim=-1)


def fit(features: Tensor, asked: Judgements, rows: np.ndarray) -> Probe:
    """features (U, D) of `asked.images`; rows: the judgements to fit on.  The same for the same input.

    Adam on batches drawn with replacement: the time does not depend on the number of judgements.
    """
    triplets = torch.from_numpy(asked.rows[rows])
    # each judgement's options are its pairs: the nearer one, or the one without the odd image
    options = asked.answers[rows][:, ::-1] if asked.kind == ODD else _two(asked.answers[rows])
    wanted = torch.from_numpy(np.ascontiguousarray(options, np.float32))
    pairs = torch.tensor(judgements.PAIRS_OF[asked.kind])
    mean = features[triplets.unique()].mean(0)
    change = torch.zeros(features.shape[1], features.shape[1], requires_grad=True)
    sharpness = torch.tensor(_SHARPNESS).log().requires_grad_()
    optimizer = torch.optim.Adam([change, sharpness], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / STEPS, total_iters=STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        drawn = torch.randint(len(triplets), (min(BATCH, len(triplets)),), generator=generator)
        x = features[triplets[drawn]] - mean  # (B, 3, D)
        x = F.normalize(x + x @ change, dim=-1)
        alike = (x[:, pairs[:, 0]] * x[:, pairs[:, 1]]).sum(-1)  # (B, P)
        loss = F.cross_entropy(sharpness.exp() * alike, wanted[drawn]) + PENALTY * change.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Probe(mean, torch.eye(len(change)) + change.detach())


def _two(vote: np.ndarray) -> np.ndarray:
    return np.stack([1 - vote, vote], 1)


def folds(asked: Judgements) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(judgements to fit on, judgements to test on) of each of FOLDS parts of the images.

    No image of a test judgement is in one that is fitted on; judgements over images of both are in neither
    (as in gLocal: `partition_triplets` in utils/probing/helpers.py).
    """
    fold = np.random.default_rng(0).permutation(len(asked.images)) % FOLDS
    of = fold[asked.rows]
    for number in range(FOLDS):
        inside = of == number
        yield np.flatnonzero(~inside.any(1)), np.flatnonzero(inside.all(1))
