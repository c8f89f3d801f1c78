"""What the towers and losses cost, beside open_clip's own: `python -m kernels.bench`.

Without --compile or --gpu it measures what any machine can: a whole training step with each saving alone and
with all of them, its FLOPs by torch's counter, and its memory. Times are of paired rounds: every round runs
every case once, in an order of its own, so a busy machine is busy for all. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from kernels.bench.cases import CASES, Step, read_captions, synthetic_captions, synthetic_lengths
from pipeline.base import console, files, machine
from pipeline.base.measure import Spent, paired_rounds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    compile: bool = False
    """Instead: compile every Triton kernel for A100 and H100, and print its resources."""
    gpu: bool = False
    """Instead: each kernel beside its peers on this machine's GPU."""
    out: Path | None = None
    """Write the result to this JSON file too."""
    model: str = "ViT-B-32"
    """open_clip's name of the model."""
    batch: int = 16
    """Pairs a step."""
    threads: int = 2
    """CPU threads."""
    rounds: int = 5
    """Paired rounds."""
    mean_tokens: float = 16.0
    """Mean length of the synthetic captions."""
    captions: Path | None = None
    """Captions from this file instead, one a line."""
    only_all: bool = False
    """Only open_clip's step and ours with all savings, none of them alone."""

    def check(self) -> None:
        """ValueError for what cannot be measured (apart from construction: tyro would frame the line)."""
        if self.compile and self.gpu:
            raise ValueError("--compile and --gpu are different measurements; choose one")
        for name in ("batch", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")


def bench_step(settings: Settings) -> dict[str, Any]:
    """The part for any machine."""
    import open_clip

    torch.manual_seed(0)
    torch.set_num_threads(settings.threads)
    model = open_clip.create_model(settings.model)
    side = model.visual.image_size
    height, width = side if isinstance(side, (tuple, list)) else (side, side)
    images = torch.randn(settings.batch, 3, height, width).contiguous(memory_format=torch.channels_last)
    if settings.captions:
        tokens = read_captions(settings.captions, settings.batch)
    else:
        tokens = synthetic_captions(synthetic_lengths(settings.batch, settings.mean_tokens))
    step = Step(model, images, tokens)
    names = ["open_clip", "all"] if settings.only_all else list(CASES)
    costs = {name: step.count(CASES[name]) for name in names}
    for name in names:
        step.run(CASES[name])  # not timed: the optimizers make their state, the allocator finds its memory
    sides = {name: lambda n=name: step.run(CASES[n]) for name in names}
    times = paired_rounds(sides, settings.rounds, lambda line: print(line, file=sys.stderr))

    rows: dict[str, dict[str, Any]] = {
        name: _speed(times["open_clip"], times[name])
        | {
            "gflop_per_pair": cost.flops / settings.batch / 1e9,
            "flops_allow": costs["open_clip"].flops / cost.flops,
            "kept_bytes": cost.kept_bytes,
            "peak_bytes": cost.peak_bytes,
        }
        for name, cost in costs.items()
    }
    return {
        "model": settings.model,
        "batch": settings.batch,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "mean_tokens": float((tokens.argmax(-1) + 1).double().mean()),
        "captions": str(settings.captions or "synthetic: log-normal lengths, sigma 0.5"),
        "step_vs_open_clip": rows["all"]["times_faster"],
        "step_vs_open_clip_cpu_time": rows["all"]["times_faster_cpu_time"],
        "flops_per_pair": costs["all"].flops / settings.batch,
        "peak_bytes": costs["all"].peak_bytes,
        "levers": rows,
    }


def _speed(base: list[Spent], side: list[Spent]) -> dict[str, Any]:
    wall, cpu = ([getattr(a, c) / getattr(b, c) for a, b in zip(base, side)] for c in ("wall", "cpu"))
    return {
        "seconds": statistics.median(spent.wall for spent in side),
        "times_faster": statistics.median(wall),
        "times_faster_range": [min(wall), max(wall)],
        "times_faster_cpu_time": statistics.median(cpu),
        "times_faster_cpu_time_range": [min(cpu), max(cpu)],
    }


def print_step(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}, float32, batch {result['batch']}, {result['threads']} threads, captions of "
        f"{result['mean_tokens']:.1f} tokens ({result['captions']}), {result['rounds']} paired rounds"
    )
    heads = ("seconds", "× faster", "range", "CPU time", "range", "limit", "GFLOP", "kept MB", "peak MB")
    print(f"{'step':26}" + "".join(f"{head:>11}" for head in heads))
    for name, row in result["levers"].items():
        ranges = (row["times_faster_range"], row["times_faster_cpu_time_range"])
        wall, cpu = (f"{low:.2f}–{high:.2f}" for low, high in ranges)
        print(
            f"{name:26}{row['seconds']:11.2f}{row['times_faster']:11.2f}{wall:>11}"
            f"{row['times_faster_cpu_time']:11.2f}{cpu:>11}{row['flops_allow']:11.2f}"
            f"{row['gflop_per_pair']:11.1f}{row['kept_bytes'] / 1e6:11.0f}{row['peak_bytes'] / 1e6:11.0f}"
        )
    print("× faster, CPU time: against open_clip's step of the same round, median and range of the rounds;")
    print("open_clip again: how far apart equal steps are here; limit: what the FLOPs allow;")
    print("GFLOP: a pair; kept: held for the backward pass; peak: with gradients, without parameters")


def bench_compile() -> dict[str, Any]:
    """Every kernel variant that can be selected, compiled for each card."""
    from kernels.bench.compile import CARDS, compile_variant, variants

    rows = []
    heads = ("warps", "registers", "stack", "shared", "of", "occupancy")
    print(f"{'kernel':38} {'card':5}" + "".join(f"{head:>10}" for head in heads))
    for card in CARDS.values():
        for variant in variants(card):
            r = compile_variant(variant, card)
            occupancy = r.occupancy(variant, card)
            cells = (variant.warps, r.registers, r.stack, r.shared, card.shared, f"{occupancy:.0%}")
            print(f"{variant.name:38} {card.name:5}" + "".join(f"{cell:>10}" for cell in cells))
            rows.append({"kernel": variant.name, "card": card.name, "occupancy": occupancy, **vars(r)})
    spilled = [row["kernel"] for row in rows if row["stack"]]
    return {"variants": len(rows), "spilled": spilled, "kernels": rows}


def main(arguments: list[str] | None = None) -> int:
    return console.command(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> None:
    settings = tyro.cli(Settings, args=arguments, prog="python -m kernels.bench", description=__doc__)
    settings.check()
    machine.settle()  # Triton keeps what it compiles at home, or where that can be written
    if settings.gpu:
        from kernels.bench.gpu import bench_gpu

        result = bench_gpu()
    elif settings.compile:
        result = bench_compile()
    else:
        result = bench_step(settings)
        print_step(result)
    if settings.out:
        files.write(settings.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
