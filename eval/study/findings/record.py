"""study.json: every figure of the page, with the seeds' own values.

Fractions, not percent.  null: no value; where samples are counted, the figure was never reached.  Runs are
named relative to the file's folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.metrics.seeds import Seeds
from eval.metrics.uncertainty import Interval
from eval.report.curves import ScalingChart
from eval.study.findings import paired, words
from eval.study.findings.analysis import Analysis
from eval.study.findings.dose import Curve
from eval.study.findings.finished import StudyArm
from eval.study.findings.frozen import FrozenFigure
from eval.study.findings.human import HumanFigure
from eval.study.findings.paired import Figure, Pair
from eval.study.findings.speed import Speed

SCHEMA = 1


def record(name: str, description: str, analyses: Sequence[Analysis], out: Path) -> dict:
    """What study.json in `out` holds; JSON values only."""
    return {
        "schema": SCHEMA,
        "name": name,
        "description": description,
        "level": "intervals are 95 %, two-sided, over seeds",
        "groups": [_group(analysis, out) for analysis in analyses],
    }


def _group(analysis: Analysis, out: Path) -> dict:
    return {
        "name": analysis.group.name,
        "arms": [_arm(arm, out) for arm in analysis.group.arms],
        "verdicts": [words.verdict(pair) for pair in analysis.judged],
        "against_baseline": [_pair(pair) for pair in analysis.pairs],
        "against_controls": [_pair(pair) for pair in analysis.controls],
        "human_similarity": [_human(pair, found) for pair, found in analysis.human],
        "downstream": [_frozen(pair, found) for pair, found in analysis.frozen],
        "seed_variance": {arm: _spreads(found) for arm, found in analysis.spreads.items()},
        "learning_speed": [_speed(found) for found in analysis.speeds],
        "dose_response": [_curve(curve) for curve in analysis.doses],
        "scaling": [
            _scaling(chart) for charts in (analysis.scaling, analysis.scaling_of_sets) for chart in charts
        ],
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _interval(interval: Interval) -> dict:
    low, high = interval.ends or (math.nan, math.nan)
    return {"value": _number(interval.value), "low": _number(low), "high": _number(high)}


def _over(seeds: Seeds) -> dict:
    """Mean, interval, p and deviation over paired seeds."""
    return {
        "count": seeds.count,
        **_interval(seeds.mean),
        "p": seeds.p,
        "least_p": seeds.least_p,
        "sd": _interval(seeds.sd),
    }


def _arm(arm: StudyArm, out: Path) -> dict:
    plan = arm.plan
    return {
        "label": plan.label,
        "role": plan.role,
        "dose": plan.dose,
        "series": plan.series,
        "missing": plan.missing,
        "runs": {str(seed): os.path.relpath(run.folder, out) for seed, run in arm.runs.items()},
    }


def _pair(pair: Pair) -> dict:
    return {
        "arm": pair.a.label,
        "against": pair.b.label,
        "seeds": pair.seeds,
        "not_counted": pair.only,
        "figures": {figure.quantity.key: _figure(figure) for figure in pair.figures},
        "seeds_needed": _needs(pair),
    }


def _figure(figure: Figure) -> dict:
    quantity = figure.quantity
    return {
        "name": quantity.name,
        "measure": quantity.measure.title,
        "kind": quantity.kind,
        "sets": list(quantity.sets),
        "arm": _numbers(figure.a),
        "against": _numbers(figure.b),
        "difference": _over(figure.seeds),
        "holm": figure.row.adjusted,
        "correlation": _interval(figure.correlation),
    }


def _human(pair: Pair, found: Sequence[HumanFigure]) -> dict:
    return {
        "arm": pair.a.label,
        "against": pair.b.label,
        "seeds": pair.seeds,
        "figures": {figure.key: _human_figure(figure) for figure in found},
    }


def _frozen(pair: Pair, found: Sequence[FrozenFigure]) -> dict:
    return {
        "arm": pair.a.label,
        "against": pair.b.label,
        "seeds": pair.seeds,
        "figures": {
            f"downstream:{figure.about.key}/{figure.about.metric}": {
                "name": figure.about.name,
                "measure": figure.title,
                "less_is_better": not figure.is_share,
                "chance": figure.about.chance,
                "arm": _numbers(figure.a),
                "against": _numbers(figure.b),
                "difference": _over(figure.over),
            }
            for figure in found
        },
    }


def _human_figure(figure: HumanFigure) -> dict:
    row = figure.row
    assert row.seeds is not None
    return {
        "name": figure.about.title,
        "measure": row.measure.title,
        "group": row.name,
        "probe": figure.about.probe,
        "voters": figure.about.voters,
        "judgements": row.n,
        "chance": row.chance,
        "ceiling": row.ceiling,
        "arm": _numbers(figure.a),
        "against": _numbers(figure.b),
        "difference": _over(row.seeds),
    }


def _needs(pair: Pair) -> list[dict]:
    """Of the figure that the verdict is about."""
    if pair.leading is None:
        return []
    return [
        {
            "difference": need.difference,
            "paired": need.of_pairs,
            "sd": _interval(need.sd),
            "seeds": need.count,
            "seeds_low": need.range[0],
            "seeds_high": need.range[1],
        }
        for need in paired.needs(pair.leading)
    ]


def _spreads(found: dict[tuple[str, str], paired.Spread]) -> dict:
    return {
        f"{place}/{metric}": {"values": _numbers(spread.values), "sd": _interval(spread.sd)}
        for (place, metric), spread in found.items()
    }


def _speed(found: Speed) -> dict:
    return {
        "arm": found.pair.a.label,
        "against": found.pair.b.label,
        "seeds": found.seeds,
        "targets": _numbers(found.targets),
        "needed": _numbers(found.needed),
        "baseline_needed": _numbers(found.baseline),
        "median_needed": _interval(found.median),
        "median_ratio": _interval(found.ratio),
        "p": found.p,
        "never": found.never,
        "at_once": found.at_once,
    }


def _curve(curve: Curve) -> dict:
    return {
        "series": curve.series,
        "figure": curve.quantity.key,
        "doses": [
            {
                "arm": dose.arm.label,
                "dose": dose.x,
                "seeds": list(dose.arm.runs),
                "values": _numbers(dose.values),
                "mean": _interval(dose.mean),
                "against_baseline": None if dose.against is None else _over(dose.against.seeds),
            }
            for dose in curve.doses
        ],
        "baseline": None if curve.baseline is None else _interval(curve.baseline),
        "slope_seeds": curve.seeds,
        "slopes": _numbers(curve.slopes),
        "trend": None if curve.trend is None else _over(curve.trend),
    }


def _scaling(chart: ScalingChart) -> dict:
    return {
        "title": chart.title,
        "arms": {
            curve.arm.label: {
                "samples": curve.samples,
                "mean": _numbers(curve.accuracy.mean((0, 1))),
                "by_seed": [_numbers(values) for values in curve.accuracy.mean(1)],
                "beta": _interval(curve.beta),
                "beta_by_seed": _numbers(curve.by_seed),
            }
            for curve in chart.curves
        },
    }
