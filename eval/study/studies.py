"""The studies: which arms there are, and what trains each.  A study of one's own is a file like this.

    python -m eval.study plan controls
    python -m eval.study run my_study.py        # it has STUDY = Study(...)

An arm is a chain of trainings: each starts from the weights of the one before, and the last one is evaluated.
Arms whose trainings are the same share them.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from train import recipes

Flags = Mapping[str, str]  # of `python -m train.launch`, without the dashes: {"fraction": "0.1"}
Role = Literal["baseline", "subject", "control", "dose", "prior", ""]
UNTRAINED = "untrained"  # as `votes`: those of a network that was never trained


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of `python -m train.launch`.

    like: a training whose number of steps, times `share`, this one takes; and that share of its warm-up.
    """

    stage: Literal[1, 2]
    recipe: str = "paper"
    flags: Flags = field(default_factory=dict)
    like: Training | None = None
    share: float = 1.0

    def with_flags(self, **flags: str) -> Training:
        """With these, which replace flags of the same names."""
        return replace(self, flags={**self.flags, **flags})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that differ in their seed alone.

    group: arms are compared with the baseline of their group.  role: "subject" is what the study is about;
    "control", "prior" and "dose" are compared with it and with the baseline.  dose: share of the triplets, on
    the curve named by `series`.
    """

    label: str
    chain: tuple[Training, ...]
    group: str = ""
    role: Role = ""
    dose: float | None = None
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained, how often, and on what it is evaluated.

    data, triplets, alignment, downstream, evaluation: `--data`, `--triplets`, … and further flags of
    `python -m eval.run`.  build: a command (after `python`) that makes the data, for a study that brings its
    own.
    """

    name: str
    description: str
    arms: tuple[Arm, ...]
    seeds: int = 3
    data: Path | None = None
    triplets: Path | None = None
    alignment: Path | None = None
    downstream: Path | None = None
    evaluation: Flags = field(default_factory=dict)
    build: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name) or self.name in ("runs", "jobs", "code", "votes"):
            raise ValueError(
                f"study {self.name!r}: its name is a folder's: letters, digits, '.', '_' and '-'"
            )
        labels = [arm.label for arm in self.arms]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"study {self.name}: two arms are called {min(twice)!r}")
        if any(not arm.chain for arm in self.arms) or not self.arms:
            raise ValueError(f"study {self.name}: every arm needs a training")
        if self.seeds < 1:
            raise ValueError(f"study {self.name}: {self.seeds} seeds; at least 1")

    @property
    def held_out(self) -> dict[str, Path]:
        """What evaluations read, by its flag."""
        given = {name: getattr(self, name) for name in ("data", "triplets", "alignment", "downstream")}
        return {flag: path for flag, path in given.items() if path is not None}


# -- the ready ones -------------------------------------------------------------------------


def _trainings(recipe: str, model: str | None) -> tuple[Training, Training]:
    """(stage 1, stage 2) of a recipe."""
    flags = {"model": model} if model else {}
    # The learning curve and the scaling fits need checkpoints on the way.
    kept = {} if recipe in recipes.SMALL else {"keep-epochs": "4"}
    first = Training(stage=1, recipe=recipe, flags=flags)
    return first, Training(stage=2, recipe=recipe, flags={**flags, **kept})


def paper(recipe: str) -> tuple[Arm, ...]:
    """The paper's comparison, and the same with two other towers."""
    arms: list[Arm] = []
    for model in ("ViT-B-32", "RN50", "ViT-L-14") if recipe == "paper" else (None,):
        first, second = _trainings(recipe, model)
        group = model or ""
        named = "" if model in ("ViT-B-32", None) else f", {model}"
        arms.append(Arm(label=f"Baseline{named}", chain=(second,), group=group, role="baseline"))
        arms.append(Arm(label=f"PI{named}", chain=(first, second), group=group, role="subject"))
        if model == "ViT-B-32":
            tuned = Training(stage=1, recipe="pft", flags=first.flags)
            arms.append(Arm(label="PFT", chain=(second, tuned), group=group))
    return tuple(arms)


def controls(recipe: str) -> tuple[Arm, ...]:
    """Whether it is the human part of the prior that helps."""
    first, second = _trainings(recipe, None)
    # Two views of each of a triplet's images: half the triplets make a step of as many images.
    half = str(recipes.choose("1", recipe).batch // 2)
    draws = {"augment": "demo"} if recipe == "debug" else {}  # whose own has none
    views = replace(first.with_flags(objective="views", batch=half, **draws), like=first)
    return (
        Arm(label="Baseline", chain=(second,), role="baseline"),
        Arm(label="PI", chain=(first, second), role="subject"),
        Arm(label="Shuffled votes", chain=(first.with_flags(votes="shuffled"), second), role="control"),
        Arm(label="Untrained votes", chain=(first.with_flags(votes=UNTRAINED), second), role="control"),
        Arm(label="Self-supervision", chain=(views, second), role="control"),
    )


def fractions(recipe: str) -> tuple[Arm, ...]:
    """How many triplets the prior needs: shares of them, for as many steps as all take, or as many epochs."""
    first, second = _trainings(recipe, None)
    arms = [
        Arm(label="Baseline", chain=(second,), role="baseline"),
        Arm(label="PI", chain=(first, second), role="subject", dose=1.0),  # the end of both curves
    ]
    for percent in (1, 3, 10, 30):
        share = percent / 100
        part = first.with_flags(fraction=f"{share:g}")
        for series, steps in (("fixed compute", 1.0), ("fixed epochs", share)):
            training = replace(part, like=first, share=steps)
            label = f"{percent} % of the triplets, {series}"
            arms.append(Arm(label=label, chain=(training, second), role="dose", dose=share, series=series))
    return tuple(arms)


def priors(recipe: str) -> tuple[Arm, ...]:
    """Whose judgements: each prior for as many steps as NIGHTS takes."""
    first, second = _trainings(recipe, None)
    arms = [
        Arm(label="Baseline", chain=(second,), role="baseline"),
        Arm(label="NIGHTS", chain=(first, second), role="subject"),
    ]
    for name in ("BAPPS", "THINGS", "AligNet"):
        training = replace(first.with_flags(prior=name.lower()), like=first)
        arms.append(Arm(label=name, chain=(training, second), role="prior"))
    spose = replace(first.with_flags(data="data/spose/triplets-train.beton"), like=first)
    return (*arms, Arm(label="SPoSE", chain=(spose, second), role="prior"))


# name → (arms of a recipe, what it is about, the usual recipe)
READY: dict[str, tuple[Callable[[str], tuple[Arm, ...]], str, str]] = {
    "paper": (paper, "Perceptual initialization against random initialization", "paper"),
    "controls": (controls, "Is it the human part of the prior?", "paper"),
    "fractions": (fractions, "How many triplets the prior needs", "paper"),
    "priors": (priors, "Whose judgements", "paper"),
    "demo": (
        paper,
        "Perceptual initialization against random initialization, on the demo's drawings",
        "demo",
    ),
}
DEMO = Path("data/demo")


def ready(name: str, recipe: str | None) -> Study:
    """The study of that name with the arms of a recipe; ValueError names what there is."""
    if name not in READY:
        raise ValueError(f"study {name}: there are {', '.join(READY)}, or a file NAME.py that has STUDY")
    arms, description, usual = READY[name]
    study = Study(name=name, description=description, arms=arms(recipe or usual))
    if (recipe or usual) not in recipes.SMALL:
        return study
    return replace(
        study, data=DEMO / "eval", triplets=DEMO / "triplets-test.beton",
        build=("dataprep/build_ffcv.py", "demo", "--out", str(DEMO)),
    )  # fmt: skip


def read(name: str, recipe: str | None) -> Study:
    """A ready study, or the `STUDY` of a Python file; ValueError for a mistake."""
    if not name.endswith(".py"):
        return ready(name, recipe)
    if recipe is not None:
        raise ValueError("--recipe: of the ready studies; the file says the recipes of its own")
    try:
        study = runpy.run_path(name).get("STUDY")
    except Exception as error:  # whatever the file does
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error
    if not isinstance(study, Study):
        raise ValueError(f"{name}: has no STUDY = Study(...) of eval.study.studies")
    return study
