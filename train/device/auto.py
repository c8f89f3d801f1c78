"""What `auto` stands for in `Compute`: settings that change a step's time and memory, not its mathematics.

On a CPU: nothing is compiled, nothing is computed twice, a rank's share is forwarded at once.  On a GPU the
fastest way is taken that fits its memory by `train/device/memory.py`.  Not settled here are `attention`
(decided from the shapes of each call, in kernels/attention.py) and `pack` (train/stages/stage2.py).

Batch normalisation is the exception: its statistics are those of the samples that are forwarded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from kernels.structure import why_slow
from pipeline.beton.fields import Beton
from train import model as models
from train.config import Recipe, Recompute, Stage2
from train.device import memory
from train.distributed import World
from train.splits import mean_tokens

# Of a GPU's memory.  The rest is CUDA's context, NCCL, and what torch's allocator loses between its blocks
# (at most 8 % of the tensors' bytes in the runs of docs/benchmarks.md).
USABLE = 0.9


class Way(NamedTuple):
    """One way to split a rank's share and to recompute."""

    micro: int
    recompute: Recompute
    bytes: float  # of a GPU's memory
    passes: int  # forward passes' worth of arithmetic of a step: 3 is forward and backward


@dataclass(frozen=True)
class Settled:
    """A recipe without `auto` (but for attention's and pack's), and why it is as it is."""

    recipe: Recipe
    sizes: memory.Sizes
    way: Way
    fits: bool
    note: str = ""


def passes(recipe: Recipe, micro: int, recompute: Recompute, share: int) -> int:
    """Forward passes' worth of a step: backward counts two, whole-block recomputing and caching one each."""
    cached = isinstance(recipe, Stage2) and recipe.negatives == "global" and micro < share
    return 3 + (recompute == "blocks") + cached


def ways(recipe: Recipe, sizes: memory.Sizes, share: int) -> list[Way]:
    """All that the recipe leaves open, the fastest first."""
    compute = recipe.compute
    parts = [share // n for n in range(1, share + 1) if share % n == 0]
    micros = parts if compute.micro == "auto" else [recipe.micro_batch(share)]
    hows = memory.RECOMPUTES if compute.recompute == "auto" else (compute.recompute,)
    return [way(recipe, sizes, share, m, how) for m, how in _by_speed(recipe, sizes, share, micros, hows)]


def _by_speed(
    recipe: Recipe, sizes: memory.Sizes, share: int, micros: Sequence[int], hows: Sequence[Recompute]
) -> list[tuple[int, Recompute]]:
    def cost(choice: tuple[int, Recompute]) -> tuple[int, int, int]:
        micro, how = choice
        order = memory.RECOMPUTES.index(how), -micro
        # Few large parts where their statistics are at stake.
        return passes(recipe, micro, how, share), *(order[::-1] if sizes.batch_norm else order)

    return sorted(((micro, how) for micro in micros for how in hows), key=cost)


def way(recipe: Recipe, sizes: memory.Sizes, share: int, micro: int, recompute: Recompute) -> Way:
    """What this way takes."""
    total = sizes.total(recipe, share, recompute, micro)
    return Way(micro, recompute, total, passes(recipe, micro, recompute, share))


def settle(recipe: Recipe, share: int, tokens: int, gpu_bytes: float, begun: int = 0) -> Settled:
    """For a GPU of this memory and captions of `tokens` tokens on average.

    share: samples of a rank.  begun: the run's micro-batch so far, which batch normalisation keeps.
    """
    compile, note = recipe.compute.compile, ""
    if compile == "auto":
        compile, note = _compiles(recipe)
    sizes = memory.sizes(recipe, tokens, compile != "no")
    if sizes.batch_norm and recipe.compute.micro == "auto" and begun and share % begun == 0:
        recipe = replace(recipe, compute=replace(recipe.compute, micro=begun))
    open_ways = ways(recipe, sizes, share)
    fitting = [w for w in open_ways if w.bytes <= USABLE * gpu_bytes]
    chosen = fitting[0] if fitting else min(open_ways, key=lambda w: w.bytes)
    compute = replace(
        recipe.compute,
        compile=compile,
        recompute=chosen.recompute,
        micro=chosen.micro,
    )
    return Settled(replace(recipe, compute=compute), sizes, chosen, bool(fitting), note)


def _compiles(recipe: Recipe) -> tuple[Literal["yes", "no"], str]:
    """What `--compile auto` is on a GPU, and if it is no, why."""
    if slow := why_slow(models.create(recipe.model, "meta").visual):
        return "no", f"not compiled: the image tower is {slow}"
    try:
        models.check_compiler()
    except ValueError as error:
        return "no", f"not compiled: {error}"
    return "yes", ""


def on(world: World, recipe: Recipe, file: Beton, begun: int = 0) -> tuple[Recipe, str]:
    """(the recipe as the run's devices take it, a line for the log), the same on every rank."""
    share, compute = recipe.rank_batch(world.size), recipe.compute
    if world.device.type != "cuda":
        settled = replace(
            compute,
            compile="no" if compute.compile == "auto" else compute.compile,
            recompute="none" if compute.recompute == "auto" else compute.recompute,
            micro=recipe.micro_batch(share),
        )
        return replace(recipe, compute=settled), ""
    own = torch.cuda.get_device_properties(world.device).total_memory
    smallest = -world.agree(-own)
    found = settle(recipe, share, round(mean_tokens(file)), smallest, begun)
    takes = f"{found.way.bytes / 1e9:.1f} of the GPU's {smallest / 1e9:.1f} GB"
    warning = "" if found.fits else ", more than it can hold by the plan (python -m train.plan)"
    return found.recipe, f"settings: {describe(found)}; {takes}{warning}"


def describe(settled: Settled) -> str:
    """The settings in words."""
    compute, chosen = settled.recipe.compute, settled.way
    note = f" ({settled.note})" if settled.note else ""
    parts = "one pass" if chosen.passes == 3 else f"{chosen.passes / 3:.2f} × the arithmetic"
    return (
        f"compile {compute.compile}{note}, attention {compute.attention}, recompute {chosen.recompute}, "
        f"micro {chosen.micro} ({parts})"
    )
