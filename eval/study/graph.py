"""A study as jobs: each training, evaluation and table of votes once, however many arms need it.

A training is identified by its resolved recipe, those it starts from, and nothing about machines.  What
equals the default of its field does not count, so a recipe keeps its identity when later versions add fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from eval.study.studies import UNTRAINED, Arm, Study, Training
from pipeline.beton.fields import Beton
from train import command
from train.config import FREE_TO_CHANGE, Recipe, Stage1
from train.plan import SAMPLES

Kind = Literal["build", "votes", "train", "evaluate", "report"]
ANOTHER = 1_000  # what an untrained network's seed is above that of the run that learns its votes


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command (after `python`), and what must have ended well before.

    run: the training run that it makes or evaluates; votes: the table that it makes.  recipe: of a training.
    """

    name: str
    kind: Kind
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    run: Path | None = None
    votes: Path | None = None
    recipe: Recipe | None = None
    needs: tuple[Path, ...] = ()  # files that a build makes

    @property
    def training(self) -> Recipe:
        """The recipe of a job that trains."""
        assert self.recipe is not None
        return self.recipe

    @property
    def data(self) -> Path:
        """What it trains on."""
        file = self.training.data.data
        assert file is not None  # `command.parse` names one
        return file


@dataclass(frozen=True, kw_only=True)
class Graph:
    """jobs: by name, each after those it needs.  finals: arm's label → the evaluation of each seed."""

    study: Study
    out: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    finals: dict[str, list[str]] = field(default_factory=dict)

    @property
    def trainings(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.kind == "train"]

    def reported_by(self, *arguments: str) -> Graph:
        """The same with this command as its report's."""
        reports = {n: replace(j, arguments=arguments) for n, j in self.jobs.items() if j.kind == "report"}
        return replace(self, jobs=self.jobs | reports)

    def add(self, job: Job) -> Job:
        """The job of that name, which is this one if there was none."""
        return self.jobs.setdefault(job.name, job)


@dataclass(frozen=True)
class Setting:
    """`--set [stage1.|stage2.]FIELD=VALUE`: a flag of all trainings, or of a stage's."""

    stage: int | None
    name: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Setting:
        """ValueError if it is no such thing."""
        name, mark, value = text.partition("=")
        stage, dot, rest = name.partition(".")
        numbered = dot and stage in ("stage1", "stage2")
        flag = (rest if numbered else name).lstrip("-").replace("_", "-")
        if not mark or not flag or "." in flag:
            raise ValueError(f"--set {text}: expected FIELD=VALUE, or stage1.FIELD=VALUE")
        if flag in ("seed", "run", "init", "stage", "recipe"):
            raise ValueError(f"--set {text}: the study decides that itself")
        return cls(int(stage[-1]) if numbered else None, flag, value)


def build(study: Study, seeds: int, out: Path, settings: Sequence[Setting] = ()) -> Graph:
    """All jobs, seed by seed, so that what ends first can be compared; ValueError for a wrong recipe."""
    graph = Graph(study=study, out=out.absolute())
    maker = _Maker(graph, tuple(settings))
    for seed in range(seeds):
        for arm in study.arms:
            graph.finals.setdefault(arm.label, []).append(maker.arm(arm, seed).name)
    finals = tuple(dict.fromkeys(name for names in graph.finals.values() for name in names))
    graph.add(Job(name=f"report-{study.name}", kind="report", arguments=(), after=finals))
    return graph


class _Maker:
    """Adds an arm's jobs to a graph."""

    def __init__(self, graph: Graph, settings: tuple[Setting, ...]):
        self.graph, self.study, self.settings = graph, graph.study, settings

    def arm(self, arm: Arm, seed: int) -> Job:
        """Its evaluation."""
        before: Job | None = None
        for training in arm.chain:
            before = self._training(training, seed, before)
        assert before is not None  # a chain has a link
        return self._evaluation(before)

    def _training(self, training: Training, seed: int, before: Job | None) -> Job:
        args = arguments(training, self.settings)
        start = ("--init", "the run before") if before else ()  # some flags are refused without
        recipe = replace(_resolved((*args, *start)), seed=seed)
        parents = [before.name] if before else self._build(recipe)
        extra = ["--init", str(before.run)] if before else []
        if training.flags.get("votes") == UNTRAINED:
            votes = self._votes(recipe, seed)
            parents.append(votes.name)
            extra += ["--votes", str(votes.votes)]
        name = f"stage{recipe.stage}-{recipe.name}-{_safe(recipe.model)}-seed{seed}"
        before_it = [p for p in parents if not p.startswith("build-")]
        name += f"-{identity(recipe, before_it, self.graph.out)}"
        run = self.graph.out / "runs" / name
        recipe = replace(recipe, run=run, init=before.run if before else None)
        if "--votes" in extra:
            assert isinstance(recipe, Stage1)
            recipe = replace(recipe, votes=extra[-1])
        args = (*args, *extra, "--seed", str(seed), "--run", str(run))
        command = ("-m", "train.launch", *args)
        return self.graph.add(
            Job(name=name, kind="train", arguments=command, after=tuple(parents), run=run, recipe=recipe)
        )

    def _build(self, recipe: Recipe) -> list[str]:
        if not self.study.build:
            return []
        trained_on = (job.data for job in self.graph.trainings)
        needs = [*self.study.held_out.values(), *trained_on, recipe.data.data or Path()]
        job = self.graph.add(Job(name=f"build-{self.study.name}", kind="build", arguments=self.study.build))
        self.graph.jobs[job.name] = replace(job, needs=tuple(dict.fromkeys(needs)))
        return [job.name]

    def _votes(self, recipe: Recipe, seed: int) -> Job:
        data, model = recipe.data.data, recipe.model
        assert data is not None  # `command.parse` names one
        words = [seen_from(self.graph.out, data), model, str(seed + ANOTHER)]
        name = f"votes-{_safe(model)}-seed{seed}-{_digest(words)}"
        path = self.graph.out / "votes" / f"{name}.npy"
        flags = ("--model", model, "--seed", str(seed + ANOTHER), "--triplets", str(data), "--out", str(path))
        after = tuple(self._build(recipe))
        command = ("-m", "eval.study.votes", *flags)
        return self.graph.add(Job(name=name, kind="votes", arguments=command, after=after, votes=path))

    def _evaluation(self, training: Job) -> Job:
        assert training.run is not None
        study = self.study
        flags = {"checkpoint": str(training.run), "watch": "0", **study.evaluation}
        flags |= {flag: str(path.absolute()) for flag, path in study.held_out.items()}
        words = tuple(word for name, value in flags.items() for word in (f"--{name}", value))
        return self.graph.add(
            Job(
                name=f"evaluate-{training.name}", kind="evaluate", arguments=("-m", "eval.run", *words),
                after=(training.name,), run=training.run,
            )
        )  # fmt: skip


# -- a training's recipe --------------------------------------------------------------------


def arguments(training: Training, settings: Sequence[Setting]) -> tuple[str, ...]:
    """The command line of `python -m train.launch`, without seed, run and start."""
    flags = dict(training.flags)
    if flags.get("votes") == UNTRAINED:
        del flags["votes"]  # the job's table is named later
    flags |= {s.name: s.value for s in settings if s.stage in (None, training.stage)}
    words = ["--stage", str(training.stage), "--recipe", training.recipe]
    words += [word for name, value in flags.items() for word in _words(name, value)]
    if training.like is not None:
        like = _resolved(arguments(training.like, settings))
        steps = max(1, round(training.share * like.total_steps(samples(like))))
        warmup = min(round(training.share * like.optim.warmup_steps), steps - 1)
        words += ["--steps", str(steps), "--warmup-steps", str(warmup)]
    return tuple(words)


def _words(name: str, value: str) -> Iterator[str]:
    """A flag; several values of one (`--betas 0.9 0.95`) are separated by spaces."""
    yield f"--{name}"
    yield from value.split()


@cache
def _resolved(args: tuple[str, ...]) -> Recipe:
    """The recipe of a command line: reading one takes a tenth of a second, and seeds share it."""
    return command.parse_stage(args).recipe


def samples(recipe: Recipe) -> int:
    """Of its file; of NIGHTS or YFCC15M where that is not here."""
    file = recipe.data.data
    return len(Beton(file)) if file is not None and file.is_file() else SAMPLES[recipe.stage]


def identity(recipe: Recipe, parents: Sequence[str], out: Path) -> str:
    """Ten letters for what decides a training's numbers; parents: names of the jobs that it starts from."""
    decides = dict(_decides(recipe))
    for name in ("run", "init"):  # where it lies; and what it starts from is a parent
        decides.pop(name, None)
    if (
        recipe.data.data is not None
    ):  # free to change where a run goes on, but here other data are another run
        decides["data.data"] = seen_from(out, recipe.data.data)
    return _digest([json.dumps(decides, sort_keys=True, default=str), *parents])


def seen_from(out: Path, path: Path) -> str:
    """The path as a study writes it down: relative to its folder OUT, so that both can be moved together.

    Absolute where the two have nothing in common but the root.
    """
    path = path.absolute()
    together = len(Path(os.path.commonpath((out, path))).parts) > 1
    return os.path.relpath(path, out) if together else str(path)


def _decides(values: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of each field that is not its class's default."""
    for entry in dataclasses.fields(values):  # type: ignore[arg-type]
        name, value = prefix + entry.name, getattr(values, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _decides(value, f"{name}.")
        elif name not in FREE_TO_CHANGE and value != entry.default:
            yield name, value


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:10]


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
