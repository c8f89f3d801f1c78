"""Triton: attention within rows of up to 128 tokens; a head's whole matrix of scores stays on the chip.

One program handles one head of one row. Only the projections are kept for the backward pass: computing the
probabilities again is cheaper than reading them.

R rows, L tokens in a row, H heads, E = 64 width of a head.
"""

from typing import Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fused.variant import TRITON_DTYPES, Variant, aligned, capability

HEAD = 64  # width of a head in ViT-B/32, ViT-L/14 and their text towers
BLOCKS = (64, 128)  # row lengths compiled for; shorter rows are masked
LONGEST = max(BLOCKS)
DTYPES = (torch.bfloat16, torch.float16)
Mask = Literal["full", "causal", "segments"]  # "segments" is causal too
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=("segment", "length", "heads"))
def attention_forward_kernel(
    qkv,  # (R, L, 3, H, E)
    segment,  # (R, L) int32, or any pointer without SEGMENTS
    out,  # (R, L, H, E)
    length,
    heads,
    scale,  # of the scores, times log2(e)
    HEAD: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CAUSAL: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    t, e = tl.arange(0, BLOCK_L), tl.arange(0, HEAD)
    inside = (t < length)[:, None]
    token = 3 * heads * HEAD  # elements from one token to the next
    pointers = qkv + row * length * token + head * HEAD + t[:, None] * token + e[None, :]
    q = tl.load(pointers, mask=inside, other=0.0)
    k = tl.load(pointers + heads * HEAD, mask=inside, other=0.0)
    v = tl.load(pointers + 2 * heads * HEAD, mask=inside, other=0.0)

    s = tl.dot(q, tl.trans(k)) * scale
    seen = (t < length)[None, :]
    if CAUSAL:
        seen = seen & (t[:, None] >= t[None, :])
    if SEGMENTS:
        number = tl.load(segment + row * length + t, mask=t < length, other=0)
        # Tokens beyond the row see everything: a token that sees nothing would make NaN.
        seen = seen & ((number[:, None] == number[None, :]) | (t >= length)[:, None])
    s = tl.where(seen, s, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    total = tl.sum(p, 1)
    o = tl.dot(p.to(v.dtype), v) / total[:, None]
    pointers = out + (row * length + t[:, None]) * heads * HEAD + head * HEAD + e[None, :]
    tl.store(pointers, o.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("segment", "length", "heads"))
def attention_backward_kernel(
    qkv,  # (R, L, 3, H, E)
    segment,  # (R, L) int32, or any pointer without SEGMENTS
    d_out,  # (R, L, H, E)
    d_qkv,  # (R, L, 3, H, E) out
    length,
    heads,
    scale,  # of the scores
    HEAD: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    CAUSAL: tl.constexpr,
    SEGMENTS: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    t, e = tl.arange(0, BLOCK_L), tl.arange(0, HEAD)
    inside = (t < length)[:, None]
    token = 3 * heads * HEAD  # elements from one token to the next
    qkv += row * length * token + head * HEAD
    d_qkv += row * length * token + head * HEAD
    d_out += row * length * heads * HEAD + head * HEAD
    offsets = t[:, None] * token + e[None, :]
    k = tl.load(qkv + offsets + heads * HEAD, mask=inside, other=0.0)
    v = tl.load(qkv + offsets + 2 * heads * HEAD, mask=inside, other=0.0)
    if SEGMENTS:
        number = tl.load(segment + row * length + t, mask=t < length, other=0)
    dk = tl.zeros((BLOCK_L, HEAD), tl.float32)
    dv = tl.zeros((BLOCK_L, HEAD), tl.float32)

    # One block of queries at a time, so that scores and their gradient fit in registers.
    for first in range(0, BLOCK_L, BLOCK_Q):
        u = first + tl.arange(0, BLOCK_Q)
        valid = (u < length)[:, None]
        q = tl.load(qkv + u[:, None] * token + e[None, :], mask=valid, other=0.0)
        do = tl.load(d_out + u[:, None] * heads * HEAD + e[None, :], mask=valid, other=0.0)
        s = tl.dot(q, tl.trans(k)) * (scale * LOG2_E)
        seen = (t < length)[None, :]
        if CAUSAL:
            seen = seen & (u[:, None] >= t[None, :])
        if SEGMENTS:
            own = tl.load(segment + row * length + u, mask=u < length, other=0)
            seen = seen & ((own[:, None] == number[None, :]) | (u >= length)[:, None])
        s = tl.where(seen, s, float("-inf"))
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv)
        dp = tl.dot(do, tl.trans(v))
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(q.dtype)
        dk = tl.dot(tl.trans(ds), q, dk)
        dq = tl.dot(ds, k)
        tl.store(d_qkv + u[:, None] * token + e[None, :], dq.to(d_qkv.dtype.element_ty), mask=valid)
    tl.store(d_qkv + offsets + heads * HEAD, dk.to(d_qkv.dtype.element_ty), mask=inside)
    tl.store(d_qkv + offsets + 2 * heads * HEAD, dv.to(d_qkv.dtype.element_ty), mask=inside)


def forward_variant(dtype: torch.dtype, length: int, mask: Mask, capability: int) -> Variant:
    """How `attention_forward_kernel` runs for these projections on a card (80: A100, 90: H100)."""
    warps = 4 if _block(length) == 64 else 8
    return _variant("attention", attention_forward_kernel, dtype, length, mask, warps)


def backward_variant(dtype: torch.dtype, length: int, mask: Mask, capability: int) -> Variant:
    """How `attention_backward_kernel` runs for these projections on a card (80: A100, 90: H100)."""
    queries = _block(length) if capability >= 90 else 32  # an A100 would spill with more
    constants = {"BLOCK_Q": queries, "LOG2_E": LOG2_E}
    return _variant("attention backward", attention_backward_kernel, dtype, length, mask, 8, **constants)


def _variant(
    name: str, kernel, dtype: torch.dtype, length: int, mask: Mask, warps: int, **constants: float
) -> Variant:
    block = _block(length)
    masked = {"CAUSAL": mask != "full", "SEGMENTS": mask == "segments"}
    numbers = {"segment": "*i32"} if mask == "segments" else {}
    return Variant(
        name=f"{name} {TRITON_DTYPES[dtype]} L≤{block} {mask}",
        kernel=kernel,
        dtype=dtype,
        types={"length": "i32", "heads": "i32", "scale": "fp32"} | numbers,
        constants={"HEAD": HEAD, "BLOCK_L": block, **masked, **constants},
        warps=warps,
    )


def variants(capability: int) -> list[Variant]:
    """Every variant that can be selected on a card."""
    return [
        make(dtype, length, mask, capability)
        for dtype in DTYPES
        for length in BLOCKS
        for mask in get_args(Mask)
        for make in (forward_variant, backward_variant)
    ]


def forward(qkv: Tensor, segment: Tensor | None, heads: int, mask: Mask) -> Tensor:
    """qkv (R, L, 3·H·E) contiguous, segment (R, L) int32 contiguous or None → (R, L, H·E)."""
    qkv = aligned(qkv)
    rows, length, _ = qkv.shape
    out = qkv.new_empty(rows, length, heads * HEAD)
    variant = forward_variant(qkv.dtype, length, mask, capability(qkv))
    numbers = qkv if segment is None else segment
    variant.launch((rows * heads,), qkv, numbers, out, length, heads, HEAD**-0.5 * LOG2_E)
    return out


def backward(qkv: Tensor, segment: Tensor | None, d_out: Tensor, heads: int, mask: Mask) -> Tensor:
    """The gradient of `forward`'s qkv from that of its output (R, L, H·E)."""
    qkv, d_out = aligned(qkv), aligned(d_out)
    rows, length, _ = qkv.shape
    d_qkv = torch.empty_like(qkv)
    variant = backward_variant(qkv.dtype, length, mask, capability(qkv))
    numbers = qkv if segment is None else segment
    variant.launch((rows * heads,), qkv, numbers, d_out, d_qkv, length, heads, HEAD**-0.5)
    return d_qkv


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length <= block)
