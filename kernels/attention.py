"""Softmax attention from packed query, key and value projections, within rows that may hold several captions.

R rows, L tokens in a row, H heads, E width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(qkv: Tensor, heads: int, *, segment: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention within each row: qkv (R, L, 3·H·E), as the fused projection writes it → (R, L, H·E).

    segment: (R, L) integers; a token sees only tokens of its row with its own number. causal: only itself
    and those before it. Raises ValueError where shapes do not fit.
    """
    _check(qkv, heads, segment)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (R, H, L, E)
    if segment is None:
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    else:
        seen = segment[:, None, :, None] == segment[:, None, None, :]  # (R, 1, L, L)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.tril() if causal else seen)
    return x.transpose(1, 2).flatten(2)


def _check(qkv: Tensor, heads: int, segment: Tensor | None) -> None:
    if qkv.ndim != 3 or heads < 1 or qkv.shape[-1] % (3 * heads) or 0 in qkv.shape:
        raise ValueError(
            f"attention: expected qkv (R, L, 3·heads·E) for {heads} heads, got {tuple(qkv.shape)}"
        )
    if segment is not None and (segment.shape != qkv.shape[:2] or segment.is_floating_point()):
        got = f"{tuple(segment.shape)} {segment.dtype}"
        raise ValueError(f"attention: expected integer segments {tuple(qkv.shape[:2])}, got {got}")
    if segment is not None and segment.device != qkv.device:
        raise ValueError(f"attention: qkv is on {qkv.device}, segments on {segment.device}")
