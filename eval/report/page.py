"""HTML for the report: numbers as text, tables, the document around them.  Knows nothing about runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from eval.metrics.uncertainty import Interval

CONSTRUCTED = "constructed, no human vote"


def pct(value: float) -> str:
    """A fraction in percent, one decimal."""
    return f"{100 * value:.1f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference of fractions in percentage points, with a real minus sign and no sign at zero."""
    text = f"{100 * value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def spread(interval: Interval) -> str:
    if interval.low is None:
        return "–"
    return f"{signed(interval.low)} to {signed(interval.high)}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def tied(text: str) -> str:
    """The text with hyphens and spaces that do not break."""
    return text.replace("-", "\u2011").replace(" ", "\u00a0")


def span(text: str, kind: str) -> str:
    return f'<span class="{kind}">{text}</span>'


def votes_label(votes: str) -> str:
    return span(escape(votes), "label")


def arm_name(label: str, number: int, dot: bool = False) -> str:
    """An arm's name in its colour."""
    mark = '<span class="dot"></span>' if dot else ""
    return span(mark + escape(label), f"arm{number % 4}")


def whisker(interval: Interval, limit: float) -> str:
    """A difference and its interval on an axis from −limit to limit."""
    if interval.low is None or limit <= 0:
        return ""

    def at(value: float) -> str:
        return f"{50 + 48 * max(-1.0, min(1.0, value / limit)):.2f}"

    sure = ' class="sure"' if interval.low > 0 or interval.high < 0 else ""
    low, high, middle = at(interval.low), at(interval.high), at(interval.value)
    return (
        '<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="zero" x1="50" x2="50" y1="0" y2="20"/>'
        f'<line{sure} x1="{low}" x2="{high}" y1="10" y2="10"/>'
        f'<line{sure} x1="{middle}" x2="{middle}" y1="5" y2="15"/></svg>'
    )


def cell(content: str, kind: str = "", rows: int = 1) -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' rowspan="{rows}"' if rows > 1 else ""
    return f"<td{attributes}>{content}</td>"


def row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def table(heads: Sequence[tuple[str, str]], body: str) -> str:
    """heads: (content, class) a column; body: rows, or whole <tbody> elements."""
    head = "".join(
        f'<th class="{kind}">{content}</th>' if kind else f"<th>{content}</th>" for content, kind in heads
    )
    if not body.startswith("<tbody"):
        body = f"<tbody>{body}</tbody>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in pairs) + "</dl>"


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def code(value: object) -> str:
    return f"<code>{escape(str(value))}</code>"


def charts(figures: Iterable, wide: bool = False) -> str:
    """Side by side where there is room; wide: at most two in a row."""
    inside = "".join(f"<figure>{f.inline()}</figure>" for f in figures)
    return f'<div class="charts{" wide" if wide else ""}">{inside}</div>'


def document(title: str, body: str) -> str:
    """The whole page; styles inline, nothing fetched."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>"
        f'<p class="eyebrow">Evaluation report, {when}</p><h1>{title}</h1>{body}'
        "<footer>Intervals are 95 % and two-sided. Made by <code>python -m eval.report</code>.</footer>"
        "</main></body></html>\n"
    )
