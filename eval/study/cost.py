"""What a study takes, before anything starts: runs, GPU-hours, disk, and what is there already."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from eval.study.graph import Graph, Job, samples
from eval.study.state import View
from train import plan, recipes
from train.config import Recipe


@dataclass(frozen=True)
class Cost:
    """Of one training; hours are None for recipes that are meant for a CPU."""

    gpu_hours: float | None
    bytes: float


@dataclass
class Costs:
    """Of trainings; seeds, and votes that are alike but for the network, share a count of operations."""

    machine: plan.Machine
    known: dict[str, Cost] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> Cost:
        """By `python -m train.plan`'s arithmetic."""
        key = repr(
            (recipe.stage, recipe.model, recipe.batch, recipe.total_steps(samples(recipe)), recipe.saving)
        )
        if key not in self.known:
            self.known[key] = self._count(recipe)
        return self.known[key]

    def _count(self, recipe: Recipe) -> Cost:
        small = recipe.name in recipes.SMALL
        _, values = plan.report(recipe, replace(self.machine, nodes=1, ngpus=1) if small else self.machine)
        figures = values["plan"]
        kept = checkpoints(recipe, figures["samples"]) * figures["checkpoint_gb"] * 1e9
        return Cost(None if small else figures["gpu_hours"], kept)


def checkpoints(recipe: Recipe, in_file: int) -> int:
    """How many lie in a run's folder at its end: the newest, and those of epochs to keep."""
    saving, steps = recipe.saving, recipe.total_steps(in_file)
    newest = min(saving.keep, math.ceil(steps / saving.save_every)) if saving.save_every else 1
    epochs = steps * recipe.batch / recipe.samples(in_file)
    return newest + (int(epochs / saving.keep_epochs) if saving.keep_epochs else 0)


def lines(graph: Graph, machine: plan.Machine) -> Iterator[str]:
    """The plan in words."""
    view, costs = View(graph), Costs(machine)
    done = {name: view.standing(job) == "done" for name, job in graph.jobs.items() if job.kind != "report"}
    yield f"{graph.study.name}: {graph.study.description}"
    seeds = len(next(iter(graph.finals.values())))
    yield f"  {len(graph.study.arms)} arms × {seeds} seeds in {graph.out}"
    yield from _arms(graph, done, costs)
    trainings = graph.trainings
    links = sum(len(arm.chain) for arm in graph.study.arms) * seeds
    ended = _count(trainings, done)
    yield f"  trainings     {links} links of chains, {len(trainings)} different, {ended} done"
    others = [job for job in graph.jobs.values() if job.kind not in ("train", "report")]
    for kind in dict.fromkeys(job.kind for job in others):
        jobs = [job for job in others if job.kind == kind]
        yield f"  {kind:13} {len(jobs)}, {_count(jobs, done)} done"
    left = [costs.of(job.training) for job in trainings if not done[job.name]]
    yield from _sums(left, machine)
    yield from _data(graph)


def _arms(graph: Graph, done: dict[str, bool], costs: Costs) -> Iterator[str]:
    wide = max(len(arm.label) for arm in graph.study.arms)
    yield f"  {'arm':{wide}}  {'done':>9}  {'GPU-hours of a seed':>20}  trainings"
    for arm in graph.study.arms:
        finals = graph.finals[arm.label]
        hours, names = [], []
        job = graph.jobs[graph.jobs[finals[0]].after[0]]
        while True:
            hours.append(costs.of(job.training).gpu_hours)
            names.append(f"stage {job.training.stage}")
            parent = next((graph.jobs[p] for p in job.after if graph.jobs[p].kind == "train"), None)
            if parent is None:
                break
            job = parent
        known = [h for h in hours if h is not None]
        total = f"{sum(known):.1f}" if known else "–"
        ended = sum(done[name] for name in finals)
        chain = " → ".join(reversed(names))
        yield f"  {arm.label:{wide}}  {ended:>3} of {len(finals):<2}  {total:>20}  {chain}"


def _count(jobs: list[Job], done: dict[str, bool]) -> int:
    return sum(done[job.name] for job in jobs)


def _sums(left: list[Cost], machine: plan.Machine) -> Iterator[str]:
    hours = [cost.gpu_hours for cost in left if cost.gpu_hours is not None]
    if hours:
        width = machine.nodes * machine.ngpus
        yield (
            f"  still to do   {sum(hours):,.0f} GPU-hours of {machine.gpu}: {sum(hours) / width:,.0f} h if "
            f"one run at a time takes {machine.nodes} × {machine.ngpus}; evaluations are not counted"
        )
    elif left:
        yield "  still to do   not estimated: these recipes are meant for a CPU"
    yield f"  disk          {sum(cost.bytes for cost in left) / 1e9:,.1f} GB of checkpoints"


def _data(graph: Graph) -> Iterator[str]:
    """Files that are not there."""
    files = [*graph.study.held_out.values(), *(job.data for job in graph.trainings)]
    for path in dict.fromkeys(files):
        if not path.exists():
            made = "built first" if graph.study.build else "not there yet; its size is assumed"
            yield f"  {path}: {made}"
    if graph.study.data is None:
        yield "  no --data: name the folder of evaluation sets before the study is run"
