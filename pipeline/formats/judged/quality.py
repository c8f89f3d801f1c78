"""Rated distortions of photographs: KADID-10k, PIPAL and TID2013, each in the layout of its release.

In all three a larger score is a better image, by KADID's `dmos` too, despite its name (chaofengc/IQA-PyTorch,
pyiqa/default_dataset_configs.yml: lower_better false; its first rows fall with the distortion's level).
Images are found by their names wherever they lie below the folder, in upper or lower case.

Not here: whether the images can be read.
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.formats import utf8
from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import Ratings
from pipeline.formats.judged.named import images_below

_PIPAL = {"train": ("Train_Label", "MOS_Scores_train"), "val": ("Val_Label",), "test": ("Test_Label",)}
_ELO = (100.0, 4000.0)  # PIPAL's are about 900 to 1900; scores brought to 0..1 are far below


class _Rating(NamedTuple):
    where: str  # the file and its row
    number: int
    reference: str
    distorted: str
    score: float
    sd: float


def kadid(folder: Path) -> Ratings:
    """KADID-10k: `dmos.csv` (dist_img, ref_img, dmos, var) beside images/.  dmos is 1 to 5.

    `var` is a standard deviation, despite its name: so it is called in chaofengc/IQA-PyTorch,
    scripts/process_kadid10k.py, and the two rows that public repositories quote (4.57,0.496 and 4.33,0.869)
    are deviations of 30 whole ratings with these means, and can be no variance of theirs.
    """
    table = delimited.columns(folder / "dmos.csv", ("dist_img", "ref_img", "dmos", "var"))
    names = zip(table.text("ref_img"), table.text("dist_img"))
    numbers = zip(
        table.line.tolist(), table.number("dmos", 1, 5).tolist(), table.number("var", 0, 4).tolist()
    )
    return _ratings(
        folder,
        [
            _Rating(f"{table.path}: row {line}", line, ref, name, score, sd)
            for (ref, name), (line, score, sd) in zip(names, numbers)
        ],
    )


def pipal(folder: Path, split: str) -> Ratings:
    """PIPAL: Elo ratings, A0001_00_00.bmp,1466.4372 in Train_Label/A0001.txt; the reference is A0001.bmp.

    split: train, val or test, from the folders Train_Label (or MOS_Scores_train), Val_Label and Test_Label.
    Layout: chaofengc/IQA-PyTorch, scripts/process_pipal.py; HaomingCai/PIPAL-dataset, codes/data/README.md.
    That 400 points are odds of 10 to 1 is from the paper, not verified.
    """
    if split not in _PIPAL:
        raise ValueError(f"split {split!r}: {', '.join(_PIPAL)} are PIPAL's")
    labels = next((folder / name for name in _PIPAL[split] if (folder / name).is_dir()), None)
    if labels is None:
        raise ValueError(f"{folder}: no folder {' or '.join(_PIPAL[split])} in it")
    rows: list[_Rating] = []
    for path in sorted(labels.glob("*.txt")):
        for number, line in _lines(path):
            where = f"{path}: row {number}"
            name, _, text = (part.strip() for part in line.partition(","))
            if not re.fullmatch(r"[^/_]+_[^/]+", name):
                raise ValueError(f"{where}: {line!r}; a line like A0001_00_00.bmp,1466.4372 is expected")
            reference = f"{name.split('_')[0]}{Path(name).suffix}"
            score = _number(where, text, *_ELO, "an Elo rating (not one brought to 0..1)")
            rows.append(_Rating(where, number, reference, name, score, float("nan")))
    if not rows:
        raise ValueError(f"{labels}: no .txt with ratings in it")
    return _ratings(folder, rows, elo=True)


def tid2013(folder: Path) -> Ratings:
    """TID2013: `mos_with_names.txt` (5.51429 I01_01_1.bmp) and `mos_std.txt`, a line each; MOS is 0 to 9.

    Layout, and the references' names (I01.BMP, but i25.bmp): chaofengc/IQA-PyTorch, scripts/process_tid.py.
    """
    table, deviations = folder / "mos_with_names.txt", folder / "mos_std.txt"
    scores, sds = _lines(table), _lines(deviations)
    if len(scores) != len(sds):
        raise ValueError(f"{deviations}: {len(sds)} lines, {table.name} has {len(scores)}")
    rows = []
    for (number, line), (sd_number, sd) in zip(scores, sds):
        where, words = f"{table}: row {number}", line.split()
        if len(words) != 2 or not re.fullmatch(r"[iI]\d\d_\d\d_\d\.\w+", words[1]):
            raise ValueError(f"{where}: {line!r}; a line like 5.51429 I01_01_1.bmp is expected")
        score = _number(where, words[0], 0, 9, "a MOS")
        deviation = _number(f"{deviations}: row {sd_number}", sd, 0, 9, "a standard deviation")
        reference = f"{words[1][:3]}{Path(words[1]).suffix}"
        rows.append(_Rating(where, number, reference, words[1], score, deviation))
    return _ratings(folder, rows)


def _ratings(folder: Path, rows: list[_Rating], elo: bool = False) -> Ratings:
    files = _by_name(folder)
    pairs = [
        tuple(_file(folder, files, row, name) for name in (row.reference, row.distorted)) for row in rows
    ]
    rated: dict[str, str] = {}
    for row, (_, path) in zip(rows, pairs):
        if before := rated.get(path):
            raise ValueError(f"{row.where}: {row.distorted} was rated before, in {before}")
        rated[path] = row.where
    images = tuple(dict.fromkeys(chain.from_iterable(pairs)))
    place = {path: number for number, path in enumerate(images)}
    return Ratings(
        folder=folder, images=images, rows=np.array([[place[p] for p in pair] for pair in pairs], np.int32),
        number=np.array([row.number for row in rows], np.int64), group=np.zeros(len(rows), "U1"),
        score=np.array([row.score for row in rows]), sd=np.array([row.sd for row in rows]), elo=elo,
    )  # fmt: skip


def _file(folder: Path, files: dict[str, list[str]], row: _Rating, name: str) -> str:
    found = files.get(name.lower(), [])
    if len(found) != 1:
        what = f"there twice: {found[0]} and {found[1]}" if found else f"not below {folder}"
        raise ValueError(f"{row.where}: the image {name} is {what}")
    return found[0]


def _by_name(folder: Path) -> dict[str, list[str]]:
    """Paths of all images below a folder by their names in lower case."""
    found: dict[str, list[str]] = {}
    for path in images_below(folder):
        found.setdefault(path.name.lower(), []).append(path.relative_to(folder).as_posix())
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    """(row, line) of a text, blank lines left out."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = enumerate(utf8.text(path.read_bytes(), str(path)).splitlines(), 1)
    found = [(number, line.strip()) for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: it is empty")
    return found


def _number(where: str, text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"{where}: {text!r}; {what} from {low:g} to {high:g} is expected")
    return value
