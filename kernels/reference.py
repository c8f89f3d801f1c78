"""The paper's formulas in plain torch, against which every fused kernel of this package is tested.

Written to be read, not for speed: whole matrices in memory, gradients by autograd, any dtype.

B batch, D width, R rows, L tokens in a row, H heads, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Equation (1): 1 − cos(a, b) for a, b (B, D) → (B,).

    A vector shorter than 1e-8 is divided by 1e-8 instead of its length, as in torch.
    """
    return 1 - torch.cosine_similarity(a, b, dim=-1, eps=1e-8)


def triplet_losses(ref: Tensor, left: Tensor, right: Tensor, vote: Tensor, margin: float) -> Tensor:
    """Equation (2) for each triplet: features (B, D), vote (B,) in [0, 1] → (B,).

    The equation is an expectation over triplets and answers y. A vote is the fraction of the answers that
    preferred right, so the expectation over a triplet's answers weights its two hinges by the vote. A vote of
    0 or 1 leaves one of them.
    """
    delta = cosine_distance(ref, left) - cosine_distance(ref, right)  # > 0: right is nearer
    prefers_right = (margin - delta).clamp_min(0)
    prefers_left = (margin + delta).clamp_min(0)
    return vote * prefers_right + (1 - vote) * prefers_left


def triplet_hits(ref: Tensor, left: Tensor, right: Tensor, vote: Tensor) -> Tensor:
    """Soft 2AFC: the fraction of a triplet's answers that the distances agree with (B,); a tie is half."""
    delta = cosine_distance(ref, left) - cosine_distance(ref, right)
    return torch.where(delta > 0, vote, torch.where(delta < 0, 1 - vote, torch.full_like(vote, 0.5)))


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Equation (3), symmetric InfoNCE: unit vectors image, text (B, D), logit_scale = 1/τ → ()."""
    logits = logit_scale * image @ text.T
    over_texts = logits.diagonal() - logits.logsumexp(1)
    over_images = logits.diagonal() - logits.logsumexp(0)
    return -(over_texts + over_images).sum() / (2 * len(image))


def attention(qkv: Tensor, heads: int, segment: Tensor | None = None, causal: bool = False) -> Tensor:
    """Softmax attention within rows from packed projections: qkv (R, L, 3·H·E) → (R, L, H·E).

    segment (R, L): a token sees only tokens of its own segment. causal: only itself and those before it.
    """
    rows, length, width = qkv.shape
    q, k, v = qkv.view(rows, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (R, H, L, L)
    seen = torch.ones(rows, 1, length, length, dtype=torch.bool, device=qkv.device)
    if segment is not None:
        seen = seen & (segment[:, None, :, None] == segment[:, None, None, :])
    if causal:
        seen = seen.tril()
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(rows, length, width // 3)
