"""Just noticeable differences: jnd_votes.csv, one row for each pair of images that people were shown.

NIGHTS has such a file (dataset/download_jnd_dataset.sh of github.com/ssundaram21/dreamsim), but what its
columns are called is in no code that could be read.  So they are declared by their names, none is guessed:

    ref_path   the reference, relative to the folder
    path       the other image
    same       the share of people, 0 to 1, who took the two for the same (a share, not a count)
    votes      how many people answered; may be missing

A table with other names is refused, with the names that it has: rename its columns, or compute `same`.
Whether the images exist is not looked at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import Sameness

TABLE = "jnd_votes.csv"
_PATHS = ("ref_path", "path")
_ROUNDED = 0.00501  # a share may be given to two decimals


def read(folder: Path) -> Sameness:
    """All pairs, in the table's order.  Raises ValueError naming the file, the row and the column."""
    table = delimited.columns(folder / TABLE, (*_PATHS, "same"), optional=("votes",))
    images, rows = table.images(*_PATHS)
    same = table.number("same", 0, 1)
    votes = np.zeros(len(same), np.int64)
    if "votes" in table.columns:
        votes = table.integer("votes", 1, 2**31 - 1)
        off = np.abs(same * votes - np.round(same * votes))
        table.check("same", off <= votes * _ROUNDED, "no number of people in votes has this share")
    return Sameness(
        folder=folder,
        images=images,
        rows=rows,
        number=table.line,
        group=np.full(len(same), ""),
        notes=delimited.repeats(rows, table.line),
        same=same,
        votes=votes.astype(np.int32),
    )
