"""What runs were evaluated on and with, for the report: where they differ, and what they share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval import assumptions
from eval.report.runs import Arm, Run


def not_shared(runs: Sequence[Run]) -> list[str]:
    """In words, the sets (and triplets) that some of the runs were not evaluated on."""
    evaluated = [
        [*run.final.datasets, *(["triplets"] if run.final.data.get("triplets") else [])] for run in runs
    ]
    out = []
    for key in dict.fromkeys(key for keys in evaluated for key in keys):
        without = [str(run.final.folder) for run, keys in zip(runs, evaluated) if key not in keys]
        if without:
            out.append(f"{key}, which is not in {', '.join(without)}")
    return out


def flat(settings: dict, prefix: str = "") -> dict:
    """Nested settings as {"a.b": value}."""
    out = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def differences(runs: Sequence[Run], part: Callable[[Run], dict]) -> dict[str, list[str]]:
    """{setting: its value in each run} of those that are not all equal; nested settings as a.b."""
    settings = [flat(part(run)) for run in runs]
    out = {}
    for name in dict.fromkeys(name for one in settings for name in one):
        values = [json.dumps(one[name]).strip('"') if name in one else "–" for one in settings]
        if len(set(values)) > 1 and name != "run":
            out[name] = values
    return out


@dataclass(frozen=True, kw_only=True)
class RunColumn:
    """A run's column of the settings table."""

    label: str
    arm: int
    model: str
    checkpoint: list[str]  # which one, and how its weights were used


@dataclass(frozen=True, kw_only=True)
class Settings:
    """runs: columns.  differing: {setting: its value in each}.  shared, evaluated: {setting: value}."""

    runs: list[RunColumn]
    differing: dict[str, list[str]]
    shared: dict[str, object]
    evaluated: dict[str, object]


def settings(arms: Sequence[Arm]) -> Settings:
    """What differs between the runs, what they share, and how they were evaluated."""
    runs = [run for arm in arms for run in arm.runs]
    in_recipe = differences(runs, lambda run: run.recipe)
    in_evaluation = differences(runs, _evaluated_with)
    recipe, evaluated = flat(runs[0].recipe), flat(_evaluated_with(runs[0]))
    return Settings(
        runs=[_column(run, number) for number, arm in enumerate(arms) for run in arm.runs],
        differing=in_recipe | {f"evaluated with {name}": values for name, values in in_evaluation.items()},
        shared={name: value for name, value in recipe.items() if name not in {*in_recipe, "run"}},
        evaluated={name: value for name, value in evaluated.items() if name not in in_evaluation},
    )


def _evaluated_with(run: Run) -> dict:
    return run.final.data["settings"] | run.final.data["versions"]


def _column(run: Run, arm: int) -> RunColumn:
    about = run.final.data["checkpoint"]
    which = about["source"]
    if "samples" in about:
        which = f"step {about['step']:,}, {about['samples']:,} samples"
    lines = [which, *assumptions.weights_used_as(run.final.data)]
    return RunColumn(label=run.label, arm=arm, model=about["model"], checkpoint=lines)
