"""Triton: InfoNCE's log-sum-exps and the gradient of its logits, tile by tile; no logit is ever stored.

Of the logits' gradient one slice of columns exists at a time, in the features' dtype; torch.mm multiplies it
with the features. The formula and the sharding over ranks are in `kernels/contrastive.py`.

n images of this rank, N texts of all ranks, D width. Image i and text offset + i are a pair.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.fused.variant import TRITON_DTYPES, Variant, aligned

DTYPES = (torch.bfloat16, torch.float16)
SLICE_BYTES = 32 << 20  # size of a slice of the logits' gradient
# Of this rank's images (n,) and of all texts (N,): their log-sum-exps, or which are valid.
Pair = tuple[Tensor, Tensor]
FREE = ("logit_scale", "valid_images", "valid_texts", "row_lse", "column_lse", "n", "N", "blocks", "offset")
UNIT = 1024.0  # stored for a gradient of 1: keeps 1/32768 among float16's normal numbers


@triton.jit
def _tile(n, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """This program's tile (row, column) of an (n, N) matrix.

    Tiles go in groups of rows, so that programs that run at the same time share features in the L2 cache.
    """
    tiles_m, tiles_n = tl.cdiv(n, BLOCK_M), tl.cdiv(N, BLOCK_N)
    in_group = GROUP * tiles_n
    first = tl.program_id(0) // in_group * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + tl.program_id(0) % in_group % size, tl.program_id(0) % in_group // size


@triton.jit
def _cosines(
    image,  # (n, D)
    texts,  # (N, D)
    rows,
    columns,
    n,
    N,
    blocks,  # D / BLOCK_K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """image·textsᵀ of a tile's rows and columns, float32; zero from row n and from column N on."""
    width = blocks * BLOCK_K  # seen to be divisible by 16
    depth = tl.arange(0, BLOCK_K)
    a = image + rows.to(tl.int64)[:, None] * width + depth[None, :]
    b = texts + columns.to(tl.int64)[None, :] * width + depth[:, None]
    dot = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, width, BLOCK_K):
        x = tl.load(a + k, mask=(rows < n)[:, None], other=0.0)
        y = tl.load(b + k, mask=(columns < N)[None, :], other=0.0)
        dot = tl.dot(x, y, dot)
    return dot


@triton.jit(do_not_specialize=(*FREE, "diagonal"))
def lse_kernel(
    image,  # (n, D)
    texts,  # (N, D)
    logit_scale,  # (1,) float32
    valid_images,  # (n,) bytes: 0 for one that is left out
    valid_texts,  # (N,)
    row_lse,  # (⌈N / BLOCK_N⌉, n) float32: over the tile's columns
    column_lse,  # (⌈n / BLOCK_M⌉, N) float32: over the tile's rows
    diagonal,  # (n,) float32: the logits of the pairs
    n,
    N,
    blocks,  # D / BLOCK_K
    offset,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile_m, tile_n = _tile(n, N, BLOCK_M, BLOCK_N, GROUP)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    dot = _cosines(image, texts, rows, columns, n, N, blocks, BLOCK_M, BLOCK_N, BLOCK_K)
    s = dot * tl.load(logit_scale)
    starts_before_end = tile_n * BLOCK_N < offset + (tile_m + 1) * BLOCK_M
    if starts_before_end & (offset + tile_m * BLOCK_M < (tile_n + 1) * BLOCK_N):
        paired = (rows + offset)[:, None] == columns[None, :]
        has = (rows < n) & (rows + offset >= tile_n * BLOCK_N) & (rows + offset < (tile_n + 1) * BLOCK_N)
        tl.store(diagonal + rows, tl.sum(tl.where(paired, s, 0.0), 1), mask=has)

    outside = -1e30  # not -inf: a row of nothing else would make NaN
    valid_rows = tl.load(valid_images + rows, mask=rows < n, other=0) != 0
    valid_columns = tl.load(valid_texts + columns, mask=columns < N, other=0) != 0
    s = tl.where(valid_rows[:, None] & valid_columns[None, :], s, outside)
    row_max, column_max = tl.max(s, 1), tl.max(s, 0)
    row_sum = tl.sum(tl.exp(s - row_max[:, None]), 1)
    column_sum = tl.sum(tl.exp(s - column_max[None, :]), 0)
    tl.store(row_lse + tile_n.to(tl.int64) * n + rows, row_max + tl.log(row_sum), mask=rows < n)
    tl.store(
        column_lse + tile_m.to(tl.int64) * N + columns, column_max + tl.log(column_sum), mask=columns < N
    )


@triton.jit(do_not_specialize=(*FREE, "d_scale", "start", "size"))
def gradient_kernel(
    image,  # (n, D)
    texts,  # (N, D)
    logit_scale,  # (1,) float32
    valid_images,  # (n,) bytes
    valid_texts,  # (N,)
    row_lse,  # (n,) float32
    column_lse,  # (N,) float32
    gradient,  # (n, C up to a whole number of BLOCK_N) out, for columns start … start + C: UNIT · G
    d_scale,  # (tiles,) float32 out: Σ G∘(image·textsᵀ) over the tile
    n,
    N,
    blocks,  # D / BLOCK_K
    offset,
    start,
    size,  # C
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
):
    tile_m, tile_n = _tile(n, size, BLOCK_M, BLOCK_N, GROUP)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    local = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = start + local
    end = start + size
    dot = _cosines(image, texts, rows, columns, n, end, blocks, BLOCK_M, BLOCK_N, BLOCK_K)
    s = dot * tl.load(logit_scale)
    over_row = tl.load(row_lse + rows, mask=rows < n, other=0.0)
    over_column = tl.load(column_lse + columns, mask=local < size, other=0.0)
    valid_rows = tl.load(valid_images + rows, mask=rows < n, other=0) != 0
    valid_columns = tl.load(valid_texts + columns, mask=local < size, other=0) != 0
    g = tl.exp(s - over_row[:, None]) + tl.exp(s - over_column[None, :])
    g = tl.where((rows + offset)[:, None] == columns[None, :], g - 2.0, g)
    g = tl.where(valid_rows[:, None] & valid_columns[None, :], g, 0.0)  # even where it is infinite
    tl.store(d_scale + tl.program_id(0), tl.sum(g * dot))
    pitch = tl.cdiv(size, BLOCK_N) * BLOCK_N
    pointers = gradient + rows.to(tl.int64)[:, None] * pitch + local[None, :]
    tl.store(pointers, (g * UNIT).to(gradient.dtype.element_ty), mask=(rows < n)[:, None])


def lse_variant(dtype: torch.dtype) -> Variant:
    """How `lse_kernel` runs for features of this dtype."""
    return _variant("InfoNCE log-sum-exp", lse_kernel, dtype)


def gradient_variant(dtype: torch.dtype) -> Variant:
    """How `gradient_kernel` runs for features of this dtype."""
    return _variant("InfoNCE gradient", gradient_kernel, dtype, UNIT=UNIT)


def variants() -> list[Variant]:
    """Every variant that can be selected."""
    return [make(dtype) for dtype in DTYPES for make in (lse_variant, gradient_variant)]


def _variant(name: str, kernel, dtype: torch.dtype, **constants: float) -> Variant:
    types = dict.fromkeys(("logit_scale", "row_lse", "column_lse", "diagonal", "d_scale"), "*fp32")
    types |= dict.fromkeys(("valid_images", "valid_texts"), "*u8")
    types |= dict.fromkeys(("n", "N", "blocks", "offset", "start", "size"), "i32")
    return Variant(
        name=f"{name} {TRITON_DTYPES[dtype]}",
        kernel=kernel,
        dtype=dtype,
        types=types,
        constants={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP": 8, **constants},
        warps=8,
        stages=3,
    )


def sweep(
    image: Tensor, texts: Tensor, scale: Tensor, offset: int, masks: Pair | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the logits' rows (n,) and, over these rows, of their columns (N,); the diagonal (n,)."""
    variant = lse_variant(image.dtype)
    image, texts = _pad_width(image, variant), _pad_width(texts, variant)
    n, N, blocks = len(image), len(texts), image.shape[1] // variant.constants["BLOCK_K"]
    tiles_m = triton.cdiv(n, variant.constants["BLOCK_M"])
    tiles_n = triton.cdiv(N, variant.constants["BLOCK_N"])
    rows, columns, diagonal = (scale.new_empty(shape) for shape in ((tiles_n, n), (tiles_m, N), (n,)))
    inputs = (image, texts, scale, *_bytes(masks, image, texts), rows, columns, diagonal)
    variant.launch((tiles_m * tiles_n,), *inputs, n, N, blocks, offset)
    return rows.logsumexp(0), columns.logsumexp(0), diagonal


def gradients(
    image: Tensor, texts: Tensor, scale: Tensor, lse: Pair, offset: int, masks: Pair | None
) -> tuple[Tensor, Tensor, Tensor]:
    """G·texts, Gᵀ·image and Σ G∘(image·textsᵀ), with G of `kernels/contrastive.py`."""
    variant = gradient_variant(image.dtype)
    wide_image, wide_texts = _pad_width(image, variant), _pad_width(texts, variant)
    n, N, blocks = len(image), len(texts), wide_image.shape[1] // variant.constants["BLOCK_K"]
    block_m, block_n = variant.constants["BLOCK_M"], variant.constants["BLOCK_N"]
    step = max(1, SLICE_BYTES // (n * image.element_size()) // block_n) * block_n
    d_image, d_texts = scale.new_zeros(image.shape), scale.new_empty(texts.shape)
    d_scale = torch.zeros_like(scale)
    inputs = (wide_image, wide_texts, scale, *_bytes(masks, image, texts), *lse)
    for start in range(0, N, step):
        size = min(step, N - start)
        tiles_m, tiles_n = triton.cdiv(n, block_m), triton.cdiv(size, block_n)
        gradient, partial = image.new_empty(n, tiles_n * block_n), scale.new_empty(tiles_m * tiles_n)
        variant.launch((len(partial),), *inputs, gradient, partial, n, N, blocks, offset, start, size)
        gradient = gradient[:, :size]
        d_image += _product(gradient, texts[start : start + size])
        d_texts[start : start + size] = _product(gradient.T, image)
        d_scale += partial.sum()
    return d_image.div_(UNIT), d_texts.div_(UNIT), d_scale


def _bytes(masks: Pair | None, image: Tensor, texts: Tensor) -> Pair:
    """Which images and texts are valid, as bytes; without masks, all of them."""
    if masks is None:
        return tuple(x.new_ones(len(x), dtype=torch.uint8) for x in (image, texts))
    return tuple(mask.contiguous().view(torch.uint8) for mask in masks)


def _pad_width(x: Tensor, variant: Variant) -> Tensor:
    """x with zeros appended to its width up to a whole number of blocks (none for open_clip's widths)."""
    missing = -x.shape[1] % variant.constants["BLOCK_K"]
    return aligned(F.pad(x, (0, missing)) if missing else x)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product summed and returned in float32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
