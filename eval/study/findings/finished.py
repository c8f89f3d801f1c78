"""What a study has finished: the runs of each arm by seed, read once and kept small."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.report.runs import Arm, Run, run_in
from eval.results import Evaluation

BASELINE, SUBJECT, CONTROL, DOSE, PRIOR = "baseline", "subject", "control", "dose", "prior"
_KEPT = ("metrics", "name", "family", "task", "near_chance")  # of a set's record at earlier checkpoints
_SAME = ("samples", "classnames", "templates", "captions")  # must be equal in whatever is compared


@dataclass(frozen=True, kw_only=True)
class ArmRuns:
    """An arm as the study planned it.

    runs: folders of the finished training runs, one a seed.  group: its arms are compared with the group's
    baseline.  role: BASELINE, SUBJECT (the true prior), CONTROL, DOSE, PRIOR, or none.  dose: share of the
    triplets, for a dose–response curve.  series: the curve it is on; an arm with a dose and no series is on
    every curve of its group.  missing: seeds that are planned and not finished.
    """

    label: str
    runs: list[Path]
    group: str = ""
    role: str = ""
    dose: float | None = None
    series: str = ""
    missing: int = 0

    def __post_init__(self) -> None:
        if self.role not in ("", BASELINE, SUBJECT, CONTROL, DOSE, PRIOR):
            raise ValueError(f"arm {self.label}: unknown role {self.role}")
        if self.dose is not None and not self.dose > 0:
            raise ValueError(f"arm {self.label}: its dose is {self.dose}; a curve needs doses above 0")


@dataclass(frozen=True)
class StudyArm:
    """An arm and its finished runs by seed; number: its colour, and its place in charts."""

    plan: ArmRuns
    runs: dict[int, Run]
    number: int = 0

    @property
    def label(self) -> str:
        return self.plan.label

    def arm(self, seeds: Iterable[int] | None = None) -> Arm:
        """All its runs, or those of some seeds."""
        return Arm(self.label, [self.runs[s] for s in (self.runs if seeds is None else seeds)])


@dataclass(frozen=True)
class Group:
    """Arms that are compared with one baseline: subjects, baseline, the others; those without runs last."""

    name: str
    arms: list[StudyArm]

    @property
    def finished(self) -> list[StudyArm]:
        """Arms with at least one finished run."""
        return [arm for arm in self.arms if arm.runs]

    @property
    def baseline(self) -> StudyArm | None:
        """None where none is planned or none of its runs is finished."""
        return next((arm for arm in self.finished if arm.plan.role == BASELINE), None)

    def of_role(self, *roles: str) -> list[StudyArm]:
        return [arm for arm in self.finished if arm.plan.role in roles]

    @property
    def judged(self) -> list[StudyArm]:
        """Arms that get a sentence: the subjects, or where there are none, all but the baseline."""
        return self.of_role(SUBJECT) or [arm for arm in self.finished if arm.plan.role != BASELINE]


def groups(arms: Sequence[ArmRuns]) -> list[Group]:
    """The arms by group, in order of first appearance.

    Raises ValueError where nothing is finished, for a label or a baseline twice in a group, and for runs
    that cannot be read or were evaluated on different data.
    """
    if not any(arm.runs for arm in arms):
        raise ValueError("no run of the study is finished, so there is nothing to report yet")
    by_name: dict[str, list[ArmRuns]] = {}
    for arm in arms:
        by_name.setdefault(arm.group, []).append(arm)
    for name, members in by_name.items():
        _check_names(name, members)
    return [_group(name, members) for name, members in by_name.items()]


def _check_names(name: str, members: Sequence[ArmRuns]) -> None:
    where = f"group {name}" if name else "the study"
    labels = [arm.label for arm in members]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"{where} has two arms called {twice[0]}; give each a label of its own")
    baselines = [arm.label for arm in members if arm.role == BASELINE]
    if len(baselines) > 1:
        raise ValueError(f"{where} has {len(baselines)} baselines: {', '.join(baselines)}; it can have one")


def _group(name: str, members: Sequence[ArmRuns]) -> Group:
    order = {SUBJECT: 0, BASELINE: 1}
    ordered = sorted(members, key=lambda arm: (not arm.runs, order.get(arm.role, 2)))
    group = Group(name, [StudyArm(plan, _runs(plan), number) for number, plan in enumerate(ordered)])
    runs = [run for arm in group.arms for run in arm.runs.values()]
    _check_same_data(runs)
    _check_same_triplets(runs)
    return group


def _runs(plan: ArmRuns) -> dict[int, Run]:
    by_seed: dict[int, Run] = {}
    for folder in plan.runs:
        run = _small(run_in(folder, plan.label, texts=False))
        seed = _seed(run, folder)
        if seed in by_seed:
            raise ValueError(f"{plan.label}: {by_seed[seed].folder} and {folder} both have seed {seed}")
        by_seed[seed] = run
    return {seed: by_seed[seed] for seed in sorted(by_seed)}


def _seed(run: Run, folder: Path) -> int:
    """From the evaluation, or the run's own recipe."""
    recipe = run.recipe
    if "seed" not in recipe and (path := folder / "recipe.json").is_file():
        try:
            recipe = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not whole JSON ({error})") from None
    if not isinstance(recipe.get("seed"), int):
        raise ValueError(f"{folder}: no seed in its evaluation or its recipe.json, so it cannot be paired")
    return recipe["seed"]


def _small(run: Run) -> Run:
    """Of all checkpoints but the last only what curves need; hundreds of runs have thousands of them."""
    return replace(run, evaluations=[*map(_only_figures, run.evaluations[:-1]), run.final])


def _only_figures(evaluation: Evaluation) -> Evaluation:
    checkpoint = {k: v for k, v in evaluation.data["checkpoint"].items() if k in ("step", "samples")}
    datasets = {k: {name: r[name] for name in _KEPT} for k, r in evaluation.datasets.items()}
    triplets = evaluation.data["triplets"]
    return Evaluation(
        evaluation.folder,
        {
            "checkpoint": checkpoint,
            "datasets": datasets,
            "triplets": triplets and {"metrics": triplets["metrics"]},
        },
    )


def _check_same_data(runs: Sequence[Run]) -> None:
    """ValueError for a set that two runs were evaluated on with other images, texts or prompts."""
    first: dict[str, Run] = {}
    for run in runs:
        for key, record in run.final.datasets.items():
            other = first.setdefault(key, run).final
            for name in _SAME:
                if record.get(name) != other.datasets[key].get(name):
                    raise ValueError(
                        f"{key}: {other.folder} and {run.final.folder} were evaluated with different {name}; "
                        "evaluate both on the same data with the same --prompts"
                    )


def uneven(group: Group) -> list[str]:
    """In words, what of the runs is not equal and stands behind every comparison: samples seen."""
    by_samples: dict[int | None, list[str]] = {}
    for arm in group.finished:
        for run in arm.runs.values():
            labels = by_samples.setdefault(run.final.samples, [])
            labels += [] if arm.label in labels else [arm.label]
    if len(by_samples) < 2:
        return []
    each = [
        f"{'unknown' if n is None else f'{n:,}'} samples: {', '.join(labels)}"
        for n, labels in by_samples.items()
    ]
    return [f"Runs were compared after different numbers of training samples ({'; '.join(each)})"]


def _check_same_triplets(runs: Sequence[Run]) -> None:
    """ValueError where two runs were asked about different triplets: their number or their votes differ."""
    asked = [run for run in runs if run.final.data.get("triplets")]
    for run in asked[1:]:
        a, b = (each.final.data["triplets"]["metrics"] for each in (asked[0], run))
        if any(a.get(name) != b.get(name) for name in ("triplets", "ceiling")):
            raise ValueError(
                f"triplets: {asked[0].final.folder} and {run.final.folder} were evaluated on different "
                "triplets; evaluate both with the same --triplets"
            )
