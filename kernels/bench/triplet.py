"""The triplet loss beside the same formula in torch, eager and compiled.

B triplets, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels.bench.sides import Call, beside, device, differentiate
from kernels.triplet import triplet_loss


def bench_triplet(limits: dict[str, float], toy: bool = False) -> dict[str, Any]:
    """Loss and gradients of bfloat16 features: 6 arrays (B, D) to read or write, so copying is the limit."""
    shape = (8, 32) if toy else (65536, 512)
    generator = torch.Generator(device()).manual_seed(0)
    noise = partial(torch.randn, shape, device=device(), generator=generator)
    ref, left, right = features = [noise().bfloat16().requires_grad_() for _ in range(3)]
    vote = torch.rand(shape[0], device=device(), generator=generator)

    def plain(ref: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return reference.triplet_losses(ref, left, right, vote, 0.05).mean()

    def half(ref: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return plain(ref.float(), left.float(), right.float())

    a, b, c = wide = [x.detach().double().requires_grad_() for x in features]
    sides: dict[str, Call] = {
        "ours": lambda: triplet_loss(ref, left, right, vote, backend="triton")[0],
        "torch eager": partial(half, ref, left, right),
        "torch compiled": partial(torch.compile(half, dynamic=False), ref, left, right),
    }
    exact = differentiate(partial(plain, a, b, c), wide)
    moved = 6 * features[0].nbytes
    return beside("triplet {}×{}".format(*shape), sides, features, exact, moved, limits.get("bytes_per_s"))
