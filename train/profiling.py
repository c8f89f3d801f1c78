"""What a run waits for: `python -m train.launch --stage 2 … --profile 20`.

First the loader is timed alone, with what prepares its batches.  Then the clocks of `train/device/clocks.py`
alternate: the step on one batch that is on the device already, the same beside the loader, and the step on
the loader's batches as in training.  What they tell:

* headspace: by how much a step would be shorter if batches cost nothing (SPDL's headspace analysis).
* cost: by how much the loader's threads make the step longer that needs nothing of them ("noisy neighbour").
* launch: what they cost the thread that launches the step; and lock: what of that is Python's lock.

Only RUN/profile.json and a trace for Perfetto are written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import torch

from pipeline.base import files
from train import data
from train import model as models
from train.config import Recipe
from train.device import auto
from train.device.clocks import ROUNDS, WARM_UP, Clocks, Eager, cost, in_rounds, wait
from train.device.prefetch import Prefetcher
from train.distributed import World
from train.loop import stage_of, update
from train.metrics import Log
from train.optim import Optimizer
from train.splits import open_split

TRACED = 3
MOST = 0.03  # of a step, that a loader beside it may cost


def _loader_alone(world: World, steps: int, take: Callable[[], object]) -> float:
    """Seconds of one batch, mean of `steps`, all ranks together."""
    for _ in range(WARM_UP):
        take()
    wait(world)
    start = time.perf_counter()
    for _ in range(steps):
        take()
    wait(world)
    return (time.perf_counter() - start) / steps


# -- words ----------------------------------------------------------------------------------


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


def neighbour(cost: float, headspace: float, device: str, engine: str) -> str:
    """In words, what the loader's threads cost the step.

    cost, headspace: fractions.  device: its type.  engine: that loads.
    """
    said = f"the loader costs the step {cost:.1%} (headspace {headspace:.1%})"
    if device == "cpu":
        return f"{said}; on a CPU they share the cores, so this says nothing of a GPU"
    if cost <= MOST:
        return said
    less = "fewer --workers" + ("" if engine == "dali" else ", or --engine dali")
    return f"{said}, more than {MOST:.0%}: its threads hold up the one that launches kernels; try {less}"


# -- measuring ------------------------------------------------------------------------------


def profile(recipe: Recipe, world: World, steps: int) -> dict:
    """Measure, and write RUN/profile.json, which is returned, and RUN/profile/rank-N.json, the trace.

    steps: of each clock.
    """
    assert recipe.data.data is not None
    file = open_split(recipe.data.data, recipe)
    clip = models.build(recipe)
    recipe, settings = auto.on(world, recipe, clip, file)
    clip.to(world.device, memory_format=torch.channels_last).train()
    optimizer = Optimizer(clip, recipe.optim)
    stage = stage_of(recipe)(recipe, clip, world, file)

    def train(parts: list) -> None:
        update(stage, optimizer, parts, recipe.optim.lr * 1e-6)

    with data.stream(recipe, file, world, models.image_side(clip), 0) as loader:
        batches = iter(loader)
        alone = _loader_alone(world, steps, lambda: stage.prepare(next(batches)))
        with Prefetcher(batches, stage.prepare, world.device) as prepared:
            rounds = min(ROUNDS, steps)
            clocks = Clocks(world, prepared, train, max(1, steps // rounds), patience=2 + 8 * alone)
            figures = _figures(clocks, rounds, alone, recipe.rank_batch(world.size) * recipe.forwarded)
            trace = _trace(recipe.folder, world, lambda: train(next(prepared)[0]))
    results = _results(recipe, world, figures, steps, trace)
    if world.main:
        files.write(recipe.folder / "profile.json", json.dumps(results, indent=1))
    with closing(Log(recipe.folder, world.main)) as log:
        for line in [*settings, *_lines(results, recipe.unit), *results["verdict"]]:
            log(line)
        log(f"(on {results['device']}; trace: {trace})")
    return results


def _results(recipe: Recipe, world: World, figures: dict[str, float], steps: int, trace: Path) -> dict:
    """What profile.json holds."""
    loader, step, together = (figures[f"{name}_seconds"] for name in ("loader", "step", "together"))
    beside = neighbour(figures["cost"], figures["headspace"], world.device.type, recipe.data.engine)
    rates = {"loader": loader, "step": step, "together": together}
    return {
        "compute": asdict(recipe.compute),
        "engine": recipe.data.engine,
        "workers": recipe.data.workers,
        **figures,
        **{f"{name}_{recipe.unit}_per_s": recipe.batch / seconds for name, seconds in rates.items()},
        "verdict": [verdict(loader, step, together), beside],
        "steps": steps,
        "ranks": world.size,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "trace": str(trace),
    }


def _figures(clocks: Clocks, rounds: int, alone: float, images: int) -> dict[str, float]:
    """Seconds unless the name says otherwise; costs, headspace and lock are fractions.

    alone: seconds of a batch, of the loader alone.  images: of a batch.
    """
    names = ("cached", "beside", "loaded", "launch", "launch_beside")
    rows = in_rounds({name: getattr(clocks, name) for name in names}, rounds)
    # A CPU's step takes so few images that their cost would not show.
    pace = clocks.pace if clocks.world.device.type == "cuda" else 0.0
    eager = in_rounds({"eager": clocks.eager, "beside": partial(clocks.eager_beside, pace)})
    launches = {name: [s for row in rows[name] for s in row] for name in ("launch", "launch_beside")}
    return {
        "loader_seconds": alone,
        "step_seconds": median(rows["cached"]),
        "beside_seconds": median(rows["beside"]),
        "together_seconds": median(rows["loaded"]),
        "headspace": -cost(rows["loaded"], rows["cached"]),
        "cost": cost(rows["cached"], rows["beside"]),
        **{f"{name}_ms": 1e3 * median(seconds) for name, seconds in launches.items()},
        **{f"{name}_p95_ms": 1e3 * _p95(seconds) for name, seconds in launches.items()},
        **_lock(eager["eager"], eager["beside"], images),
    }


def _lock(alone: list[Eager], beside: list[Eager], images: int) -> dict[str, float]:
    return {
        "eager_us": 1e6 * median(row.seconds for row in alone),
        "eager_cost": cost([row.seconds for row in alone], [row.seconds for row in beside]),
        "lock": median(row.blocked for row in beside) - median(row.blocked for row in alone),
        "lock_images_per_s": images * median(row.taken for row in beside),
    }


def _p95(seconds: list[float]) -> float:
    return quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


def _lines(results: dict, unit: str) -> list[str]:
    """The figures, for the log."""
    lines = [
        f"{name:>9}: {results[f'{name}_seconds'] * 1e3:.1f} ms a step, "
        f"{results[f'{name}_{unit}_per_s']:.0f} {unit}/s"
        for name in ("loader", "step", "together")
    ]
    before, after = (
        f"{results[f'{name}_ms']:.1f} ms (95 %: {results[f'{name}_p95_ms']:.1f})"
        for name in ("launch", "launch_beside")
    )
    return [
        *lines,
        f"   launch: {before} until a step's call returns, {after} beside the loader",
        f"     lock: {results['lock']:.1%} of a launching thread's time, beside "
        f"{results['lock_images_per_s']:.0f} images/s",
    ]


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
