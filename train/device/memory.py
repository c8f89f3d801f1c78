"""Bytes of GPU memory that a training step takes, found without a GPU.

The towers are run forward on fake tensors of a GPU: shapes and types without memory, under CUDA's own
autocast rules (a CPU's differ: LayerNorm in bfloat16).  What autograd would keep is counted, the rest summed.
Against peaks measured on an H200 (docs/benchmarks.md) the totals are within 3 % for ViT-B/32 (up to 15 % too
much where blocks are recomputed), 4 % for ViT-L/14 and RN50.

B samples of a rank's share, S image side.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from pipeline.packing import ROW, Packed
from train import model as models
from train.config import Recipe, Recompute

RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
SAMPLES = 128  # of the smaller counted batch: whole rows of packed captions for any number of tokens
# What the DALI engine takes, whose pieces do not grow with the batch: CUDA's context and eight graphs of 256
# images.  Counted: one graph of 512 takes 1.0 GB with the context on an H200 (docs/benchmarks.md).
DALI_BYTES = 3.5e9


class Kept(NamedTuple):
    """Of a sample, in bytes."""

    whole: int  # all that is kept for the backward pass
    largest: int  # the largest tensor of it


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a step's memory is made of."""

    parameters: int
    trained: int  # of the parameters
    blocks: int  # transformer blocks of the shallower tower that has any
    images: int  # bytes of a sample's images, as the loader delivers them
    batch_norm: bool  # what is forwarded together shares statistics
    kept: Mapping[Recompute, Kept]

    def activations(self, recompute: Recompute, micro: int) -> float:
        """Bytes alive at most in the backward pass of `micro` samples."""
        whole, largest = self.kept[recompute]
        # The gradient of the largest tensor, and of what it was made from.
        alive: float = whole + 2 * largest
        if recompute == "blocks" and self.blocks:  # one block's tensors are made again at a time
            alive += (self.kept["none"].whole - whole) / self.blocks
        return micro * alive

    def total(self, recipe: Recipe, share: int, recompute: Recompute, micro: int) -> float:
        """Bytes of a step on `share` samples, forwarded `micro` at a time."""
        half_copies = 2 * self.parameters if recipe.compute.precision == "bf16" else 0
        # float32 parameters and two moments; gradients (DDP's buckets are views of them) where parts add to
        # them. In one pass they are made as the activations go.
        values = 3 if micro < share else 2
        model = 4 * self.parameters + 4 * values * self.trained + half_copies
        batches = 2 * share * self.images  # the one in use, and the next
        # DALI makes a third one on the GPU meanwhile.
        engine = DALI_BYTES + share * self.images if recipe.data.engine == "dali" else 0
        return model + batches + engine + self.activations(recompute, micro)


def sizes(recipe: Recipe, tokens: int, compiled: bool) -> Sizes:
    """Counts for the recipe's model with captions of `tokens` tokens on average, in a second or two.

    compiled: for torch.compile, which keeps no float32 copies of LayerNorm's inputs.
    """
    clip = models.create(recipe.model, "meta")
    models.set_trainable(clip, recipe)
    parameters = list(clip.parameters())
    depths = [len(part.resblocks) for part in clip.modules() if hasattr(part, "resblocks")]
    side = models.image_side(clip)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _to_fake_gpu(clip)
        kept = {how: _kept(clip, recipe, how, tokens, compiled) for how in RECOMPUTES}
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        blocks=min(depths, default=0),
        images=3 * side * side * recipe.forwarded,
        batch_norm=any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in clip.modules()),
        kept=kept,
    )


def _to_fake_gpu(module: nn.Module) -> None:
    """Every parameter and buffer becomes a fake one on a GPU, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                value = torch.empty_like(parameter, device="cuda")
                part._parameters[name] = nn.Parameter(value, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="cuda")


def _kept(clip: Any, recipe: Recipe, recompute: Recompute, tokens: int, compiled: bool) -> Kept:
    """The difference between two batches, of one and two times SAMPLES."""
    compute = replace(recipe.compute, recompute=recompute, compile="no", attention="sdpa")
    towers = models.Towers(clip, replace(recipe, compute=compute))
    parameters = {p.untyped_storage()._cdata for p in clip.parameters()}
    totals, largest = [], 0
    for samples in (SAMPLES, 2 * SAMPLES):
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        inputs = _fake_batch(clip, recipe, samples, tokens)
        autocast = _autocast(recipe.compute.precision == "bf16")
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with _AsOnGPU(compiled), autocast, saved, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of towers that run as they are: the run itself says so
            outputs = towers.plain(*inputs)
        totals.append(sum(kept.values()))
        largest = max(kept.values(), default=0) // samples
        del outputs
    return Kept((totals[1] - totals[0]) // SAMPLES, largest)


def _fake_batch(clip: Any, recipe: Recipe, samples: int, tokens: int) -> tuple[Tensor, Packed | None]:
    """Images and packed captions on the fake GPU."""
    side = models.image_side(clip)
    shape = (samples * recipe.forwarded, side, side, 3)
    images = torch.empty(shape, dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
    if not recipe.captions:
        return images, None
    rows = samples * min(tokens, clip.context_length) // ROW
    ids, segment, position = torch.empty(3, rows, ROW, dtype=torch.int32, device="cuda")
    return images, Packed(ids, segment, position, torch.empty(samples, dtype=torch.int64, device="cuda"))


class _AsOnGPU(TorchFunctionMode):
    """What fake tensors leave out: they have no fused attention, and no compiler."""

    def __init__(self, compiled: bool):
        super().__init__()
        self.compiled = compiled

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            # Every fused kernel keeps what FlashAttention keeps: its inputs, its output and the rows' sums.
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3], 0.0, False)[0]
        if self.compiled and function is F.layer_norm:
            x, weights = args[0], ("weight", "bias")
            kwargs = {n: w.to(x.dtype) if n in weights and w is not None else w for n, w in kwargs.items()}
            with _autocast(False):
                return function(*args, **kwargs)
        return function(*args, **kwargs)


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """CUDA's autocast to bfloat16; `torch.autocast` does nothing where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        if not before[0]:
            torch.clear_autocast_cache()  # of the parameters' copies
