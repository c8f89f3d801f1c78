"""What the towers and losses cost, beside open_clip's own: `python -m kernels.bench`.

Without arguments the part for any machine: a whole training step with each saving alone and with all of them,
in paired rounds (every round runs every case once, in an order of its own, so that a busy machine is busy for
all and none always follows the same other), its FLOPs by torch's counter and its memory. `--compile` compiles
every Triton kernel for A100 and H100 and prints its resources. `--gpu` is the part for a GPU
(kernels/bench/gpu.py). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kernels.bench.cases import CASES, Step, read_captions, synthetic_captions, synthetic_lengths
from pipeline.base import console, files
from pipeline.base.measure import paired_rounds, times_faster


def bench_step(args: argparse.Namespace) -> dict[str, Any]:
    """The part for any machine."""
    import open_clip

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = open_clip.create_model(args.model)
    side = (
        model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
    )
    images = torch.randn(args.batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    if args.captions:
        tokens = read_captions(args.captions, args.batch)
    else:
        tokens = synthetic_captions(synthetic_lengths(args.batch, args.mean_tokens))
    step = Step(model, images, tokens)
    names = ["open_clip", "all"] if args.only_all else list(CASES)
    flops, kept, peaks = zip(*(step.count(CASES[name]) for name in names))
    flops, kept, peaks = (dict(zip(names, values)) for values in (flops, kept, peaks))
    for name in names:
        step.run(CASES[name])  # not timed: the optimizers make their state, the allocator finds its memory
    sides = {name: lambda n=name: step.run(CASES[n]) for name in names}
    times = paired_rounds(sides, args.rounds, lambda line: print(line, file=sys.stderr))

    rows = {}
    for name in names:
        base, side = times["open_clip"], times[name]
        wall, cpu = (times_faster(base, side, clock) for clock in ("wall", "cpu"))
        rows[name] = {
            "seconds": statistics.median(spent.wall for spent in side),
            "times_faster": statistics.median(wall),
            "times_faster_range": [min(wall), max(wall)],
            "times_faster_cpu_time": statistics.median(cpu),
            "times_faster_cpu_time_range": [min(cpu), max(cpu)],
            "gflop_per_pair": flops[name] / args.batch / 1e9,
            "flops_allow": flops["open_clip"] / flops[name],
            "kept_bytes": kept[name],
            "peak_bytes": peaks[name],
        }
    return {
        "model": args.model,
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "mean_tokens": float((tokens.argmax(-1) + 1).double().mean()),
        "captions": str(args.captions) if args.captions else "synthetic: log-normal lengths, sigma 0.5",
        "step_vs_open_clip": rows["all"]["times_faster"],
        "step_vs_open_clip_cpu_time": rows["all"]["times_faster_cpu_time"],
        "flops_per_pair": flops["all"] / args.batch,
        "peak_bytes": peaks["all"],
        "levers": rows,
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
            numbers = (variant.warps, r.registers, r.stack, r.shared, card.shared, f"{occupancy:.0%}")
            print(f"{variant.name:38} {card.name:5}" + "".join(f"{number:>10}" for number in numbers))
            rows.append({"kernel": variant.name, "card": card.name, "occupancy": occupancy, **vars(r)})
    spilled = [row["kernel"] for row in rows if row["stack"]]
    return {"variants": len(rows), "spilled": spilled, "kernels": rows}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[0])
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--compile", action="store_true", help="compile every Triton kernel for A100 and H100")
    part.add_argument("--gpu", action="store_true", help="kernels and whole step on this machine's GPU")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file too")
    parser.add_argument("--model", default="ViT-B-32", help="open_clip model (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds (default: %(default)s)")
    parser.add_argument(
        "--mean-tokens", type=float, default=16.0, help="synthetic captions (default: %(default)s)"
    )
    parser.add_argument("--captions", type=Path, help="captions from this file instead, one a line")
    parser.add_argument("--only-all", action="store_true", help="no single savings, only all of them")
    args = parser.parse_args(argv)
    for name in ("batch", "threads", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The part that was asked for."""
    if args.gpu:
        from kernels.bench.gpu import bench_gpu

        return bench_gpu()
    if args.compile:
        return bench_compile()
    result = bench_step(args)
    print_step(result)
    return result


@contextlib.contextmanager
def place_for_kernels() -> Iterator[None]:
    """Triton keeps what it compiles at home; where that cannot be written, in a folder of this run's."""
    home = os.environ.get("TRITON_HOME", os.path.expanduser("~"))
    if "TRITON_CACHE_DIR" in os.environ or os.access(home, os.W_OK | os.X_OK):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return console.command(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    with place_for_kernels():
        result = measure(args)
    if args.out:
        files.write(args.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
