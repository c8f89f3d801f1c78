"""What a comparison comes to, in sentences, and the figures that stand at the head of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.metrics import uncertainty
from eval.report import compare
from eval.report.compare import RECALLS, TOP1, Comparison, Row
from eval.report.render import counted, pct, signed, spread, tied
from eval.report.runs import Arm
from eval.sets import catalog


def _leading(comparison: Comparison) -> Row | None:
    """The figure that the verdict is about."""
    return comparison.primary or next(iter(comparison.triplets), None)


def verdict(comparison: Comparison) -> str:
    """What the comparison says, in one sentence that is plain also when it is against us."""
    a, b = comparison.a.label, comparison.b.label
    row = _leading(comparison)
    if row is None:
        return f"{a} and {b} share no classification set; see the tables."
    primary = comparison.primary
    what = f"mean top-1 over {counted(primary.sets, 'set')}" if primary else row.name
    figure = (
        f"{signed(row.delta.value)} points of {what} ({pct(row.a)} against {pct(row.b)} %), "
        f"95 % interval {spread(row.delta)}"
    )
    if row.delta.value == 0:
        return f"{a} is not better than {b} here: no difference in {what} ({pct(row.a)} %)."
    assert row.delta.ends is not None  # a bootstrap over images has them
    low, high = row.delta.ends
    if low > 0:
        return f"{a} is better than {b} here: {figure}."
    if high < 0:
        return f"{a} is worse than {b} here: {figure}."
    return f"{a} is not shown to be better than {b} here: {figure}, which includes 0."


def caution(comparison: Comparison) -> str:
    """What the interval does not cover: chance in training, and what the catalog says of the sets."""
    return " ".join([_seeds_caution(comparison), *set_cautions(row.key for row in comparison.rows)])


def set_cautions(keys: Iterable[str]) -> list[str]:
    """What the catalog says a reader of figures on these sets must know, each once."""
    entries = [entry for key in keys if (entry := catalog.find(key)) is not None]
    return [*dict.fromkeys(entry.caution for entry in entries if entry.caution)]


def _seeds_caution(comparison: Comparison) -> str:
    row = _leading(comparison)
    seeds = row.seeds if row else None
    if seeds is None:
        arms = (comparison.a, comparison.b)
        runs = "There is one training run of each"
        if any(len(arm.runs) > 1 for arm in arms):
            counts = " and ".join(f"{len(arm.runs)} of {arm.label}" for arm in arms)
            runs = f"Training runs: {counts}, which cannot be paired by seed"
        return (
            f"{runs}, so the interval covers the choice of test images only: "
            "with another random seed it may come out the other way."
        )
    text = f"Over {seeds.count} paired seeds the mean difference is {signed(seeds.mean.value)} points"
    if seeds.mean.low is not None:
        text += f", BCa interval {spread(seeds.mean)}"
        text += " (too narrow with so few)" if seeds.count < 10 else ""
    text += f", sign-flip p = {seeds.p:.3f}"
    if seeds.least_p > uncertainty.ALPHA:
        text += (
            f". With {seeds.count} seeds that p cannot fall below {seeds.least_p:.3f}, "
            "so no test over seeds can be significant here"
        )
    return text + "."


def key_figures(comparison: Comparison) -> list[tuple[str, Row]]:
    """(title, row) of the strip under the heading: families or sets, retrieval, triplets."""
    top1: Sequence[Row] = [r for r in comparison.families if r.name in catalog.FAMILIES and r.measure is TOP1]
    top1 = top1 or [r for r in comparison.rows if r.measure is TOP1][:6]
    recalls = [r for r in comparison.rows if r.measure in RECALLS and r.measure.tested][:4]
    named = [(f"{row.name}, {tied(row.measure.title)}", row) for row in (*top1, *recalls)]
    return named + [(row.name, row) for row in comparison.triplets[:1]]


def limit(rows: list[Row]) -> float:
    """Of the axis that shows the intervals of these rows."""
    return max((abs(end) for row in rows for end in row.delta.ends or ()), default=0.0)


@dataclass(frozen=True, kw_only=True)
class SingleRow:
    """One figure of an arm that stands alone, a value for each seed; fractions."""

    name: str
    measure: str
    values: list[float]
    of_triplets: bool = False


def single_rows(arm: Arm) -> list[SingleRow]:
    rows = []
    for key in compare.shared_keys(arm.runs):
        for measure in compare.measures(arm.first.datasets[key]):
            values = [run.final.datasets[key]["metrics"][measure.key] for run in arm.runs]
            name = arm.first.datasets[key]["name"]
            rows.append(SingleRow(name=name, measure=measure.title, values=values))
    if all(run.final.data.get("triplets") for run in arm.runs):
        metrics = [run.final.record("triplets")["metrics"] for run in arm.runs]
        for measure in compare.twoafc(metrics[0]):
            values = [m.get(measure.key, float("nan")) for m in metrics]
            rows.append(SingleRow(name=measure.title, measure="", values=values, of_triplets=True))
    return rows
