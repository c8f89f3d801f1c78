"""BAPPS 2AFC (github.com/richzhang/PerceptualSimilarity): 2afc/{train,val}/SUBSET/{ref,p0,p1,judge}.

Layout: its README.md and data/dataset/twoafc_dataset.py.  Files of the same name in the four folders belong
together.  judge/*.npy holds one float, the fraction of people who preferred p1, that is right; it is kept as
it is.  How many people answered is in no file: 2 in train, 5 in val (from the paper, arXiv 1801.03924, not
verified).

Whether the images exist and can be read is not looked at; the set's other part, jnd, is not read.
"""

from __future__ import annotations

import io
from itertools import zip_longest
from pathlib import Path

import numpy as np

from pipeline.formats import utf8
from pipeline.formats.judged.forms import Comparisons

PEOPLE = {"train": 2, "val": 5}
PARTS = ("ref", "p0", "p1", "judge")
_NUMPY = b"\x93NUMPY"


def read(folder: Path, split: str, subsets: tuple[str, ...] = ()) -> Comparisons:
    """All judgements of a split, subset after subset, in the order of their names.

    folder: holds train and val, or 2afc.  subsets: empty takes all that exist.
    `group` is the subset, `number` counts its judgements from 0.
    Raises ValueError: a folder or subset is missing, the four folders do not match, a judgement is damaged.
    """
    base = root(folder, split)
    images: list[str] = []
    votes: list[float] = []
    counts = {}
    for subset in chosen(base, subsets):
        rows = samples(base / subset)
        counts[subset] = len(rows)
        votes += [vote(base / subset / "judge" / row[-1]) for row in rows]
        where = (base / subset).relative_to(folder).as_posix()
        images += [f"{where}/{part}/{file}" for row in rows for part, file in zip(PARTS[:-1], row)]
    if not votes:
        raise ValueError(f"{base}: no triplets")
    return Comparisons(
        folder=folder,
        images=images,
        rows=np.arange(len(images), dtype=np.int32).reshape(-1, 3),
        number=np.concatenate([np.arange(count, dtype=np.int64) for count in counts.values()]),
        group=np.repeat(list(counts), list(counts.values())),
        vote=np.array(votes),
        votes=np.full(len(votes), PEOPLE[split], np.int32),
    )


def root(folder: Path, split: str) -> Path:
    """The folder of a split's subsets.  Raises ValueError for a split that BAPPS has not."""
    if split not in PEOPLE:
        raise ValueError(f"split is {split!r}; BAPPS has {' and '.join(PEOPLE)}")
    base = folder / "2afc"
    return (base if base.is_dir() else folder) / split


def chosen(base: Path, subsets: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The subsets to read below root(); empty `subsets` are all.  Raises ValueError if one is missing."""
    existing = _names(base)
    for name in subsets:
        if name not in existing:
            raise ValueError(f"{base}: no subset {name}; it has {', '.join(existing) or 'none'}")
    return tuple(dict.fromkeys(subsets)) or existing


def samples(subset: Path) -> list[tuple[str, ...]]:
    """The names of the files of each triplet, by PARTS.  Raises ValueError if the folders do not match."""
    rows = list(zip_longest(*(_names(subset / part) for part in PARTS), fillvalue="no more"))
    for row in rows:
        if len({Path(file).stem for file in row}) > 1:
            files = ", ".join(f"{part}/{file}" for part, file in zip(PARTS, row))
            raise ValueError(f"{subset}: its folders do not match: {files}")
    return rows


def vote(judgement: Path) -> float:
    """What a file in judge/ holds.  Raises ValueError naming it if that is no fraction, or cannot be read."""
    try:
        data = judgement.read_bytes()
        if not data.startswith(_NUMPY):
            raise ValueError(f"no array of numpy but {utf8.instead(data) or 'something else'}")
        held = np.load(io.BytesIO(data), allow_pickle=False)
        if held.size != 1 or held.dtype.kind != "f":
            raise ValueError(f"one float is expected, not {held.size} of {held.dtype}")
        found = float(held.reshape(-1)[0])
        if not 0 <= found <= 1:
            raise ValueError(f"{found} is no fraction")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{judgement}: {error}") from None
    return found


def _names(folder: Path) -> tuple[str, ...]:
    """Names in a folder, sorted, without hidden files."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; BAPPS has 2afc/SPLIT/SUBSET/{{ref,p0,p1,judge}}")
    return tuple(sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")))
