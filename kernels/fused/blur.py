"""Triton: a Gaussian blur of uint8 images, in place, each with a sigma of its own or none.

N images, S side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fused.variant import Variant


@triton.jit(do_not_specialize=("images", "rows", "sigma", "side"))
def blur_kernel(
    images,  # (N, S, S, 3) uint8: read when going along the rows, else written
    rows,  # (N, S, 3·S) float32, blurred along the rows: written then, else read
    sigma,  # (N,) float32; an image of 0 is left alone
    side,
    ALONG_ROWS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n = tl.program_id(2)
    own = tl.load(sigma + n)
    if own > 0:
        width, last = 3 * side, side - 1
        start = n.to(tl.int64) * side * width
        y = tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y)
        x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
        inside = (y < side)[:, None] & (x < width)[None, :]
        column, colour = x // 3, x % 3
        offsets = y[:, None] * width + x[None, :]
        if ALONG_ROWS:
            source = images + start
        else:
            source = rows + start
        result = tl.load(source + offsets, mask=inside, other=0).to(tl.float32)
        total = 1.0  # of the weights
        radius = tl.minimum(tl.ceil(3 * own).to(tl.int32), last)
        for k in range(1, radius + 1):
            weight = tl.exp(-0.5 * (k / own) * (k / own))
            # Edges are reflected without repeating the last pixel.
            if ALONG_ROWS:
                low, high = tl.abs(column - k), last - tl.abs(last - column - k)
                before = y[:, None] * width + (3 * low + colour)[None, :]
                after = y[:, None] * width + (3 * high + colour)[None, :]
            else:
                low, high = tl.abs(y - k), last - tl.abs(last - y - k)
                before = low[:, None] * width + x[None, :]
                after = high[:, None] * width + x[None, :]
            pair = tl.load(source + before, mask=inside, other=0).to(tl.float32)
            pair += tl.load(source + after, mask=inside, other=0).to(tl.float32)
            result += weight * pair
            total += 2 * weight
        result = result / total
        if ALONG_ROWS:
            tl.store(rows + start + offsets, result, mask=inside)
        else:  # halves up
            level = tl.minimum(result + 0.5, 255.0).to(tl.int32).to(tl.uint8)
            tl.store(images + start + offsets, level, mask=inside)


def blur_variant(along_rows: bool) -> Variant:
    """How `blur_kernel` runs along the rows, or then along the columns."""
    return Variant(
        name=f"blur along {'rows' if along_rows else 'columns'}",
        kernel=blur_kernel,
        dtype=torch.float32,
        types={"images": "*u8", "rows": "*fp32", "sigma": "*fp32", "side": "i32"},
        constants={"ALONG_ROWS": along_rows, "BLOCK_Y": 4, "BLOCK_X": 256},
        warps=4,
    )


def variants() -> list[Variant]:
    """Every variant that can be selected."""
    return [blur_variant(along_rows) for along_rows in (True, False)]


def blur_(images: Tensor, sigma: Tensor) -> None:
    """images (N, S, S, 3) uint8 contiguous, in place; sigma (N,) float32."""
    count, side = images.shape[:2]
    rows = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for along_rows in (True, False):
        variant = blur_variant(along_rows)
        block_x, block_y = variant.constants["BLOCK_X"], variant.constants["BLOCK_Y"]
        grid = (triton.cdiv(3 * side, block_x), triton.cdiv(side, block_y), count)
        variant.launch(grid, images, rows, sigma, side)
