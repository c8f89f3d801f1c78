"""Attention in short rows beside every backend of torch's scaled_dot_product_attention and `varlen_attn`.

R rows, L tokens in a row, H heads of 64.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import reference
from kernels.attention import attention
from kernels.bench.cases import synthetic_captions, synthetic_lengths
from kernels.bench.sides import Call, beside, device, differentiate
from pipeline.packing import pack

ROW = 128  # tokens of packed captions
KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def bench_attention(limits: dict[str, float], toy: bool = False) -> dict[str, Any]:
    """The rows of ViT-B/32's pictures and of its packed captions, 5,120 pairs in bfloat16."""
    pairs = 8 if toy else 5120
    segment = pack(synthetic_captions(synthetic_lengths(pairs)), ROW).segment
    each = torch.arange(0, 50 * pairs + 1, 50, dtype=torch.int32)
    pictures = compare("pictures", (pairs, 50, 12), None, each, limits)
    captions = compare("captions", (len(segment), ROW, 8), segment, segment_bounds(segment), limits)
    return pictures | captions


def compare(
    name: str,
    shape: tuple[int, int, int],
    segment: Tensor | None,
    bounds: Tensor,
    limits: dict[str, float],
) -> dict[str, Any]:
    """Rows of packed projections (R, L, 3·H·64), with segments causal.

    bounds: where `varlen_attn`'s sequences begin and end among all tokens, int32. The limit is copying: the
    projections are read twice and the output's gradient once, output and gradient are written.
    """
    rows, length, heads = shape
    generator = torch.Generator(device()).manual_seed(0)
    noise = torch.randn(rows, length, 3 * heads * 64, device=device(), generator=generator)
    qkv = noise.bfloat16().requires_grad_()
    wide = qkv.detach().double().requires_grad_()
    causal, segment = segment is not None, None if segment is None else segment.to(device())
    exact = differentiate(lambda: reference.attention(wide, heads, segment, causal), [wide])
    call = partial(attention, qkv, heads, segment=segment, causal=causal)
    sdpa = partial(call, backend="sdpa")
    sides: dict[str, Call] = {"ours": partial(call, backend="triton"), "SDPA, its choice": sdpa}
    sides |= {f"SDPA {kernel}": partial(with_kernel, kernel, sdpa) for kernel in KERNELS}
    sides["varlen_attn"] = partial(varlen, qkv, heads, bounds.to(device()), int(bounds.diff().max()), causal)
    title, moved = f"{name} {rows}×{length}, {heads} heads", 11 * qkv.nbytes / 3
    return {title: beside(title, sides, [qkv], exact, moved, limits.get("bytes_per_s"))}


def with_kernel(name: str, call: Call) -> Tensor:
    with sdpa_kernel(getattr(SDPBackend, name)):
        return call()


def segment_bounds(segment: Tensor) -> Tensor:
    """Where runs of one segment (R, L) begin and end in the rows laid end to end, filler included: int32."""
    flat = segment + torch.arange(len(segment))[:, None] * (int(segment.max()) + 1)
    change = flat.flatten().diff().nonzero().flatten() + 1
    return torch.cat([torch.zeros(1), change, torch.tensor([segment.numel()])]).int()


def varlen(qkv: Tensor, heads: int, bounds: Tensor, longest: int, causal: bool) -> Tensor:
    """torch's attention of sequences laid end to end: qkv (R, L, 3·H·64) → (R, L, H·64)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.view(-1, 3, heads, 64).unbind(1)
    known = inspect.signature(varlen_attn).parameters
    window: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1)}  # torch 2.11's word for it
    mask = {"is_causal": causal} if "is_causal" in known else window
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **mask)
    assert isinstance(out, Tensor)  # a pair only if more is asked for
    return out.view(*qkv.shape[:2], heads * 64)
