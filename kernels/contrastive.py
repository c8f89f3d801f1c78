"""Symmetric InfoNCE, equation (3) of the paper, without the matrix of logits, on one rank or many.

With lᵢⱼ = logit_scale · imageᵢ·textⱼ over N pairs, and lse = log Σ exp,

    L = −1/2N Σᵢ [log (exp lᵢᵢ / Σⱼ exp lᵢⱼ) + log (exp lᵢᵢ / Σⱼ exp lⱼᵢ)]
      =  1/2N Σᵢ (row_lseᵢ + column_lseᵢ − 2 lᵢᵢ)

    ∂L/∂lᵢⱼ = Gᵢⱼ / 2N,   Gᵢⱼ = exp(lᵢⱼ − row_lseᵢ) + exp(lᵢⱼ − column_lseⱼ) − 2·[i = j]

R ranks hold n pairs each (N = n·R); features are D wide. A rank owns the rows of its images:

1. gather all texts: (n, D) → (N, D);
2. sweep the (n, N) logits once: row_lse (n,) is complete, column_lse (N,) covers this rank's rows only;
3. gather the ranks' column_lse and merge them; sum the ranks' parts of the loss;
4. backward: make the logits again, and from G the gradients of the images (n, D), of all texts (N, D) and of
   the scale; reduce-scatter the texts' gradient, sum the scale's.

Two local losses (images against all texts, texts against all images) would take twice the arithmetic and
twice the communication. The backend "torch" sweeps in slices of rows and multiplies the features as they are.
"triton" goes tile by tile (`kernels/fused/contrastive.py`) on tensor cores, which multiply half precision: of
float32 features it makes float16 copies once, before anything travels. Logits, log-sum-exps, the loss and the
gradients are float32 in both (float64 for float64).

What a rank receives, of which 1/R is its own:

* forward: the texts, 2·N·D bytes (4·N·D where float32 is not copied, 8·N·D for float64); the parts of
  column_lse, 4·R·N; with `valid` N; of the loss 4. Images do not travel.
* backward: of the texts' gradient, summed over the ranks on the way, 4·N·D; of the scale's 4.

For six ranks of 5,120 pairs and D = 512 that is 31.5 + 0.7 MB and 62.9 MB. (Merging column_lse by a maximum
and a sum over the ranks would take 16·N bytes instead of 24·N, and a second wait.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import Backend, refuse_interpreted, resolve

# These are torch 2.14's names; it warns about the older ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_CHUNK_ELEMENTS = 1 << 22  # logits of the plain version that exist at a time


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | Collectives | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Symmetric InfoNCE of the global batch.

    image, text: (n, D) features of this rank's pairs, of one dtype and device. The caller has L2-normalised
    them, as in open_clip. Half-precision features are multiplied as such and summed in float32.
    logit_scale: tensor of one element, the factor itself (1/τ), not its logarithm.
    valid: (n,) bool; a pair that is not valid is no negative of others either: the loss and its gradients are
    those of the batch without it, and its own gradients are zero. Without any valid pair the loss is zero.
    None: all are valid. Either every rank passes it or none does.
    group: the process group over which the batch is spread; None means this process alone. Every rank of it
    must call with the same n and D, and run backward with the same upstream gradient. (`Collectives` of one's
    own stand for ranks that are not there, as in a benchmark.)
    backend: "torch" makes a slice of logits at a time; "triton" makes them tile by tile on the chip, and a
    slice (32 MiB) of their gradient. Triton multiplies float32 features as float16. Of unit vectors, at a
    scale of 100, a gradient is then off by 4e-4 to 6e-4 of its norm, and the loss by 1e-4 at most, less with
    more pairs. Values above 65,504 become infinite, and then the loss is not finite. For exact float32 on a
    GPU name "torch", with torch.set_float32_matmul_precision("highest"): torch's default, not the trainer's.

    Returns the loss of the whole global batch, the same scalar on every rank, float32 (float64 for float64).
    Gradients have their inputs' dtypes.

    Gradients follow DDP's convention: the caller *averages* parameter gradients over the ranks. So with R
    ranks the gradients of image and text are R times the derivative of the returned loss; the gradient of
    logit_scale is the derivative itself. The mean over ranks of every parameter's gradient then equals that
    of the single-process loss over all N pairs, as with open_clip's ClipLoss(local_loss=True,
    gather_with_grad=True). A caller who sums over ranks divides by R.

    Call it outside a torch.compile region, since it communicates. A surrounding autocast does not change it.
    Raises ValueError where shapes, dtypes or devices do not fit.
    """
    _check(image, text, logit_scale, valid)
    ranks = group if isinstance(group, Collectives) else Collectives(group)
    passes = _passes(resolve(backend, image), image)
    with torch.autocast(image.device.type, enabled=False):
        return _Contrastive.apply(image, text, logit_scale, valid, ranks, passes)


class Collectives:
    """What the ranks of a process group do together; without a group, or alone in it, nothing."""

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.world_size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def all_gather(self, x: Tensor) -> Tensor:
        """(n, …) on each rank → (n·R, …) in the ranks' order."""
        if self.world_size == 1:
            return x
        out = x.new_empty(self.world_size * len(x), *x.shape[1:])
        _all_gather(out, x.contiguous(), group=self.group)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """(n·R, …) on each rank → this rank's (n, …) of their sum."""
        if self.world_size == 1:
            return x
        out = x.new_empty(len(x) // self.world_size, *x.shape[1:])
        _reduce_scatter(out, x.contiguous(), group=self.group)
        return out

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks."""
        if self.world_size > 1:
            x = x.clone()
            dist.all_reduce(x, group=self.group)
        return x


class _Passes(NamedTuple):
    """A backend's two passes over the logits: `_sweep` and `_gradients`, or what equals them."""

    sweep: Callable[..., tuple[Tensor, Tensor, Tensor]]
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]]
    dtype: torch.dtype  # what the features are multiplied in


def _passes(backend: str, image: Tensor) -> _Passes:
    if backend == "torch":
        return _Passes(_sweep, _gradients, image.dtype)
    refuse_interpreted(image)
    from kernels.fused import contrastive as fused

    half = torch.float16 if image.dtype == torch.float32 else image.dtype
    return _Passes(fused.sweep, fused.gradients, half)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, image: Tensor, text: Tensor, logit_scale: Tensor, valid, ranks: Collectives, passes: _Passes
    ) -> Tensor:
        ctx.dtype = image.dtype
        image, text = image.to(passes.dtype), text.to(passes.dtype)
        texts = ranks.all_gather(text)  # (N, D)
        offset = ranks.rank * len(image)
        scale = logit_scale.detach().reshape(()).to(torch.promote_types(image.dtype, torch.float32))
        masks = None if valid is None else (valid, ranks.all_gather(valid.byte()).bool())
        row_lse, column_lse, diagonal = passes.sweep(image, texts, scale, offset, masks)
        column_lse = ranks.all_gather(column_lse[None]).logsumexp(0)
        losses = row_lse + column_lse[offset : offset + len(image)] - 2 * diagonal
        pairs: int | Tensor = len(texts)
        if masks is not None:
            losses = losses.where(valid, losses.new_zeros(()))
            pairs = masks[1].sum().clamp_min(1)
        ctx.save_for_backward(image, texts, logit_scale, scale, row_lse, column_lse)
        ctx.ranks, ctx.offset, ctx.passes, ctx.masks, ctx.pairs = ranks, offset, passes, masks, pairs
        return ranks.all_reduce(losses.sum()) / (2 * pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        image, texts, logit_scale, scale, *lse = ctx.saved_tensors
        ranks, (need_image, need_text, need_scale) = ctx.ranks, ctx.needs_input_grad[:3]
        d_image, d_texts, d_scale = ctx.passes.gradients(image, texts, scale, lse, ctx.offset, ctx.masks)
        unit = upstream / (2 * ctx.pairs)
        features = unit * scale * ranks.world_size  # DDP divides by the world size again
        return (
            (d_image * features).to(ctx.dtype) if need_image else None,
            (ranks.reduce_scatter(d_texts) * features).to(ctx.dtype) if need_text else None,
            (ranks.all_reduce(d_scale) * unit).to(logit_scale.dtype).view_as(logit_scale)
            if need_scale
            else None,
            *[None] * 3,
        )


# Of this rank's images (n,) and of all texts (N,): their log-sum-exps, or which are valid.
Pair = tuple[Tensor, Tensor]


def _sweep(
    image: Tensor, texts: Tensor, scale: Tensor, offset: int, masks: Pair | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of the logits' rows (n,) and, over these rows, of their columns (N,); the diagonal (n,)."""
    rows, columns, diagonals = [], None, []
    wide = texts.to(scale.dtype)
    for start, part in _chunks(image, texts):
        logits = scale * part.to(scale.dtype) @ wide.T
        diagonals.append(logits.diagonal(offset + start).clone())
        if masks is not None:
            # Not -inf: a row of nothing else would make NaN.
            logits.masked_fill_(_outside(masks, start, len(part)), -1e30)
        rows.append(logits.logsumexp(1))
        column = logits.logsumexp(0)
        columns = column if columns is None else torch.logaddexp(columns, column)
    assert columns is not None
    return torch.cat(rows), columns, torch.cat(diagonals)


def _gradients(
    image: Tensor, texts: Tensor, scale: Tensor, lse: Pair, offset: int, masks: Pair | None
) -> tuple[Tensor, Tensor, Tensor]:
    """G·texts, Gᵀ·image and Σ G∘(image·textsᵀ), with G of the module's head."""
    row_lse, column_lse = lse
    wide = texts.to(scale.dtype)
    d_image, d_texts, d_scale = [], torch.zeros_like(wide), torch.zeros_like(scale)
    for start, part in _chunks(image, texts):
        part = part.to(scale.dtype)
        cosine = part @ wide.T
        logits = scale * cosine
        g = (logits - row_lse[start : start + len(part), None]).exp_() + (logits - column_lse).exp_()
        g.diagonal(offset + start).sub_(2)
        if masks is not None:
            g.masked_fill_(_outside(masks, start, len(part)), 0)
        d_image.append(g @ wide)
        d_texts.addmm_(g.T, part)
        d_scale += (g * cosine).sum()
    return torch.cat(d_image), d_texts, d_scale


def _outside(masks: Pair, start: int, count: int) -> Tensor:
    """Which logits of `count` rows have an invalid image or text: (count, N)."""
    images, texts = masks
    return ~(images[start : start + count, None] & texts)


def _chunks(image: Tensor, texts: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, slice of the images) whose logits with all texts stay below the limit."""
    size = max(1, _CHUNK_ELEMENTS // len(texts))
    for start in range(0, len(image), size):
        yield start, image[start : start + size]


def _check(image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor | None) -> None:
    shapes = f"image {tuple(image.shape)}, text {tuple(text.shape)}"
    if image.ndim != 2 or image.shape != text.shape or 0 in image.shape:
        raise ValueError(f"contrastive_loss: two non-empty features of one shape (n, D), got {shapes}")
    if image.dtype != text.dtype or not image.is_floating_point():
        raise ValueError(f"contrastive_loss: features of one floating dtype, got {image.dtype}, {text.dtype}")
    if not isinstance(logit_scale, Tensor) or logit_scale.numel() != 1 or not logit_scale.is_floating_point():
        raise ValueError(f"contrastive_loss: logit_scale is a float tensor of one element: {logit_scale!r}")
    if not image.device == text.device == logit_scale.device:
        devices = f"{image.device}, {text.device}, {logit_scale.device}"
        raise ValueError(f"contrastive_loss: features and logit_scale on one device, got {devices}")
    if valid is not None and (
        valid.dtype != torch.bool or valid.shape != image.shape[:1] or valid.device != image.device
    ):
        raise ValueError(
            f"contrastive_loss: valid is a bool for each of the {len(image)} pairs on {image.device}, "
            f"got {valid.dtype} {tuple(valid.shape)} on {valid.device}"
        )
