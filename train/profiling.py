"""What a run waits for: `python -m train.launch --stage 2 … --profile 20`.

Three clocks over the same number of steps: the loader alone with what prepares its batches, the step on one
batch that is on the device already, and both together as in training.  Only RUN/profile.json and a trace for
Perfetto are written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from pipeline.base import files
from train import data
from train import model as models
from train.config import Recipe
from train.device import auto
from train.device.prefetch import Prefetcher
from train.distributed import World
from train.loop import STAGES, update
from train.metrics import Log
from train.optim import Optimizer
from train.splits import open_split

WARM_UP = 3  # steps before a clock starts
TRACED = 3


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def _seconds(world: World, steps: int, step: Callable[[], object]) -> float:
    """Seconds of one step, mean of `steps`, all ranks together."""
    for _ in range(WARM_UP):
        step()
    _wait(world)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(world)
    return (time.perf_counter() - start) / steps


def verdict(loader: float, step: float, together: float) -> str:
    """In words, from seconds a step of the loader alone, the step alone, and both."""
    hidden = max(loader, step)
    if loader > 1.05 * step:
        return f"the run waits for data: the loader is {loader / step:.1f} times slower than the step"
    if together > 1.15 * hidden:
        return (
            f"loader and step disturb each other: together {together / hidden:.2f} times the slower one "
            "(too few cores, or copies to the device that are not hidden)"
        )
    return f"the run waits for the step; the loader could feed {step / loader:.1f} times as much"


def profile(recipe: Recipe, world: World, steps: int) -> dict:
    """Measure, and write RUN/profile.json, which is returned, and RUN/profile/rank-N.json, the trace."""
    assert recipe.data.data is not None
    file = open_split(recipe.data.data, recipe)
    clip = models.build(recipe)
    recipe, settings = auto.on(world, recipe, clip, file)
    clip.to(world.device, memory_format=torch.channels_last).train()
    optimizer = Optimizer(clip, recipe.optim)
    stage = STAGES[recipe.stage](recipe, clip, world, file.info)
    with data.stream(recipe, file, world, models.image_side(clip), 0) as loader:
        batches = iter(loader)
        clocks = {"loader": _seconds(world, steps, lambda: stage.prepare(next(batches)))}
        with Prefetcher(batches, stage.prepare, world.device) as prepared:
            parts, _ = next(prepared)

            def train(parts: list) -> None:
                update(stage, optimizer, parts, recipe.optim.lr * 1e-6)

            clocks["step"] = _seconds(world, steps, partial(train, parts))
            clocks["together"] = _seconds(world, steps, lambda: train(next(prepared)[0]))
            trace = _trace(recipe.folder, world, lambda: train(next(prepared)[0]))
    results = {
        "compute": asdict(recipe.compute),
        **{f"{name}_seconds": seconds for name, seconds in clocks.items()},
        **{f"{name}_{recipe.unit}_per_s": recipe.batch / seconds for name, seconds in clocks.items()},
        "verdict": verdict(**clocks),
        "steps": steps,
        "ranks": world.size,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "trace": str(trace),
    }
    if world.main:
        files.write(recipe.folder / "profile.json", json.dumps(results, indent=1))
    with closing(Log(recipe.folder, world.main)) as log:
        for line in settings:
            log(line)
        for name, seconds in clocks.items():
            log(f"{name:>9}: {seconds * 1e3:.1f} ms a step, {recipe.batch / seconds:.0f} {recipe.unit}/s")
        log(f"{results['verdict']} (on {results['device']}; trace: {trace})")
    return results


def _trace(run: Path, world: World, step: Callable[[], None]) -> Path:
    """A trace of some steps, readable in Perfetto."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    path = run / "profile" / f"rank-{world.rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(activities=activities) as traced:
        for _ in range(TRACED):
            step()
    traced.export_chrome_trace(str(path))
    return path
