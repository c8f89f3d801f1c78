"""torchvision's raw data sets, PCAM, ObjectNet and PASCAL VOC 2007's single objects, as they lie on disk.

torchvision's own classes find and check the files; here they only give up their file lists or
arrays, so that images are decoded once and by our threads.  The sets whose test split exists only
as tars (EuroSAT, RESISC45, Caltech-101, CLEVR, KITTI) are not guessed at.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np

from eval.sets import catalog, prompts
from eval.sets.catalog import CLASSIFICATION_TASK
from eval.sets.evalset import (
    ArrayImages,
    Box,
    ClassificationSet,
    CroppedImages,
    FileImages,
    Member,
    StoredImages,
    image_files,
)

# catalog key → (torchvision class, its arguments for the test split, the folder it makes under its root)
TORCHVISION: dict[str, tuple[str, dict[str, Any], str]] = {
    "cifar10": ("CIFAR10", {"train": False}, "cifar-10-batches-py"),
    "vtab/cifar100": ("CIFAR100", {"train": False}, "cifar-100-python"),
    "vtab/dtd": ("DTD", {"split": "test", "partition": 1}, "dtd"),
    "vtab/flowers": ("Flowers102", {"split": "test"}, "flowers-102"),
    "vtab/pets": ("OxfordIIITPet", {"split": "test"}, "oxford-iiit-pet"),
    "vtab/svhn": ("SVHN", {"split": "test"}, "test_32x32.mat"),
    "cars": ("StanfordCars", {"split": "test"}, "stanford_cars"),
    "food101": ("Food101", {"split": "test"}, "food-101"),
    "fgvc_aircraft": ("FGVCAircraft", {"split": "test"}, "fgvc-aircraft-2013b"),
    "country211": ("Country211", {"split": "test"}, "country211"),
    "gtsrb": ("GTSRB", {"split": "test"}, "gtsrb"),
    "renderedsst2": ("RenderedSST2", {"split": "test"}, "rendered-sst2"),
    "stl10": ("STL10", {"split": "test"}, "stl10_binary"),
}


def _contents(dataset: Any) -> tuple[Any, np.ndarray]:
    """(list of files, or uint8 images (N, H, W, 3)) and labels (N,) of a torchvision set."""
    for files, labels in (("_image_files", "_labels"), ("_images", "_labels")):
        if hasattr(dataset, files):
            return [Path(f) for f in getattr(dataset, files)], np.asarray(getattr(dataset, labels), np.int64)
    for pairs in ("samples", "_samples"):
        if hasattr(dataset, pairs):
            rows = getattr(dataset, pairs)
            return [Path(f) for f, _ in rows], np.array([label for _, label in rows], np.int64)
    images = np.asarray(dataset.data)
    if images.ndim == 4 and images.shape[1] == 3:  # SVHN and STL-10 hold planes
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.asarray(
        dataset.targets if hasattr(dataset, "targets") else dataset.labels, np.int64
    )


def _read_torchvision(key: str, folder: Path, profile: str | None) -> ClassificationSet | None:
    from torchvision import datasets

    cls, arguments, inside = TORCHVISION[key]
    root = next((r for r in (folder, folder.parent) if (r / inside).exists()), None)
    if root is None:
        return None
    try:
        dataset = getattr(datasets, cls)(str(root), download=False, **arguments)
    except (RuntimeError, OSError, ImportError, KeyError) as error:
        raise ValueError(f"{root / inside}: torchvision cannot read it as {cls} ({error})") from None
    contents, labels = _contents(dataset)
    images = (
        FileImages([Member.whole(f) for f in contents])
        if isinstance(contents, list)
        else ArrayImages(contents, root / inside)
    )
    entry = catalog.entry_for(key, CLASSIFICATION_TASK)
    own = getattr(dataset, "classes", None)
    if own is not None and key == "food101":
        own = [c.replace("_", " ") for c in own]
    loaded = prompts.load(entry.prompts, folder, own, profile)
    return ClassificationSet(entry, folder, f"torchvision {cls}", images, labels, loaded)


def _read_pcam(folder: Path, profile: str | None) -> ClassificationSet | None:
    """PatchCamelyon's test split, two HDF5 files as its authors (and torchvision) keep them."""
    names = [f"camelyonpatch_level_2_split_test_{which}.h5" for which in "xy"]
    base = next((b for b in (folder, folder / "pcam") if all((b / name).is_file() for name in names)), None)
    if base is None:
        return None
    try:
        import h5py
    except ImportError:
        raise ValueError(
            f"{base}: HDF5 files need h5py: pip install h5py, or this project with its extra pcam"
        ) from None
    try:
        images, labels = (h5py.File(base / name)[which] for name, which in zip(names, "xy"))
        labels = np.asarray(labels, np.int64).reshape(-1)
    except (OSError, KeyError) as error:
        raise ValueError(f"{base}: not PCAM's HDF5 files ({error})") from None
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(images) != len(labels):
        raise ValueError(
            f"{base}: {len(labels)} labels, and images {images.shape} of {images.dtype}; "
            "PCAM has as many, (N, 96, 96, 3) of uint8"
        )
    entry = catalog.entry_for("vtab/pcam", CLASSIFICATION_TASK)
    loaded = prompts.load(entry.prompts, folder, None, profile)
    stored = StoredImages(images, base / names[0])
    return ClassificationSet(entry, folder, "PCAM's HDF5", stored, labels, loaded)


def _read_objectnet(folder: Path, profile: str | None) -> ClassificationSet | None:
    """ObjectNet's 113 classes that ImageNet shares, labelled as clip-benchmark does."""
    names_file = folder / "folder_to_objectnet_label.json"
    shared_file = folder / "objectnet_to_imagenet_1k.json"
    place = folder / "objectnet-1.0" / "images"
    if not (names_file.is_file() and shared_file.is_file() and place.is_dir()):
        return None
    try:
        names = json.loads(names_file.read_text())
        folder_of = {name: sub for sub, name in names.items()}
        used = sorted(folder_of[name] for name in json.loads(shared_file.read_text()))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: {names_file.name} and {shared_file.name} do not fit ({error!r})"
        ) from None
    members: list[Member] = []
    labels: list[int] = []
    for label, sub in enumerate(used):
        files = image_files(place / sub)
        members += map(Member.whole, files)
        labels += [label] * len(files)
    own = [names[sub].lower() for sub in used]
    loaded = prompts.load("objectnet", folder, own, profile)
    entry = catalog.entry_for("objectnet", CLASSIFICATION_TASK)
    images, numbers = FileImages(members), np.array(labels, np.int64)
    return ClassificationSet(entry, folder, "objectnet", images, numbers, loaded)


def _voc_objects(path: Path) -> list[tuple[str | None, Box]]:
    """(class, box) of every object."""
    try:
        return [(o.findtext("name"), _box(o)) for o in ElementTree.parse(path).findall("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: not an annotation of VOC's ({error})") from None


def _box(voc_object: ElementTree.Element) -> Box:
    """Its sides are read by name, since their order varies."""
    left, top, right, bottom = (
        int(voc_object.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return left, top, right, bottom


def _read_voc2007(folder: Path, profile: str | None) -> ClassificationSet | None:
    """Each object of VOC 2007's test images cut out by its box; crops of one image form a group."""
    base = folder / "VOC2007" if (folder / "VOC2007").is_dir() else folder / "VOCdevkit" / "VOC2007"
    listing = base / "ImageSets" / "Main" / "aeroplane_test.txt"
    if not listing.is_file():
        return None
    number = {c: i for i, c in enumerate(prompts.packaged()["classnames"]["voc2007"])}
    paths, boxes, labels, groups = [], [], [], []
    for group, line in enumerate(listing.read_text().split("\n")):
        if not line.strip():
            continue
        name = line.split()[0]
        for label, box in _voc_objects(base / "Annotations" / f"{name}.xml"):
            if label not in number:
                raise ValueError(f"{base}: {name}.xml has a {label!r}, which is none of VOC's 20 classes")
            paths.append(base / "JPEGImages" / f"{name}.jpg")
            boxes.append(box)
            labels.append(number[label])
            groups.append(group)
    loaded = prompts.load("voc2007", folder, None, profile)
    images = CroppedImages(paths, boxes)
    entry = catalog.entry_for("voc2007", CLASSIFICATION_TASK)
    numbers, group_numbers = np.array(labels, np.int64), np.array(groups, np.int64)
    return ClassificationSet(entry, folder, "VOCdevkit", images, numbers, loaded, group_numbers)


def read(folder: Path, profile: str | None = None) -> ClassificationSet | None:
    """The raw set in this folder, or None when the folder is none of them.

    Raises ValueError when torchvision finds the folder but not a whole set in it.
    """
    entry = catalog.find(catalog.name_of(folder))
    key = entry.key if entry is not None else None
    if key is None:
        key = next((k for k, (_, _, inside) in TORCHVISION.items() if folder.name == inside), None)
    evalset = _read_torchvision(key, folder, profile) if key in TORCHVISION else None
    for reader in (_read_pcam, _read_objectnet, _read_voc2007):
        evalset = evalset or reader(folder, profile)
    return evalset
