"""Levels: human odd-one-out answers on ImageNet at three levels of abstraction, AligNet's test set.

The data are at gin.g-node.org/fborn/Dataset_Levels (so says github.com/google-deepmind/alignet, README.md).
The layout of that release could not be looked up: it is NOT VERIFIED, and not read.  What is read is a table
made from it, `levels.csv` in FOLDER, as `table.py` documents it: a, b, c (paths of images below FOLDER), odd
(a, b or c), group, and votes where several people answered.  group is the level: coarse, fine or boundary
(the paper's global coarse-grained, local fine-grained and class-boundary triplets).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.formats.judged import table
from pipeline.formats.judged.forms import OddOnes

LEVELS = ("coarse", "fine", "boundary")


def read(folder: Path) -> OddOnes:
    """The answers of FOLDER/levels.csv, their levels in `group`.

    Raises ValueError that names the row and the column: those of `table.read`, and a group that is no level.
    """
    path = folder / "levels.csv"
    found = table.read(path, folder, "odd", None, None)
    assert isinstance(found, OddOnes)
    wrong = ~np.isin(found.group, LEVELS)
    if wrong.any():
        row = int(np.argmax(wrong))
        message = f"group is {str(found.group[row])!r}; {', '.join(LEVELS)} are expected"
        raise ValueError(f"{path}: row {found.number[row]}: {message}")
    return found
