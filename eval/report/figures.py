"""The report's charts: one drawing, three uses (inline SVG that follows the page's theme, SVG file, PNG).

Colours are the page's light ones.  Inline, each becomes the CSS variable of the same role, so a chart turns
dark with the page.  Every panel is its own small figure, so a phone can stack them.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from eval.metrics.uncertainty import Interval
from eval.report.panels import ArmAnswers, Query, RetrievalPanel, Thumbnail

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, RULE = "#1c1e21", "#6b6f76", "#dfe1e4"
ARM_COLOURS = ("#2563c9", "#c27a00", "#4a8f4e", "#8a56b0")  # PI blue, baseline gold, as in the paper
# So that arms differ in black and white too, and beyond the fourth.
_MARKERS, _DASHES = "os^Dv*PX", ("-", (0, (4, 1.6)), (0, (1.2, 1.2)))
_MOST_MARKS = 12  # on a line
MOST_NAMED = 4  # lines that a chart's own legend has room for; the page shows `legend` for more
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    colour: f"--arm{i}" for i, colour in enumerate(ARM_COLOURS)
}
_PLACES = re.compile(r' (?:d|x|y|transform)="[^"]*"')  # attributes full of numbers
_TOO_FINE = re.compile(r"(?<=\.\d\d)\d+")  # hundredths of a pixel are enough
_FONT = re.compile(r"font-family: [^;\"]*")
_LIMITS: dict[str, dict[str, Any]] = {  # of what a test can come to
    "chance": {"color": MUTED, "linestyle": ":", "linewidth": 1.4},
    "ceiling": {"color": MUTED, "linestyle": "-", "linewidth": 1.4},
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@dataclass(frozen=True)
class Series:
    """A line: x, y (n,); colour: its arm's number.  ends (n, 2): of each point's interval; NaN has none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    marks: bool = False
    ends: np.ndarray | None = None


@dataclass(frozen=True)
class Mark:
    """A figure of an arm, a fraction, with its interval; number: the arm's."""

    number: int
    label: str
    figure: Interval


@dataclass
class Figure:
    """A finished drawing; `name` is its file name and the salt of its SVG ids."""

    name: str
    drawing: Drawing
    alt: str

    def _svg(self) -> str:
        text = io.StringIO()
        with rc_context({**_STYLE, "svg.hashsalt": self.name}):
            self.drawing.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
        return text.getvalue()

    def inline(self) -> str:
        """An <svg> element without fixed size whose colours and font are the page's."""
        whole = self._svg()
        head, _, body = whole[whole.index("<svg") :].partition(">")
        head = re.sub(r' (width|height)="[^"]*"', "", head)
        # ids are unique only within one matplotlib figure
        body = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{self.name}-", body)
        body = _FONT.sub("font-family: inherit", body).replace("bold ", "")
        body = _PLACES.sub(lambda places: _TOO_FINE.sub("", places[0]), body)
        for colour, variable in _VARIABLES.items():
            body = body.replace(colour, f"var({variable})")
        return f'{head} role="img" aria-label="{escape(self.alt)}">{body}'

    def save(self, folder: Path) -> list[Path]:
        """NAME.svg and NAME.png (200 dpi, white)."""
        folder.mkdir(parents=True, exist_ok=True)
        svg, png = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        svg.write_text(self._svg(), encoding="utf-8")
        self.drawing.savefig(png, dpi=200, facecolor="white", metadata={"Software": None})
        return [svg, png]


def _new(width: float, height: float, **settings: Any) -> tuple[Drawing, Axes]:
    drawing = Drawing(figsize=(width, height), **settings)
    return drawing, drawing.add_subplot()


def _thousands(value: float, _=None) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def smoothed(y: Sequence[float], span: int) -> np.ndarray:
    """Centred moving mean over `span` points, shorter at the ends."""
    values = np.asarray(y, float)
    if len(values) < 3 or span < 2:
        return values
    ones = np.ones(span)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _look(number: int, marks: bool = True) -> dict[str, Any]:
    """How an arm's line is drawn: no two of the first 12 alike."""
    return {
        "color": ARM_COLOURS[number % len(ARM_COLOURS)],
        "linestyle": _DASHES[number // len(ARM_COLOURS) % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)] if marks else None,
        "linewidth": 1.8,
        "markersize": 3.5,
    }


@rc_context(_STYLE)
def legend(name: str, labels: dict[int, str]) -> Figure:
    """Lines and names of the arms, for charts that have no room for them; labels: by the arm's number."""
    width, longest = 10.5, max(map(len, labels.values()))
    columns = max(1, min(len(labels), int(width / (0.7 + 0.085 * longest))))  # inches
    drawing = Drawing(figsize=(width, 0.24 * -(-len(labels) // columns) + 0.1))
    handles = [Line2D([], [], label=label, **_look(number)) for number, label in labels.items()]
    drawing.legend(handles=handles, loc="center left", ncols=columns, handlelength=2.6)
    return Figure(name, drawing, "; ".join(labels.values()))


@rc_context(_STYLE)
def lines(
    name: str, title: str, series: Sequence[Series], xlabel: str, log: bool = False, percent: bool = False
) -> Figure:
    """Curves of the arms over one x; percent: y are fractions."""
    drawing, axes = _new(
        4.3, 2.75, layout="none"
    )  # to find margins takes most of the time, and there are many
    drawing.subplots_adjust(left=0.125, right=0.98, bottom=0.185, top=0.885)
    scale = 100 if percent else 1
    for s in series:
        y, look = np.asarray(s.y, float) * scale, _look(s.colour, s.marks)
        apart = -(-len(y) // _MOST_MARKS)
        axes.plot(s.x, y, label=s.label, markevery=(s.colour % apart, apart) if apart else None, **look)
        if s.ends is not None:
            reach = np.abs(np.asarray(s.ends).T * scale - y)
            axes.errorbar(s.x, y, reach, fmt="none", ecolor=look["color"], elinewidth=1.2, capsize=2.5)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_xlabel(xlabel)
    axes.set_title(title)
    axes.margins(x=0.02)
    if 1 < len(series) <= MOST_NAMED:
        axes.legend(loc="best", handlelength=1.8)
    ends = "; ".join(f"{s.label} ends at {s.y[-1] * scale:.3g}" for s in series if len(s.y))
    return Figure(name, drawing, f"{title}: {ends}")


@rc_context(_STYLE)
def bars(
    name: str,
    title: str,
    groups: Sequence[str],
    values: dict[str, Sequence[float]],
    deltas: Sequence[str],
) -> Figure:
    """Grouped bars (Figure 2): fractions of each group by arm, the difference written above each group."""
    drawing, axes = _new(max(4.3, 0.95 * len(groups) + 0.6), 2.9)
    width = 0.8 / len(values)
    x = np.arange(len(groups))
    for arm, (label, heights) in enumerate(values.items()):
        axes.bar(
            x + (arm - (len(values) - 1) / 2) * width, 100 * np.asarray(heights), width * 0.92,
            color=ARM_COLOURS[arm % 4], label=label,
        )  # fmt: skip
    tops = 100 * np.max([*values.values()], 0)
    for at, top, text in zip(x, tops, deltas):
        axes.annotate(text, (at, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(x, [textwrap.fill(g, 13) for g in groups], fontsize=9)
    axes.set_ylim(0, float(tops.max()) * 1.18 or 1)
    axes.set_title(title)
    axes.legend(loc="lower right", ncols=len(values), bbox_to_anchor=(1.01, 0.99), handlelength=1)
    return Figure(name, drawing, f"{title}: " + "; ".join(f"{g} {d}" for g, d in zip(groups, deltas)))


@rc_context(_STYLE)
def deltas(name: str, title: str, rows: Sequence[tuple[int, str, Interval]], limit: float) -> Figure:
    """Bars of differences from a baseline with their intervals, one row an arm (number, label, fractions).

    limit: of the axis to both sides, a fraction.
    """
    drawing, axes = _new(4.3, 0.34 * len(rows) + 1.0)
    for y, (number, _, delta) in enumerate(rows):
        colour = ARM_COLOURS[number % len(ARM_COLOURS)]
        axes.barh(y, 100 * delta.value, 0.62, color=colour, alpha=0.75)
        if delta.ends is not None:
            axes.plot([100 * end for end in delta.ends], [y, y], color=INK, linewidth=1.2, marker="|")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-100 * limit * 1.06 or -1, 100 * limit * 1.06 or 1)
    axes.set_yticks(range(len(rows)), [textwrap.shorten(label, 26, placeholder=" …") for _, label, _ in rows])
    axes.tick_params("y", labelcolor=INK, labelsize=9.5)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.set_xlabel("points, minus the baseline")
    drawing.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    said = "; ".join(f"{label} {100 * delta.value:+.1f}" for _, label, delta in rows)
    return Figure(name, drawing, f"{title}: {said}")


@rc_context(_STYLE)
def dots(
    name: str,
    title: str,
    rows: dict[str, Sequence[Mark]],
    limits: dict[str, tuple[float | None, float | None]],
) -> Figure:
    """A row for each test: every arm's figure with its interval, between chance and ceiling.

    limits: of each row, fractions; None where there is none.
    """
    drawing, axes = _new(8.6, 0.42 * len(rows) + 1.1)
    labels = {mark.number: mark.label for marks in rows.values() for mark in marks}
    for y, (row, marks) in enumerate(rows.items()):
        for limit, look in zip(limits[row], _LIMITS.values()):
            if limit is not None:
                axes.plot([100 * limit] * 2, [y - 0.4, y + 0.4], **look)
        for mark in marks:
            place = [*labels].index(mark.number) - (len(labels) - 1) / 2
            at, look = y + place * min(0.24, 0.7 / len(labels)), _look(mark.number)
            if mark.figure.ends is not None:
                axes.plot(
                    [100 * end for end in mark.figure.ends], [at] * 2, color=look["color"], linewidth=1.2
                )
            axes.plot([100 * mark.figure.value], [at], **look | {"markersize": 5})
    axes.set_yticks(range(len(rows)), [textwrap.shorten(row, 52, placeholder=" …") for row in rows])
    axes.tick_params("y", labelcolor=INK, labelsize=9.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    handles = [Line2D([], [], label=label, **_look(i) | {"linestyle": ""}) for i, label in labels.items()]
    handles += [Line2D([], [], label=label, **look) for label, look in _LIMITS.items()]
    drawing.legend(handles=handles, loc="outside lower left", ncols=6)
    drawing.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    said = "; ".join(
        f"{row}: " + ", ".join(f"{mark.label} {100 * mark.figure.value:.1f}" for mark in marks)
        for row, marks in rows.items()
    )
    return Figure(name, drawing, f"{title}: {said}")


@rc_context(_STYLE)
def answers(name: str, panel: RetrievalPanel) -> Figure:
    """Figure 5: a row for each query, beside it both arms' first answers with scores."""
    drawing = Drawing(figsize=(13, 1.35 * len(panel.queries) + 0.6), layout="constrained")
    drawing.set_layout_engine("none")  # without this detour, saving would arrange it all anew
    drawing.suptitle(
        panel.title, x=0.01, y=1 - 0.1 / drawing.get_figheight(), ha="left", va="top", fontweight="bold"
    )
    grid = drawing.add_gridspec(
        len(panel.queries), 3, width_ratios=(3, 5, 5), left=0.01, right=0.99, bottom=0.01, hspace=0.28,
        wspace=0.04, top=1 - 0.65 / drawing.get_figheight(),
    )  # fmt: skip
    for row, query in enumerate(panel.queries):
        query_axes, *arm_axes = (drawing.add_subplot(grid[row, column]) for column in range(3))
        _draw_query(query_axes, query)
        for axes, arm, colour in zip(arm_axes, query.arms, ARM_COLOURS):
            _draw_answers(axes, arm, colour)
    labels = " and ".join(arm.label for arm in panel.queries[0].arms)
    return Figure(name, drawing, f"{panel.title}: {labels} on {len(panel.queries)} queries")


def _draw_query(axes: Axes, query: Query) -> None:
    """The caption, or the image with its true captions."""
    axes.set_axis_off()
    axes.text(0, 1.03, query.outcome, fontsize=8.5, fontweight="bold", transform=axes.transAxes)
    x, width = 0.0, 44
    if query.thumbnail is not None:
        _draw_image(axes.inset_axes((0, 0, 0.36, 0.96)), query.thumbnail)
        x, width = 0.39, 27
    text = "\n".join(line for t in query.texts[:3] for line in textwrap.wrap(t, width)[:2])
    axes.text(x, 0.94, text, fontsize=8, va="top", transform=axes.transAxes)


def _draw_answers(axes: Axes, arm: ArmAnswers, colour: str) -> None:
    axes.set_axis_off()
    heading = f"{arm.label}: {arm.standing}"
    axes.text(0, 1.03, heading, color=colour, fontsize=8.5, transform=axes.transAxes)
    for number, answer in enumerate(arm.answers):
        score = f"{answer.score}{' ✓' if answer.right else ''}"
        style: dict[str, Any] = {"fontsize": 8, "transform": axes.transAxes}
        style |= {"color": INK, "fontweight": "bold"} if answer.right else {"color": MUTED}
        if answer.thumbnail is None:
            text = f"{score}  {textwrap.shorten(answer.text, 62, placeholder=' …')}"
            axes.text(0, 0.86 - 0.2 * number, text, **style)
        else:
            _draw_image(axes.inset_axes((0.2 * number, 0.14, 0.19, 0.82)), answer.thumbnail)
            axes.text(0.2 * number + 0.095, 0, score, ha="center", **style)


def _draw_image(axes: Axes, thumbnail: Thumbnail) -> None:
    """An image, or an empty frame where there is none any more."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    if thumbnail.image is not None:
        axes.set_axis_off()
        axes.imshow(np.asarray(thumbnail.image.convert("RGB")))
