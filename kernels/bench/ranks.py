"""One rank's contrastive loss of a global batch, without the other ranks: ours and open_clip's.

Each of the absent ranks is taken to hold this rank's pairs. So what they would send is here already, every
collective has its true result and shapes, and a copy of its bytes stands for the network.

n pairs of a rank, R ranks, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.contrastive import Collectives


class EqualRanks(Collectives):
    """The first of `world_size` ranks that all hold the same pairs: a `group` of `contrastive_loss`."""

    def __init__(self, world_size: int):
        super().__init__()
        self.world_size = world_size

    def all_gather(self, x: Tensor) -> Tensor:
        return x.repeat(self.world_size, *[1] * (x.ndim - 1))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        # What the others add for this rank is, by symmetry, what this one adds for them.
        return x.unflatten(0, (self.world_size, -1)).sum(0)

    def all_reduce(self, x: Tensor) -> Tensor:
        return x * self.world_size


def open_clip_rank_loss(image: Tensor, text: Tensor, logit_scale: Tensor, world_size: int) -> Tensor:
    """open_clip's ClipLoss(local_loss=True, gather_with_grad=True): image, text (n, D) → ()."""
    images, texts = image.repeat(world_size, 1), text.repeat(world_size, 1)
    per_image, per_text = logit_scale * image @ texts.T, logit_scale * text @ images.T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2
