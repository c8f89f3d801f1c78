"""The page from its templates, and how numbers become text.  Knows nothing about runs.

Everything that a template prints is escaped, except the charts (`drawing` in templates/macros.html.j2).
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import jinja2

from eval.metrics.uncertainty import Interval


def pct(value: float) -> str:
    """A fraction in percent, one decimal; – where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def minus(number: str) -> str:
    """A number with a real minus sign."""
    return number.replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference of fractions in percentage points; no sign at zero, – where there is none."""
    if math.isnan(value):
        return "–"
    text = f"{100 * value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else minus(text)


def spread(interval: Interval, digits: int = 1) -> str:
    """`low to high` in percentage points; – where there is no interval."""
    return "–" if interval.ends is None else " to ".join(signed(end, digits) for end in interval.ends)


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def tied(text: str) -> str:
    """The text with hyphens and spaces that do not break."""
    return text.replace("-", "\u2011").replace(" ", "\u00a0")


def counted(number: int, noun: str = "") -> str:
    """`1 set`, `2,000 sets`."""
    plural = "s" if noun and number != 1 else ""
    return f"{number:,} {noun}{plural}".rstrip()


def on_axis(value: float, limit: float) -> str:
    """Where a value lies, from 2 to 98, on an axis from −limit to limit."""
    return f"{50 + 48 * max(-1.0, min(1.0, value / limit)):.2f}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {f.__name__: f for f in (pct, signed, spread, p_value, tied, counted, on_axis)}


def render(template: str = "page.html.j2", **values: object) -> str:
    """The page; styles inline, nothing fetched."""
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return _TEMPLATES.get_template(template).render(written=written, **values)
