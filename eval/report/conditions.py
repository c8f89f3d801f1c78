"""What runs were evaluated on and with, for the report: data, settings, and where these are not the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape

from eval import assumed
from eval.report import compare, page
from eval.report.compare import Arm, Run
from eval.report.page import cell, span


def not_shared(every: Sequence[Run]) -> list[str]:
    """In words, the sets (and triplets) that some of the runs were not evaluated on."""
    out, common = [], {*compare.shared_keys(every)}
    have = [
        (run, [*run.final.datasets, *(["triplets"] if run.final.data.get("triplets") else [])])
        for run in every
    ]
    common |= {"triplets"} if all("triplets" in keys for _, keys in have) else set()
    for key in dict.fromkeys(key for _, keys in have for key in keys if key not in common):
        without = [str(run.final.folder) for run, keys in have if key not in keys]
        out.append(f"{key}, which is not in {', '.join(without)}")
    return out


def differences(
    arms: Sequence[Arm], part: Callable[[dict], dict | None] = lambda data: data.get("recipe")
) -> list[tuple[str, list[str]]]:
    """(setting, value of each run's recipe) where they are not all equal; nested settings as a.b.

    part: of a results.json, what to look at instead of the recipe.
    """
    recipes = [flat(part(run.final.data) or {}) for arm in arms for run in arm.runs]
    names = list(dict.fromkeys(k for f in recipes for k in f))
    rows = []
    for name in names:
        values = [json.dumps(f[name]) if name in f else "–" for f in recipes]
        if len(set(values)) > 1 and name != "run":
            rows.append((name, [v.strip('"') for v in values]))
    return rows


def flat(recipe: dict, prefix: str = "") -> dict:
    """Nested settings as {"a.b": value}."""
    out = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


# -- sections of the page ----------------------------------------------------------------------------


def _set_about(record: dict) -> str:
    about = f"{record['samples']:,} images"
    if "classes" in record:
        templates = record["templates"]
        more = f" and {len(templates) - 1} more" if len(templates) > 1 else ""
        shown = f"{escape(record['prompts'])}: {page.code(templates[0])}{more}"
        about += f", {record['classes']:,} classes; prompts {shown}"
    else:
        about += f", {sum(map(len, record['captions'])):,} captions"
    if record.get("unreadable"):
        about += f"; {len(record['unreadable'])} unreadable images left out"
    return about + _notes(record) + f"<br>{span(escape(record['source'] + ', ' + record['path']), 'quiet')}"


def _notes(record: dict) -> str:
    return "".join(f"<br>{escape(note)}" for note in record.get("notes", ()))


def data(arms: Sequence[Arm]) -> str:
    one = arms[0].runs[0].final.data
    rows = [(record["name"], _set_about(record)) for record in one["datasets"].values()]
    if one.get("triplets"):
        record = one["triplets"]
        about = f"{record['metrics']['triplets']:,} triplets {page.votes_label(record['votes'])}"
        rows.append(("Triplets", f"{about}{_notes(record)}<br>{span(escape(record['path']), 'quiet')}"))
    apart = not_shared([run for arm in arms for run in arm.runs])
    if apart:
        rows.append(("Not compared", "<br>".join(map(escape, apart))))
    if one["missing"]:
        names = ", ".join(one["missing"]) if len(one["missing"]) < 31 else "all"
        rows.append(("Not evaluated", f"Of the paper's 31 sets: {names}"))
    return f"<h2>Data</h2>{page.definitions(rows)}"


def settings(arms: Sequence[Arm]) -> str:
    """What differs between the runs, then what they share, then how they were evaluated."""
    heads, checkpoints = [("", "")], [cell("checkpoint")]
    for number, arm in enumerate(arms):
        for run in arm.runs:
            about = run.final.data["checkpoint"]
            seen = about["source"]
            if "samples" in about:
                seen = f"step {about['step']:,}, {about['samples']:,} samples"
            heads.append((page.arm_name(run.label, number), ""))
            lines = [span(escape(line), "sub") for line in (seen, *assumed.taken_as(run.final.data))]
            checkpoints.append(cell("<br>".join([escape(about["model"]), *lines])))
    differing = differences(arms)
    evaluated = differences(arms, lambda data: data["settings"] | data["versions"])
    rows = [page.row(checkpoints)]
    named = [*differing, *((f"evaluated with {n}", values) for n, values in evaluated)]
    rows += [page.row((cell(page.code(n)), *(cell(escape(v)) for v in values))) for n, values in named]
    first = arms[0].runs[0].final.data
    names = {name for name, _ in differing} | {"run"}
    shared = [(k, page.code(v)) for k, v in flat(first.get("recipe") or {}).items() if k not in names]
    other = {name for name, _ in evaluated}
    used = flat(first["settings"] | first["versions"])
    used = [(k, page.code(v)) for k, v in used.items() if k not in other]
    out = f"<h2>Settings</h2>{page.table(heads, ''.join(rows))}"
    if shared:
        out += '<p class="note">What differs between the runs; everything else in their recipes is equal.</p>'
        out += page.folded("Settings the runs share", page.definitions(shared))
    return out + page.folded("How it was evaluated", page.definitions(used))
