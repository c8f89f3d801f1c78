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
LOSS_PROGRAMS = 32768  # at most: to start one a row might take a GPU longer than the rows do
SCALE_PROGRAMS = 512  # a gradient, at most: they fill a GPU, and end at once where nothing is to do
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
    columns, width = tl.arange(0, BLOCK_D), parts * ALIGN
    for start in range(tl.program_id(0) * BLOCK_B, batch, tl.num_programs(0) * BLOCK_B):
        rows = start + tl.arange(0, BLOCK_B)
        inside = rows < batch
        mask = inside[:, None] & (columns < width)[None, :]
        offsets = rows.to(tl.int64)[:, None] * width + columns[None, :]
        x = tl.load(ref + offsets, mask=mask, other=0.0).to(tl.float32)
        a = tl.load(left + offsets, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(right + offsets, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(vote + rows, mask=inside, other=0.0)

        x_norm = tl.sqrt(tl.sum(x * x, 1))
        a_norm = tl.sqrt(tl.sum(a * a, 1))
        b_norm = tl.sqrt(tl.sum(b * b, 1))
        x_inv = 1 / tl.maximum(x_norm, EPS)
        a_inv = 1 / tl.maximum(a_norm, EPS)
        b_inv = 1 / tl.maximum(b_norm, EPS)
        to_a = tl.sum(x * a, 1) * (x_inv * a_inv)  # cosines
        to_b = tl.sum(x * b, 1) * (x_inv * b_inv)
        delta = to_b - to_a  # > 0: right is nearer
        wants_b, wants_a = margin - delta, margin + delta
        tl.store(loss + rows, v * tl.maximum(wants_b, 0.0) + (1 - v) * tl.maximum(wants_a, 0.0), mask=inside)
        tl.store(hits + rows, tl.where(delta > 0, v, tl.where(delta < 0, 1 - v, 0.5)), mask=inside)

        if GRADIENT:
            # g is d loss/d delta; then of each cosine: d cos(x, y)/dx = (ŷ − cos · x/|x|) / max(|x|, EPS).
            # What is one number a row is multiplied first: the features' own arithmetic costs time too.
            g = unit * (tl.where(wants_a >= 0, 1 - v, 0.0) - tl.where(wants_b >= 0, v, 0.0))
            xa, xb = g * x_inv * a_inv, g * x_inv * b_inv
            xx = g * delta * x_inv / tl.where(x_norm > 0, x_norm, 1.0)
            aa = g * to_a * a_inv / tl.where(a_norm > 0, a_norm, 1.0)
            bb = g * to_b * b_inv / tl.where(b_norm > 0, b_norm, 1.0)
            dx = xb[:, None] * b - xa[:, None] * a - xx[:, None] * x
            da = aa[:, None] * a - xa[:, None] * x
            db = xb[:, None] * x - bb[:, None] * b
            tl.store(d_ref + offsets, dx.to(d_ref.dtype.element_ty), mask=mask)
            tl.store(d_left + offsets, da.to(d_left.dtype.element_ty), mask=mask)
            tl.store(d_right + offsets, db.to(d_right.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("factor", "batch", "parts", "stride"))
def scale_kernel(
    first,  # (B, D), scaled in place by the programs (…, 0)
    second,  # (B, D), by the programs (…, 1)
    third,  # (B, D), by the programs (…, 2)
    factor,  # (1,) or (B,) float32
    batch,
    parts,  # D / ALIGN
    stride,  # of factor: 0 where it is one number for all rows
    ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    x = tl.where(tl.program_id(1) == 0, first, tl.where(tl.program_id(1) == 1, second, third))
    width = parts * ALIGN
    # One factor of 1, the usual upstream gradient, leaves no rows to do.
    end = tl.where((stride == 0) & (tl.load(factor) == 1.0), 0, batch)
    for start in range(tl.program_id(0) * BLOCK_B, end, tl.num_programs(0) * BLOCK_B):
        rows = (start + tl.arange(0, BLOCK_B)).to(tl.int64)
        by = tl.load(factor + rows * stride, mask=rows < batch, other=1.0)[:, None]
        for column in range(0, width, BLOCK_D):
            columns = (column + tl.arange(0, BLOCK_D))[None, :]
            pointers, mask = x + rows[:, None] * width + columns, (by != 1.0) & (columns < width)
            scaled = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) * by
            tl.store(pointers, scaled.to(x.dtype.element_ty), mask=mask)


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
        constants={"BLOCK_B": 1, "BLOCK_D": block, **constants},
        # One warp, where that leaves each thread 16 values of a row: then sums over a row cross no warps.
        warps=max(1, block // 512),
    )


def scale_variant(dtype: torch.dtype, width: int) -> Variant:
    """How `scale_kernel` runs for gradients of this dtype and width."""
    align = 1 if width % ALIGN else ALIGN
    return Variant(
        name=f"triplet scale {TRITON_DTYPES[dtype]}{' odd' if align == 1 else ''}",
        kernel=scale_kernel,
        dtype=dtype,
        types={"factor": "*fp32", "batch": "i32", "parts": "i32", "stride": "i32"},
        constants={"ALIGN": align, "BLOCK_B": 8, "BLOCK_D": 256},
        warps=4,
    )


def variants() -> list[Variant]:
    """Every variant that can be selected."""
    blocks = (256, 512, 1024, 2048, MAX_WIDTH)
    widths = [width for block in blocks for width in (block, block - 1)]  # the other is no multiple of ALIGN
    cases = itertools.product(TRITON_DTYPES, widths, (False, True))
    scale = itertools.product(TRITON_DTYPES, (ALIGN, 1))
    return [*itertools.starmap(loss_variant, cases), *itertools.starmap(scale_variant, scale)]


def run(
    ref: Tensor, left: Tensor, right: Tensor, vote: Tensor, margin: float, unit: float, gradient: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses (B,), hits (B,) and, with `gradient`, the three gradients (B, D) of unit · Σ losses."""
    ref, left, right = features = [aligned(x) for x in (ref, left, right)]
    batch, width = ref.shape
    loss, hits = (torch.empty(batch, dtype=torch.float32, device=ref.device) for _ in range(2))
    gradients = [torch.empty_like(x) for x in features] if gradient else []
    variant = loss_variant(ref.dtype, width, gradient)
    grid = (min(LOSS_PROGRAMS, triton.cdiv(batch, variant.constants["BLOCK_B"])),)
    outputs = (vote, loss, hits, *(gradients or features))
    variant.launch(grid, *features, *outputs, batch, width // variant.constants["ALIGN"], margin, unit)
    return loss, hits, gradients


def scale_(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiplies one to three (B, D) in place by factor, () or (B,) float32; 1 touches no memory."""
    batch, width = gradients[0].shape
    variant = scale_variant(gradients[0].dtype, width)
    grid = (min(SCALE_PROGRAMS, triton.cdiv(batch, variant.constants["BLOCK_B"])), len(gradients))
    first, second, third = (gradients * 3)[:3]  # beyond their number never read
    stride = factor.stride(0) if factor.ndim else 0
    variant.launch(grid, first, second, third, factor, batch, width // variant.constants["ALIGN"], stride)
