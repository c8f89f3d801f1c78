"""torchvision's raw data sets, MNIST's files, PCAM, ObjectNet, VOC 2007's objects, as they lie on disk.

torchvision's own classes find and check the files; here they only give up their file lists or
arrays, so that images are decoded once and by our threads.  The sets whose test split exists only
as tars (EuroSAT, RESISC45, Caltech-101, CLEVR, KITTI) are not guessed at.
"""

from __future__ import annotations

import gzip
import json
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.sets import catalog, prompts
from eval.sets.classfolders import Listing
from eval.sets.evalset import (
    ArrayImages,
    Box,
    ClassificationSet,
    CroppedImages,
    FileImages,
    Images,
    Member,
    StoredImages,
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
# Its arguments for what may be learned from: CLIP's paper, table 9, trains on the validation split too.
_WITH_VAL: tuple[dict[str, Any], ...] = ({"split": "train"}, {"split": "val"})
TRAINING = {
    "cifar10": ({"train": True},),
    "vtab/cifar100": ({"train": True},),
    "vtab/dtd": tuple(a | {"partition": 1} for a in _WITH_VAL),
    "vtab/flowers": _WITH_VAL,
    "vtab/pets": ({"split": "trainval"},),
    "fgvc_aircraft": ({"split": "trainval"},),
    "country211": ({"split": "train"}, {"split": "valid"}),
    "renderedsst2": _WITH_VAL,
} | dict.fromkeys(("vtab/svhn", "cars", "food101", "gtsrb", "stl10"), _WITH_VAL[:1])


def _made(
    key: str,
    folder: Path,
    form: str,
    images: Images,
    labels: Sequence[int] | np.ndarray,
    profile: str | None,
    training: bool,
    own: Sequence[str] | None = None,
    groups: np.ndarray | None = None,
) -> ClassificationSet:
    """The set of that key (or name), or its training split; own: what the data call its classes."""
    entry = catalog.training(catalog.entry_for(key)) if training else catalog.entry_for(key)
    loaded = prompts.load(entry.prompts, folder, own, profile)
    return ClassificationSet(entry, folder, form, images, np.asarray(labels, np.int64), loaded, groups)


# -- torchvision's ------------------------------------------------------------------------------


def _first(dataset: Any, *names: str) -> Any:
    """The first of these attributes that it has; None if it has none."""
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)


def _contents(dataset: Any, where: Path) -> tuple[Images, Any]:
    """The images and labels (N,) of a torchvision set, of which none is decoded."""
    files = _first(dataset, "_image_files", "_images")
    labels = _first(dataset, "_labels", "targets", "labels")
    pairs = _first(dataset, "samples", "_samples")
    if pairs is not None:
        files, labels = [file for file, _ in pairs], [label for _, label in pairs]
    if files is not None:
        return FileImages([Member.whole(Path(file)) for file in files]), labels
    images = np.asarray(dataset.data)
    if images.ndim == 4 and images.shape[1] == 3:  # SVHN and STL-10 hold planes
        images = images.transpose(0, 2, 3, 1)
    return ArrayImages(np.ascontiguousarray(images), where), labels


def _read_torchvision(folder: Path, profile: str | None, training: bool) -> ClassificationSet | None:
    entry = catalog.find(catalog.name_of(folder))
    if entry is not None:
        key = entry.key
    else:
        key = next((k for k, (_, _, inside) in TORCHVISION.items() if folder.name == inside), "")
    if key not in TORCHVISION:
        return None
    cls, arguments, inside = TORCHVISION[key]
    root = next((r for r in (folder, folder.parent) if (r / inside).exists()), None)
    if root is None:
        return None
    from torchvision import datasets

    splits = TRAINING[key] if training else (arguments,)
    try:
        parts = [getattr(datasets, cls)(str(root), download=False, **split) for split in splits]
    except (RuntimeError, OSError, ImportError, KeyError) as error:
        if training and isinstance(error, (RuntimeError, OSError)):  # it does not tell absent from damaged
            return None
        raise ValueError(f"{root / inside}: torchvision cannot read it as {cls} ({error})") from None
    own = getattr(parts[0], "classes", None)
    if own is not None and key == "food101":
        own = [c.replace("_", " ") for c in own]
    images, labels = _joined([_contents(part, root / inside) for part in parts])
    return _made(key, folder, f"torchvision {cls}", images, labels, profile, training, own)


def _joined(parts: Sequence[tuple[Images, Any]]) -> tuple[Images, Any]:
    """Several splits of files as one; a split of arrays is always alone."""
    if len(parts) == 1:
        return parts[0]
    members: list[Member] = []
    for images, _ in parts:
        assert isinstance(images, FileImages)
        members += images.members
    return FileImages(members), np.concatenate([np.asarray(labels) for _, labels in parts])


# -- others' ------------------------------------------------------------------------------------

_IDX = "images-idx3-ubyte", "labels-idx1-ubyte"


def _idx(folder: Path, name: str) -> np.ndarray:
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    if not path.is_file():
        raise ValueError(f"{folder}: {name} is missing, and {name}.gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not readable ({error})") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path}: not in MNIST's idx format")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != int(np.prod(shape)):
        raise ValueError(f"{path}: holds {body.size} bytes where its header announces {shape}")
    return body.reshape(shape)


def _read_idx(folder: Path, profile: str | None, training: bool) -> ClassificationSet | None:
    """MNIST or Fashion-MNIST; the folder's name says which (of `raw` in it, too)."""
    places = (folder, folder / "raw")
    of_images, of_labels = (f"{'train' if training else 't10k'}-{name}" for name in _IDX)
    place = next((p for p in places for end in ("", ".gz") if (p / f"{of_images}{end}").is_file()), None)
    if place is None:
        return None
    named = folder.parent if folder.name == "raw" else folder
    images, labels = _idx(place, of_images), _idx(place, of_labels)
    if images.ndim != 3 or labels.ndim != 1:
        raise ValueError(
            f"{place}: images {images.shape}, labels {labels.shape}; (N, H, W), (N) are expected"
        )
    if len(images) != len(labels):
        raise ValueError(f"{place}: {len(images)} images but {len(labels)} labels")
    return _made(catalog.name_of(named), place, "idx", ArrayImages(images, place), labels, profile, training)


def _read_pcam(folder: Path, profile: str | None, training: bool) -> ClassificationSet | None:
    """PatchCamelyon, a split in two HDF5 files as its authors (and torchvision) keep them."""
    split = "train" if training else "test"
    names = [f"camelyonpatch_level_2_split_{split}_{which}.h5" for which in "xy"]
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
    stored = StoredImages(images, base / names[0])
    return _made("vtab/pcam", folder, "PCAM's HDF5", stored, labels, profile, training)


def _read_objectnet(folder: Path, profile: str | None, training: bool) -> ClassificationSet | None:
    """ObjectNet's 113 classes that ImageNet shares, labelled as clip-benchmark does; test images only."""
    names_file = folder / "folder_to_objectnet_label.json"
    shared_file = folder / "objectnet_to_imagenet_1k.json"
    place = folder / "objectnet-1.0" / "images"
    if training or not (names_file.is_file() and shared_file.is_file() and place.is_dir()):
        return None
    try:
        names = json.loads(names_file.read_text())
        folder_of = {name: sub for sub, name in names.items()}
        used = sorted(folder_of[name] for name in json.loads(shared_file.read_text()))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: {names_file.name} and {shared_file.name} do not fit ({error!r})"
        ) from None
    found = [Listing.of(place / sub).images for sub in used]
    images = FileImages([Member.whole(file) for files in found for file in files])
    labels = np.repeat(range(len(used)), [len(files) for files in found])
    own = [names[sub].lower() for sub in used]
    return _made("objectnet", folder, "objectnet", images, labels, profile, training, own)


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


def _read_voc2007(folder: Path, profile: str | None, training: bool) -> ClassificationSet | None:
    """Each object of VOC 2007's images cut out by its box; crops of one image form a group."""
    base = folder / "VOC2007" if (folder / "VOC2007").is_dir() else folder / "VOCdevkit" / "VOC2007"
    listing = base / "ImageSets" / "Main" / f"aeroplane_{'trainval' if training else 'test'}.txt"
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
    images = CroppedImages(paths, boxes)
    of_image = np.array(groups, np.int64)
    return _made("voc2007", folder, "VOCdevkit", images, labels, profile, training, groups=of_image)


def read(folder: Path, profile: str | None = None, training: bool = False) -> ClassificationSet | None:
    """The raw set in this folder, or its training split; None when the folder is none of them, or has none.

    Raises ValueError when its files are there but no whole set.
    """
    readers = (_read_idx, _read_torchvision, _read_pcam, _read_objectnet, _read_voc2007)
    each = (reader(folder, profile, training) for reader in readers)
    return next((found for found in each if found is not None), None)
