"""The report's curves: training logs, and accuracy against samples seen with the exponent β.

The paper's Figures 3 and 4 need runs evaluated at several checkpoints (`python -m eval.run --watch`);
without them that section is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.metrics import uncertainty
from eval.metrics.uncertainty import Interval
from eval.report import compare, figures, page
from eval.report.compare import Arm, Measure
from eval.report.figures import Figure, Series
from eval.sets.catalog import CLASSIFICATION_TASK

# name in metrics.jsonl, title, smoothed, in percent
LOGGED = (
    ("loss", "Training loss (moving mean)", True, False),
    ("val_loss", "Validation loss", False, False),
    ("val_twoafc", "Validation 2AFC, majority, %", False, True),
    ("val_twoafc_soft", "Validation 2AFC, share of people, %", False, True),
    ("logit_scale", "Logit scale", True, False),
)
FIRST_STAGE = (
    ("loss", "Stage 1: loss", False),
    ("twoafc_soft", "Stage 1: 2AFC in training, share of people, %", True),
    ("val_twoafc", "Stage 1: validation 2AFC, majority, %", True),
    ("val_twoafc_soft", "Stage 1: validation 2AFC, share of people, %", True),
)


def _line(rows: list[dict], name: str, label: str, colour: int, smooth: bool) -> Series | None:
    rows = [r for r in rows if r.get(name) is not None]
    if len(rows) < 2:
        return None
    y = [r[name] for r in rows]
    y = figures.smoothed(y, max(1, len(y) // 25)).tolist() if smooth else y
    return Series(label, [r.get("samples", r.get("step")) for r in rows], y, colour, marks=not smooth)


def _first_stage(arms: Sequence[Arm]) -> list[Figure]:
    """Stage 1 of the first run that started from one whose log is still there."""
    for number, arm in enumerate(arms):
        start = (arm.runs[0].recipe or {}).get("init")
        if not start:
            continue
        places = (Path(start), arm.runs[0].folder.parent / Path(start).name)
        log = next((rows for p in places if (rows := compare.read_log(p))), [])
        lines = [
            (n, t, p, _line(log, n, arm.label, number, not n.startswith("val_"))) for n, t, p in FIRST_STAGE
        ]
        return [
            figures.lines(f"stage1-{name}", title, [line], "triplets seen", percent=percent)
            for name, title, percent, line in lines
            if line is not None
        ]
    return []


def learning(arms: Sequence[Arm]) -> tuple[str, list[Figure]]:
    """HTML and charts of each run's metrics.jsonl, and of the first stage's."""
    drawn = []
    for name, title, smooth, percent in LOGGED:
        lines = [
            _line(run.log, name, arm.label if seed == 0 else "_", number, smooth)
            for number, arm in enumerate(arms)
            for seed, run in enumerate(arm.runs)
        ]
        lines = [line for line in lines if line is not None]
        if lines:
            xlabel = "training samples seen"
            drawn.append(figures.lines(f"curve-{name}", title, lines, xlabel, percent=percent))
    drawn += _first_stage(arms)
    return (f"<h2>Learning curves</h2>{page.charts(drawn)}" if drawn else ""), drawn


def points(arm: Arm) -> list[int]:
    """Samples seen at the checkpoints that every seed of the arm was evaluated at, in order."""
    seen = [{e.samples for e in run.evaluations if e.samples} for run in arm.runs]
    return sorted(set.intersection(*seen))


def curves(arm: Arm, keys: Sequence[str], measure: Measure, at: Sequence[int]) -> np.ndarray:
    """(seeds, sets, points) fractions."""
    out = np.empty((len(arm.runs), len(keys), len(at)))
    for s, run in enumerate(arm.runs):
        by_samples = {e.samples: e for e in run.evaluations}
        for p, samples in enumerate(at):
            for k, key in enumerate(keys):
                out[s, k, p] = by_samples[samples].datasets[key]["metrics"][measure.metric]
    return out


def beta(interval: Interval) -> str:
    if np.isnan(interval.value):
        return "β –"
    if interval.low is None:
        return f"β {interval.value:.2f}"
    return f"β {interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})".replace("-", "−")


def _panels(arms: Sequence[Arm]) -> list[tuple[str, list[str], Measure, list[str]]]:
    """(title, sets, measure, names of near-chance sets) of every panel: families, then retrieval."""
    run = arms[0].runs[0]
    every = [r for arm in arms for r in arm.runs]
    keys = compare.shared_keys(every)
    out = []
    for measure in (compare.TOP1, compare.TOP5):
        for family, members in compare.families_of(run, keys).items():
            members = [k for k in members if measure.metric in run.final.datasets[k]["metrics"]]
            if members:
                records = [run.final.datasets[k] for k in members]
                weak = [r["name"] for r in records if r["near_chance"]]
                out.append((f"{family}, {measure.title}", members, measure, weak))
    for key in keys:
        record = run.final.datasets[key]
        if record["task"] != CLASSIFICATION_TASK:
            out += [(f"{record['name']}, {m.title}", [key], m, []) for m in compare.measures(record)]
    return out


def scaling(arms: Sequence[Arm]) -> tuple[str, list[Figure]]:
    """HTML and charts; both empty when no arm has two evaluated checkpoints."""
    at = [points(arm) for arm in arms]
    if all(len(p) < 2 for p in at):
        return "", []
    drawn, cells = [], []
    for number, (title, keys, measure, weak) in enumerate(_panels(arms)):
        series, slopes = [], []
        for i, arm in enumerate(arms):
            if len(at[i]) < 2:
                continue
            values = curves(arm, keys, measure, at[i])
            series.append(Series(arm.label, at[i], values.mean((0, 1)).tolist(), i, marks=True))
            slopes.append(f"{page.arm_name(arm.label, i)} {beta(uncertainty.scaling(at[i], values))}")
        name, xlabel = f"scaling-{number:02d}", "training samples seen"
        drawn.append(figures.lines(name, f"{title}, %", series, xlabel, log=True, percent=True))
        caption = f"{'; '.join(slopes)}."
        if weak:
            caption += f" Near chance, where a slope means nothing: {', '.join(weak)}."
        cells.append(f"<figure>{drawn[-1].inline()}<figcaption>{caption}</figcaption></figure>")
    note = (
        "β: slope of a least-squares line through log10 of accuracy against log10 of samples seen, fitted "
        "per seed. Its interval resamples seeds and the sets of a family, never the points of a run, which "
        "are not independent; one seed of one set has none."
    )
    return f'<h2>Scaling</h2><p class="note">{note}</p><div class="charts">{"".join(cells)}</div>', drawn
