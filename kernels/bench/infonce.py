"""One rank's contrastive loss of a global batch beside open_clip's ClipLoss, eager and compiled; no network.

n pairs of a rank, N of all ranks, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.ranks import EqualRanks, open_clip_rank_loss
from kernels.bench.sides import beside, device, differentiate
from kernels.contrastive import contrastive_loss

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALE = 100.0  # CLIP's largest


def bench_infonce(limits: dict[str, float], toy: bool = False) -> dict[str, Any]:
    """5,120 local pairs of 1, 6 (the paper's) and 12 ranks, and features of each dtype.

    Errors are of the loss and of its gradients by image, text and scale, against float64 on the float32
    features: of half-precision features their rounding is part of it. Torch multiplies float32 as TF32, as in
    training. The work is that of three products of (n, N, D), which nothing can do without.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        local, width = (24, 32) if toy else (5120, 512)
        counts = (1, 3) if toy else (1, 6, 12)
        return {f"{local}×{ranks * local}": _ranks(local, width, ranks, limits) for ranks in counts}
    finally:
        torch.set_float32_matmul_precision(precision)


def pairs(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit vectors image, text (n, D) float32 whose pairs have a cosine of 1/6: a loss that is not zero."""
    generator = torch.Generator(device()).manual_seed(0)
    text, other = (torch.randn(n, width, device=device(), generator=generator) for _ in range(2))
    text, other = F.normalize(text, dim=-1), F.normalize(other, dim=-1)
    return F.normalize(text + 6 * other, dim=-1), text


def _ranks(local: int, width: int, ranks: int, limits: dict[str, float]) -> dict[str, Any]:
    features = [*pairs(local, width), torch.tensor(SCALE, device=device())]
    wide = [x.double().requires_grad_() for x in features]
    exact = differentiate(lambda: contrastive_loss(*wide, group=EqualRanks(ranks), backend="torch"), wide)
    rows: dict[str, Any] = {}
    for dtype in DTYPES:
        torch.compiler.reset()  # else the compiler would give up after a few shapes and dtypes
        compiled = torch.compile(open_clip_rank_loss, dynamic=False)
        image, text = (x.to(dtype, copy=True).requires_grad_() for x in features[:2])
        inputs = image, text, features[2].clone().requires_grad_()
        name = str(dtype).removeprefix("torch.")
        sides = {
            f"ours, {name}": partial(contrastive_loss, *inputs, group=EqualRanks(ranks)),
            f"ClipLoss eager, {name}": partial(open_clip_rank_loss, *inputs, ranks),
            f"ClipLoss compiled, {name}": partial(compiled, *inputs, ranks),
        }
        title, flop = f"InfoNCE {local}×{ranks * local}×{width}", 3 * 2 * local * ranks * local * width
        rows |= beside(title, sides, inputs, exact, flop, limits.get("flop_per_s"))
    return rows
