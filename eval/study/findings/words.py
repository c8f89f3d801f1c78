"""What a study found, in sentences that are plain also when it is against us."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from eval.metrics.seeds import Seeds
from eval.metrics.uncertainty import ALPHA, Interval
from eval.report.render import counted, minus, p_value, pct, signed, spread
from eval.study.findings.dose import Curve
from eval.study.findings.finished import Group, StudyArm
from eval.study.findings.paired import MEAN, Needs, Pair, Quantity, Spread
from eval.study.findings.speed import Speed

FEW = 10  # seeds below which a BCa interval is said to be too narrow


def about(quantity: Quantity) -> str:
    """`mean top-1 over 29 sets`, `2AFC (majority)`, `CIFAR-10, top-1`."""
    if quantity.kind == MEAN:
        return f"mean {quantity.measure.title} over {counted(len(quantity.sets), 'set')}"
    return (
        quantity.name
        if quantity.name == quantity.measure.title
        else f"{quantity.name}, {quantity.measure.title}"
    )


def verdict(pair: Pair) -> str:
    """Whether arm `a` is better than arm `b`, in one sentence; sure only where the sign-flip test is."""
    a, b, figure = pair.a.label, pair.b.label, pair.leading
    if not pair.seeds:
        return f"{a} and {b} have finished no seed in common, so nothing can be said of them yet."
    if figure is None:
        return f"{a} and {b} share no evaluated set, so they cannot be compared."
    over, what = figure.seeds, about(figure.quantity)
    if not over.count:
        return f"No seed that {a} and {b} have in common has a figure for {what}, so nothing can be said."
    amount = (
        f"{signed(over.mean.value, 2)} points of {what} ({pct(figure.row.a)} against {pct(figure.row.b)} %)"
    )
    if over.count == 1:
        return f"{a} against {b}: {amount}, {evidence(over)}; there is no interval."
    if over.mean.value == 0:
        return f"{a} is not better than {b}: no difference in {what} over {over.count} paired seeds."
    sure = "better" if over.mean.value > 0 else "worse"
    stands = f"is {sure} than" if over.p <= ALPHA else "is not shown to be better than"
    return f"{a} {stands} {b}: {amount}, {evidence(over)}."


def evidence(over: Seeds, of: str = "paired seed") -> str:
    """Number of seeds, interval and p, with what limits them."""
    if over.count == 1:
        return "in one seed, which says nothing about chance in training"
    text = f"over {counted(over.count, of)}"
    if over.mean.ends is not None:
        text += f", 95 % interval (BCa) {spread(over.mean, 2)}"
        text += " (too narrow with so few seeds)" if over.count < FEW else ""
    p = p_value(over.p)
    text += f", sign-flip p {p}" if p.startswith("<") else f", sign-flip p = {p}"
    least = p_value(over.least_p)
    if over.least_p > ALPHA:
        return (
            f"{text}, which with {over.count} seeds cannot fall below {least}, so it could show no difference"
        )
    return f"{text}, the least that {over.count} seeds can give" if over.p <= over.least_p else text


def _seeds(numbers: Sequence[int]) -> str:
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def not_counted(pair: Pair) -> str:
    """Which seeds only one of both has finished; empty where there are none."""
    both = ((pair.a.label, pair.b.label), (pair.b.label, pair.a.label))
    lacking = [f"{_seeds(pair.only[has])}, not finished by {lacks}" for has, lacks in both if pair.only[has]]
    return f"Not counted: {'; '.join(lacking)}." if lacking else ""


def unfinished(group: Group) -> list[str]:
    """Arms with planned runs that are not finished."""
    return [
        f"{arm.label}: {counted(arm.plan.missing, 'seed')} not finished"
        if arm.runs
        else f"{arm.label}: no finished run"
        for arm in group.arms
        if arm.plan.missing or not arm.runs
    ]


def human_part(pair: Pair) -> str:
    """What a subject has over a control."""
    figure = pair.leading
    if figure is None or not figure.seeds.count:
        return verdict(pair)
    return (
        f"{pair.a.label} minus {pair.b.label}: {signed(figure.seeds.mean.value, 2)} points of "
        f"{about(figure.quantity)}, {evidence(figure.seeds)}."
    )


def reached(speed: Speed) -> str:
    """How many seeds have no exact value."""
    parts = [f"{speed.never} of {len(speed.seeds)} never reached it"] if speed.never else []
    parts += [f"{speed.at_once} past it at the first checkpoint"] if speed.at_once else []
    return "; ".join(parts)


def trend(curve: Curve) -> str:
    """The slope of a dose–response curve."""
    series = f" ({curve.series})" if curve.series else ""
    what = about(curve.quantity)
    if curve.trend is None:
        why = "it takes two doses and a seed that has finished all of them"
        return f"No trend of {what}{series}: {why}."
    return (
        f"{signed(curve.trend.mean.value, 2)} points of {what} per tenfold of triplets{series}, "
        f"{evidence(curve.trend, 'seed')}."
    )


def role(arm: StudyArm) -> str:
    """What an arm is in the study, for tables."""
    return arm.plan.role or "other"


# -- cells of tables ------------------------------------------------------------------------------


def leading(pairs: Sequence[Pair]) -> list[str]:
    """What the figures of these pairs are; mostly one thing."""
    return [*dict.fromkeys(about(pair.leading.quantity) for pair in pairs if pair.leading is not None)]


def _ranged(interval: Interval, text: Callable[[float], str]) -> tuple[str, str]:
    """The value and `low to high`, each empty where there is none."""
    if math.isnan(interval.value):
        return "–", ""
    return text(interval.value), " to ".join(map(text, interval.ends or ()))


def points(interval: Interval) -> tuple[str, str]:
    """A deviation of fractions in points."""
    return _ranged(interval, lambda value: f"{100 * value:.2f}")


def plain(interval: Interval) -> tuple[str, str]:
    return _ranged(interval, lambda value: minus(f"{value:.2f}"))


def percent(interval: Interval) -> tuple[str, str]:
    return _ranged(interval, pct)


def _reached(interval: Interval, text: Callable[[float], str]) -> tuple[str, str]:
    """Infinite values stand for runs that never were there."""
    value, ends = _ranged(interval, lambda x: "not reached" if math.isinf(x) else text(x))
    return value, "" if interval.low is not None and math.isinf(interval.low) else ends


def samples(interval: Interval) -> tuple[str, str]:
    """Numbers of samples."""
    return _reached(interval, lambda value: f"{value:,.0f}")


def times(interval: Interval) -> tuple[str, str]:
    """Shares of the baseline's samples."""
    return _reached(interval, lambda value: f"{value:.2f}")


def deviation(spread: Spread | None, metric: str) -> tuple[str, str]:
    """In points, or in ranks where the metric is one."""
    if spread is None:
        return "–", ""
    return plain(spread.sd) if "median_rank" in metric else points(spread.sd)


def needed(need: Needs) -> str:
    """`12 (7 to 30)` seeds."""
    count, *ends = ("–" if number is None else f"{number:,}" for number in (need.count, *need.range))
    return count if need.count is None or need.sd.ends is None else f"{count} ({' to '.join(ends)})"
