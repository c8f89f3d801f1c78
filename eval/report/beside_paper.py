"""The report's section that sets the paper's numbers beside ours, and against themselves."""

from __future__ import annotations

from html import escape

from eval.report import page, paper
from eval.report.compare import Comparison, Row
from eval.report.page import cell, pct, signed, span


def cells(row: Row) -> tuple[float | None, float | None]:
    """(PI, baseline) of the paper for one of our rows, percent; None where the paper has none to read."""
    if row.measure in ("top-1", "top-5"):
        found = paper.TABLE1.get(row.key, (None,) * 6)
        return found[:2] if row.measure == "top-1" else found[3:5]
    baseline, ours = paper.TABLE2.get((row.key, row.measure), (None, None))
    return ours, baseline


def _row(row: Row) -> str:
    ours, baseline = cells(row)
    return page.row(
        (cell(f"{escape(row.name)} {span(row.measure, 'sub')}"), cell(pct(row.a), "n"), cell(pct(row.b), "n"),
         cell(signed(row.delta.value), "n"), cell(f"{ours:.1f}", "n"), cell(f"{baseline:.1f}", "n"),
         cell(signed((ours - baseline) / 100), "n"))
    )  # fmt: skip


def section(found: Comparison | None) -> str:
    """HTML; without a set that the paper has, only what its own numbers contradict."""
    rows = [_row(r) for r in (found.rows if found else []) if cells(r)[0] is not None]
    body = "<p>None of the paper's 31 sets was evaluated, so its figures are not set beside these.</p>"
    if rows:
        heads = [("", ""), (page.arm_name(found.a.label, 0), "n"), (page.arm_name(found.b.label, 1), "n"),
                 ("Δ", "n"), ("paper, PI", "n"), ("paper, baseline", "n"), ("Δ", "n")]  # fmt: skip
        body = page.table(heads, "".join(rows))
    said = "".join(f"<li>{escape(s)}</li>" for s in (*paper.disagreements(), *paper.TEXT, *paper.UNREADABLE))
    checked = (
        f"<p>{len(paper.checks())} printed differences and means were recomputed from the printed cells.</p>"
    )
    summary = "Where the paper's printed numbers disagree with themselves, and what of it cannot be read"
    return f"<h2>Beside the paper</h2>{body}{page.folded(summary, f'{checked}<ul>{said}</ul>')}"
