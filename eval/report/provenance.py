"""What runs were evaluated on and with, for the report: where they differ, and what they share."""

from __future__ import annotations

import json
from collections.abc import Sequence

from eval.metrics import perceptual
from eval.report import alignment
from eval.report.runs import Arm, Run
from eval.sets import catalog


def not_shared(runs: Sequence[Run]) -> list[str]:
    """In words, the sets (and triplets) that some of the runs were not evaluated on."""
    evaluated = [
        [*run.final.datasets, *(["triplets"] if run.final.data.get("triplets") else []), *alignment.keys(run)]
        for run in runs
    ]
    out = []
    for key in dict.fromkeys(key for keys in evaluated for key in keys):
        without = [str(run.final.folder) for run, keys in zip(runs, evaluated) if key not in keys]
        if without:
            out.append(f"{key}, which is not in {', '.join(without)}")
    return out


def votes(arm: Arm) -> dict[str, object] | None:
    """Whose votes an arm's triplets have, and what a reader must know of them."""
    record = arm.first.data.get("triplets")
    if not record:
        return None
    voters = perceptual.voters_of(record["votes"])
    return {
        "label": perceptual.describe_votes(voters),
        "constructed": voters == perceptual.CONSTRUCTED,
        "about": catalog.about_triplets(record.get("source", "")),
        "ceiling": record["metrics"]["ceiling"],
    }


def flat(settings: dict, prefix: str = "") -> dict:
    """Nested settings as {"a.b": value}."""
    out: dict[str, object] = {}
    for name, value in settings.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def _compared(by_run: Sequence[dict]) -> tuple[dict[str, list[str]], dict]:
    """({setting: its value in each run} of those that are not all equal, {setting: value} of the others)."""
    by_run = [flat(settings) for settings in by_run]
    differing = {}
    for name in dict.fromkeys(name for settings in by_run for name in settings):
        values = [json.dumps(s[name]).strip('"') if name in s else "–" for s in by_run]
        if len(set(values)) > 1:
            differing[name] = values
    return differing, {name: value for name, value in by_run[0].items() if name not in differing}


def settings(runs: Sequence[Run]) -> dict[str, dict]:
    """`differing`: {setting: its value in each run}.  `shared`, `evaluated`: {setting: value} of all runs."""
    recipes = [{name: value for name, value in run.recipe.items() if name != "run"} for run in runs]
    in_recipe, shared = _compared(recipes)
    in_evaluation, evaluated = _compared([r.final.data["settings"] | r.final.data["versions"] for r in runs])
    differing = in_recipe | {f"evaluated with {name}": v for name, v in in_evaluation.items()}
    return {"differing": differing, "shared": shared, "evaluated": evaluated}


def checkpoint(run: Run) -> list[str]:
    """Which checkpoint it is, and how its weights were used."""
    about = run.final.data["checkpoint"]
    which = about["source"]
    if "samples" in about:
        which = f"step {about['step']:,}, {about['samples']:,} samples"
    return [which, *weights_used_as(run.final.data)]


def weights_used_as(data: dict) -> list[str]:
    """From a results.json: how the weights were used, and what of that was assumed."""
    about, pixels = data["checkpoint"], data["settings"].get("preprocess")
    used = [about["activation"]] if "activation" in about else []
    if pixels:
        used += [f"{name} {', '.join(f'{v:.4g}' for v in pixels[name])}" for name in ("mean", "std")]
    told_by = [f"as {about['told_by']} tells"] if "told_by" in about else []
    return [*(["; ".join(used)] if used else []), *told_by, *about.get("assumed", ())]
