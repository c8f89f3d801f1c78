"""The paper as one command, and what it does not say: seeds, controls, sweeps.

    python -m eval.study plan paper                     runs, GPU-hours, disk; starts nothing
    python -m eval.study run demo                       on this machine, or on SLURM
    python -m eval.study status demo                    what is done, runs, failed
    python -m eval.study report demo                    the page, of what is there

Studies: paper, controls, fractions, priors, demo (`eval/study/studies.py`), or a file of your own.  The same
command goes on after any interruption.  More seeds, arms or studies in the same --out add to what is there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.study import code, cost, studies
from eval.study.cluster import Cluster
from eval.study.graph import Graph, Setting, build, identity
from eval.study.local import Local, slots
from eval.study.state import Folder, View, is_done, progress
from pipeline.base import console, machine
from pipeline.base.console import say
from pipeline.base.slurm import gpus_of_nodes
from train import command as training
from train.cluster.options import Launch
from train.config import Stage1
from train.plan import Machine

Action = Literal["plan", "run", "status", "report"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """A study."""

    action: tyro.conf.Positional[Action]
    name: tyro.conf.Positional[str]
    """paper, controls, fractions, priors, demo, or a file NAME.py with STUDY = Study(...)."""
    seeds: int | None = None
    """Runs of each arm, with seeds 0, 1, …; the study's own number if not given."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/study")
    """Shared by studies: what is alike is trained once. Reports are in DIR/NAME."""
    recipe: str | None = None
    """Of a ready study's arms: paper, strong, demo, debug."""
    set: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE")]] = ()
    """A recipe's field in all arms, or of a stage (stage1.steps=40); as often as needed."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the evaluation sets, as python -m eval.run takes it."""
    triplets: Annotated[Path | None, tyro.conf.arg(metavar="FILE|DIR")] = None
    """Held-out triplets, likewise."""
    alignment: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the sets of human similarity, likewise."""
    downstream: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the downstream sets, likewise."""
    at_once: int | None = None
    """Jobs at a time: all that fit this machine's GPUs (or cores), on SLURM 16 of an array."""
    gpu: str = "a100"
    """For the plan's hours: python -m train.plan says which there are."""
    launch: tyro.conf.OmitArgPrefixes[Launch] = field(default_factory=Launch)

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds}: at least 1")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"--at-once {self.at_once}: at least 1")
        if self.launch.cluster == "debug" or self.launch.profile:
            raise ValueError("--cluster debug, --profile: of a single run, python -m train.launch")


def graph_of(options: Options) -> Graph:
    """The study's jobs; ValueError for a mistake."""
    study = studies.read(options.name, options.recipe)
    study = replace(
        study,
        data=options.data or study.data,
        triplets=options.triplets or study.triplets,
        alignment=options.alignment or study.alignment,
        downstream=options.downstream or study.downstream,
    )
    settings = [Setting.parse(text) for text in options.set]
    seeds = options.seeds or study.seeds
    graph = build(study, seeds, options.out, settings)
    words = ["report", options.name, "--seeds", str(seeds), "--out", str(graph.out)]
    words += ["--recipe", options.recipe] if options.recipe else []
    words += [word for text in options.set for word in ("--set", text)]
    for flag, path in study.held_out.items():
        words += [f"--{flag}", str(path.absolute())]
    return graph.reported_by("-m", "eval.study", *words)


def plan(options: Options) -> int:
    launch = options.launch
    machine = Machine(gpu=options.gpu, nodes=launch.nodes, ngpus=launch.ngpus or 6)
    for line in cost.lines(graph_of(options), machine):
        say(line)
    return 0


def run(options: Options) -> int:
    """Everything that is not done; then the report."""
    if options.launch.dry_run:
        return plan(options)
    graph = graph_of(options)
    if graph.study.data is None:
        raise ValueError("--data: name the folder of evaluation sets")
    report = [name for name, job in graph.jobs.items() if job.kind == "report"]
    names = [name for name in graph.jobs if name not in report]
    if options.launch.cluster == "slurm" or (options.launch.cluster == "auto" and shutil.which("sbatch")):
        return _submit(options, graph, [*names, *report])
    _check(graph, options.launch.ngpus or 1)
    pinned = code.pin(graph.out)
    say(pinned.told)
    ranks = options.launch.ngpus or 1
    places = slots(options.at_once, ranks)
    failures = Local(graph, places, pinned, ranks).run(names)
    if any(is_done(graph, graph.jobs[name]) for finals in graph.finals.values() for name in finals):
        write_report(graph)
    if failures:
        raise console.Failed(failures)
    return 0


def _submit(options: Options, graph: Graph, names: list[str]) -> int:
    launch = options.launch
    ranks = launch.ngpus or launch.gpus or gpus_of_nodes(launch) or 1
    _check(graph, ranks * launch.nodes)
    pinned = code.pin(graph.out)
    say(pinned.told)
    Cluster(graph=graph, launch=launch, ranks=ranks, at_once=options.at_once or 16, code=pinned).submit(names)
    say(f"python -m eval.study status {options.name} --out {options.out} tells how far it is")
    return 0


def _check(graph: Graph, world_size: int) -> None:
    """ValueError for a training that could not run; one seed stands for all."""
    if graph.study.build and not all(
        is_done(graph, job) for job in graph.jobs.values() if job.kind == "build"
    ):
        return  # its data is made first
    seen = set()
    for job in graph.trainings:
        if is_done(graph, job):
            continue
        recipe = job.training
        tables = [graph.jobs[name] for name in job.after if graph.jobs[name].kind == "votes"]
        if isinstance(recipe, Stage1) and tables:  # the table may have to be made first
            made = is_done(graph, tables[0])
            recipe = training.complete(recipe) if made else replace(recipe, votes="human")
        alike = identity(replace(recipe, seed=0), (), graph.out)
        if alike in seen:
            continue
        seen.add(alike)
        parent = next((graph.jobs[name].recipe for name in job.after if graph.jobs[name].recipe), None)
        training.check(recipe, world_size, parent)


def status(options: Options) -> int:
    """A line for each job that is not simply planned or done, and the sums."""
    graph = graph_of(options)
    view = View(graph)
    counts: dict[str, int] = {}
    for name, job in graph.jobs.items():
        if job.kind == "report":
            continue
        standing = view.standing(job)
        counts[standing] = counts.get(standing, 0) + 1
        if standing in ("running", "interrupted", "failed"):
            at = progress(job) if standing != "failed" else None
            folder = Folder.of(graph, job)
            detail = f": {at}" if at else ""
            if standing == "failed":
                detail = f": {folder.read('failed').get('said', '')} ({folder.log})"
            say(f"{standing:12} {name}{detail}")
        elif held := view.held(job):
            say(f"{standing:12} {name}: {held}")
    say(
        f"{graph.study.name}: {len(graph.jobs) - 1} jobs: " + ", ".join(f"{n} {s}" for s, n in counts.items())
    )
    return 0


def report(options: Options) -> int:
    write_report(graph_of(options))
    return 0


def write_report(graph: Graph) -> None:
    """The page of what is done so far."""
    from eval.study.findings.report import ArmRuns, write

    arms = []
    for arm in graph.study.arms:
        finals = [graph.jobs[name] for name in graph.finals[arm.label]]
        runs = [job.run for job in finals if job.run is not None and is_done(graph, job)]
        arms.append(
            ArmRuns(
                label=arm.label, runs=runs, group=arm.group, role=arm.role, dose=arm.dose, series=arm.series,
                missing=len(finals) - len(runs),
            )
        )  # fmt: skip
    write(graph.study.name, graph.study.description, arms, graph.out / graph.study.name)


ACTIONS = {"plan": plan, "run": run, "status": status, "report": report}


def main(arguments: Sequence[str] | None = None) -> int:
    machine.settle()

    def work() -> int:
        options = training.from_command_line(
            Options, sys.argv[1:] if arguments is None else arguments, prog=PROG
        )
        return ACTIONS[options.action](options)

    return console.command(work, interrupted="interrupted; the same command goes on")


PROG = "python -m eval.study"
