"""NIGHTS before its filter: nights_raw.csv, 100,000 triplets, many with few or split votes.

The file and its images (ref_0_24.zip … distort_75_99.zip, unpacked to ref/ and distort/) are named in
dataset/download_unfiltered_dataset.sh of github.com/ssundaram21/dreamsim.  That the columns are called as
in the filtered set (pipeline.formats.nights) is an assumption, not verified on the file itself: a table with
others is refused, with the names that it has.

left_vote and right_vote are shares or counts of the people who found that side nearer to the reference.
The filtered set is not read here.  Whether the images exist is not looked at.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import Comparisons

TABLE = "nights_raw.csv"
_SIDES = ("left_vote", "right_vote")
_PATHS = ("ref_path", "left_path", "right_path")
_MOST = 2**31 - 1


def read(folder: Path) -> Comparisons:
    """All triplets that somebody answered, in the table's order; the others are counted in the notes.

    `group` is the column split where there is one.  No row is left out for its votes being few or split.
    Raises ValueError naming the file, the row and the column.
    """
    table = delimited.columns(folder / TABLE, (*_PATHS, *_SIDES), optional=("votes", "split"))
    images, rows = table.images(*_PATHS)
    left, right = (table.number(name, 0, _MOST) for name in _SIDES)
    count = len(table.line)
    votes = table.integer("votes", 0, _MOST) if "votes" in table.columns else np.zeros(count, np.int64)
    kept = left + right > 0
    if "votes" in table.columns:
        table.check("votes", (votes > 0) == kept, "left_vote and right_vote say otherwise")
    if not kept.any():
        raise ValueError(f"{table.path}: nobody answered any of its {count} rows")
    group = np.array(table.text("split") if "split" in table.columns else [""] * count)
    left_out = count - int(kept.sum())
    note = (f"{left_out} of {count} rows left out: nobody answered",) if left_out else ()
    images, rows = delimited.used(images, rows[kept])
    return Comparisons(
        folder=folder,
        images=images,
        rows=rows,
        number=table.line[kept],
        group=group[kept],
        notes=note + delimited.repeats(rows, table.line[kept]),
        vote=right[kept] / (left + right)[kept],
        votes=votes[kept].astype(np.int32),
    )


def read_split(folder: Path, split: str) -> Comparisons:
    """Those of one split, by the column of that name; all triplets, and a note, in a table without it.

    Raises ValueError as `read` does, and where no row is of that split.
    """
    found = read(folder)
    if not np.any(found.group != ""):
        note = f"{TABLE} has no column split: triplets that NIGHTS tests with may be among these"
        return replace(found, notes=(*found.notes, note))
    own = found.group == split
    if not own.any():
        here = ", ".join(np.unique(found.group).tolist())
        raise ValueError(f"{folder / TABLE}: no row of split {split}; it has {here}")
    images, rows = delimited.used(found.images, found.rows[own])
    arrays = {name: getattr(found, name)[own] for name in ("number", "group", "vote", "votes")}
    note = f"{int((~own).sum())} of {len(own)} rows are of other splits than {split}"
    return replace(found, images=images, rows=rows, notes=(*found.notes, note), **arrays)
