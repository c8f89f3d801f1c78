"""The training split beside a set, read by the same code as its test split."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from eval.sets import catalog, rawsets, sources
from tests.kits.eval import CLASSES, class_folders, encoded, pictures, write_webdataset


def _training(folder):
    return sources.read_training(sources.read_folder(folder))


def test_webdatasets(tmp_path, images):
    folder = write_webdataset(tmp_path / "wds_beasts", images, [i % 4 for i in range(12)], CLASSES, shards=2)
    assert _training(folder) is None
    (folder / "test").rename(folder / "train")
    write_webdataset(folder, images[:4], [3, 2, 1, 0], CLASSES)
    found = _training(folder)
    assert found.labels.tolist() == [i % 4 for i in range(12)] and len(found.images) == 12
    assert found.images.members[0].path == folder / "train" / "0.tar"
    (folder / "train" / "1.tar").unlink()
    with pytest.raises(ValueError, match="train/1.tar: missing, .*train/nshards.txt announces 2 shard"):
        _training(folder)


def test_only_test_images_are_counted(tmp_path, images):
    """The catalog knows how many test images a set has, and how many classes."""
    folder = write_webdataset(tmp_path / "wds_vtab-pcam", images, [i % 2 for i in range(12)], CLASSES[:2])
    (folder / "test").rename(folder / "train")
    write_webdataset(folder, images, [i % 2 for i in range(12)], CLASSES[:2])
    with pytest.raises(ValueError, match="vtab/pcam has 32768 test images"):
        sources.read_folder(folder)
    assert len(sources.read_webdataset(folder, split="train").images) == 12


@pytest.mark.parametrize("train", ["train", "Train", "training"])
def test_class_folders(tmp_path, picture, train):
    class_folders(tmp_path / "beasts" / "test", ["ant", "bee"], picture)
    assert _training(tmp_path / "beasts") is None
    class_folders(tmp_path / "beasts" / train, ["ant", "bee", "cat"], picture, 2)
    found = _training(tmp_path / "beasts")
    assert found.prompts.classes == ("ant", "bee", "cat") and found.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_class_folders_by_wordnet_ids_beside_a_flat_folder(tmp_path, picture):
    """As ILSVRC is unpacked; labels by id, whichever of them are there."""
    base = tmp_path / "imagenet-100"
    names = ("n01440764", "n01443537")
    for i, name in enumerate(names):
        (base / "train" / name).mkdir(parents=True)
        (base / "train" / name / "a.JPEG").write_bytes(picture)
        (base / "val").mkdir(exist_ok=True)
        (base / "val" / f"ILSVRC2012_val_0000000{i}_{name}.JPEG").write_bytes(picture)
    assert sources.read_folder(base).source == "flat folder"
    assert _training(base).prompts.classes == ("tench", "goldfish")


def _write_idx(folder, prefix, count):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return images


@pytest.mark.parametrize("inside", ["", "raw"])
def test_mnists_files(tmp_path, any_count, inside):
    place = tmp_path / "mnist" / inside
    _write_idx(place, "t10k", 10)
    assert _training(tmp_path / "mnist") is None
    images = _write_idx(place, "train", 20)
    found = _training(tmp_path / "mnist")
    assert found.entry.key == "mnist" and len(found.images) == 20
    assert np.array_equal(np.asarray(found.images[7])[..., 0], images[7])


def test_torchvisions_training_and_validation_splits_as_one(tmp_path, any_count):
    """Rendered SST2: CLIP's paper trains on both.  torchvision's own classes tell which images they are."""
    base = tmp_path / "rendered-sst2"
    for split, folder, count in (("train", "train", 3), ("val", "valid", 2), ("test", "test", 1)):
        for name in ("negative", "positive"):
            (base / folder / name).mkdir(parents=True)
            for i in range(count):
                (base / folder / name / f"{split}{i}.png").write_bytes(encoded(pictures(1, seed=i)[0]))
    from torchvision.datasets import RenderedSST2

    theirs = [sample for split in ("train", "val") for sample in RenderedSST2(str(tmp_path), split)._samples]
    found = _training(base)
    assert [(str(m.path), label) for m, label in zip(found.images.members, found.labels.tolist())] == theirs
    assert len(theirs) == 10


def test_torchvisions_set_without_its_training_files(tmp_path, any_count):
    pytest.importorskip("scipy")
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    savemat(
        tmp_path / "test_32x32.mat",
        {"X": rng.integers(0, 256, (32, 32, 3, 4), np.uint8), "y": np.ones((4, 1))},
    )
    folder = tmp_path.rename(tmp_path.with_name("svhn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torchvision.datasets.svhn.check_integrity",
            lambda path, *_: (folder / "test_32x32.mat").samefile(path),
        )
        assert len(sources.read_folder(folder).images) == 4
        patch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: False)
        assert rawsets.read(folder, training=True) is None


def test_every_set_of_torchvisions_has_training_arguments():
    assert rawsets.TRAINING.keys() == rawsets.TORCHVISION.keys()
    both = {key for key, parts in rawsets.TRAINING.items() if len(parts) == 2}  # CLIP's paper, table 9
    assert both == {"vtab/dtd", "vtab/flowers", "country211", "renderedsst2"}
    assert {part["partition"] for part in rawsets.TRAINING["vtab/dtd"]} == {1}
    assert rawsets.TRAINING["vtab/pets"] == rawsets.TRAINING["fgvc_aircraft"] == ({"split": "trainval"},)
    entries = {entry.key: entry for entry in catalog.ENTRIES}
    assert all(catalog.training(entries[key]).samples is None for key in rawsets.TRAINING)


def test_vocs_objects(tmp_path, any_count):
    base = tmp_path / "voc2007" / "VOC2007"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (base / folder).mkdir(parents=True)
    for split, names in (("test", ["1"]), ("trainval", ["2", "3"])):
        (base / "ImageSets" / "Main" / f"aeroplane_{split}.txt").write_text(
            "".join(f"{n} -1\n" for n in names)
        )
        for n in names:
            box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
            (base / "Annotations" / f"{n}.xml").write_text(
                f"<annotation><object><name>cat</name>{box}</object></annotation>"
            )
            (base / "JPEGImages" / f"{n}.jpg").write_bytes(encoded(Image.new("RGB", (20, 20)), "jpeg"))
    found = _training(tmp_path / "voc2007")
    assert [m.path.stem for m in found.images.members] == ["2", "3"] and found.groups.tolist() == [0, 1]
