"""The perceptual triplet loss of stage 1: equations (1) and (2) of the paper, and its soft 2AFC hits.

B triplets, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import reference
from kernels.backend import Backend, check_choice, resolve

Reduction = Literal["mean", "sum", "none"]


def triplet_loss(
    ref: Tensor,
    left: Tensor,
    right: Tensor,
    vote: Tensor,
    margin: float = 0.05,
    *,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Hinge on the difference of two cosine distances, weighted by the votes: equation (2).

    ref, left, right: (B, D) features, not normalised, of one dtype and device.
    vote: (B,) floats in [0, 1], the fraction of the answers which preferred right (not rounded).
    margin: m of equation (2).
    backend: "triton" is one kernel for loss and gradients; it takes D ≤ 4096 and can be run backward once.

    Returns (loss, hits): loss is a scalar, or (B,) with reduction "none", in float32 (float64 for float64
    features). hits (B,) is the fraction of each triplet's answers that the distances agree with (a tie
    counts one half); it carries no gradient. Raises ValueError where shapes, dtypes or devices do not fit.
    """
    _check(ref, left, right, vote, reduction)
    dtype = torch.promote_types(ref.dtype, torch.float32)
    if resolve(backend, ref) == "triton":
        return _Fused.apply(ref, left, right, vote.float(), float(margin), reduction)
    ref, left, right, vote = (x.to(dtype) for x in (ref, left, right, vote))
    losses = reference.triplet_losses(ref, left, right, vote, margin)
    with torch.no_grad():
        hits = reference.triplet_hits(ref, left, right, vote)
    return _reduce(losses, reduction), hits


class _Fused(torch.autograd.Function):
    """Makes the gradients with the loss, while the features are on the chip; backward only scales them."""

    @staticmethod
    def forward(ctx, ref, left, right, vote, margin, reduction):
        from kernels.fused import triplet as fused

        if ref.shape[1] > fused.MAX_WIDTH:
            widths = f"{fused.MAX_WIDTH}, got {ref.shape[1]}"
            raise ValueError(f"triplet_loss: 'triton' takes widths up to {widths}; use backend='torch'")
        unit = 1 / len(ref) if reduction == "mean" else 1.0
        gradient = any(ctx.needs_input_grad[:3])
        losses, hits, ctx.gradients = fused.run(ref, left, right, vote.contiguous(), margin, unit, gradient)
        ctx.mark_non_differentiable(hits)
        return _reduce(losses, reduction), hits

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        from kernels.fused import triplet as fused

        if ctx.gradients is None:
            raise RuntimeError("triplet_loss: 'triton' can be run backward once; use backend='torch'")
        needed = [g if need else None for g, need in zip(ctx.gradients, ctx.needs_input_grad)]
        ctx.gradients = None
        fused.scale_([gradient for gradient in needed if gradient is not None], upstream.float())
        return (*needed, None, None, None)


def _check(ref: Tensor, left: Tensor, right: Tensor, vote: Tensor, reduction: str) -> None:
    shapes = f"ref {tuple(ref.shape)}, left {tuple(left.shape)}, right {tuple(right.shape)}"
    if ref.ndim != 2 or not ref.shape == left.shape == right.shape or 0 in ref.shape:
        raise ValueError(f"triplet_loss: expected three non-empty features of one shape (B, D), got {shapes}")
    if vote.shape != ref.shape[:1]:
        raise ValueError(f"triplet_loss: expected votes ({len(ref)},) for {shapes}, got {tuple(vote.shape)}")
    if not vote.is_floating_point():
        raise ValueError(f"triplet_loss: votes are fractions (floating point), got {vote.dtype}")
    if not ref.dtype == left.dtype == right.dtype or not ref.is_floating_point():
        dtypes = f"{ref.dtype}, {left.dtype}, {right.dtype}"
        raise ValueError(f"triplet_loss: features of one floating dtype, got {dtypes}")
    if not ref.device == left.device == right.device == vote.device:
        devices = ", ".join(str(x.device) for x in (ref, left, right, vote))
        raise ValueError(f"triplet_loss: features and votes on one device, got {devices}")
    check_choice("triplet_loss: reduction", reduction, Reduction)


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
