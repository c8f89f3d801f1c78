"""The tests of human similarity that are known, and finding them in a folder.

Each lies in a folder of its own below ROOT, called as in `SETS`; capitals and hyphens do not matter.  How the
files of each are laid out is its reader's business, in `pipeline/formats/judged/`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.alignment import judgements
from eval.alignment.judgements import Judgements
from eval.metrics import perceptual
from eval.sets.evalset import is_foreign
from pipeline.formats import nights, utf8
from pipeline.formats.judged import (
    bapps,
    jnd,
    levels,
    matrices,
    nights_raw,
    pieapp,
    quality,
    things,
    tpips,
)

CATEGORIES = "cifar100"  # judged by its labels: `categories.py`


@dataclass(frozen=True, kw_only=True)
class Known:
    """A set that is known.

    key: its name in files.  read: of its folder; None where another module scores it.  holds: what shows that
    a folder is it, besides its name; a file that may also lie in the folders `beside`.  mean: the mean of its
    groups stands for it.  ceiling: (figure, where it comes from) of the leading metric where the answers do
    not tell.  train: reads its training split, for probes; None where there is none to read.
    """

    key: str
    title: str
    read: Callable[[Path], Judgements] | None
    file: str = ""
    beside: tuple[str, ...] = ()
    mean: bool = False
    ceiling: tuple[float, str] | None = None
    train: Callable[[Path], Judgements | None] | None = None


# -- readers ----------------------------------------------------------------------------------------


def _nights(folder: Path) -> Judgements:
    """The test split, by whether its images are ImageNet's, as dreamsim has it: evaluation/eval_percep.py."""
    halves = ("test_imagenet", "test_no_imagenet")
    if _nights_is_told_apart(folder):
        asked = judgements.of_triplets(perceptual.read(folder, halves))
        titles = {"test_imagenet": "ImageNet", "test_no_imagenet": "not ImageNet"}
        return replace(asked, groups=np.array([titles[group] for group in asked.groups.tolist()]))
    asked = judgements.of_triplets(perceptual.read(folder, ("test",)))
    return asked.noted("all as one group: no split or column tells which are ImageNet's")


def _nights_is_told_apart(folder: Path) -> bool:
    if any(folder.glob("triplets-*.beton")):
        halves = [folder / f"triplets-test_{half}.beton" for half in ("imagenet", "no_imagenet")]
        return all(half.is_file() for half in halves)
    table = nights.table_of(folder)
    header = utf8.text(table.read_bytes(), str(table)).partition("\n")[0]
    return "is_imagenet" in next(csv.reader([header]), [])


def _nights_train(folder: Path) -> Judgements | None:
    if any(folder.glob("triplets-*.beton")):
        there = (folder / "triplets-train.beton").is_file()
    else:
        there = bool(nights.read(nights.table_of(folder), ("train",), unsplit="test"))
    if not there:
        return None
    return judgements.of_triplets(perceptual.read(folder, ("train",)))


# Answers of THINGS by the names of their releases: (file, base, odd one), the best for a test first.
_THINGS: tuple[tuple[str, int | None, things.Odd], ...] = (
    ("triplets/test_10.npy", 0, "last"),
    ("test_10.npy", 0, "last"),
    ("things_valset.txt", None, "last"),
    ("triplets_large_final_correctednc_correctedorder.csv", 1, 4),
)
_THINGS_TRAIN = ("triplets/train_90.npy", "train_90.npy")
_THINGS_IDS = ("unique_id.txt", "concepts/unique_id.txt")


def _things(folder: Path) -> Judgements:
    there = [(folder / file, base, odd) for file, base, odd in _THINGS if (folder / file).is_file()]
    if not there:
        names = ", ".join(file for file, _, _ in _THINGS)
        raise ValueError(f"{folder}: no answers; one of {names} is expected, and the objects in images/")
    answers, base, odd = there[0]
    ids = _things_ids(folder)
    asked = judgements.of_judged(things.read(answers, folder / "images", ids, base, odd))
    said = [f"answers of {answers.name}"]
    if base is not None and ids is None:
        said.append("objects numbered in the order of their images' names, since there is no unique_id.txt")
    said += [f"{path.name} is there too and was not read" for path, _, _ in there[1:]]
    return replace(asked, notes=(*asked.notes, *said))


def _things_train(folder: Path) -> Judgements | None:
    there = [folder / file for file in _THINGS_TRAIN if (folder / file).is_file()]
    if not there:
        return None
    return judgements.of_judged(things.read(there[0], folder / "images", _things_ids(folder), 0, "last"))


def _things_ids(folder: Path) -> Path | None:
    return next((folder / file for file in _THINGS_IDS if (folder / file).is_file()), None)


def _pieapp(folder: Path) -> Judgements:
    """The test split; the pairs that UniSim-Bench leaves out as unsure are a group of their own."""
    judged = pieapp.read(folder, "test")
    low, high = pieapp.UNSURE
    unsure = (judged.vote >= low) & (judged.vote <= high)
    return judgements.of_judged(replace(judged, group=np.where(unsure, "unsure", "clear")))


def _bapps(folder: Path) -> Judgements:
    """The share of people leads: it is what the authors' score_2afc_dataset (lpips/trainer.py) computes."""
    asked = judgements.of_judged(bapps.read(folder, "val"))
    return replace(asked, metrics=tuple(sorted(asked.metrics, key=lambda name: name != "twoafc_soft")))


def _judged(reader: Callable[..., Any], *split: str) -> Callable[[Path], Judgements]:
    """Reads all of a set, or its `split`, by a reader of `pipeline/formats/judged/`."""
    return lambda folder: judgements.of_judged(reader(folder, *split))


_LITERATURE = (
    0.6722,
    "from the literature, not verified: Hebart et al. 2020 as others quote it, the consistency of people",
)
SETS = (
    Known(key="nights", title="NIGHTS", read=_nights, train=_nights_train),
    Known(key="nights_raw", title="NIGHTS, unfiltered", read=_judged(nights_raw.read)),
    Known(
        key="jnd",
        title="NIGHTS, JND",
        read=_judged(jnd.read),
        file=jnd.TABLE,
        beside=("nights", "nights_raw"),
    ),
    Known(key="bapps", title="BAPPS", read=_bapps, mean=True),
    Known(key="things", title="THINGS", read=_things, ceiling=_LITERATURE, train=_things_train),
    Known(key="levels", title="Levels", read=_judged(levels.read)),
    Known(
        key="peterson",
        title="Peterson et al.",
        read=lambda folder: judgements.of_matrices(matrices.peterson(folder)),
        mean=True,
    ),
    Known(
        key="multi_arrangement",
        title="Multi-arrangement",
        read=lambda folder: judgements.of_matrices(matrices.multi_arrangement(folder)),
        mean=True,
    ),
    Known(key="pieapp", title="PieAPP", read=_pieapp),
    Known(key="kadid10k", title="KADID-10k", read=_judged(quality.kadid)),
    Known(key="pipal", title="PIPAL", read=_judged(quality.pipal, "train")),
    Known(key="tid2013", title="TID2013", read=_judged(quality.tid2013)),
    Known(key="tpips_2afc", title="TPIPS, 2AFC", read=_judged(tpips.read_2afc, "test")),
    Known(key="tpips_odd_one_out", title="TPIPS, odd one out", read=_judged(tpips.read_odd, "test")),
    Known(key=CATEGORIES, title="CIFAR-100, categories", read=None),
)
KEYS = tuple(known.key for known in SETS)
OWN = "triplets-test.beton"  # in a folder of another name: a set of one's own


# -- finding them -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Test:
    """A set that is there; asked: None where another module scores it."""

    known: Known
    folder: Path
    asked: Judgements | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is there below `root`, read once for any number of models."""

    root: Path
    tests: list[Test]
    notes: tuple[str, ...]


def discover(root: Path, wanted: Sequence[str] = ()) -> Found:
    """Read the sets below a folder; wanted: only these keys, all that are there if empty.

    Raises ValueError for a folder without any, for a wanted set that is unknown or not there, and for one
    that is damaged.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of sets of human similarity")
    folders = _by_key(root)
    sets = (*SETS, *_own(folders))
    if unknown := [key for key in wanted if key not in {known.key for known in sets}]:
        raise ValueError(
            f"--sets {unknown[0]}: not known; there are {', '.join(known.key for known in sets)}"
        )
    places = {known.key: place for known in sets if (place := _place(known, folders)) is not None}
    if not places:
        here = f"; it has {', '.join(sorted(p.name for p in folders.values()))}" if folders else ""
        raise ValueError(f"{root}: none of the known sets in it, which are {', '.join(KEYS)}{here}")
    if absent := [key for key in wanted if key not in places]:
        raise ValueError(f"--sets {absent[0]}: not in {root}, which has {', '.join(places)}")
    tests = []
    for known in sets:
        if known.key in places and (not wanted or known.key in wanted):
            folder = places[known.key]
            asked = None if known.read is None else known.read(folder)
            tests.append(Test(known=known, folder=folder, asked=asked))
    other = sorted(path.name for key, path in folders.items() if path not in places.values())
    notes = [f"folders of no known set passed over: {', '.join(other)}"] if other else []
    notes += [f"{t.known.key}: {note}" for t in tests if t.asked is not None for note in t.asked.notes]
    return Found(root=root, tests=tests, notes=tuple(notes))


def _by_key(root: Path) -> dict[str, Path]:
    """The folders below `root` by their name as a key.  ValueError where two have the same one."""
    folders: dict[str, Path] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir() and not is_foreign(path.name)):
        key = path.name.lower().replace("-", "_")
        if key in folders:
            raise ValueError(f"{root}: {folders[key].name} and {path.name} are one set; move one away")
        folders[key] = path
    return folders


def _own(folders: dict[str, Path]) -> list[Known]:
    """Triplets of one's own, in folders of no known set."""

    def read(folder: Path) -> Judgements:
        return judgements.of_triplets(perceptual.read(folder, ("test",)))

    own = {key: path for key, path in folders.items() if key not in KEYS and (path / OWN).is_file()}
    return [Known(key=key, title=path.name, read=read) for key, path in own.items()]


def _place(known: Known, folders: dict[str, Path]) -> Path | None:
    if known.key in folders:
        return folders[known.key]
    near = [folders[key] for key in known.beside if key in folders]
    return next((folder for folder in near if (folder / known.file).is_file()), None)
