"""Triton: the triplet loss, its 2AFC hits and its gradients in one pass that reads each feature once.

B triplets, D width.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fused.variant import TRITON_DTYPES, Variant, aligned

MAX_WIDTH = 4096  # three rows of it fit in the registers of 8 warps
ALIGN = 16  # of widths: what rows must be multiples of to be read several values at a time
EPS = 1e-8  # least length to divide by, as in torch.cosine_similarity


@triton.jit(do_not_specialize=("vote", "loss", "hits", "batch", "parts"))
def triplet_kernel(
    ref,  # (B, D)
    left,  # (B, D)
    right,  # (B, D)
    vote,  # (B,) float32
    loss,  # (B,) float32
    hits,  # (B,) float32
    d_ref,  # (B, D) gradient of unit · loss
    d_left,  # (B, D)
    d_right,  # (B, D)
    batch,
    parts,  # D / ALIGN
    margin,
    unit,
    ALIGN: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EPS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns, width = tl.arange(0, BLOCK_D), parts * ALIGN
    inside = rows < batch
    mask = inside[:, None] & (columns < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
    x = tl.load(ref + offsets, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(left + offsets, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(right + offsets, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(vote + rows, mask=inside, other=0.0)

    x_norm, a_norm, b_norm = tl.sqrt(tl.sum(x * x, 1)), tl.sqrt(tl.sum(a * a, 1)), tl.sqrt(tl.sum(b * b, 1))
    x_inv = 1 / tl.maximum(x_norm, EPS)
    a_inv = 1 / tl.maximum(a_norm, EPS)
    b_inv = 1 / tl.maximum(b_norm, EPS)
    to_a = tl.sum((x * x_inv[:, None]) * (a * a_inv[:, None]), 1)  # cosines
    to_b = tl.sum((x * x_inv[:, None]) * (b * b_inv[:, None]), 1)
    delta = to_b - to_a  # > 0: right is nearer
    wants_b, wants_a = margin - delta, margin + delta
    tl.store(loss + rows, v * tl.maximum(wants_b, 0.0) + (1 - v) * tl.maximum(wants_a, 0.0), mask=inside)
    tl.store(hits + rows, tl.where(delta > 0, v, tl.where(delta < 0, 1 - v, 0.5)), mask=inside)

    if GRADIENT:
        # g is d loss/d delta; then of each cosine: d cos(x, y)/dx = (ŷ − cos · x/|x|) / max(|x|, EPS).
        g = unit * (tl.where(wants_a >= 0, 1 - v, 0.0) - tl.where(wants_b >= 0, v, 0.0))
        x_unit = x / tl.where(x_norm > 0, x_norm, 1.0)[:, None]
        a_unit = a / tl.where(a_norm > 0, a_norm, 1.0)[:, None]
        b_unit = b / tl.where(b_norm > 0, b_norm, 1.0)[:, None]
        dx = (b * b_inv[:, None] - a * a_inv[:, None] - delta[:, None] * x_unit) * (g * x_inv)[:, None]
        da = (to_a[:, None] * a_unit - x * x_inv[:, None]) * (g * a_inv)[:, None]
        db = (x * x_inv[:, None] - to_b[:, None] * b_unit) * (g * b_inv)[:, None]
        tl.store(d_ref + offsets, dx.to(d_ref.dtype.element_ty), mask=mask)
        tl.store(d_left + offsets, da.to(d_left.dtype.element_ty), mask=mask)
        tl.store(d_right + offsets, db.to(d_right.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("factor", "numel", "width", "stride"))
def scale_kernel(
    x,  # (B, D), scaled in place
    factor,  # (1,) or (B,) float32
    numel: tl.int64,  # B · D
    width,
    stride,  # of factor: 0 or 1
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    by = tl.load(factor + offsets // width * stride, mask=offsets < numel, other=1.0)
    mask = by != 1.0  # for 1, the usual upstream gradient, nothing is read or written
    scaled = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * by
    tl.store(x + offsets, scaled.to(x.dtype.element_ty), mask=mask)


def loss_variant(dtype: torch.dtype, width: int, gradient: bool) -> Variant:
    """How `triplet_kernel` runs for features of this dtype and width."""
    block, align = max(256, triton.next_power_of_2(width)), 1 if width % ALIGN else ALIGN
    types = dict.fromkeys(("vote", "loss", "hits"), "*fp32")
    types |= {"batch": "i32", "parts": "i32", "margin": "fp32", "unit": "fp32"}
    constants = {"ALIGN": align, "GRADIENT": gradient, "EPS": EPS}
    kind = f"D≤{block}{' odd' if align == 1 else ''}{' gradient' if gradient else ''}"
    return Variant(
        name=f"triplet {TRITON_DTYPES[dtype]} {kind}",
        kernel=triplet_kernel,
        dtype=dtype,
        types=types,
        constants={"BLOCK_B": max(1, 1024 // block), "BLOCK_D": block, **constants},
        warps=max(4, block // 512),
    )


def scale_variant(dtype: torch.dtype) -> Variant:
    """How `scale_kernel` runs for gradients of this dtype."""
    return Variant(
        name=f"triplet scale {TRITON_DTYPES[dtype]}",
        kernel=scale_kernel,
        dtype=dtype,
        types={"factor": "*fp32", "numel": "i64", "width": "i32", "stride": "i32"},
        constants={"BLOCK": 1024},
        warps=4,
    )


def variants() -> list[Variant]:
    """Every variant that can be selected."""
    blocks = (256, 512, 1024, 2048, MAX_WIDTH)
    widths = [width for block in blocks for width in (block, block - 1)]  # the other is no multiple of ALIGN
    cases = itertools.product(TRITON_DTYPES, widths, (False, True))
    return [*itertools.starmap(loss_variant, cases), *map(scale_variant, TRITON_DTYPES)]


def run(
    ref: Tensor, left: Tensor, right: Tensor, vote: Tensor, margin: float, unit: float, gradient: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses (B,), hits (B,) and, with `gradient`, the three gradients (B, D) of unit · Σ losses."""
    ref, left, right = features = [aligned(x) for x in (ref, left, right)]
    batch, width = ref.shape
    loss, hits = (torch.empty(batch, dtype=torch.float32, device=ref.device) for _ in range(2))
    gradients = [torch.empty_like(x) for x in features] if gradient else []
    variant = loss_variant(ref.dtype, width, gradient)
    grid = (triton.cdiv(batch, variant.constants["BLOCK_B"]),)
    outputs = (vote, loss, hits, *(gradients or features))
    variant.launch(grid, *features, *outputs, batch, width // variant.constants["ALIGN"], margin, unit)
    return loss, hits, gradients


def scale_(x: Tensor, factor: Tensor) -> None:
    """Multiplies x (B, D) in place by factor, () or (B,) float32; a factor of 1 touches no memory."""
    variant = scale_variant(x.dtype)
    grid = (triton.cdiv(x.numel(), variant.constants["BLOCK"]),)
    variant.launch(grid, x, factor, x.numel(), x.shape[1], factor.ndim)
