"""One page that says what an evaluation found: tables, curves, pictures, settings, and how sure it is.

    python -m eval.report runs/demo/pi runs/demo/baseline --out runs/demo/report
    python -m eval.report PI=runs/pi-0 PI=runs/pi-1 Baseline=runs/base-0 Baseline=runs/base-1 --out report

Runs with one label are seeds of one arm.  The last label is the baseline that the others are set
against.  The page is one file without any reference to the network; charts also go to OUT/figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated

import tyro

from eval.metrics import uncertainty
from eval.report import beside_paper, compare, conditions, curves, figures, page, panels
from eval.report.compare import Arm, Comparison, Row
from eval.report.figures import Figure
from eval.report.page import cell, pct, signed, span, spread
from eval.sets import catalog
from eval.sets.catalog import RETRIEVAL_TASK
from pipeline.base import files
from pipeline.base.console import say


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report of evaluated runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[LABEL=]RUN")]
    """Evaluated runs, the baseline last; one label for all seeds of an arm."""
    out: Path
    """The report's folder."""
    title: str = ""
    """The page's heading."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one evaluated run")


# -- what it comes to -------------------------------------------------------------------------------


def _leading(found: Comparison) -> Row | None:
    """The figure that the verdict is about."""
    return found.primary or next(iter(found.triplets), None)


def verdict(found: Comparison) -> str:
    """What the comparison says, in one sentence that is plain also when it is against us."""
    a, b = escape(found.a.label), escape(found.b.label)
    row = _leading(found)
    if row is None:
        return f"{a} and {b} share no classification set; see the tables."
    what = f"mean top-1 over {_sets(row.samples)}" if found.primary else row.name
    figure = (
        f"{signed(row.delta.value)} points of {what} ({pct(row.a)} against {pct(row.b)} %), "
        f"95 % interval {spread(row.delta)}"
    )
    if row.delta.value == 0:
        return f"{a} is not better than {b} here: no difference in {what} ({pct(row.a)} %)."
    if row.delta.low > 0:
        return f"{a} is better than {b} here: {figure}."
    if row.delta.high < 0:
        return f"{a} is worse than {b} here: {figure}."
    return f"{a} is not shown to be better than {b} here: {figure}, which includes 0."


_DEMO_TUNED = (
    " The demonstration's model and recipe were chosen by looking at these very drawings: no training saw "
    "them, but as a test they are used, and the figures are on the optimistic side."
)


def caution(found: Comparison) -> str:
    """What the interval does not cover: training luck, as far as there are seeds to tell; tuning."""
    tuned = any(r.family == catalog.DEMO for r in found.rows)
    return _seeds_caution(found) + (_DEMO_TUNED if tuned else "")


def _seeds_caution(found: Comparison) -> str:
    row = _leading(found)
    seeds = row.seeds if row else None
    if seeds is None:
        runs = "There is one training run of each"
        if not len(found.a.runs) == len(found.b.runs) == 1:
            counts = " and ".join(f"{len(arm.runs)} of {escape(arm.label)}" for arm in (found.a, found.b))
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


def _key_rows(found: Comparison) -> list[tuple[str, Row]]:
    families = [r for r in found.families if r.family in catalog.FAMILIES and r.measure == "top-1"]
    rows = families or [r for r in found.rows if r.measure == "top-1"][:6]
    rows = rows + [r for r in found.rows if r.measure.endswith("R@1")][:4]
    named = [(f"{escape(r.name)}, {page.tied(r.measure)}", r) for r in rows]
    return named + [(escape(r.name), r) for r in found.triplets[:1]]


def key_figures(found: Comparison) -> str:
    """The strip under the heading."""
    cells = []
    for title, row in _key_rows(found):
        way = "up" if row.sure and row.delta.value > 0 else "down" if row.sure else "quiet"
        value = span(f"{pct(row.a)} {span(signed(row.delta.value), way)}", "value")
        against = span(f"{escape(found.b.label)} {pct(row.b)}", "against")
        cells.append(f"<div>{span(title, 'what')}{value}{against}</div>")
    return f'<div class="figures">{"".join(cells)}</div>'


# -- tables -------------------------------------------------------------------------------------------


def _heads(found: Comparison) -> list[tuple[str, str]]:
    return [
        ("Set", ""), ("", ""), (page.arm_name(found.a.label, 0), "n"), (page.arm_name(found.b.label, 1), "n"),
        ("Δ", "n"), ("95 % interval", "n wide-only"), ("", "plot wide-only"),
        (f"p {span('(Holm)', 'sub')}", "n wide-only"),
    ]  # fmt: skip


def _row(row: Row, name: str, limit: float) -> str:
    """name: the first cell, or empty where a cell above spans this row."""
    a, b = (f"<strong>{pct(x)}</strong>" if x > y else pct(x) for x, y in ((row.a, row.b), (row.b, row.a)))
    p = page.p_value(row.p)
    if row.adjusted is not None:
        p += " " + span(f"({page.p_value(row.adjusted)})", "sub")
    delta = signed(row.delta.value) + span(f"<br>{span(spread(row.delta), 'sub')}", "narrow-only")
    measure = "" if row.measure == row.family else page.tied(row.measure)
    return page.row(
        (name, cell(measure), cell(a, "n"), cell(b, "n"),
         cell(delta, "n"), cell(spread(row.delta), "n wide-only"),
         cell(page.whisker(row.delta, limit), "plot wide-only"), cell(p, "n wide-only"))
    )  # fmt: skip


def _limit(rows: Sequence[Row]) -> float:
    return max((max(abs(r.delta.low), abs(r.delta.high)) for r in rows), default=0.0)


def _set_rows(found: Comparison, key: str, limit: float) -> str:
    """A set's figures; its name spans them, or on a narrow screen stands above them."""
    rows = found.of(key)
    record = found.a.runs[0].final.datasets[key]
    about = f"{record['samples']:,} images"
    if "classes" in record:
        about += f", {record['classes']:,} classes"
    if rows[0].near_chance:
        about += ", near chance"
    above = f"{escape(rows[0].name)} {span(about, 'sub')}"
    name = cell(f"{escape(rows[0].name)}<br>{span(about, 'sub')}", "wide-only", len(rows))
    body = f'<tr class="narrow-row"><td colspan="4">{above}</td></tr>'
    return body + "".join(_row(r, name if i == 0 else "", limit) for i, r in enumerate(rows))


def results_table(found: Comparison) -> str:
    """The paper's Tables 1 and 2 for whatever was evaluated, by family."""
    limit = _limit(found.rows)
    parts, family = [], None
    for key in dict.fromkeys(r.key for r in found.rows):
        if found.of(key)[0].family != family:
            family = found.of(key)[0].family
            parts.append(f'<tbody><tr class="family"><td colspan="8">{escape(family)}</td></tr></tbody>')
        parts.append(f'<tbody class="set">{_set_rows(found, key, limit)}</tbody>')
    note = (
        f"Percent; Δ in points, {escape(found.a.label)} minus {escape(found.b.label)}, with its "
        "interval over test images (paired bootstrap; the captions of one image are drawn together). I → T: "
        "pictures as queries, any of their captions right; T → I the reverse. Top-5 does not exist below "
        "five classes."
    )
    wide = (
        " p: McNemar's test, in brackets after Holm's correction over the top-1 and R@1 rows. Lines: the "
        f"interval on one axis from {signed(-limit)} to {signed(limit)}, in colour where it leaves out 0."
    )
    note = f'<p class="note">{note}{span(wide, "wide-only")}</p>'
    heads = [("Set", "wide-only"), *_heads(found)[1:]]
    return f"<h2>Results</h2>{page.table(heads, ''.join(parts))}{note}"


def _sets(count: int) -> str:
    return "1 set" if count == 1 else f"{count} sets"


def _file_name(found: Comparison, *what: str) -> str:
    """Of a chart of one comparison."""
    return re.sub(r"[^\w-]+", "-", "-".join((*what, found.a.label, found.b.label)))


def family_section(found: Comparison) -> tuple[str, list[Figure]]:
    """Figure 2: means of the families; empty when only one family was evaluated."""
    if len({r.family for r in found.families}) < 2:
        return "", []
    drawn = []
    for measure in ("top-1", "top-5"):
        rows = [r for r in found.families if r.measure == measure]
        drawn.append(
            figures.bars(
                _file_name(found, "families", measure), f"Mean {measure}, %", [r.name for r in rows],
                [[r.a for r in rows], [r.b for r in rows]], [found.a.label, found.b.label],
                [signed(r.delta.value) for r in rows],
            )
        )  # fmt: skip
    limit = _limit(found.families)
    rows = [
        _row(r, cell(f"{escape(r.name)}<br>{span(_sets(r.samples), 'sub')}"), limit) for r in found.families
    ]
    table = page.table(_heads(found), "".join(rows))
    return f"<h2>Families</h2>{page.charts(drawn, wide=True)}{table}", drawn


def triplet_section(found: Comparison) -> str:
    """2AFC with pictures; says whose votes these are."""
    if not found.triplets:
        return ""
    record = found.a.runs[0].final.data["triplets"]
    votes, ceiling = record["votes"], record["metrics"]["ceiling"]
    label = page.votes_label(votes)
    about = "Which of two pictures is closer to a reference, by the image tower's cosine; a tie counts half."
    if votes == page.CONSTRUCTED:
        about += (
            " These triplets were built from the data: the same concept against a neighbouring one. Nobody "
            "was asked, so the figure does not measure agreement with people. Their drawings are among the "
            "pairs of stage 2 as well, so after it no drawing here is new."
        )
    elif ceiling < 1:
        about += f" Always answering with the majority would agree with {pct(ceiling)} % of the people."
    limit = _limit(found.triplets)
    rows = [
        _row(r, cell(f"{escape(r.name)}<br>{span(f'{r.samples:,} triplets', 'sub')}"), limit)
        for r in found.triplets
    ]
    framed = "constructed answer" if votes == page.CONSTRUCTED else "picture that people chose"
    note = (
        f"Framed: the {framed}. Beneath: distance to the reference, {page.arm_name(found.a.label, 0)} above "
        f"{page.arm_name(found.b.label, 1)}. Drawn at random from each kind of outcome. {label}"
    )
    table, panel = page.table(_heads(found), "".join(rows)), panels.triplet_panel((found.a, found.b))
    head = f"<h2>Two-alternative forced choice</h2><p>{about} {label}</p>"
    return f'{head}{table}{panel}<p class="note">{note}</p>'


def retrieval_section(found: Comparison) -> tuple[str, list[Figure]]:
    """Figure 5 for every retrieval set: in the page, and as files."""
    datasets = found.a.runs[0].final.datasets
    out, drawn = [], []
    for key in dict.fromkeys(r.key for r in found.rows):
        if datasets[key]["task"] != RETRIEVAL_TASK:
            continue
        panel = panels.RetrievalPanel(key, (found.a, found.b))
        for way, title in (("i2t", "picture to text"), ("t2i", "text to picture")):
            out.append(f"<h3>{escape(datasets[key]['name'])}: {title}</h3>{panel.html(way)}")
            heading = f"{datasets[key]['name']}: {title}"
            drawn.append(figures.answers(_file_name(found, "answers", key, way), heading, panel, way))
    if not out:
        return "", []
    about = (
        "Queries are drawn at random (seed 0) from each kind of outcome, not picked. Scores are cosines; "
        "two models need not share their scale. The margin is the right answer's score minus the best wrong "
        "one's."
    )
    return f'<h2>Retrieval, looked at</h2><p class="note">{about}</p>{"".join(out)}', drawn


def single_table(arm: Arm) -> str:
    """One arm alone: its figures without a comparison, a column for each seed."""
    runs = [run.final for run in arm.runs]
    rows = []
    for key in compare.shared_keys(arm.runs):
        for m in compare.measures(runs[0].datasets[key]):
            values = [cell(pct(one.datasets[key]["metrics"][m.metric]), "n") for one in runs]
            name = runs[0].datasets[key]["name"]
            rows.append(page.row((cell(escape(name)), cell(page.tied(m.title)), *values)))
    if all(one.data.get("triplets") for one in runs):
        record = runs[0].data["triplets"]
        for metric, name in compare.twoafc_names(record["metrics"]).items():
            found = [one.data["triplets"]["metrics"].get(metric, float("nan")) for one in runs]
            values = [cell(pct(value), "n") for value in found]
            rows.append(page.row((cell(f"{name} {page.votes_label(record['votes'])}"), cell(""), *values)))
    seeds = [f" {n}" if len(runs) > 1 else "" for n in range(1, len(runs) + 1)]
    heads = [(page.arm_name(f"{arm.label}{seed}", 0), "n") for seed in seeds]
    return page.table([("Set", ""), ("", ""), *heads], "".join(rows))


# -- the page ---------------------------------------------------------------------------------------------


def build(options: Report) -> tuple[str, list[Figure]]:
    """(the page, its charts).  Raises ValueError for runs that cannot be compared."""
    arms = compare.arms(options.runs)
    found = [compare.compare(arm, arms[-1]) for arm in arms[:-1]]
    names = [escape(a.label) for a in arms]
    title = f"{' and '.join(names[:-1])} against {names[-1]}" if found else names[0]
    drawn: list[Figure] = []
    body = [] if found else [single_table(arms[0])]
    for one in found:
        if len(found) > 1:
            body.append(f"<h2>{escape(one.a.label)} against {escape(one.b.label)}</h2>")
        body += [
            f'<p class="verdict">{verdict(one)}</p><p class="quiet">{caution(one)}</p>',
            key_figures(one),
        ]
        families, charts = family_section(one)
        body += [results_table(one), families, triplet_section(one)]
        drawn += charts
    for section, charts in (curves.scaling(arms), curves.learning(arms)):
        body.append(section)
        drawn += charts
    for section, panels_drawn in map(retrieval_section, found):
        body.append(section)
        drawn += panels_drawn
    body += [
        beside_paper.section(found[0] if found else None),
        conditions.data(arms),
        conditions.settings(arms),
    ]
    return page.document(escape(options.title) or title, "".join(body)), drawn


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Report, args=arguments)
    text, drawn = build(options)
    for line in conditions.not_shared([run for arm in compare.arms(options.runs) for run in arm.runs]):
        say(f"note: not compared: {line}")
    for figure in drawn:
        figure.save(options.out / "figures")
    path = options.out / "index.html"
    files.write(path, text)
    say(f"{path} ({len(text) / 1e6:.1f} MB, {len(drawn)} charts)")
