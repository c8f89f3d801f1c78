"""A folder a class, and ILSVRC's flat validation folder: which image has which label, what is not read.

A label is settled by names, never by counts alone: `eval/sets/imagenet.py` for WordNet ids, here for
the others.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.sets import catalog, imagenet, prompts
from eval.sets.catalog import Entry
from eval.sets.evalset import HIDDEN, ClassificationSet, FileImages, Member, is_foreign, is_image, shown

# Where a set's held-out images lie; the later ones are Kaggle's and tiny-imagenet's.
PLACES = (".", "val", "test", "validation", "valid", "Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/val",
          "images/val", "val/images", "val.X")  # fmt: skip
TRAINING = ("train", "training", "Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/train", "images/train")
SOURCES = ("class folders", "flat folder")  # what sets from here have as their `source`
_DIGITS = re.compile("([0-9]+)")
_SPLITS = ("val", "test", "validation", "valid")
_NUMBERED = re.compile(r"(?:n\d{8}[-_ .]|\d{3}\.)(\D.*)")  # a name after a WordNet id or a number
_COUNTED = re.compile(r"(\d+)[-_. ]+(\D.*)")
# Numbers only, or as good as: class_0, c0.
_NAMELESS = re.compile(r"(?:class|cls|c|category|label|target|id|n|s)?[-_ .]?\d+", re.IGNORECASE)
_NO_CLASSES = {*_SPLITS, "train", "training", "dev"}
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Parts of sets for other tasks (segmentation, captions, triplets), where images of all kinds lie together.
_PARTS = {"image", "images", "img", "imgs", "jpegimages", "mask", "masks", "label", "labels", "annotations",
          "segmentationclass", "segmentationobject", "thumbnails", "ref", "p0", "p1", "distort"}  # fmt: skip


@dataclass
class Listing:
    """What lies in one folder: images by name, sub-folders, and what is not read."""

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    hidden: int = 0
    broken: list[Path] = field(default_factory=list)  # links to nowhere that are not called as images
    other: Counter[str] = field(default_factory=Counter)  # suffix → files that are no images

    @classmethod
    def of(cls, folder: Path) -> Listing:
        out = cls()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (is_foreign(entry.name) and entry.is_dir()):
                    out.hidden += not entry.is_dir()
                elif entry.is_dir():
                    out.folders.append(Path(entry.path))
                elif is_image(entry.name):
                    out.images.append(Path(entry.path))
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    out.broken.append(Path(entry.path))
                else:
                    out.other[Path(entry.name).suffix or entry.name] += 1
        out.images.sort()
        out.folders.sort()
        return out


def _class_listing(folder: Path) -> Listing:
    """A class folder's images; tiny-imagenet's lie one folder down, in `images`."""
    out = Listing.of(folder)
    inner = next((f for f in out.folders if f.name == "images"), None)
    if out.images or inner is None:
        return out
    deeper = Listing.of(inner)
    deeper.hidden += out.hidden
    deeper.other += out.other
    return deeper


def _classes_in(place: Path) -> dict[Path, Listing] | None:
    """The class folders of `place` in the order of their names, numbers by value; None if it has none.

    Two of them hold images, and none of them holds folders only or is a split: those are other sets.
    """
    classes = {f: _class_listing(f) for f in Listing.of(place).folders}
    full = [f for f, inside in classes.items() if inside.images]
    splits = [f for f in classes if f.name.lower() in _NO_CLASSES]
    if splits and (len(splits) > 1 or splits[0] not in full or len(full) < 3):
        return None  # one alone that holds images is a class: cars, ships, trains
    if len(full) < 2 or any(inside.folders and not inside.images for inside in classes.values()):
        return None
    if _are_parts([f.name for f in full]):
        return None
    if all(f.name.isdecimal() for f in classes):
        return {f: classes[f] for f in sorted(classes, key=lambda f: int(f.name))}
    return classes


def _are_parts(names: Sequence[str]) -> bool:
    """Whether these are a set's splits (train2014, val2014; cars_train, cars_test) or parts, not classes."""
    splits = [{w.lower() for w in _WORD.findall(n)} & _NO_CLASSES for n in names]
    return {n.lower() for n in names} <= _PARTS or all(splits) and len(set().union(*splits)) > 1


# -- labels -------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    whole = unicodedata.normalize("NFKC", name.lower())  # Macs' folders have é as e and an accent
    return "".join(c for c in whole if c.isalnum())


def _by_names(names: Sequence[str], classes: Sequence[str], where: Path) -> tuple[list[int], int]:
    """(each folder's label, how many folders are called as their class) for one class a folder.

    Every name a class's: the labels are the classes'.  Else they follow the folders' order, and a name
    that is another class's is a ValueError.
    """
    plain = [_plain(c) for c in classes]
    place = {c: i for i, c in enumerate(plain) if plain.count(c) == 1}
    own = [place.get(_plain(n)) for n in names]
    labels = [label for label in own if label is not None]
    if len({*labels}) == len(names):
        return labels, len(names)
    for i, (name, label) in enumerate(zip(names, own)):
        if label not in (None, i):
            raise ValueError(
                f"{where}: class folder {name} is number {i + 1} in order, the class of that name number "
                f"{label + 1} of {len(classes)}; call all folders as the classes, or put "
                f"{prompts.CLASSNAMES_FILE} there in the folders' order"
            )
    return list(range(len(names))), len(labels)


def _as_people_sort(name: str) -> list[str | int]:
    """Numbers by value, upper and lower case alike, as file managers and timm list names."""
    return [int(s) if i % 2 else s for i, s in enumerate(_DIGITS.split(name.lower()))]


def _check_order(names: Sequence[str], where: Path) -> None:
    """ValueError for folders whose order, which is to settle the labels, is not the same to everyone."""
    for by_spelling, by_value in zip(sorted(names), sorted(names, key=_as_people_sort)):
        if by_spelling != by_value:
            raise ValueError(
                f"{where}: class folders are not called as their classes, and their order can be taken in "
                f"two ways ({by_spelling} or {by_value} first); call them as the classes, or 000 … "
                f"{len(names) - 1:03d}"
            )


def _by_numbers(names: Sequence[str], where: Path, listed: bool) -> list[int]:
    """Labels of numbered folders: the numbers if they are 0 … K−1; their order if the user listed names."""
    numbers = [int(n) for n in names]
    if listed and len({*numbers}) == len(numbers):
        return list(range(len(numbers)))
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"{where}: {len(numbers)} class folders, numbered {min(numbers)} … {max(numbers)}; 0 … "
            f"{len(numbers) - 1} are labels, others need {prompts.CLASSNAMES_FILE} there, one name a line in "
            "the folders' order"
        )
    return numbers


def _own_names(names: Sequence[str], folder: Path) -> tuple[str, ...] | None:
    """What the folders' names say about the classes; None where they name none."""
    ids = [imagenet.is_wnid(n) for n in names]
    if all(ids):
        return imagenet.class_names(names, folder)
    if any(ids):
        stray = names[ids.index(False)]
        raise ValueError(f"{folder}: class folders are WordNet ids, but {stray} is none; move it away")
    if all(_NAMELESS.fullmatch(n) for n in names):
        return None
    return tuple(n.replace("_", " ") for n in _without_numbers(names))


def _without_numbers(names: Sequence[str]) -> Sequence[str]:
    """The names without what numbers the classes: 1_cat, 2_dog; Stanford Dogs', CUB-200's, Caltech-256's."""
    counted, numbered = ([m for n in names if (m := form.fullmatch(n))] for form in (_COUNTED, _NUMBERED))
    bare: Sequence[str] = names
    if sorted(int(m[1]) for m in counted) in ([*range(len(names))], [*range(1, len(names) + 1)]):
        bare = [m[2] for m in counted]
    elif len(numbered) == len(names):
        bare = [m[1] for m in numbered]
    return bare if len({*bare}) == len(names) else names  # 1 apple, 2 apples, 3 apples are names


def _labelled(entry: Entry, names: list[str], folder: Path, profile: str | None):
    """(prompts, label of each class folder, notes); ValueError where the names do not settle the labels."""
    whose = "imagenetv2" if imagenet.is_v2(entry.key) else entry.prompts  # any of its samplings
    known = prompts.known_classnames(whose)
    listed = (folder / prompts.CLASSNAMES_FILE).is_file() and (profile is None or known is None)
    own = None if listed or known else _own_names(names, folder)
    if not (listed or known or own):
        raise ValueError(
            f"{folder}: class folders are numbered ({names[0]}, …), which names no class; put "
            f"{prompts.CLASSNAMES_FILE} there, one name a line in the order of the numbers, "
            "or choose other sets with --datasets"
        )
    shared = imagenet.wnids(entry.key) is not None
    labels = imagenet.labels(entry.key, names, folder) if shared else list(range(len(names)))
    loaded = imagenet.named(prompts.load(whose, folder, own, profile, by_list=not shared), folder)
    if len(loaded.classes) != len(names):
        raise ValueError(f"{folder}: {len(names)} class folders but {len(loaded.classes)} class names")
    if shared or loaded.classes == own:
        return loaded, labels, ()
    if all(n.isdecimal() for n in names):
        return loaded, _by_numbers(names, folder, listed), ()
    labels, called = _by_names(imagenet.translated(names), loaded.classes, folder)
    if called == len(names):
        return loaded, labels, ()
    if listed:
        _check_order(names, folder)
        return loaded, labels, ()
    alike = sum(_plain(n) in _plain(loaded.classes[i]) for n, i in zip(names, labels))
    if 2 * alike < len(names):
        raise ValueError(
            f"{folder}: {len(names) - alike} of {len(names)} class folders are not called as {entry.key}'s "
            f"classes ({names[0]}, …; {loaded.classes[0]!r}, …), so nothing tells which is which; call them "
            f"so, or put {prompts.CLASSNAMES_FILE} there, one name a line in the folders' order"
        )
    _check_order(names, folder)
    note = f"labels follow the order of the folders: {len(names) - called} of {len(names)} are not called as "
    return loaded, labels, (f"{note}their class ({names[0]}: {loaded.classes[labels[0]]!r}, …)",)


# -- reading --------------------------------------------------------------------------------------


def _not_read(listings: Sequence[Listing]) -> list[str]:
    """What lies beside the images, counted and named."""
    out = []
    other = sum((inside.other for inside in listings), Counter[str]())
    if broken := sum(len(inside.broken) for inside in listings):
        other["links to nowhere"] = broken
    folders = [f"{f.parent.name}/{f.name}" for inside in listings for f in inside.folders]
    if hidden := sum(inside.hidden for inside in listings):
        out.append(f"{hidden} {HIDDEN}")
    if other:
        kinds = shown([f"{n} {suffix}" for suffix, n in sorted(other.items(), key=lambda x: (-x[1], x[0]))])
        out.append(f"{other.total()} files not read: {kinds}")
    if folders:
        out.append(f"{len(folders)} folders inside class folders not read: {shown(folders)}")
    return out


def _only_in_train(folder: Path, place: Path, classes: dict[Path, Listing]) -> list[str]:
    """Classes that lie beside a split that lacks them: they are not among the answers."""
    train, here = folder / "train", {f.name for f in classes}
    if place == folder or not train.is_dir():
        return []
    there = [f.name for f in Listing.of(train).folders]
    more = [name for name in there if name not in here]
    if not more or here.isdisjoint(there):
        return []
    return [
        f"{len(more)} classes of train/ are not in {place.name}/, so not among the answers: {shown(more)}"
    ]


def entry_of(folder: Path) -> Entry:
    """The catalog's entry by the folder's name, or by that of the folder above `val`, `test`, `images`."""
    named = next((f for f in (folder, *folder.parents) if f.name.lower() not in (*_SPLITS, "images")), folder)
    return catalog.entry_for(catalog.name_of(named))


def _read_classes(
    folder: Path, place: Path, classes: dict[Path, Listing], profile: str | None, entry: Entry
) -> ClassificationSet:
    foreign = [f.name for f in classes if any("\udc80" <= c <= "\udcff" for c in f.name)]
    if foreign:
        raise ValueError(f"{place}: the name of class folder {ascii(foreign[0])} is not UTF-8; rename it")
    loaded, labels, notes = _labelled(entry, [f.name for f in classes], folder, profile)
    members = [Member.whole(p) for inside in classes.values() for p in inside.images]
    counts = [len(inside.images) for inside in classes.values()]
    around = Listing.of(place)
    if around.broken:
        raise ValueError(f"{around.broken[0]}: a link to nowhere; a class may be missing; mend or remove it")
    beside = Listing(hidden=around.hidden)
    if around.images:
        beside.other["images outside class folders"] = len(around.images)
    notes = [*notes, *_not_read([beside, *classes.values()]), *_only_in_train(folder, place, classes)]
    splits = [f.name for f in _places(folder, PLACES) if f.name.lower() in _SPLITS]
    others = [name for name in splits if place.name in splits and name != place.name]
    if others:
        notes.append(f"{place.name}/ is what is read, not {' and '.join(others)}/")
    label = np.repeat(np.array(labels, np.int64), counts)
    return ClassificationSet(
        entry, folder, SOURCES[0], FileImages(members), label, loaded, notes=tuple(notes)
    )


def _read_flat(folder: Path, place: Path, files: list[Path], profile: str | None) -> ClassificationSet:
    """ILSVRC's or tiny-imagenet's validation images in one folder, labelled by the file that names them."""
    entry = entry_of(folder)
    ids, source = imagenet.flat_labels(place, files, folder)
    classes = imagenet.wnids(entry.key) or tuple(sorted({*ids}))
    own = imagenet.class_names(classes, source.parent)
    loaded = prompts.load(entry.prompts, folder, own, profile)
    number = {wnid: i for i, wnid in enumerate(classes)}
    if foreign := sorted({*ids} - number.keys()):
        raise ValueError(f"{source}: {foreign[0]} is none of {entry.key}'s classes")
    if len(loaded.classes) != len(classes):
        raise ValueError(
            f"{folder}: {len(classes)} classes in {source.name} but {len(loaded.classes)} class names"
        )
    images = FileImages([Member.whole(p) for p in files])
    label = np.array([number[i] for i in ids], np.int64)
    origin = source if source != place else f"the images' names in {place}"
    notes = (f"labels from {origin}", *_not_read([Listing.of(place)]))
    return ClassificationSet(entry, folder, SOURCES[1], images, label, loaded, notes=notes)


def _places(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of `names` that are there, also as Kaggle spells them: Test, Validation."""
    spelt = {f.name.lower(): f for f in Listing.of(folder).folders}
    places = [spelt.get(p, folder / p) for p in names]
    return [place for place in places if place.is_dir()]


def read(folder: Path, profile: str | None = None) -> ClassificationSet | None:
    """The set of class folders in `folder` or one of its `PLACES`, or the flat validation folder; or None.

    Raises ValueError where a class's label is not settled by names.
    """
    for place in _places(folder, PLACES):
        if (classes := _classes_in(place)) is not None:
            return _read_classes(folder, place, classes, profile, entry_of(folder))
        files = Listing.of(place).images
        if files and all(imagenet.is_flat_name(f.name) for f in files):
            return _read_flat(folder, place, files, profile)
    return None


def read_training(folder: Path, profile: str | None = None) -> ClassificationSet | None:
    """The class folders of the training split beside what `read` reads; None where there is none."""
    for place in _places(folder, TRAINING):
        if (classes := _classes_in(place)) is not None:
            return _read_classes(folder, place, classes, profile, catalog.training(entry_of(folder)))
    return None
