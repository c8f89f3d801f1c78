"""Raw sets as their authors distribute them."""

from __future__ import annotations

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from eval.sets import catalog, prompts, rawsets, sources
from eval.sets.evalset import ArrayImages, Unreadable
from tests.kits.eval import encoded, pictures

# -- the other forms ---------------------------------------------------------


def _idx(path, array):
    data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_idx(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    array = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    _idx(folder / "t10k-images-idx3-ubyte.gz", array)
    _idx(folder / "t10k-labels-idx1-ubyte", np.array([0, 1, 2, 1, 0], np.uint8))
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    one = sources.read_folder(folder)
    assert one.labels.tolist() == [0, 1, 2, 1, 0] and one.images[3].mode == "RGB"
    assert (np.asarray(one.images[3])[..., 0] == array[3]).all()
    digits = folder.rename(tmp_path / "fashion-mnist")
    names = prompts.known_classnames("fashion-mnist")
    (digits / "classnames.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(ValueError, match="the field's class names in another order"):
        sources.read_folder(digits)
    folder = digits.rename(folder)
    _idx(folder / "t10k-labels-idx1-ubyte", np.array([0, 1], np.uint8))
    with pytest.raises(ValueError, match="5 images but 2 labels"):
        sources.read_folder(folder)


def test_torchvision_cifar(tmp_path):
    """A CIFAR-10 of torchvision's own layout; its fewer images are noticed."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / "cifar10" / "cifar-10-batches-py"
    base.mkdir(parents=True)
    data = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
    (base / "test_batch").write_bytes(pickle.dumps(data))
    names = {"label_names": list("abcdefghij")}
    (base / "batches.meta").write_bytes(pickle.dumps(names))

    def md5(name):
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "test_list", [["test_batch", md5("test_batch")]])
        patch.setattr(CIFAR10, "train_list", [])
        patch.setattr(
            CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5("batches.meta")}
        )
        with pytest.raises(ValueError, match="cifar10 has 10000 test images, 4 are here"):
            sources.read_folder(tmp_path / "cifar10")


def test_objectnet_and_voc(tmp_path, images, monkeypatch):
    monkeypatch.setattr(catalog, "check_counts", lambda *a: None)
    objectnet = tmp_path / "objectnet"
    for sub, image in zip(("chair", "air_freshener", "unused"), images):
        place = objectnet / "objectnet-1.0" / "images" / sub
        place.mkdir(parents=True)
        (place / "1.png").write_bytes(image)
    names = {"chair": "Chair", "air_freshener": "Air freshener", "unused": "Unused"}
    (objectnet / "folder_to_objectnet_label.json").write_text(json.dumps(names))
    shared = {"Chair": "folding chair", "Air freshener": "x"}
    (objectnet / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    one = sources.read_folder(objectnet)
    assert one.prompts.classes == ("air freshener", "chair") and one.labels.tolist() == [0, 1]

    voc = tmp_path / "voc2007" / "VOCdevkit" / "VOC2007"
    for sub in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (voc / sub).mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "aeroplane_test.txt").write_text("000001 -1\n000002  1\n")
    for n, boxes in (
        ("000001", [("dog", 1, 2, 11, 12), ("cat", 0, 0, 5, 5)]),
        ("000002", [("aeroplane", 3, 3, 9, 8)]),
    ):
        (voc / "JPEGImages" / f"{n}.jpg").write_bytes(encoded(pictures(1)[0], "jpeg"))
        things = ""
        for name, *box in boxes:
            sides = ("xmin", "ymin", "xmax", "ymax")
            corners = "".join(f"<{side}>{v}</{side}>" for side, v in zip(sides, box))
            things += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        (voc / "Annotations" / f"{n}.xml").write_text(f"<annotation>{things}</annotation>")
    one = sources.read_folder(tmp_path / "voc2007")
    assert one.labels.tolist() == [11, 7, 0] and one.groups.tolist() == [0, 0, 1]
    assert one.images[0].size == (10, 10) and one.images[2].size == (6, 5)


# -- finding ---------------------------------------------------------


def _write_pcam(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """HDF5 files as PatchCamelyon's authors keep them."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    folder.mkdir(parents=True)
    for which, data in (("x", images), ("y", labels.reshape(-1, 1, 1, 1))):
        with h5py.File(folder / f"camelyonpatch_level_2_split_test_{which}.h5", "w") as file:
            file.create_dataset(which, data=data, chunks=True, compression="gzip")


def test_pcam_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 96, 96, 3), dtype=np.uint8), np.array([0, 1, 1, 0, 1], np.uint8)
    _write_pcam(tmp_path / "pcam", images, labels)
    with pytest.raises(ValueError, match="vtab/pcam has 32768 test images, 5 are here"):
        sources.read_folder(tmp_path / "pcam")
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)
    from torchvision.datasets import PCAM

    theirs = PCAM(str(tmp_path), split="test")
    for folder in (tmp_path / "pcam", tmp_path):  # the folder itself, or the root that torchvision is given
        found = rawsets._read_pcam(folder, None, False)
        assert len(found.images) == len(theirs) == 5 and found.prompts.classes[0] == "lymph node"
        for i, (image, label) in enumerate(theirs):
            assert np.array_equal(found.images[i], image) and found.labels[i] == label
    stamp, identity = found.images.stamp(), found.images.identity()
    assert identity == ArrayImages(images, tmp_path).identity()
    os.utime(found.images.where, (1, 1))
    assert found.images.stamp() != stamp and found.images.identity() == identity


def test_a_damaged_pcam_is_one_line(tmp_path, monkeypatch):
    _write_pcam(tmp_path / "pcam", np.zeros((2, 96, 96, 3), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="3 labels, and images"):
        rawsets.read(tmp_path / "pcam")
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    _write_pcam(tmp_path / "bad" / "pcam", images, np.zeros(3, np.uint8))
    x = tmp_path / "bad" / "pcam" / "camelyonpatch_level_2_split_test_x.h5"
    whole = x.read_bytes()
    x.write_bytes(whole[:-20_000] + bytes(20_000))  # inside the last picture, the last thing in the file
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)
    found = rawsets._read_pcam(x.parent, None, False)
    with pytest.raises(ValueError, match="test_x.h5: not readable"):
        found.images.identity()
    with pytest.raises(Unreadable, match="test_x.h5, image 2: not readable"):
        found.images[2]
    (tmp_path / "pcam" / "camelyonpatch_level_2_split_test_x.h5").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="not PCAM's HDF5 files"):
        rawsets.read(tmp_path / "pcam")


# -- tars as people hold them ---------------------------------------------------------


@pytest.mark.parametrize(
    "images_, labels, message",
    [
        (b"\0\0\x08\x03\0\0", None, "not in MNIST's idx format"),
        (None, b"\0\0\x08\x01", "not in MNIST's idx format"),
        (b"\0\0\x08\x02" + struct.pack(">2I", 2, 4) + bytes(8), None, r"\(N, H, W\), \(N\) are expected"),
        (None, b"", "not in MNIST's idx format"),
        (None, "absent", "t10k-labels-idx1-ubyte is missing"),
    ],
)
def test_damaged_idx_files_are_one_line(tmp_path, images_, labels, message):
    place = tmp_path / "kmnist"
    place.mkdir()
    sound = b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(8)
    (place / "t10k-images-idx3-ubyte").write_bytes(images_ or sound)
    if labels != "absent":
        some = b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes(2)
        (place / "t10k-labels-idx1-ubyte").write_bytes(some if labels is None else labels)
    with pytest.raises(ValueError, match=message):
        sources.read_folder(place)


def test_damaged_annotations_are_one_line(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2007"
    for part in ("ImageSets/Main", "Annotations"):
        (base / part).mkdir(parents=True)
    (base / "ImageSets/Main/aeroplane_test.txt").write_text("000001 -1\n")
    sides = "<xmax>9</xmax><xmin>1</xmin><ymin>2</ymin><ymax>8</ymax>"
    thing = "<annotation><object><name>{}</name><bndbox>{}</bndbox></object></annotation>"
    file = base / "Annotations/000001.xml"
    for text, message in (
        ("<annotation><object>", "000001.xml: not an annotation of VOC's"),
        (thing.format("dog", sides[:15]), "000001.xml: not an annotation of VOC's"),
        (thing.format("sofabed", sides), "'sofabed', which is none of VOC's 20 classes"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            rawsets.read(tmp_path / "VOCdevkit")
    file.write_text(thing.format("dog", sides))
    assert rawsets._voc_objects(file) == [("dog", (1, 2, 9, 8))]  # whatever the order of the sides
