"""What a run will take, before it runs: `python -m train.plan --stage 2 --nodes 1 --gpu a100`.

Counted, not guessed: parameters, floating-point operations (torch's own counter) and the bytes kept for
the backward pass (a tiny batch through the towers as they are trained).  Assumed, and printed as such:
the share of the peak that is reached, images a core decodes in a second, bytes of a stored image.  Give
`--measured` the samples/s of one GPU (from `--profile` or `python -m kernels.bench`), and the first goes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, NamedTuple, TypeVar

import tyro

from pipeline.base import console, files
from pipeline.base.hardware import GPUS
from train import architectures, command, splits
from train.config import Finite, Recipe, Recompute, Stage2

if TYPE_CHECKING:
    from torch import nn

R = TypeVar("R", bound=Recipe)

SAMPLES = {1: 13_900, 2: 15_061_515}  # NIGHTS with six votes or more; YFCC15M, where the file is not here
PAPER_HOURS = 20.0  # of an epoch of stage 2 on 6 A100, paper section 3.4
RECOMPUTES: tuple[Recompute, ...] = ("none", "pointwise", "blocks")


@dataclass(frozen=True, kw_only=True)
class Machine(Finite):
    """The machine the plan is for, and what is assumed of it."""

    gpu: str = "a100"
    """One of a100, a100-40, h100, h100-pcie, h200, gh200."""
    nodes: int = 1
    """Nodes of the job."""
    ngpus: int = 6
    """GPUs a node."""
    samples: int = 0
    """Samples of the training file; 0: what the file holds, or without it NIGHTS' or YFCC15M's number."""
    tokens: float = 0
    """Mean tokens of a caption; 0: what the file's JSON says, else 77 (nothing saved)."""
    efficiency: float = 0.5
    """Share of the peak that the arithmetic reaches (large GEMMs reach .85, whole ViT-B steps .5 to .6)."""
    measured: float = 0
    """Measured samples/s of one GPU, in place of the peak and its share."""
    decode: float = 1000
    """Images a core decodes, crops and resizes in a second."""
    image_kb: float = 27
    """Kilobytes of a stored image, where the file is not here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu not in GPUS:
            raise ValueError(f"--gpu {self.gpu}: known are {', '.join(GPUS)}")
        if min(self.nodes, self.ngpus) < 1:
            raise ValueError(f"--nodes {self.nodes}, --ngpus {self.ngpus}: at least 1")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"--efficiency {self.efficiency}: must lie in (0, 1]")
        if min(self.measured, self.samples, self.tokens) < 0 or min(self.decode, self.image_kb) <= 0:
            raise ValueError("--measured, --samples, --tokens, --decode, --image-kb: must not be negative")


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """The command line of a plan."""

    recipe: R
    machine: Machine = field(default_factory=Machine)
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the figures there, too."""


# -- counting -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Of one sample (a pair, or a triplet's three images)."""

    parameters: int
    trained: int
    pixels: int  # bytes of a sample's images
    image_flops: int  # one image, forward, 2 × multiply-adds
    text_flops: int  # one caption, forward
    kept: Mapping[Recompute, int]  # bytes kept for the backward pass of a sample, by recompute


def count(recipe: Recipe, tokens: int) -> Counts:
    """Builds the model and runs tiny batches through its towers, as they are trained."""
    from train import model

    clip = model.create(recipe.model)
    trained = set(model.set_trainable(clip, recipe))
    flops = model.forward_flops(clip, tokens)
    sizes = {name: p.numel() for name, p in clip.named_parameters()}
    kept = {how: _kept(clip, recipe, how, tokens) for how in RECOMPUTES}
    images, _ = model.example(clip, 1, tokens)
    width = 2 if recipe.compute.precision == "bf16" else 4
    pixels = images.numel() * width * recipe.images
    return Counts(sum(sizes.values()), sum(sizes[n] for n in trained), pixels, *flops, kept)


def _kept(clip: nn.Module, recipe: Recipe, recompute: Recompute, tokens: int) -> int:
    """Bytes that autograd keeps for a sample: the difference between three samples and two.

    (Of one sample alone batch normalisation has no variance.)
    """
    import torch

    from train.model import Towers, example

    # On a CPU there is only this attention.
    compute = replace(recipe.compute, recompute=recompute, attention="sdpa")
    towers = Towers(clip, replace(recipe, compute=compute))
    parameters = {p.untyped_storage().data_ptr() for p in clip.parameters()}
    sizes = []
    for samples in (2, 3):
        storages: dict[int, int] = {}

        def keep(tensor, storages=storages):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        images, captions = example(clip, samples, tokens)
        images = images.repeat(recipe.images, 1, 1, 1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = towers(images, captions if recipe.captions else None)
        sizes.append(sum(storages.values()))
        del outputs
    return sizes[1] - sizes[0]


# -- planning -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """One way to split and recompute: memory of a GPU, and arithmetic relative to the plain way."""

    micro: int
    recompute: Recompute
    activations_gb: float
    total_gb: float
    passes: float  # forward passes' worth of arithmetic of a step: 3 is forward and backward


def passes(recipe: Recipe, micro: int, recompute: Recompute, share: int) -> float:
    """Forward passes' worth of a step: backward counts two, whole-block recomputing and caching one each."""
    cached = isinstance(recipe, Stage2) and recipe.negatives == "global" and micro < share
    return 3 + (recompute == "blocks") + cached


def fits(recipe: Recipe, counts: Counts, share: int) -> list[Fit]:
    """The recipe's own way first, then the alternatives at full and split batch."""
    sizes = [recipe.compute.micro or share, *(share // n for n in (1, 2, 4, 8, 16) if share % n == 0)]
    ways = [
        (sizes[0], recipe.compute.recompute),
        *((m, how) for m in dict.fromkeys(sizes) for how in RECOMPUTES),
    ]
    # fp32 parameters and two moments of the trained ones; gradients twice (DDP's buckets); bf16 copies.
    # Two batches of images: the one in use and the one that is being loaded.
    fixed = (
        4 * counts.parameters + counts.trained * (8 + 8) + 2 * counts.parameters + 2 * share * counts.pixels
    )
    estimates = []
    for micro, recompute in dict.fromkeys(ways):
        kept = micro * counts.kept[recompute]
        # One more layer's worth of gradients and workspace is alive in the backward pass: a tenth.
        total = fixed + 1.1 * kept
        estimates.append(
            Fit(micro, recompute, kept / 1e9, total / 1e9, passes(recipe, micro, recompute, share))
        )
    return estimates


@dataclass(frozen=True)
class Plan:
    """The figures; seconds, bytes and samples unless the name says otherwise."""

    samples: int
    steps: int
    share: int
    gflop_a_sample: float
    samples_a_second_a_gpu: float
    hours: float
    gpu_hours: float
    hours_an_epoch: float
    images_a_second_a_node: float
    cores_a_node: float
    file_gb: float
    checkpoint_gb: float
    memory_gb: float
    fits: bool


def plan(
    recipe: Recipe, machine: Machine, counts: Counts, samples: int, file_bytes: float
) -> tuple[Plan, list[Fit]]:
    """The plan of `recipe` on `machine` for a file of `samples` and `file_bytes`."""
    world = machine.nodes * machine.ngpus
    share = recipe.rank_batch(world)
    ways = fits(recipe, counts, share)
    forward = recipe.images * counts.image_flops + recipe.captions * counts.text_flops
    work = ways[0].passes * forward
    card = GPUS[machine.gpu]
    rate = machine.measured or card.flops * machine.efficiency / work
    steps = recipe.total_steps(samples)
    seconds = steps * recipe.batch / (rate * world)
    epochs = steps * recipe.batch / recipe.samples(samples)
    images = rate * recipe.images * machine.ngpus
    figures = Plan(
        samples=recipe.samples(samples),
        steps=steps,
        share=share,
        gflop_a_sample=work / 1e9,
        samples_a_second_a_gpu=rate,
        hours=seconds / 3600,
        gpu_hours=seconds / 3600 * world,
        hours_an_epoch=seconds / 3600 / epochs,
        images_a_second_a_node=images,
        cores_a_node=images / machine.decode,
        file_gb=file_bytes / 1e9,
        checkpoint_gb=(4 * counts.parameters + 8 * counts.trained) / 1e9,
        memory_gb=ways[0].total_gb,
        fits=ways[0].total_gb < 0.94 * card.memory,
    )
    return figures, ways


class Source(NamedTuple):
    """The training file's samples, bytes and mean tokens of a caption, and where these figures come from."""

    samples: int
    size: float
    tokens: int
    origin: str


def source(recipe: Recipe, machine: Machine) -> Source:
    """What the training file holds, or what is assumed of it where it does not exist."""
    from pipeline.beton.fields import Beton

    file = recipe.data.data
    if file is None or not Path(file).is_file():
        samples = machine.samples or SAMPLES[recipe.stage]
        size = samples * recipe.images * machine.image_kb * 1e3
        return Source(samples, size, round(machine.tokens or 77), "assumed: the file is not here")
    beton = Beton(file)
    tokens = machine.tokens or beton.info.get("captions", {}).get("mean_tokens") or 77
    size = Path(file).stat().st_size
    return Source(machine.samples or len(beton), size, round(tokens), f"read from {file}")


def report(recipe: Recipe, machine: Machine) -> tuple[str, dict]:
    """The plan as text and as JSON values."""
    data = source(recipe, machine)
    counts = count(recipe, data.tokens)
    figures, ways = plan(recipe, machine, counts, data.samples, data.size)
    unit = recipe.unit.removesuffix("s")
    world, card = machine.nodes * machine.ngpus, GPUS[machine.gpu]
    reached = (
        f"measured {machine.measured:.0f} {unit}s/s a GPU"
        if machine.measured
        else f"assumed {machine.efficiency:.0%} of {card.flops / 1e12:.0f} TFLOP/s"
    )
    beside = f" (the paper: {PAPER_HOURS:.0f} h on 6 A100)" if recipe.stage == 2 else ""
    lines = [
        f"{recipe.model}, stage {recipe.stage} ({recipe.name}), "
        f"{machine.nodes} × {machine.ngpus} {machine.gpu}",
        f"  parameters    {counts.parameters / 1e6:.2f} M, {counts.trained / 1e6:.2f} M trained",
        f"  arithmetic    forward {counts.image_flops / 1e9:.2f} GFLOP an image, "
        f"{counts.text_flops / 1e9:.2f} a caption of {data.tokens} tokens; "
        f"{figures.gflop_a_sample:.1f} a {unit} trained",
        f"  data          {figures.samples:,} {unit}s, {figures.file_gb:.1f} GB ({data.origin})",
        f"  length        {figures.steps:,} steps of {recipe.batch:,} ({figures.share:,} a GPU)",
        f"  rate          {figures.samples_a_second_a_gpu:,.0f} {unit}s/s a GPU, {reached}",
        f"  loader        {figures.images_a_second_a_node:,.0f} images/s a node: "
        f"{figures.cores_a_node:.1f} cores, assumed {machine.decode:.0f} images/s a core",
        f"  time          {figures.hours:.2f} h, {figures.gpu_hours:.0f} GPU-hours; "
        f"{figures.hours_an_epoch:.2f} h an epoch{beside}",
        f"  checkpoint    {figures.checkpoint_gb:.2f} GB each",
        f"  memory a GPU  {figures.memory_gb:.1f} of {card.memory} GB: "
        + ("fits" if figures.fits else "DOES NOT FIT"),
        "",
        f"  {'micro':>8} {'recompute':>10} {'kept GB':>9} {'total GB':>9} {'arithmetic':>11}   fits",
    ]
    for way in ways:
        fit = "yes" if way.total_gb < 0.94 * card.memory else "no"
        lines.append(
            f"  {way.micro:>8} {way.recompute:>10} {way.activations_gb:>9.1f} {way.total_gb:>9.1f} "
            f"{way.passes / 3:>10.2f}×   {fit}{'   (this recipe)' if way is ways[0] else ''}"
        )
    values = {
        "plan": asdict(figures),
        "counts": asdict(counts),
        "ways": [asdict(w) for w in ways],
        "gpus": world,
    }
    return "\n".join(lines), values


def main(arguments: Sequence[str] | None = None) -> int:
    return console.command(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(args: Sequence[str]) -> None:
    options = command.read(Command, args, "python -m train.plan")
    architectures.check_model_name(options.recipe.model)
    text, values = report(splits.locate_data(options.recipe), options.machine)
    print(text)
    if options.json:
        files.write(options.json, json.dumps(values, indent=1))


if __name__ == "__main__":
    sys.exit(main())
