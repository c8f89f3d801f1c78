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
import math
import os
import random
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.contrastive import contrastive_loss
from kernels.flops import flop_counter
from kernels.towers import TowerSettings, encode_image, encode_text

START, END = 49406, 49407
OPEN_CLIP = TowerSettings(trim=False, prune=False, patch_gemm=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step: open_clip's own where nothing else is said."""

    towers: TowerSettings | None = None  # None: model.encode_image and model.encode_text
    our_loss: bool = False
    fused_optimizer: bool = True


CASES = {
    "open_clip": Case(),
    "open_clip again": Case(),  # as good as the machine can tell two equal steps apart
    "towers": Case(towers=OPEN_CLIP),  # ours, but nothing left out
    "trim": Case(towers=TowerSettings(prune=False, patch_gemm=False)),
    "prune": Case(towers=TowerSettings(trim=False, patch_gemm=False)),
    "patch_gemm": Case(towers=TowerSettings(trim=False, prune=False)),
    "loss": Case(our_loss=True),
    "all": Case(towers=TowerSettings(), our_loss=True),
    "all+pointwise": Case(towers=TowerSettings(recompute="pointwise"), our_loss=True),
    "open_clip, unfused AdamW": Case(fused_optimizer=False),
}


def synthetic_lengths(batch: int, mean: float = 16.0, sigma: float = 0.5, context: int = 77) -> list[int]:
    """Caption lengths in tokens, start and end token counted in: a log-normal distribution's quantiles.

    Log-normal with this mean and this standard deviation of the logarithm, cut to 3 … context, shuffled.
    """
    normal = statistics.NormalDist(math.log(mean) - sigma**2 / 2, sigma)
    lengths = [math.exp(normal.inv_cdf((i + 0.5) / batch)) for i in range(batch)]
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).tolist()
    return [min(context, max(3, round(lengths[i]))) for i in order]


def synthetic_captions(lengths: list[int], context: int = 77) -> Tensor:
    """Random tokens (B, context) int64 of these lengths, zero after the end token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in zip(tokens, lengths):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def read_captions(path: Path, batch: int) -> Tensor:
    """Tokens of captions spread evenly over a file with one a line."""
    import open_clip

    captions = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(captions) < batch:
        raise ValueError(f"{path}: {len(captions)} captions, but a batch of {batch} was asked for")
    return open_clip.tokenize([captions[i * len(captions) // batch] for i in range(batch)])


class PeakMemory(TorchDispatchMode):
    """Bytes in tensors that operators made while the mode is on, now and at most (not inside operators)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage(), known)
        return out

    def _follow(self, storage: Any, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


class Step:
    """One model, its optimizers, and a batch; runs any case on it."""

    def __init__(self, model: nn.Module, images: Tensor, tokens: Tensor):
        from open_clip.loss import ClipLoss

        self.model: Any = model
        self.images, self.tokens = images, tokens
        self.clip_loss = ClipLoss()
        self.optimizers = {
            fused: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused) for fused in (True, False)
        }

    def run(self, case: Case) -> None:
        """Forward, loss, backward and update."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.loss(case).backward()
        self.optimizers[case.fused_optimizer].step()

    def loss(self, case: Case) -> Tensor:
        if case.towers is None:
            image, text = self.model.encode_image(self.images), self.model.encode_text(self.tokens)
        else:
            image = encode_image(self.model, self.images, case.towers)
            text = encode_text(self.model, self.tokens, case.towers)
        loss = contrastive_loss if case.our_loss else self.clip_loss
        return loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.model.logit_scale.exp())

    def count(self, case: Case) -> tuple[int, int, int]:
        """FLOPs of both passes, bytes kept for the backward pass, peak bytes (gradients in, parameters out).

        FLOPs by torch's counter, 2 a multiplication and addition.
        """
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        with flop_counter() as counter, PeakMemory() as memory:
            loss = self.loss(case)
            kept = memory.now
            loss.backward()
        return counter.get_total_flops(), kept, memory.peak


def rounds(cases: dict[str, Callable[[], None]], number: int) -> dict[str, list[tuple[float, float]]]:
    """(wall seconds, CPU seconds) of each case in each round; the order is drawn anew for each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    chance = random.Random(0)
    for turn in range(number):
        for name in chance.sample(list(cases), len(cases)):
            wall, cpu = time.perf_counter(), time.process_time()
            cases[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            print(f"round {turn + 1}/{number} {name}: {times[name][-1][0]:.2f} s", file=sys.stderr)
    return times


def ratio(times: dict[str, list[tuple[float, float]]], base: str, name: str, clock: int) -> list[float]:
    """How many times faster than the base, in each round."""
    return [a[clock] / b[clock] for a, b in zip(times[base], times[name])]


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
    times = rounds({name: lambda n=name: step.run(CASES[n]) for name in names}, args.rounds)

    rows = {}
    for name in names:
        wall, cpu = (ratio(times, "open_clip", name, clock) for clock in (0, 1))
        rows[name] = {
            "seconds": statistics.median(t[0] for t in times[name]),
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
    try:
        with place_for_kernels():
            result = measure(args)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result))
    return 1 if result.get("failed") else 0
