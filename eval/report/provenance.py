"""What runs were evaluated on and with, for the report: where they differ, and what they share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

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
    out: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def differences(runs: Sequence[Run], part: Callable[[Run], dict]) -> dict[str, list[str]]:
    """{setting: its value in each run} of those that are not all equal; nested settings as a.b."""
    by_run = [flat(part(run)) for run in runs]
    out = {}
    for name in dict.fromkeys(name for settings in by_run for name in settings):
        values = [json.dumps(s[name]).strip('"') if name in s else "–" for s in by_run]
        if len(set(values)) > 1 and name != "run":
            out[name] = values
    return out


def settings(arms: Sequence[Arm]) -> dict[str, dict]:
    """`differing`: {setting: its value in each run}.  `shared`, `evaluated`: {setting: value} of all runs."""
    runs = [run for arm in arms for run in arm.runs]
    in_recipe = differences(runs, lambda run: run.recipe)
    in_evaluation = differences(runs, _evaluated_with)
    recipe, evaluated = flat(runs[0].recipe), flat(_evaluated_with(runs[0]))
    return {
        "differing": in_recipe | {f"evaluated with {name}": v for name, v in in_evaluation.items()},
        "shared": {name: v for name, v in recipe.items() if name not in {*in_recipe, "run"}},
        "evaluated": {name: v for name, v in evaluated.items() if name not in in_evaluation},
    }


def _evaluated_with(run: Run) -> dict:
    return run.final.data["settings"] | run.final.data["versions"]


def checkpoint(run: Run) -> list[str]:
    """Which checkpoint it is, and how its weights were used."""
    about = run.final.data["checkpoint"]
    which = about["source"]
    if "samples" in about:
        which = f"step {about['step']:,}, {about['samples']:,} samples"
    return [which, *assumptions.weights_used_as(run.final.data)]
