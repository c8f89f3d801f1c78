"""What `auto` stands for in `Compute` and `Data.engine`: what changes a step's time and memory, not its
mathematics.

On a CPU: nothing is compiled, nothing is computed twice, a rank's share is forwarded at once.  On a GPU the
fastest way is taken that fits its memory by `train/device/memory.py`.  Not settled here are `attention`
(decided from the shapes of each call, in kernels/attention.py) and `pack` (train/stages/stage2.py).

The engine comes in between: the fastest way that fits without DALI says how many images a step takes, that
decides the engine by `train/device/engine.py`, and with DALI the way is taken that leaves room for it.

Batch normalisation is the exception: its statistics are those of the samples that are forwarded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from kernels.structure import why_slow
from pipeline.base import hardware
from pipeline.beton.fields import Beton
from train import model as models
from train.config import Recipe, Recompute
from train.device import engine, memory
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
    engine: str = ""  # why it is the one it is


def passes(recipe: Recipe, micro: int, recompute: Recompute, share: int) -> int:
    """Forward passes' worth of a step: backward counts two, whole-block recomputing and caching one each."""
    return 3 + (recompute == "blocks") + (recipe.caches and micro < share)


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


def settle(
    recipe: Recipe,
    share: int,
    tokens: int,
    gpu_bytes: float,
    begun: int = 0,
    decide: Callable[[int], engine.Choice] | None = None,
) -> Settled:
    """For a GPU of this memory and captions of `tokens` tokens on average.

    share: samples of a rank.  begun: the run's micro-batch so far, which batch normalisation keeps.
    decide: what `--engine auto` is for a step of so many passes; without it, it stays auto.
    """
    compile, note = recipe.compute.compile, ""
    if compile == "auto":
        compile, note = _compiles(recipe)
    sizes = memory.sizes(recipe, tokens, compile != "no")
    if sizes.batch_norm and recipe.compute.micro == "auto" and begun and share % begun == 0:
        recipe = replace(recipe, compute=replace(recipe.compute, micro=begun))
    chosen, fits = _fastest(recipe, sizes, share, gpu_bytes)
    choice = engine.Choice(recipe.data.engine, f"{recipe.data.engine}, as asked")
    if decide and choice.engine == "auto":
        choice = decide(chosen.passes)
        recipe = replace(recipe, data=replace(recipe.data, engine=choice.engine))
        if choice.engine == "dali":
            chosen, fits = _fastest(recipe, sizes, share, gpu_bytes)
    compute = replace(
        recipe.compute,
        compile=compile,
        recompute=chosen.recompute,
        micro=chosen.micro,
    )
    return Settled(replace(recipe, compute=compute), sizes, chosen, fits, note, choice.line)


def _fastest(recipe: Recipe, sizes: memory.Sizes, share: int, gpu_bytes: float) -> tuple[Way, bool]:
    """(the fastest way that fits, True), or (the one that takes least, False)."""
    open_ways = ways(recipe, sizes, share)
    fitting = [w for w in open_ways if w.bytes <= USABLE * gpu_bytes]
    return (fitting[0], True) if fitting else (min(open_ways, key=lambda w: w.bytes), False)


def _compiles(recipe: Recipe) -> tuple[Literal["yes", "no"], str]:
    """What `--compile auto` is on a GPU, and if it is no, why."""
    if slow := why_slow(models.create(recipe.model, "meta").visual):
        return "no", f"not compiled: the image tower is {slow}"
    try:
        models.check_compiler()
    except ValueError as error:
        return "no", f"not compiled: {error}"
    return "yes", ""


def on(world: World, recipe: Recipe, clip: Any, file: Beton, begun: int = 0) -> tuple[Recipe, list[str]]:
    """(the recipe as the run's devices take it, lines for the log), the same on every rank.

    clip: its model, on the CPU.
    """
    share = recipe.rank_batch(world.size)
    if world.device.type != "cuda":
        return _on_cpu(recipe, share)
    own = torch.cuda.get_device_properties(world.device).total_memory
    smallest, tokens = -world.agree(-own), round(mean_tokens(file))
    decide = _decide(world, recipe, clip, tokens) if recipe.data.engine == "auto" else None
    found = settle(recipe, share, tokens, smallest, begun, decide)
    takes = f"{found.way.bytes / 1e9:.1f} of the GPU's {smallest / 1e9:.1f} GB"
    warning = "" if found.fits else ", more than it can hold by the plan (python -m train.plan)"
    return found.recipe, [f"engine: {found.engine}", f"settings: {describe(found)}; {takes}{warning}"]


def _on_cpu(recipe: Recipe, share: int) -> tuple[Recipe, list[str]]:
    compute, asked = recipe.compute, recipe.data.engine
    settled = replace(
        compute,
        compile="no" if compute.compile == "auto" else compute.compile,
        recompute="none" if compute.recompute == "auto" else compute.recompute,
        micro=recipe.micro_batch(share),
    )
    data = replace(recipe.data, engine="ffcv" if asked == "auto" else asked)
    lines = {"auto": [f"engine: {engine.ON_CPU}"], "dali": [f"engine: {engine.DALI_ON_CPU}"]}
    return replace(recipe, compute=settled, data=data), lines.get(asked, [])


def _decide(world: World, recipe: Recipe, clip: Any, tokens: int) -> Callable[[int], engine.Choice]:
    """The engine by the passes of a step, from figures that the ranks agree on: the least any of them has."""
    card = hardware.gpu(torch.cuda.get_device_name(world.device))
    known = not world.agree(card is None)
    fastest = world.agree(round(card.flops / 1e9) if card else 0) * 1e9 if known else 0
    feed = engine.Feed(
        cores=-world.agree(-round(100 * world.cores())) / 100,
        jpeg_engine=not world.agree(not (card and card.jpeg_engine)),
        dali=not world.agree(not hardware.installed("nvidia.dali")),
    )
    flops = models.sample_flops(clip, recipe, tokens)

    def decide(passes: int) -> engine.Choice:
        images = engine.rate(fastest, passes * flops) * recipe.forwarded
        return engine.choose(images, recipe.data.workers, feed)

    return decide


def describe(settled: Settled) -> str:
    """The settings in words."""
    compute, chosen = settled.recipe.compute, settled.way
    note = f" ({settled.note})" if settled.note else ""
    parts = "one pass" if chosen.passes == 3 else f"{chosen.passes / 3:.2f} × the arithmetic"
    return (
        f"compile {compute.compile}{note}, attention {compute.attention}, recompute {chosen.recompute}, "
        f"micro {chosen.micro} ({parts})"
    )
