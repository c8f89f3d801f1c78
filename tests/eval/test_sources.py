"""Reading evaluation sets: every form on disk, and everything that can be wrong with them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from eval.crops import Cache
from eval.sets import catalog, evalset, prompts, rawsets, sources
from eval.sets.evalset import ArrayImages, FileImages, Unreadable
from pipeline.formats import tars
from tests.kits.eval import encoded, pictures, write_tar, write_webdataset

CLASSES = ["cat", "dog", "", "fish"]


@pytest.fixture
def images() -> list[bytes]:
    return [encoded(p) for p in pictures(12)]


@pytest.fixture
def folder(tmp_path, images):
    return write_webdataset(tmp_path / "wds_beasts", images, [i % 4 for i in range(12)], CLASSES, shards=3)


# -- the catalog ---------------------------------------------------------


def test_catalog_is_the_papers():
    assert len(catalog.CLASSIFICATION) == 29 and len(catalog.CAPTIONS) == 2
    sizes = {f: sum(e.family == f for e in catalog.CLASSIFICATION) for f in catalog.FAMILIES}
    assert list(sizes.values()) == [1, 6, 12, 4, 6]
    assert sum(e.samples for e in catalog.CLASSIFICATION) == 413_108


@pytest.mark.parametrize(
    "name, key",
    [
        ("wds_vtab-clevr_count_all", "vtab/clevr_count_all"),
        ("wds_vtab-dtd_test", "vtab/dtd"),
        ("wds_imagenet_sketch", "imagenet_sketch"),
        ("ImageNetV2-matched-frequency", "imagenetv2"),
        ("wds_fer2013", None),
    ],
)
def test_catalog_finds_folders(name, key):
    found = catalog.find(name)
    assert (found.key if found else None) == key


def test_wrong_count_names_both_numbers(tmp_path, images):
    folder = write_webdataset(tmp_path / "wds_vtab-dtd", images, [0] * 12, ["a"])
    with pytest.raises(ValueError, match="vtab/dtd has 1880 test images, 12 are here"):
        sources.read_webdataset(folder)


def test_class_list_of_another_length_names_both_numbers(tmp_path, images, monkeypatch):
    folder = write_webdataset(tmp_path / "wds_vtab-dtd", images, [0] * 12, ["a"] * 46)
    short = dataclasses.replace(catalog.find("vtab/dtd"), samples=12)
    monkeypatch.setattr(catalog, "entry_for", lambda *_: short)
    with pytest.raises(ValueError, match="vtab/dtd has 47 classes, 46 are listed here"):
        sources.read_webdataset(folder)


def test_datacomps_names():
    """Those its aggregate_scores.py looks for, of the sets that the paper has."""
    wanted = {
        "ImageNet 1k", "ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R",
        "ObjectNet", "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures",
        "EuroSAT", "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon",
        "RESISC45", "SVHN", "Flickr", "MSCOCO",
    }  # fmt: skip
    known = dict(map(catalog.datacomp, catalog.CLASSIFICATION + catalog.CAPTIONS))
    assert wanted <= set(known.values())
    assert known["retrieval/flickr_1k_test_image_text_retrieval"] == "Flickr"
    assert known["retrieval/mscoco_2014_5k_test_image_text_retrieval"] == "MSCOCO"


def test_select_families():
    assert catalog.select(families=["retrieval"]) == {"flickr30k", "mscoco_captions"}
    assert catalog.select(datasets=["wds_vtab-dtd", "own"]) == {"vtab/dtd", "own"}
    assert catalog.select() is None
    with pytest.raises(ValueError, match="the families are ImageNet"):
        catalog.select(families=["VTAB+"])


# -- prompts ---------------------------------------------------------


def test_prompts_of_the_field():
    import open_clip

    assert prompts.known_classnames("imagenet_sketch") == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert len(prompts.known_classnames("imagenet-a")) == 200
    assert prompts.known_classnames("clevr_closest_object_distance")[3] == ""
    assert prompts.known_classnames("svhn", "datacomp") == tuple("0123456789")
    assert prompts.known_classnames("svhn", "clip_benchmark")[0] == "zero"
    assert prompts.known_templates("svhn", "datacomp") == ('a photo of the number: "{c}".',)
    assert len(prompts.known_templates("nothing-known")) == 80
    for entry in catalog.CLASSIFICATION:
        names = prompts.known_classnames(entry.prompts)
        assert names is None or len(names) == entry.classes, entry.key


def test_files_beside_the_data_win_and_the_profile_is_named(tmp_path):
    (tmp_path / "classnames.txt").write_text("\n".join("0123456789") + "\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text('a photo of the number: "{c}".\n')
    assert prompts.load("svhn", tmp_path, None, None).profile == "beside the data (equal to datacomp)"
    forced = prompts.load("svhn", tmp_path, None, "clip_benchmark")
    assert forced.classes[0] == "zero" and forced.profile == "clip_benchmark"
    fashion = prompts.load("fashion-mnist", tmp_path / "none", None, None)
    assert fashion.classes[0] == "T-shirt/top" and fashion.profile == prompts.NO_TEMPLATES


@pytest.mark.parametrize(
    "line",
    ["a photo", "a {d}", "a {c", "{0}", 'lambda c: f"a photo of {c}."', '"a photo of {c}.",', "f'{c}'"],
)
def test_bad_template_is_named(line):
    with pytest.raises(ValueError, match="line 2"):
        prompts.checked_templates(["{c}", line], "templates.txt")


def test_templates_that_nobody_gave_are_said(tmp_path):
    (tmp_path / "classnames.txt").write_text("cat\ndog")
    profile = prompts.load("beasts", tmp_path, None, None).profile
    assert profile == f"class names beside the data, {prompts.NO_TEMPLATES}"


def test_open_clip_templates_are_taken():
    assert prompts.checked_templates(["a {}."], "t") == ("a {c}.",)


# -- webdataset folders ---------------------------------------------------------


def test_webdataset(folder, images):
    one = sources.read_webdataset(folder)
    assert one.entry.key == "beasts" and one.entry.family == "Other"
    assert one.labels.tolist() == [i % 4 for i in range(12)]
    assert one.prompts.classes == tuple(CLASSES)  # the empty name is kept
    assert [one.images.read(i) for i in range(12)] == images
    assert one.prompts.texts()[:3] == ["a picture of a cat.", "cat", "a picture of a dog."]


def test_index_is_remembered_until_the_tar_changes(folder, tmp_path, images):
    cache = Cache(tmp_path / "cache")
    first = sources.read_webdataset(folder, cache=cache)
    again = sources.read_webdataset(folder, cache=cache)
    assert again.images.members == first.images.members and again.labels.tolist() == first.labels.tolist()
    write_webdataset(folder, images[::-1], [0] * 12, CLASSES, shards=3)
    assert sources.read_webdataset(folder, cache=cache).labels.tolist() == [0] * 12


def test_identity_is_of_the_pictures(folder, tmp_path, images):
    other = write_webdataset(tmp_path / "wds_other", images, [0] * 12, ["x"], shards=1)
    changed = write_webdataset(tmp_path / "wds_changed", images[::-1], [0] * 12, ["x"])
    ids = [sources.read_webdataset(f).images.identity() for f in (folder, other, changed)]
    assert ids[0] == ids[1] != ids[2]


def _rewrite(folder, name, data):
    members = []
    import tarfile

    with tarfile.open(folder / "test" / "0.tar") as tar:
        for member in tar:
            members.append((member.name, data if member.name == name else tar.extractfile(member).read()))
    write_tar(folder / "test" / "0.tar", [m for m in members if m[1] is not None])


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("000001.cls", b"7", "member 000001.png: label 7 is out of range for 4 class names"),
        ("000001.cls", b"-1", "label -1 is out of range"),
        ("000001.cls", b"dog", "its .cls holds 'dog'"),
        ("000001.cls", b"\xff", "not UTF-8"),
        ("000001.cls", None, r"sample 000001: \.cls is missing"),
        ("000001.png", None, "sample 000001: an image is missing"),
    ],
)
def test_bad_member_is_named(folder, name, data, message):
    _rewrite(folder, name, data)
    with pytest.raises(ValueError, match=message):
        sources.read_webdataset(folder)


def test_damaged_shards(folder):
    tar = folder / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"1\.tar.*(cut short|not a whole tar)"):
        sources.read_webdataset(folder)
    tar.unlink()
    with pytest.raises(ValueError, match=r"1\.tar: missing, .*nshards.txt announces 3"):
        sources.read_webdataset(folder)
    (folder / "test" / "nshards.txt").write_text("many")
    with pytest.raises(ValueError, match="'many' is no number of shards"):
        sources.read_webdataset(folder)


def test_unreadable_image_is_named(folder):
    _rewrite(folder, "000002.png", b"not a picture")
    one = sources.read_webdataset(folder)
    with pytest.raises(Unreadable, match=r"0\.tar, member 000002\.png"):
        one.images[2]


def test_retrieval_folder(tmp_path, images):
    texts = [["one", "two"], ["three"], ["", "four"]]
    folder = write_webdataset(tmp_path / "wds_words", images[:3], texts)
    one = sources.read_webdataset(folder)
    assert one.captions == [["one", "two"], ["three"], ["four"]]  # a blank line is no caption, as in a .beton
    assert one.entry.task == catalog.RETRIEVAL_TASK and one.notes == ("1 blank captions left out",)
    write_webdataset(folder, images[:2], [["a"], ["", " "]])
    with pytest.raises(ValueError, match="member 000001.png: its caption file is empty"):
        sources.read_webdataset(folder)


def test_multilabel_is_refused(folder):
    (folder / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(ValueError, match="multilabel"):
        sources.read_webdataset(folder)


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


def test_class_folders(tmp_path, images):
    for number, name in enumerate(["10", "9", "1"]):
        for i in range(2):
            place = tmp_path / "numbers" / "test" / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes(images[2 * number + i])
    with pytest.raises(ValueError, match=r"numbered \(1, …\), which names no class; put classnames.txt"):
        sources.read_folder(tmp_path / "numbers")
    (tmp_path / "numbers" / "classnames.txt").write_text("one\nnine\nten\n")
    one = sources.read_folder(tmp_path / "numbers")
    assert one.prompts.classes == ("one", "nine", "ten")  # by value, not by spelling
    assert [one.images.read(i) for i in range(6)] == [images[i] for i in (4, 5, 2, 3, 0, 1)]
    (tmp_path / "numbers" / "classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="3 class folders but 2 class names"):
        sources.read_folder(tmp_path / "numbers")


COCO = {
    "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
    "annotations": [
        {"image_id": 7, "caption": "b1"},
        {"image_id": 3, "caption": "a1"},
        {"image_id": 7, "caption": "b2"},
    ],
}
PLAIN = [{"file": "a.png", "captions": ["a1"]}, {"file": "b.png", "captions": ["b1", "b2"]}]
KARPATHY = {
    "images": [
        {"filepath": "val2014", "filename": "a.png", "split": "test", "sentences": [{"raw": "a1"}]},
        {"filepath": "val2014", "filename": "c.png", "split": "train", "sentences": [{"raw": "c1"}]},
        {
            "filepath": "val2014",
            "filename": "b.png",
            "split": "test",
            "sentences": [{"raw": "b1"}, {"raw": "b2"}],
        },
    ]
}


@pytest.mark.parametrize(
    "name, content",
    [
        ("coco_test_karpathy.json", json.dumps(COCO)),
        ("dataset_coco.json", json.dumps(KARPATHY)),
        ("captions.json", json.dumps(PLAIN)),
    ],
)  # fmt: skip
def test_caption_files(tmp_path, images, name, content):
    folder = tmp_path / "some-captions"
    (folder / "val2014").mkdir(parents=True)
    for n, image in zip("ab", images):
        (folder / "val2014" / f"{n}.png").write_bytes(image)
    (folder / name).write_text(content)
    one = sources.read_folder(folder)
    assert one.captions == [["a1"], ["b1", "b2"]] and [one.images.read(i) for i in (0, 1)] == images[:2]
    for bad in ("a text", [None], [3], None):
        (folder / "captions.json").write_text(json.dumps([{"file": "a.png", "captions": bad}]))
        with pytest.raises(ValueError, match="the captions of a.png are .*, a list of texts is expected"):
            sources.read_captions(folder, folder / "captions.json")
    (folder / "captions.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="captions.json: not UTF-8 text"):
        sources.read_captions(folder, folder / "captions.json")
    (folder / name).write_text(content)
    (folder / "val2014" / "b.png").unlink()
    with pytest.raises(ValueError, match="b.png is in no folder"):
        sources.read_folder(folder)


def test_captions_of_blip_and_pictures_in_two_places(tmp_path, images):
    place = tmp_path / "blip"
    for sub in ("val2014", "small"):
        (place / sub).mkdir(parents=True)
    (place / "val2014" / "a.png").write_bytes(images[0])
    rows = [{"image": "val2014/a.png", "caption": ["one", "two"]}]
    (place / "coco_karpathy_test.json").write_text(json.dumps(rows))
    assert sources.read_folder(place).captions == [["one", "two"]]
    (place / "coco_karpathy_test.json").write_text(json.dumps([{"image": "a.png", "caption": ["one"]}]))
    (place / "small" / "a.png").symlink_to(place / "val2014" / "a.png")
    assert len(sources.read_folder(place).images) == 1  # the same file
    (place / "small" / "a.png").unlink()
    (place / "small" / "a.png").write_bytes(images[1])
    with pytest.raises(ValueError, match="a.png is both .*small/a.png and .*val2014/a.png"):
        sources.read_folder(place)
    (place / "coco_karpathy_test.json").unlink()
    (place / "dataset_coco.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="no picture with captions in it"):
        sources.read_folder(place)


def test_flickr_lines(tmp_path, images):
    folder = tmp_path / "flickr-like"
    folder.mkdir()
    for n in "12":
        (folder / f"{n}.jpg").write_bytes(images[0])
    lines = ["image,caption", "1.jpg,one, with a comma", "2.jpg,two", "1.jpg,again"]
    file = folder / "flickr30k_test_karpathy.txt"
    file.write_text("\n".join(lines))
    assert sources.read_folder(folder).captions == [["one, with a comma", "again"], ["two"]]
    file.write_text("image,caption\n1.png one")
    with pytest.raises(ValueError, match="line 2: NAME.jpg,CAPTION"):
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


def test_discover(tmp_path, images, folder):
    write_webdataset(tmp_path / "wds_emoji-names", images[:3], [0, 1, 2], ["a", "b", "c"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing here")
    assert [s.entry.key for s in sources.discover(tmp_path)] == ["emoji-names", "beasts"]
    assert [s.entry.key for s in sources.discover(tmp_path, {"beasts"})] == ["beasts"]
    assert [s.entry.key for s in sources.discover(folder)] == ["beasts"]
    with pytest.raises(ValueError, match="no evaluation set in it among vtab/dtd"):
        sources.discover(tmp_path, {"vtab/dtd"})
    shutil.copytree(folder, tmp_path / "beasts")
    with pytest.raises(ValueError, match="both hold beasts"):
        sources.discover(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        sources.discover(tmp_path / "nowhere")


def test_files_are_read_by_many_threads(tmp_path, images):
    from concurrent.futures import ThreadPoolExecutor

    folder = write_webdataset(tmp_path / "wds_x", images, [0] * 12, ["a"])
    files: FileImages = sources.read_webdataset(folder).images
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(files.read, [i % 12 for i in range(200)])) == [
            images[i % 12] for i in range(200)
        ]


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
        found = rawsets._read_pcam(folder, None)
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
    found = rawsets._read_pcam(x.parent, None)
    with pytest.raises(ValueError, match="test_x.h5: not readable"):
        found.images.identity()
    with pytest.raises(Unreadable, match="test_x.h5, image 2: not readable"):
        found.images[2]
    (tmp_path / "pcam" / "camelyonpatch_level_2_split_test_x.h5").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="not PCAM's HDF5 files"):
        rawsets.read(tmp_path / "pcam")


# -- tars as people hold them ---------------------------------------------------------


def _tar_set(folder: Path, *shards: bytes) -> Path:
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for n, data in enumerate(shards):
        (folder / "test" / f"{n}.tar").write_bytes(data)
    (folder / "test" / "nshards.txt").write_text(str(len(shards)))
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    return folder


def _tar(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    write_tar(path, members)
    return path.read_bytes()


def test_repeated_keys_joined_tars_and_hidden_members(tmp_path, images):
    """Every sample, once, with its own label; what macOS adds is none."""
    twice = [("a.png", images[0]), ("a.cls", b"0"), ("a.png", images[1]), ("a.cls", b"1")]
    mac = [("._b.png", b"x"), ("b.png", images[2]), ("._b.cls", b"x"), ("b.cls", b"\xef\xbb\xbf2")]
    joined = _tar(tmp_path / "1.tar", twice) + _tar(tmp_path / "2.tar", mac)
    folder, cache = _tar_set(tmp_path / "wds_x", joined), Cache(tmp_path / "cache")
    for _ in range(2):  # also as it is remembered
        one = sources.read_webdataset(folder, cache=cache)
        assert one.notes[0] == f"2 {evalset.HIDDEN}"
    assert one.labels.tolist() == [0, 1, 2] and [one.images.read(i) for i in range(3)] == images[:3]


def test_what_another_reader_found_is_not_used(tmp_path, images, monkeypatch):
    folder, cache = (
        _tar_set(tmp_path / "wds_x", _tar(tmp_path / "1.tar", _labelled(images))),
        Cache(tmp_path / "c"),
    )
    assert sources.read_webdataset(folder, cache=cache).labels.tolist() == [0, 1]
    index = next((tmp_path / "c" / "index").iterdir())
    index.write_text(json.dumps({"samples": [], "hidden": 0, "more": 0}))
    monkeypatch.setattr(tars, "VERSION", tars.VERSION + 1)
    assert sources.read_webdataset(folder, cache=cache).labels.tolist() == [0, 1]


def _labelled(images) -> list[tuple[str, bytes]]:
    return [("a.png", images[0]), ("a.cls", b"0"), ("b.png", images[1]), ("b.cls", b"1")]


def test_what_tars_hold_besides_is_told(tmp_path, images):
    members = [*_labelled(images)[:1], ("a.jpg", images[2]), *_labelled(images)[1:]]
    folder = _tar_set(tmp_path / "wds_x", _tar(tmp_path / "1.tar", members))
    (folder / "classnames.txt").write_text("cat\ndog\nfox\nDog\n")
    assert sources.read_webdataset(folder).notes == (
        "1 further pictures of a sample not read",
        "2 classes without a picture, still among the answers: fox, Dog",
        "1 names are shared by classes, which no model can tell apart: dog",
    )


def test_captions_of_the_first_line_and_blank_ones(tmp_path, images):
    """A list without a header loses no caption; a half character is named."""
    place = tmp_path / "mine"
    place.mkdir()
    for name in "12":
        (place / f"{name}.jpg").write_bytes(images[0])
    lines = ["1.jpg,a dog", "1.jpg,a cat", "2.jpg,x, y", "2.jpg, "]
    for head in ([], ["image,caption"]):
        (place / "x_test_karpathy.txt").write_text("\n".join(head + lines))
        one = sources.read_folder(place)
        assert one.captions == [["a dog", "a cat"], ["x, y"]] and one.notes == ("1 blank captions left out",)
    (place / "x_test_karpathy.txt").unlink()
    (place / "captions.json").write_text('[{"file": "1.jpg", "captions": ["\\ud83d"]}]')
    with pytest.raises(ValueError, match=r"captions.json: a caption of 1.jpg has half a character"):
        sources.read_folder(place)


def test_a_picture_with_a_row_a_caption_is_one_picture(tmp_path, images):
    place = tmp_path / "mine"
    place.mkdir()
    for name in "12":
        (place / f"{name}.jpg").write_bytes(images[0])
    rows = [("1.jpg", ["a"]), ("2.jpg", ["b"]), ("1.jpg", ["c"])]
    (place / "captions.json").write_text(json.dumps([{"file": f, "captions": c} for f, c in rows]))
    assert sources.read_folder(place).captions == [["a", "c"], ["b"]]
    (place / "dataset_mine.json").write_text((place / "captions.json").read_text())
    assert sources.read_folder(place).notes == ("captions from dataset_mine.json, not captions.json",)
    (place / "dataset_mine.json").unlink()
    twice = {"images": [{"id": 1, "file_name": f} for f, _ in rows[:2]], "annotations": []}
    for content, message in (
        (twice, "2 images, but 1 ids"),
        ([{"file": 1, "captions": ["a"]}], "1 is no picture's name"),
        ([{"file": "", "captions": ["a"]}], "'' is no picture's name"),
    ):
        (place / "captions.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"captions.json: .*{message}"):
            sources.read_folder(place)


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


def test_marks_in_small_files(tmp_path, images):
    folder = write_webdataset(tmp_path / "wds_x", images[:2], [["a"], ["b"]])
    for name in ("test/nshards.txt", "dataset_type.txt"):
        (folder / name).write_text("\ufeff" + (folder / name).read_text(), encoding="utf-8")
    assert sources.read_folder(folder).captions == [["a"], ["b"]]


def test_a_damaged_set_of_a_family_asked_for_ends_the_run(tmp_path, images):
    """Also where its folder has another name than the catalog, or lies above."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "captions.json").write_text("[{")
    write_webdataset(tmp_path / "wds_flickr", images[:2], [["a"], ["b"]])
    with pytest.raises(ValueError, match="captions.json: not captions"):
        sources.discover(tmp_path, catalog.select(families=["Retrieval"]))


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


def test_tars_that_cannot_be_read_by_place_are_one_line(tmp_path, images):
    members = [("a.png", images[0]), ("b.png", images[1]), ("a.cls", b"0"), ("b.cls", b"1")]
    plain = _tar(tmp_path / "1.tar", members)
    with pytest.raises(ValueError, match=r"0\.tar, sample a: .*pack it anew with tar --sort=name"):
        sources.read_webdataset(_tar_set(tmp_path / "wds_x", plain))
    with pytest.raises(ValueError, match=r"0\.tar: gzip inside; unpack it first \(gunzip\)"):
        sources.read_webdataset(_tar_set(tmp_path / "wds_y", gzip.compress(plain)))
    broken = bytearray(plain)
    broken[-10240 + 600 :] = b"\1" * (10240 - 600)
    with pytest.raises(ValueError, match=r"0\.tar, member .*: not a whole tar"):
        sources.read_webdataset(_tar_set(tmp_path / "wds_z", bytes(broken)))


def test_names_that_are_not_utf8(tmp_path, images):
    members = [("caf\udce9.png", images[0]), ("caf\udce9.cls", b"3")]
    folder = _tar_set(tmp_path / "wds_x", _tar(tmp_path / "1.tar", members))
    cache = Cache(tmp_path / "cache")
    for _ in range(2):  # also as it is remembered
        one = sources.read_webdataset(folder, cache=cache)
        assert one.labels.tolist() == [3] and one.images.read(0) == images[0]
        assert one.images.stamp() and one.images.identity()
