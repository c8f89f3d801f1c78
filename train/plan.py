"""What a run will take, before it runs: `python -m train.plan --stage 2 --nodes 1 --gpu a100`.

Counted, not guessed: parameters, floating-point operations (torch's own counter) and memory
(`train/device/memory.py`).  What the recipe leaves to `auto` is settled as a run on that GPU settles it
(`train/device/auto.py`).  Assumed, and printed as such:
the share of the peak that is reached, images a core decodes in a second, bytes of a stored image.  Give
`--measured` the samples/s of one GPU (from `--profile` or `python -m kernels.bench`), and the first goes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, NamedTuple, TypeVar, get_args

import tyro

from pipeline.base import console, files
from pipeline.base.hardware import GPUS
from train import architectures, command, splits
from train.config import Finite, Recipe, Recompute
from train.device import engine

if TYPE_CHECKING:
    from train.device.auto import Settled, Way

R = TypeVar("R", bound=Recipe)

SAMPLES = {1: 13_900, 2: 15_061_515}  # NIGHTS with six votes or more; YFCC15M, where the file is not here
PAPER_HOURS = 20.0  # of an epoch of stage 2 on 6 A100, paper section 3.4
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)


@dataclass(frozen=True, kw_only=True)
class Machine(Finite):
    """The machine the plan is for, and what is assumed of it."""

    gpu: str = "a100"
    """One of a100, a100-40, h100, h100-pcie, h200, gh200, b200, a40."""
    nodes: int = 1
    """Nodes of the job."""
    ngpus: int = 6
    """GPUs a node."""
    cores: int = 0
    """Cores a node, as the system counts them; 0: not known, and then --engine auto is left open."""
    samples: int = 0
    """Samples of the training file; 0: what the file holds, or without it NIGHTS' or YFCC15M's number."""
    tokens: float = 0
    """Mean tokens of a caption; 0: what the file's JSON says, else 77 (nothing saved)."""
    efficiency: float = engine.EFFICIENCY
    """Share of the peak that the arithmetic reaches (large GEMMs reach .85, whole ViT-B steps .5 to .6)."""
    measured: float = 0
    """Measured samples/s of one GPU, in place of the peak and its share."""
    decode: float = engine.DECODE
    """Images a core decodes and augments in a second (train/device/engine.py says where it was measured)."""
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
        if min(self.measured, self.cores, self.samples, self.tokens) < 0:
            raise ValueError("--measured, --cores, --samples, --tokens: must not be negative")
        if min(self.decode, self.image_kb) <= 0:
            raise ValueError("--decode, --image-kb: must be positive")

    def rate(self, work: float) -> float:
        """Samples a second of one GPU; work: operations of a sample."""
        return self.measured or engine.rate(GPUS[self.gpu].flops, work, self.efficiency)

    def engine_of(self, recipe: Recipe, work: float) -> engine.Choice:
        """What `--engine auto` is there, if DALI is installed."""
        feed = engine.Feed(self.cores / self.ngpus, GPUS[self.gpu].jpeg_engine, decode=self.decode)
        return engine.choose(self.rate(work) * recipe.forwarded, recipe.data.workers, feed)


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
    """Of one sample (a pair, or a triplet's three images or their views), forward: 2 × multiply-adds."""

    image_flops: int  # one image
    text_flops: int  # one caption

    def of(self, recipe: Recipe) -> int:
        return recipe.forwarded * self.image_flops + recipe.captions * self.text_flops


def count(recipe: Recipe, tokens: int) -> Counts:
    """By torch, on the recipe's model."""
    from train import model

    return Counts(*model.forward_flops(model.create(recipe.model), tokens))


# -- planning -------------------------------------------------------------------------------


def alternatives(settled: Settled, share: int) -> list[Way]:
    """The settled way first, then the whole share and its halves, recomputing each thing that can be."""
    from train.device import auto

    first = settled.way
    pairs = [(share // n, how) for n in (1, 2, 4, 8, 16) if share % n == 0 for how in RECOMPUTES]
    others = [pair for pair in pairs if pair != (first.micro, first.recompute)]
    return [first, *(auto.way(settled.recipe, settled.sizes, share, *pair) for pair in others)]


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
    settled: Settled, machine: Machine, counts: Counts, share: int, samples: int, file_bytes: float
) -> Plan:
    """The plan of a settled recipe on `machine` for a file of `samples` and `file_bytes`."""
    recipe, sizes, world = settled.recipe, settled.sizes, machine.nodes * machine.ngpus
    work = settled.way.passes * counts.of(recipe)
    rate = machine.rate(work)
    steps = recipe.total_steps(samples)
    seconds = steps * recipe.batch / (rate * world)
    epochs = steps * recipe.batch / recipe.samples(samples)
    images = rate * recipe.forwarded * machine.ngpus
    return Plan(
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
        checkpoint_gb=(4 * sizes.parameters + 8 * sizes.trained) / 1e9,
        memory_gb=settled.way.bytes / 1e9,
        fits=settled.fits,
    )


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
    tokens = machine.tokens or splits.mean_tokens(beton)
    size = Path(file).stat().st_size
    return Source(machine.samples or len(beton), size, round(tokens), f"read from {file}")


def report(recipe: Recipe, machine: Machine) -> tuple[str, dict]:
    """The plan as text and as JSON values."""
    from train.device import auto

    data, card = source(recipe, machine), GPUS[machine.gpu]
    share = recipe.rank_batch(machine.nodes * machine.ngpus)
    counts = count(recipe, data.tokens)
    settled = auto.settle(
        recipe, share, data.tokens, card.memory,
        decide=lambda passes: machine.engine_of(recipe, passes * counts.of(recipe)),
    )  # fmt: skip
    figures = plan(settled, machine, counts, share, data.samples, data.size)
    others = alternatives(settled, share)
    lines = [*_lines(settled, machine, counts, figures, data), "", *_table(others, card.memory)]
    values = {
        "plan": asdict(figures),
        "compute": asdict(settled.recipe.compute),
        "engine": settled.recipe.data.engine,
        "counts": asdict(counts),
        "sizes": asdict(settled.sizes),
        "ways": [way._asdict() for way in others],
        "gpus": machine.nodes * machine.ngpus,
    }
    return "\n".join(lines), values


def _lines(settled: Settled, machine: Machine, counts: Counts, figures: Plan, data: Source) -> list[str]:
    from train.device import auto

    recipe, sizes, card = settled.recipe, settled.sizes, GPUS[machine.gpu]
    unit = recipe.unit.removesuffix("s")
    reached = (
        f"measured {machine.measured:.0f} {unit}s/s a GPU"
        if machine.measured
        else f"assumed {machine.efficiency:.0%} of {card.flops / 1e12:.0f} TFLOP/s"
    )
    beside = f" (the paper: {PAPER_HOURS:.0f} h on 6 A100)" if recipe.stage == 2 else ""
    return [
        f"{recipe.model}, stage {recipe.stage} ({recipe.name}), "
        f"{machine.nodes} × {machine.ngpus} {machine.gpu}",
        f"  parameters    {sizes.parameters / 1e6:.2f} M, {sizes.trained / 1e6:.2f} M trained",
        f"  arithmetic    forward {counts.image_flops / 1e9:.2f} GFLOP an image, "
        f"{counts.text_flops / 1e9:.2f} a caption of {data.tokens} tokens; "
        f"{figures.gflop_a_sample:.1f} a {unit} trained",
        f"  data          {figures.samples:,} {unit}s, {figures.file_gb:.1f} GB ({data.origin})",
        f"  length        {figures.steps:,} steps of {recipe.batch:,} ({figures.share:,} a GPU)",
        f"  settings      {auto.describe(settled)}",
        f"  rate          {figures.samples_a_second_a_gpu:,.0f} {unit}s/s a GPU, {reached}",
        f"  engine        {settled.engine}",
        f"  loader        {figures.images_a_second_a_node:,.0f} images/s a node: "
        f"{figures.cores_a_node:.1f} cores, assumed {machine.decode:.0f} images/s a core",
        f"  time          {figures.hours:.2f} h, {figures.gpu_hours:.0f} GPU-hours; "
        f"{figures.hours_an_epoch:.2f} h an epoch{beside}",
        f"  checkpoint    {figures.checkpoint_gb:.2f} GB each",
        f"  memory a GPU  {figures.memory_gb:.1f} of {card.memory / 1e9:.1f} GB: "
        + ("fits" if figures.fits else "DOES NOT FIT"),
    ]


def _table(ways: Sequence[Way], memory: float) -> list[str]:
    from train.device.auto import USABLE

    lines = [f"  {'micro':>8} {'recompute':>10} {'GB':>9} {'arithmetic':>11}   fits ({USABLE:.0%} usable)"]
    for way in ways:
        fit = "yes" if way.bytes <= USABLE * memory else "no"
        lines.append(
            f"  {way.micro:>8} {way.recompute:>10} {way.bytes / 1e9:>9.1f} "
            f"{way.passes / 3:>10.2f}×   {fit}{'   (chosen)' if way is ways[0] else ''}"
        )
    return lines


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
