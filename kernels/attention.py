"""Softmax attention from packed query, key and value projections, in rows that may hold several captions.

Two backends: "sdpa" is torch's scaled_dot_product_attention, for any input; "triton" is a kernel for short
rows, on an H200 at least 1.8 times as fast (docs/benchmarks.md). "auto" is "triton" wherever that can run.

R rows, L tokens in a row, H heads, E width of a head.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import check_choice, refuse_interpreted

if TYPE_CHECKING:
    from kernels.fused.attention import Mask

AttentionBackend = Literal["auto", "sdpa", "triton"]


def attention(
    qkv: Tensor,
    heads: int,
    *,
    segment: Tensor | None = None,
    causal: bool = False,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Attention within each row: qkv (R, L, 3·H·E), as the fused projection writes it → (R, L, H·E).

    segment: (R, L) integers; a token sees only the tokens of its row that have its number.
    causal: a token sees only itself and those before it.
    backend: "triton" takes bfloat16 or float16, E = 64, L ≤ 128, and segments only with causal. "auto" is
    "triton" for such tensors on a CUDA device, else "sdpa"; each call decides for itself.
    Raises ValueError where shapes do not fit or the backend does not take them.
    """
    _check(qkv, heads, segment, backend)
    if backend == "auto":
        backend = "triton" if qkv.is_cuda and triton_takes(qkv, heads, segment, causal) else "sdpa"
    elif backend == "triton":
        _check_triton(qkv, heads, segment, causal)
    if backend == "triton":
        mask = "segments" if segment is not None else "causal" if causal else "full"
        numbers = None if segment is None else segment.int().contiguous()
        return _triton_attention(qkv.contiguous(), numbers, heads, mask)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (R, H, L, E)
    seen = None
    if segment is not None:
        seen = segment[:, None, :, None] == segment[:, None, None, :]  # (R, 1, L, L)
        seen, causal = (seen.tril() if causal else seen), False
    # On a CPU, torch's backward in half precision takes up to eight times as long as in float32.
    widen = qkv.device.type == "cpu" and qkv.dtype.itemsize == 2 and qkv.requires_grad
    with torch.autocast("cpu", enabled=False) if widen else nullcontext():
        q, k, v = (x.float() if widen else x for x in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    return (x.to(qkv.dtype) if widen else x).transpose(1, 2).flatten(2)


def triton_takes(qkv: Tensor, heads: int, segment: Tensor | None = None, causal: bool = False) -> bool:
    """Whether the backend "triton" takes these inputs of `attention`; where they are is not asked."""
    from kernels.fused import attention as fused

    head, length = qkv.shape[-1] // 3 // heads, qkv.shape[1]
    fits = qkv.dtype in fused.DTYPES and head == fused.HEAD and length <= fused.LONGEST
    return fits and (segment is None or causal)


# Custom operators, so that torch.compile neither traces into the launch of a kernel nor breaks the graph.


@torch.library.custom_op("perceptual_initialization::attention", mutates_args=())
def _triton_attention(qkv: Tensor, segment: Tensor | None, heads: int, mask: str) -> Tensor:
    from kernels.fused import attention as fused

    return fused.forward(qkv, segment, heads, cast("Mask", mask))


@torch.library.custom_op("perceptual_initialization::attention_backward", mutates_args=())
def _triton_attention_backward(
    qkv: Tensor, segment: Tensor | None, d_out: Tensor, heads: int, mask: str
) -> Tensor:
    from kernels.fused import attention as fused

    return fused.backward(qkv, segment, d_out, heads, cast("Mask", mask))


@_triton_attention.register_fake
def _(qkv, segment, heads, mask):
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


@_triton_attention_backward.register_fake
def _(qkv, segment, d_out, heads, mask):
    return torch.empty_like(qkv)


def _save(ctx, inputs, output) -> None:
    qkv, segment, ctx.heads, ctx.mask = inputs
    ctx.save_for_backward(qkv, segment)


def _differentiate(ctx, d_out):
    qkv, segment = ctx.saved_tensors
    return _triton_attention_backward(qkv, segment, d_out, ctx.heads, ctx.mask), None, None, None


_triton_attention.register_autograd(_differentiate, setup_context=_save)


def _check(qkv: Tensor, heads: int, segment: Tensor | None, backend: str) -> None:
    if qkv.ndim != 3 or heads < 1 or qkv.shape[-1] % (3 * heads) or 0 in qkv.shape:
        raise ValueError(f"attention: qkv is (R, L, 3·heads·E) for {heads} heads, got {tuple(qkv.shape)}")
    if segment is not None and (segment.shape != qkv.shape[:2] or segment.is_floating_point()):
        actual = f"{tuple(segment.shape)} {segment.dtype}"
        raise ValueError(f"attention: expected integer segments {tuple(qkv.shape[:2])}, got {actual}")
    if segment is not None and segment.device != qkv.device:
        raise ValueError(f"attention: qkv is on {qkv.device}, segments on {segment.device}")
    check_choice("attention: backend", backend, AttentionBackend)


def _check_triton(qkv: Tensor, heads: int, segment: Tensor | None, causal: bool) -> None:
    from kernels.fused import attention as fused

    if not triton_takes(qkv, heads, segment, causal):
        dtypes = " or ".join(str(dtype).removeprefix("torch.") for dtype in fused.DTYPES)
        head, length = qkv.shape[-1] // 3 // heads, qkv.shape[1]
        mask = "" if segment is None else ", segments" + " and causal" * causal
        raise ValueError(
            f"attention: 'triton' takes {dtypes}, heads {fused.HEAD} wide, rows of up to {fused.LONGEST} "
            f"tokens, and segments only with causal=True; got {qkv.dtype}, {head}, {length}{mask}; "
            f"use backend='sdpa'"
        )
    refuse_interpreted(qkv)
