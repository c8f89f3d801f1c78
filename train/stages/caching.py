"""Exact gradients of a loss of the whole batch, from towers that see a part of it at a time.

Gradient caching (Gao et al. 2021, arXiv 2101.06983): features of all parts without a graph, the loss and its
gradient with respect to the features, then each part again with a graph and that gradient fed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.distributed import synchronised
from train.stages.stage import Stage

Sides = tuple[Tensor, Tensor]
Features = Callable[[nn.Module, Any], Sides]


def cached_gradients(
    stage: Stage,
    parts: Sequence[Any],
    features: Features,
    loss: Callable[[Tensor, Tensor], Tensor],
    besides: Sequence[Tensor] = (),
) -> Tensor:
    """Add the gradient of `loss` to the parameters; returns the loss, a scalar without a graph.

    features: of a part, by the towers that it is given: two tensors (n, D).  loss: of both, of all parts end
    to end.  besides: parameters of the loss that are not the towers'.
    """
    seen = _without_graph(stage.towers, parts, features)
    sides = [torch.cat(side).requires_grad_() for side in zip(*seen)]
    value = loss(*sides)
    first, second, *others = torch.autograd.grad(value, [*sides, *besides])
    rows = [len(part) for part, _ in seen]
    for part, d_first, d_second in zip(parts, first.split(rows), second.split(rows)):
        with synchronised(stage.replica, part.last):
            one, other = features(stage.replica, part)
            fed = (one * d_first).sum() + (other * d_second).sum()
            if part.last:  # once, and in the pass whose gradients the ranks average
                fed = sum((p * d for p, d in zip(besides, others)), fed)
            fed.backward()
    return value.detach()


@torch.no_grad()
def _without_graph(
    towers: nn.Module, parts: Sequence[Any], features: Features
) -> list[tuple[Tensor, Tensor]]:
    """Features of each part; running statistics stay as they were."""
    buffers = list(towers.buffers())
    before = [buffer.clone() for buffer in buffers]
    seen = [features(towers, part) for part in parts]
    for buffer, value in zip(buffers, before):
        buffer.copy_(value)
    return seen
