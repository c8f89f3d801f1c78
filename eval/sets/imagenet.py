"""ImageNet's classes by WordNet id: whose label is whose in the sets that share its 1,000 classes.

No order is trusted: a label comes from the name of an image's folder, or from a file that names every
image.  Numbers alone say nothing, since ILSVRC's own (1 … 1000) and the sorted ones (0 … 999) differ.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from eval.sets import prompts

_WNID = re.compile(r"n\d{8}", re.IGNORECASE)
_WHOLE = ("imagenet1k", "imagenet_sketch")  # label = place among the 1,000 sorted WordNet ids


def is_wnid(name: str) -> bool:
    return _WNID.fullmatch(name) is not None


def is_v2(key: str) -> bool:
    """ImageNetV2, any of its three samplings: distributed with folders 0 … 999, which are the labels."""
    return re.match(r"imagenet[-_]?v2", key.lower()) is not None


def wnids(key: str) -> tuple[str, ...] | None:
    """The WordNet ids of a catalogued set in label order; None where they do not name its classes."""
    known = prompts.packaged()
    if key in _WHOLE or is_v2(key):
        return tuple(known["imagenet_wnids"])
    subset = known["imagenet_subsets"].get(key)
    return None if subset is None else tuple(known["imagenet_wnids"][i] for i in subset)


def labels(key: str, names: Sequence[str], where: Path) -> list[int]:
    """The label of each class folder of one of ImageNet's sets; ValueError unless the names settle it."""
    if is_v2(key) and all(n.isdecimal() for n in names):
        if {*names} != {str(i) for i in range(1000)}:
            raise ValueError(f"{where}: {len(names)} numbered class folders; {key} has 0 … 999")
        return [int(n) for n in names]
    known = wnids(key)
    assert known is not None, f"{key} is none of ImageNet's sets"
    number = {wnid: i for i, wnid in enumerate(known)}
    foreign = [n for n in names if n not in number]
    if foreign and foreign[0].isdecimal():
        raise ValueError(
            f"{where}: class folders are numbered ({foreign[0]}, …), and numbers do not tell {key}'s "
            "classes (ILSVRC's 1 … 1000 are in another order than 0 … 999); name them by WordNet id"
        )
    if foreign:
        raise ValueError(
            f"{where}: {len(foreign)} of {len(names)} class folders are none of {key}'s {len(number)} "
            f"WordNet ids (first: {foreign[0]}); another folder name evaluates it as a set of its own"
        )
    missing = [w for w in number if w not in {*names}]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {key}'s {len(number)} class folders are missing (first: "
            f"{missing[0]}); another folder name evaluates it as a set of its own"
        )
    return [number[n] for n in names]


# -- names --------------------------------------------------------------------------------------

_NAMES_FILES = ("words.txt", "synset_words.txt", "LOC_synset_mapping.txt", "Labels.json")


def _names_beside(folder: Path) -> dict[str, str]:
    """{WordNet id: its first name} from the file that tiny-imagenet, Kaggle or Caffe put beside the data."""
    places = (base / name for base in (folder, folder.parent) for name in _NAMES_FILES)
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        return {}
    text = prompts.read_text(path)
    if path.suffix == ".json":
        try:
            rows = list(json.loads(text).items())
        except (json.JSONDecodeError, AttributeError) as error:
            raise ValueError(f"{path}: an object of WordNet ids and names is expected ({error})") from None
    else:
        rows = [line.split(None, 1) for line in text.splitlines() if len(line.split(None, 1)) == 2]
    return {wnid: str(names).split(",")[0].strip() for wnid, names in rows}


def translated(names: Sequence[str]) -> list[str]:
    """ImageNet's names for WordNet ids, anything else as it is."""
    known = dict(zip(prompts.packaged()["imagenet_wnids"], prompts.known_classnames("imagenet1k") or ()))
    return [known.get(n, n) for n in names]


def class_names(names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Names of classes given by WordNet id: ImageNet's where it has them, else those beside the data.

    Raises ValueError naming the first that neither knows.
    """
    classes = translated(names)
    if any(map(is_wnid, classes)):
        beside = _names_beside(folder)
        classes = [beside.get(n, n) for n in classes]
    unknown = [n for n in classes if is_wnid(n)]
    if unknown:
        raise ValueError(
            f"{folder}: {len(unknown)} of {len(names)} classes are WordNet ids that are none of ImageNet's "
            f"1,000 (first: {unknown[0]}); put {prompts.CLASSNAMES_FILE} there, one name a line in the order "
            f"of the ids, or {_NAMES_FILES[0]}, lines of an id and its names"
        )
    return tuple(classes)


def named(loaded: prompts.Prompts, folder: Path) -> prompts.Prompts:
    """The prompts with `class_names` in place of WordNet ids, which a list beside the data may hold, alone or
    before names as in synset_words.txt; other names are left as they are."""
    ids = [(name.split() or [""])[0] for name in loaded.classes]
    classes = ids if all(map(is_wnid, ids)) else loaded.classes
    return replace(loaded, classes=class_names(classes, folder))


# -- the flat validation folder ----------------------------------------------------------------------

_FLAT = re.compile(r"(ILSVRC2012_val_\d{8}|val_\d+)(?:_(n\d{8}))?\.jpe?g", re.IGNORECASE)


def is_flat_name(name: str) -> bool:
    """An image's name in ILSVRC's or tiny-imagenet's validation folder, which holds no class folders."""
    return _FLAT.fullmatch(name) is not None


def _solution(path: Path) -> dict[str, str]:
    """Kaggle's: ImageId, then the WordNet id and boxes."""
    rows = list(csv.reader(prompts.read_text(path).splitlines()))[1:]
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}


def _annotations(path: Path) -> dict[str, str]:
    """tiny-imagenet's: file name, WordNet id, box; with tabs between."""
    rows = [line.split() for line in prompts.read_text(path).splitlines()]
    return {Path(row[0]).stem: row[1] for row in rows if len(row) >= 2}


def _in_order(ids: Sequence[str]) -> dict[str, str]:
    return {f"ILSVRC2012_val_{i:08d}": wnid for i, wnid in enumerate(ids, 1)}


def _synset_labels(path: Path) -> dict[str, str]:
    """TensorFlow's: a WordNet id a line, by the images' numbers."""
    return _in_order(prompts.read_text(path).split())


def _ground_truth(path: Path) -> dict[str, str]:
    """The development kit's: ILSVRC2012_ID a line, by the images' numbers; meta.mat beside says whose."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise ValueError(f"{path}: its numbers are ILSVRC2012_IDs; the kit's meta.mat must lie beside it")
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnid = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
        return _in_order([wnid[int(n)] for n in prompts.read_text(path).split()])
    except (MatReadError, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not readable together with {meta.name} ({error!r})") from None


LABEL_FILES: dict[str, Callable[[Path], dict[str, str]]] = {
    "LOC_val_solution.csv": _solution,
    "val_annotations.txt": _annotations,
    "imagenet_2012_validation_synset_labels.txt": _synset_labels,
    "ILSVRC2012_validation_ground_truth.txt": _ground_truth,
}


def flat_labels(place: Path, files: Sequence[Path], folder: Path) -> tuple[list[str], Path]:
    """(the WordNet id of each image, the file that says so) of the flat validation folder `place`.

    files: its images; `is_flat_name` is true of each.
    The file is looked for in `place`, `folder` and above them, also in the development kit's folders;
    images that have the id in their names, as Hugging Face's, need none: then it is `place` that says so.
    Raises ValueError when there is none, or it leaves an image out.
    """
    named = [match[2] for f in files if (match := _FLAT.fullmatch(f.name))]
    if all(named):
        return named, place
    bases = dict.fromkeys((place, place.parent, folder, folder.parent))
    kits = [base / sub for base in bases for sub in (".", "data", "ILSVRC2012_devkit_t12/data")]
    path = next((kit / name for name in LABEL_FILES for kit in kits if (kit / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"{place}: {len(files)} images of a validation set, in no class folders; sort them into "
            f"folders named by WordNet id, or put their labels there: {', '.join(LABEL_FILES)}"
        )
    known = LABEL_FILES[path.name](path)
    unknown = [f.name for f in files if not is_wnid(known.get(f.stem, ""))]
    if unknown:
        raise ValueError(
            f"{path}: no WordNet id for {len(unknown)} of {place}'s images (first: {unknown[0]})"
        )
    return [known[f.stem] for f in files], path
