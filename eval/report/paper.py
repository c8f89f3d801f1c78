"""The paper's Tables 1 and 2 and the figures its text states, as data, and checked against themselves.

Numbers are transcribed as printed, in percent.  Where the source's copy is damaged the cell is None:
never guessed.  `checks` recomputes every Δ and family mean from the printed cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.sets import catalog

# Table 1: key → ours@1, base@1, Δ@1, ours@5, base@5, Δ@5; None where the paper prints a dash.
TABLE1: dict[str, tuple[float | None, ...]] = {
    "imagenet1k": (18.9, 15.1, 3.8, 39.0, 33.3, 5.7),
    "imagenet-a": (5.3, 4.0, 1.3, 19.0, 16.0, 3.0),
    "imagenet-o": (21.6, 14.3, 7.3, 46.2, 31.9, 14.3),
    "imagenet-r": (15.0, 10.3, 4.7, 34.7, 24.6, 10.1),
    "imagenet_sketch": (4.1, 3.0, 1.1, 11.7, 9.1, 2.6),
    "imagenetv2": (13.1, 8.3, 4.8, 30.6, 20.0, 10.6),
    "objectnet": (7.3, 5.5, 1.8, 20.5, 17.8, 2.7),
    "vtab/cifar100": (35.9, 33.0, 2.9, 67.5, 64.9, 2.6),
    "vtab/caltech101": (44.7, 47.9, -3.2, 82.7, 80.9, 1.8),
    "vtab/clevr_closest_object_distance": (15.8, 16.1, -0.3, 90.7, 91.0, -0.3),
    "vtab/clevr_count_all": (16.1, 11.5, 4.6, 61.8, 65.3, -3.5),
    "vtab/kitti_closest_vehicle_distance": (32.1, 31.5, 0.6, None, None, None),
    "vtab/dtd": (14.3, 10.4, 3.9, 34.4, 28.0, 6.4),
    "vtab/eurosat": (24.7, 19.6, 5.1, 76.2, 69.0, 7.2),
    "vtab/flowers": (26.7, 18.7, 8.0, 52.3, 40.9, 11.4),
    "vtab/pets": (17.2, 11.6, 5.6, 38.8, 29.1, 9.7),
    "vtab/resisc45": (17.6, 15.9, 1.7, 45.2, 37.1, 8.1),
    "vtab/svhn": (11.0, 11.3, -0.3, 61.0, 54.5, 6.5),
    "vtab/pcam": (50.5, 50.8, -0.3, None, None, None),
    "cars": (1.7, 1.5, 0.2, 6.9, 6.9, 0.0),
    "food101": (12.1, 8.3, 3.8, 35.8, 26.0, 9.8),
    "fgvc_aircraft": (1.6, 1.7, -0.1, 6.5, 5.7, 0.8),
    "voc2007": (46.6, 38.4, 8.2, 74.8, 73.3, 1.5),
    "cifar10": (69.5, 62.4, 7.1, 95.9, 95.7, 0.2),
    "country211": (3.5, 3.0, 0.5, 11.3, 10.4, 0.9),
    "gtsrb": (7.0, 5.9, 1.1, 35.0, 32.8, 2.2),
    "mnist": (12.4, 11.6, 0.8, 55.1, 55.0, 0.1),
    "renderedsst2": (49.9, 49.9, 0.0, None, None, None),
    "stl10": (73.2, 58.6, 14.6, 98.0, 96.8, 1.2),
}
# Section 4.1 and Figure 2: the means it states, top-1 and top-5.
STATED_MEANS = {
    catalog.IMAGENET: (3.8, 5.8),
    catalog.OOD: (3.5, 7.2),
    catalog.VTAB: (2.4, 5.0),
    catalog.FINE: (3.0, 3.0),
    catalog.MISC: (4.0, 0.9),
}
STATED_WINS = (23, 1, 5)  # better, tied, worse of 29 at top-1 (section 4.1)

# Table 2: (set, measure title) → baseline, ours.  The copy at hand keeps one column of eight.
_DIRECTIONS = ("I → T R@1", "I → T R@5", "T → I R@1", "T → I R@5")
TABLE2: dict[tuple[str, str], tuple[float | None, float | None]] = {
    (key, title): (None, None) for key in ("flickr30k", "mscoco_captions") for title in _DIRECTIONS
}
TABLE2["mscoco_captions", "T → I R@5"] = (33.1, 38.8)

# Statements of the text that do not go together, beside what contradicts them.
TEXT = (
    "32 epochs of about 15 million pairs are 480 million samples; Figure 3's axis runs from 10 to 300 "
    'million "over total of 32 training epochs".',
    "The abstract has ImageNet gains emerge after about 15 epochs; section 4.1 has them matched or ahead "
    '"at every scale" with "a sizeable head start on ImageNet".',
    "Table 1's caption announces columns of perceptual fine-tuning (PFT@K); the table has none.",
)
UNREADABLE = (
    "Table 1 has one damaged row (headed ImageNet OOD, 20 000 images); it is left out.",
    "Of Table 2's sixteen cells two can be read (COCO, text → image R@5); the others stay empty.",
)

ROUNDING = 0.15  # three numbers rounded to 0.1 can disagree by this much, in percentage points


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


def _difference(row: Sequence[float | None], k: int) -> float | None:
    ours, base = row[3 * k], row[3 * k + 1]
    return None if ours is None or base is None else ours - base


def family_mean(family: str, k: int) -> float:
    """Mean Δ of a family from the printed accuracies (not from the printed Δ); k 0: top-1, 1: top-5."""
    keys = [e.key for e in catalog.CLASSIFICATION if e.family == family]
    found = [d for key in keys if (d := _difference(TABLE1[key], k)) is not None]
    return sum(found) / len(found)


def wins() -> tuple[int, int, int]:
    """Sets better, tied, worse at top-1, by the printed accuracies."""
    found = [round(_difference(row, 0), 6) for row in TABLE1.values()]
    return sum(d > 0 for d in found), sum(d == 0 for d in found), sum(d < 0 for d in found)


def checks() -> list[Check]:
    """Every Δ of Table 1 and every stated family mean, beside its recomputation."""
    out = []
    for entry in catalog.CLASSIFICATION:
        row = TABLE1[entry.key]
        for k, title in enumerate(("top-1", "top-5")):
            if (found := _difference(row, k)) is not None:
                out.append(Check(f"{entry.name}, Δ {title}", row[3 * k + 2], round(found, 6)))
    for family, stated in STATED_MEANS.items():
        for k, title in enumerate(("top-1", "top-5")):
            out.append(Check(f"{family}, mean Δ {title}", stated[k], round(family_mean(family, k), 6)))
    return out


def disagreements() -> list[str]:
    """Sentences about figures of the paper that its own cells do not give."""
    out = []
    for check in checks():
        if abs(check.gap) < 0.05:
            continue
        reason = "rounding may be why" if check.explained else "rounding cannot be why"
        out.append(
            f"{check.what}: printed {check.printed:+.1f}, its cells give {check.recomputed:+.2f} ({reason})."
        )
    if wins() != STATED_WINS:
        out.append(
            "Wins, ties, losses at top-1: the text says {} / {} / {}, the table gives {} / {} / {}.".format(
                *STATED_WINS, *wins()
            )
        )
    return [s.replace("-", "−") if " −" in s else s for s in out]
