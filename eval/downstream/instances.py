"""Instance retrieval: Revisited Oxford and Paris, and folders of queries and a gallery.

Q queries, N images of the gallery.

Revisited: `gnd_NAME.json` beside `jpg/`, as filipradenovic/revisitop `python/dataset.py` has them, but in
JSON: imlist, qimlist, gnd [{bbx, easy, hard, junk}] with images counted from 0, as in the authors' pickles
(their .mat files count from 1).  A pickle may hold any program, so none is opened.  Queries are cropped to
bbx (`python/example_process_images.py`); easy, medium and hard are as in `python/example_evaluate.py`.

Folders: `query/ID/IMAGE`, `gallery/ID/IMAGE`, into which DeepFashion2's items and other sets can be sorted;
a layout of this project, with R@k and average precision as retrieval papers have them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eval.downstream import ranking, records
from eval.downstream.records import Outcome
from eval.metrics.retrieval import KS
from eval.sets import catalog
from eval.sets.classfolders import Listing
from eval.sets.evalset import CroppedImages, FileImages, Images, Member, shown
from pipeline.formats import utf8

NAMES = {"roxford5k": "Revisited Oxford", "rparis6k": "Revisited Paris"}
# Images and queries: from the paper (CVPR 2018), which others' papers repeat; not checked against the files.
COUNTS = {"roxford5k": (4993, 70), "rparis6k": (6322, 70)}
# Each protocol's right answers and its junk.
PROTOCOLS = {
    "map_easy": (("easy",), ("junk", "hard")),
    "map_medium": (("easy", "hard"), ("junk",)),
    "map_hard": (("hard",), ("junk", "easy")),
}
_KINDS = ("easy", "hard", "junk")
CONVERT = (
    """python -c 'import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], "rb")), """
    """open(sys.argv[2], "w"), default=lambda x: x.tolist())'"""
)


# -- Revisited Oxford and Paris ---------------------------------------------------------------------


@dataclass(frozen=True)
class RevisitedTask:
    """images: the queries' crops and the gallery; marks: (Q, N) bool of each of easy, hard, junk."""

    key: str
    images: list[Images]
    marks: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    may_lose = False

    def score(self, features: Sequence[Tensor], kept: Sequence[np.ndarray]) -> Outcome:
        """features: of the queries and of the gallery, all of which are `kept`."""
        order = ranking.order(features[0], features[1])
        figures, arrays = [], {}
        for metric, kinds in PROTOCOLS.items():
            right, junk = (np.any([self.marks[kind] for kind in some], axis=0) for some in kinds)
            each = ranking.revisited_precision(*(np.take_along_axis(m, order, 1) for m in (right, junk)))
            counted = ~np.isnan(each)
            if not counted.any():
                continue  # a set of one's own, in which no query has such an answer
            sizes = right.sum(1)[counted], (~junk).sum(1)[counted]
            chance = float(ranking.chance_revisited(*sizes).mean())
            ends, n = records.mean(each[counted]), int(counted.sum())
            figures.append(
                records.figure(
                    self.key, NAMES.get(self.key, self.key), metric, ends, chance, n, gallery=order.shape[1]
                )
            )
            arrays[metric.replace("map", "ap")] = each
        return Outcome(figures=figures, arrays=arrays)


def read_revisited(folder: Path) -> RevisitedTask | None:
    """The set in this very folder, or None.  Raises ValueError naming the file, query and field."""
    tables, pickles = sorted(folder.glob("gnd_*.json")), sorted(folder.glob("gnd_*.pkl"))
    if not tables and not pickles:
        return None
    if not tables:
        raise ValueError(
            f"{pickles[0]}: a pickle, which may run any program and is not opened; turn it into JSON where "
            f"that can do no harm (in a container without network and data): {CONVERT} "
            f"{pickles[0].name} {pickles[0].stem}.json"
        )
    if len(tables) > 1:
        raise ValueError(f"{tables[1]}: a second set beside {tables[0].name}; each needs a folder of its own")
    table = tables[0]
    key = table.stem.removeprefix("gnd_")
    gallery, queries, truth = _tables(table)
    if COUNTS.get(key, (len(gallery), len(queries))) != (len(gallery), len(queries)):
        expected = " images and ".join(map(str, COUNTS[key]))
        raise ValueError(
            f"{table}: {len(gallery)} images and {len(queries)} queries; {key} has {expected}, others do not "
            "compare (under another name this is a set of its own)"
        )
    marks = {kind: np.zeros((len(queries), len(gallery)), bool) for kind in _KINDS}
    place = {name: i for i, name in enumerate(gallery)}
    boxes = []
    for number, (name, said) in enumerate(zip(queries, truth)):
        where = f"{table}, query {number} ({name})"
        boxes.append(_box(said, where))
        _mark(marks, number, said, where)
        if name in place and not marks["junk"][number, place[name]]:
            raise ValueError(f"{where}: it is in the gallery too, and not as junk; it would find itself")
    paths = [[_path(folder, name, table) for name in names] for names in (queries, gallery)]
    crops = CroppedImages(paths[0], boxes)
    return RevisitedTask(key, [crops, FileImages([Member.whole(p) for p in paths[1]])], marks)


def _tables(table: Path) -> tuple[list[str], list[str], list[dict]]:
    """(imlist, qimlist, gnd) of the file."""
    try:
        data = json.loads(utf8.text(table.read_bytes(), str(table)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{table}: not JSON ({error})") from None
    if not isinstance(data, dict) or not all(
        isinstance(data.get(n), list) for n in ("imlist", "qimlist", "gnd")
    ):
        raise ValueError(f"{table}: lists imlist, qimlist and gnd are expected")
    gallery, queries, truth = data["imlist"], data["qimlist"], data["gnd"]
    for field, names in (("imlist", gallery), ("qimlist", queries)):
        if bad := [n for n in names if not isinstance(n, str) or not n or Path(n).is_absolute() or ".." in n]:
            raise ValueError(f"{table}, {field}: {bad[0]!r} is no name of an image in jpg/")
        if len({*names}) < len(names) or not names:
            raise ValueError(f"{table}, {field}: {'an image is named twice' if names else 'no image'}")
    if len(truth) != len(queries) or not all(isinstance(said, dict) for said in truth):
        raise ValueError(
            f"{table}: {len(truth)} entries of gnd for {len(queries)} queries, one each is expected"
        )
    return gallery, queries, truth


def _box(said: dict, where: str) -> tuple[int, int, int, int]:
    """Rounded as Pillow rounds the authors' fractions."""
    box = said.get("bbx")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, (int, float)) for x in box):
        raise ValueError(f"{where}: bbx is {box!r:.60}, four numbers are expected")
    if not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):  # NaN too
        raise ValueError(f"{where}: bbx is {box!r:.80}, left, top, right, bottom are expected")
    left, top, right, bottom = (round(x) for x in box)
    return left, top, right, bottom


def _mark(marks: dict[str, np.ndarray], query: int, said: dict, where: str) -> None:
    count, taken = marks["easy"].shape[1], np.zeros(marks["easy"].shape[1], bool)
    for kind in _KINDS:
        numbers = said.get(kind)
        if not isinstance(numbers, list) or not all(type(i) is int for i in numbers):
            raise ValueError(f"{where}: {kind} is {numbers!r:.60}, a list of images' numbers is expected")
        for i in numbers:
            if not 0 <= i < count:
                raise ValueError(
                    f"{where}: {kind} names image {i}; images are counted from 0 to {count - 1} here, "
                    "as in the authors' pickle (their .mat file counts from 1)"
                )
            if taken[i]:
                raise ValueError(f"{where}: image {i} is named twice among {', '.join(_KINDS)}")
            taken[i] = marks[kind][query, i] = True


def _path(folder: Path, name: str, table: Path) -> Path:
    path = folder / "jpg" / f"{name}.jpg"
    if not path.is_file():
        raise ValueError(f"{table}: {path} is missing")
    return path


# -- folders ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderTask:
    """images: queries and gallery; owners: the instance (a number) of each image of the two."""

    key: str
    images: list[Images]
    owners: list[np.ndarray]
    notes: tuple[str, ...] = ()
    may_lose = False

    def score(self, features: Sequence[Tensor], kept: Sequence[np.ndarray]) -> Outcome:
        """features: of the queries and of the gallery, all of which are `kept`."""
        queries, gallery = features
        precision, firsts = [], []
        for part in ranking.chunks(len(queries), len(gallery)):
            order = ranking.order(queries[part], gallery)
            right = self.owners[1][order] == self.owners[0][part, None]
            precision.append(ranking.average_precision(right))
            firsts.append(ranking.first(right))
        each, first = np.concatenate(precision), np.concatenate(firsts)
        sizes = np.bincount(self.owners[1], minlength=self.owners[0].max() + 1)[self.owners[0]]
        size, n, told = len(gallery), len(queries), {"gallery": len(gallery)}
        figures = [
            records.figure(
                self.key, self.key, f"recall@{k}", records.mean(first < k, self.owners[0]),
                float(ranking.chance_recall(sizes, size, k).mean()), n, **told,
            )
            for k in KS
            if k <= size
        ]  # fmt: skip
        chance = float(ranking.chance_precision(sizes, np.full(n, size)).mean())
        ends = records.mean(each, self.owners[0])
        figures.append(records.figure(self.key, self.key, "map", ends, chance, n, **told))
        arrays = {"owner": self.owners[0], "average_precision": each, "first": first}
        return Outcome(figures=figures, arrays=arrays, notes=self.notes)


def read_folders(folder: Path) -> FolderTask | None:
    """`query/ID` and `gallery/ID` in this very folder, or None.

    Queries without an image of their instance in the gallery cannot be answered: left out and counted.
    """
    places = [folder / "query", folder / "gallery"]
    if not all(place.is_dir() for place in places):
        return None
    listings = [{f.name: Listing.of(f) for f in Listing.of(place).folders} for place in places]
    for place, listed in zip(places, listings):
        if not any(inside.images for inside in listed.values()):
            raise ValueError(
                f"{place}: no image in it; {place.name}/ID/IMAGE is expected, a folder an instance"
            )
    notes = _not_read(places, listings)
    number = {name: i for i, name in enumerate(n for n, inside in listings[1].items() if inside.images)}
    alone = {name: len(inside.images) for name, inside in listings[0].items() if name not in number}
    if lost := sum(alone.values()):
        notes.append(f"{lost} queries without their instance in the gallery left out: {shown(sorted(alone))}")
    paths = [[(number[n], p) for n, i in each.items() if n in number for p in i.images] for each in listings]
    if not paths[0]:
        raise ValueError(f"{folder}: no folder of query/ has the name of one of gallery/")
    queries, gallery = ([path for _, path in some] for some in paths)
    if twice := _shared(queries, gallery):
        notes.append(f"{len(twice)} queries are in the gallery too and find themselves: {shown(twice)}")
    images: list[Images] = [FileImages([Member.whole(p) for p in some]) for some in (queries, gallery)]
    owners = [np.array([owner for owner, _ in some], np.int64) for some in paths]
    return FolderTask(catalog.name_of(folder), images, owners, tuple(notes))


def _not_read(places: Sequence[Path], listings: Sequence[dict[str, Listing]]) -> list[str]:
    out = []
    for place, listed in zip(places, listings):
        around = Listing.of(place)
        other = [inside.other.total() + inside.hidden + len(inside.broken) for inside in listed.values()]
        count = sum(other) + len(around.images) + around.other.total() + around.hidden + len(around.broken)
        if count:
            out.append(f"{count} files of {place.name}/ not read: no images, or outside its folders")
        if deeper := [f"{name}/{f.name}" for name, inside in listed.items() for f in inside.folders]:
            out.append(f"{len(deeper)} folders inside {place.name}/'s folders not read: {shown(deeper)}")
    return out


def _shared(queries: Sequence[Path], gallery: Sequence[Path]) -> list[str]:
    """Queries whose file is, byte by byte, also in the gallery; only files of one size are read."""

    def sizes(paths: Sequence[Path]) -> list[int]:
        return [path.stat().st_size if path.is_file() else -1 for path in paths]

    def digests(paths: Sequence[Path], own: Sequence[int], others: set[int]) -> dict[Path, bytes]:
        return {p: hashlib.blake2b(p.read_bytes()).digest() for p, s in zip(paths, own) if s in others}

    of_queries, of_gallery = sizes(queries), sizes(gallery)
    both = {*of_queries} & {*of_gallery} - {-1}
    there = {*digests(gallery, of_gallery, both).values()}
    asked = digests(queries, of_queries, both)
    return [f"{path.parent.name}/{path.name}" for path, digest in asked.items() if digest in there]
