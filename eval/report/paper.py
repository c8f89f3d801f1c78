"""The paper's own numbers (`paper.json`), beside ours and checked against themselves.

`checks` recomputes every Δ and family mean from the printed cells.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval.report.compare import TOP1, TOP5, SetRow
from eval.report.render import minus
from eval.sets import catalog

ROUNDING = 0.15  # three numbers rounded to 0.1 can disagree by this much, in percentage points


class Printed(NamedTuple):
    """Cells of one row and measure, percent and percentage points; delta None where none is printed."""

    pi: float
    baseline: float
    delta: float | None

    @property
    def difference(self) -> float:
        """What the printed accuracies give; the printed Δ is rounded on its own."""
        return self.pi - self.baseline


_DATA = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
TABLE: dict[str, dict[str, Printed]] = {  # set's key → measure's key → cells
    key: {measure: Printed(**dict(zip(_DATA["columns"], cells))) for measure, cells in row.items()}
    for key, row in _DATA["table"].items()
}
# Family → measure's key → Δ (section 4.1, Figure 2).
MEANS: dict[str, dict[str, float]] = _DATA["mean_deltas"]
WINS = tuple(_DATA["top1_against_baseline"].values())  # sets better, tied, worse (section 4.1)


def printed(row: SetRow) -> Printed | None:
    """The paper's cells for one of our rows; None where it has none to read."""
    return TABLE.get(row.key, {}).get(row.measure.key)


@dataclass(frozen=True)
class Check:
    """One printed figure and what the printed cells give; percentage points."""

    what: str
    printed: float
    recomputed: float

    @property
    def gap(self) -> float:
        return self.recomputed - self.printed

    @property
    def explained(self) -> bool:
        """Rounding alone can be the reason."""
        return abs(self.gap) <= ROUNDING + 1e-9


def family_mean(family: str, measure: str) -> float:
    """Mean difference of a family's sets at a measure (its key)."""
    rows = [TABLE[e.key] for e in catalog.CLASSIFICATION if e.family == family]
    differences = [row[measure].difference for row in rows if measure in row]
    return sum(differences) / len(differences)


def wins() -> tuple[int, int, int]:
    """Sets better, tied, worse at top-1, by the printed accuracies."""
    deltas = [round(TABLE[e.key][TOP1.key].difference, 6) for e in catalog.CLASSIFICATION]
    return sum(d > 0 for d in deltas), sum(d == 0 for d in deltas), sum(d < 0 for d in deltas)


def checks() -> list[Check]:
    """Every Δ of Table 1 and every stated family mean, beside its recomputation."""
    out = []
    titles = {measure.key: measure.title for measure in (TOP1, TOP5)}
    for entry in catalog.CLASSIFICATION:
        for key, cells in TABLE[entry.key].items():
            if cells.delta is not None:
                what = f"{entry.name}, Δ {titles[key]}"
                out.append(Check(what, cells.delta, round(cells.difference, 6)))
    for family, means in MEANS.items():
        for key, stated in means.items():
            mean = round(family_mean(family, key), 6)
            out.append(Check(f"{family}, mean Δ {titles[key]}", stated, mean))
    return out


def disagreements() -> list[str]:
    """Sentences about figures of the paper that its own cells do not give."""
    out = []
    for check in checks():
        if abs(check.gap) < 0.05:
            continue
        reason = "rounding may be why" if check.explained else "rounding cannot be why"
        figures = minus(f"printed {check.printed:+.1f}, its cells give {check.recomputed:+.2f}")
        out.append(f"{check.what}: {figures} ({reason}).")
    if wins() != WINS:
        out.append(
            "Wins, ties, losses at top-1: the text says {} / {} / {}, the table gives {} / {} / {}.".format(
                *WINS, *wins()
            )
        )
    return out


def remarks() -> list[str]:
    """Where the paper's numbers and sentences disagree, and what of them cannot be read."""
    return [*disagreements(), *_DATA["contradictions_in_the_text"], *_DATA["unreadable"]]
