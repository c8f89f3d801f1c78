"""Whose label is whose: class folders by name, ImageNet's forms on disk, and what is not read."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image

from eval.sets import catalog, classfolders, imagenet, prompts, sources
from eval.sets.evalset import Unreadable, is_picture
from tests.kits.eval import encoded, pictures, write_webdataset

WNIDS = prompts.packaged()["imagenet_wnids"]
NAME = dict(zip(WNIDS, IMAGENET_CLASSNAMES))


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encoded(pictures(1)[0], "jpeg")


@pytest.fixture
def any_count(monkeypatch):
    """Sets of the catalog may be small; what names say is still checked."""
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)


def folders(place: Path, names, picture: bytes, count: int = 1) -> Path:
    """`count` pictures in each class folder; they tell their folder."""
    for name in names:
        (place / name).mkdir(parents=True)
        for i in range(count):
            (place / name / f"{i}.jpg").write_bytes(picture)
    return place


def classes(one) -> dict[str, str]:
    """{class folder: the class name that its pictures are labelled with}."""
    return {
        one.images.members[i][0].parent.name: one.prompts.classes[label]
        for i, label in enumerate(one.labels.tolist())
    }


# -- ImageNet's sets ---------------------------------------------------------


@pytest.mark.parametrize(
    "name, key",
    [
        ("imagenetv2-matched-frequency-format-val", "imagenetv2"),
        ("ImageNet-V2", "imagenetv2"),
        ("imagenet-val", "imagenet1k"),
        ("ILSVRC2012_val", "imagenet1k"),
        ("imagenet_2012", "imagenet1k"),
        ("sketch", "imagenet_sketch"),
        ("imagenet-matched-frequency-format-val", "imagenetv2"),  # its other form, by WordNet id
        ("imagenetv2-threshold0.7-format-val", None),  # another sample, not the paper's set
        ("mini-imagenet", None),
    ],
)
def test_names_of_imagenets_folders(name, key):
    found = catalog.find(name)
    assert (found.key if found else None) == key


@pytest.mark.parametrize(
    "name", ["imagenetv2-matched-frequency-format-val", "imagenetv2-top-images-format-val"]
)
def test_v2_is_labelled_by_number(tmp_path, picture, any_count, name):
    place = folders(tmp_path / name, map(str, range(1000)), picture)
    one = sources.read_folder(place)
    assert classes(one) == {str(i): c for i, c in enumerate(IMAGENET_CLASSNAMES)}
    assert (one.entry.key == "imagenetv2") == ("matched" in name)


def test_v2_with_other_numbers_is_refused(tmp_path, picture, any_count):
    folders(tmp_path / "imagenetv2", map(str, range(12)), picture)
    with pytest.raises(ValueError, match="12 numbered class folders; imagenetv2 has 0 … 999"):
        sources.read_folder(tmp_path / "imagenetv2")


@pytest.mark.parametrize("key", ["imagenet1k", "imagenet-a", "imagenet-o", "imagenet-r", "imagenet_sketch"])
def test_wnids_settle_the_labels_of_imagenets_sets(tmp_path, picture, any_count, key):
    """The real order is that of the field's class list; and every other naming of the folders is refused."""
    expected = imagenet.wnids(key)
    one = sources.read_folder(folders(tmp_path / "good" / key, reversed(expected), picture))
    assert classes(one) == {w: NAME[w] for w in expected}
    assert one.prompts.classes == prompts.known_classnames(key)
    for first in (0, 1):  # the sorted numbers, and ILSVRC's
        numbers = [str(i + first) for i in range(len(expected))]
        bad = folders(tmp_path / f"numbers{first}" / key, numbers, picture)
        with pytest.raises(ValueError, match=f"numbered .*numbers do not tell {key}'s classes"):
            sources.read_folder(bad)
    other = [*expected[1:], "n99999999"]
    with pytest.raises(ValueError, match=r"1 of \d+ class folders are none of .*n99999999"):
        sources.read_folder(folders(tmp_path / "foreign" / key, other, picture))
    with pytest.raises(ValueError, match=f"class folders are missing .first: {expected[3]}"):
        sources.read_folder(folders(tmp_path / "short" / key, [*expected[:3], *expected[4:]], picture))


def test_the_200_of_one_set_are_not_those_of_another(tmp_path, picture, any_count):
    place = folders(tmp_path / "imagenet-a", imagenet.wnids("imagenet-o"), picture)
    with pytest.raises(ValueError, match="are none of imagenet-a's 200 WordNet ids"):
        sources.read_folder(place)


@given(st.lists(st.sampled_from(WNIDS), min_size=2, max_size=20, unique=True))
def test_any_subset_by_wnid_gets_its_names(chosen):
    assert imagenet.class_names(chosen, Path("/nowhere")) == tuple(NAME[w] for w in chosen)


@pytest.mark.parametrize("inside", [".", "val", "test"])
def test_a_wnid_named_subset(tmp_path, picture, inside):
    chosen = ["n02091244", "n01855672", "n04251144"]
    place = tmp_path / "mini-imagenet"
    folders(place / inside, chosen, picture, 2)
    one = sources.read_folder(place)
    assert one.entry.key == "mini-imagenet" and len(one.images) == 6
    assert classes(one) == {w: NAME[w] for w in chosen}
    assert sources.read_folder(place / inside).entry.key == "mini-imagenet"  # --data …/val


def test_wnids_that_imagenet_has_not(tmp_path, picture):
    place = folders(tmp_path / "imagenet-21k", ["n01855672", "n00004475"], picture)
    with pytest.raises(ValueError, match="1 of 2 classes are WordNet ids that are none of .*n00004475"):
        sources.read_folder(place)
    (place / "words.txt").write_text("n00004475\torganism, being\nn00001740\tentity\n")
    assert classes(sources.read_folder(place))["n00004475"] == "organism"
    (place / "words.txt").unlink()
    (place / "Labels.json").write_text(json.dumps({"n00004475": "organism, being"}))
    assert classes(sources.read_folder(place))["n00004475"] == "organism"
    (place / "classnames.txt").write_text("a being\na goose\n")  # the user's list wins, in the folders' order
    assert classes(sources.read_folder(place)) == {"n00004475": "a being", "n01855672": "a goose"}
    (place / "classnames.txt").unlink()
    with pytest.raises(ValueError, match="2 of 2 classes are WordNet ids that are none of .*N01855672"):
        sources.read_folder(folders(tmp_path / "capitals", ["N01855672", "N02091244"], picture))
    folders(place, ["spare"], picture)
    with pytest.raises(ValueError, match="WordNet ids, but spare is none"):
        sources.read_folder(place)


# -- the flat validation folder ---------------------------------------------------------

IDS = [WNIDS[i] for i in (490, 361, 171, 822)]


def _flat(place: Path, picture: bytes) -> Path:
    (place / "val").mkdir(parents=True)
    for i in range(1, 5):
        (place / "val" / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(picture)
    return place


def _devkit(folder: Path) -> None:
    """ground_truth.txt numbers by ILSVRC2012_ID, which meta.mat gives: another order than the sorted ids."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(1000)
    synsets = np.zeros(1000, [("ILSVRC2012_ID", object), ("WNID", object)])
    for row, i in enumerate(order):
        synsets[row] = (float(row + 1), WNIDS[i])
    savemat(folder / "meta.mat", {"synsets": synsets})
    number = {WNIDS[i]: row + 1 for row, i in enumerate(order)}
    lines = "\n".join(str(number[w]) for w in IDS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines + "\n")


def _labels_file(kind: str, base: Path) -> None:
    if kind == "kaggle":
        rows = [f"ILSVRC2012_val_{i:08d},{w} 1 2 3 4 {w} 5 6 7 8 " for i, w in enumerate(IDS, 1)]
        text = "\n".join(["ImageId,PredictionString", *reversed(rows)])
        (base / "LOC_val_solution.csv").write_text(text)
    elif kind == "tensorflow":
        (base / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(IDS))
    else:
        _devkit(base / "ILSVRC2012_devkit_t12" / "data")


@pytest.mark.parametrize("kind", ["kaggle", "tensorflow", "devkit"])
def test_the_flat_validation_folder(tmp_path, picture, any_count, kind):
    place = _flat(tmp_path / "imagenet1k", picture)
    with pytest.raises(ValueError, match="4 pictures of a validation set.*LOC_val_solution.csv"):
        sources.read_folder(place)
    _labels_file(kind, place)
    one = sources.read_folder(place)
    assert one.entry.key == "imagenet1k"
    assert one.labels.tolist() == [490, 361, 171, 822]
    assert one.prompts.classes == tuple(IMAGENET_CLASSNAMES) and "labels from" in one.notes[0]


def test_a_list_beside_that_would_turn_labels_round(tmp_path, picture, any_count):
    """Labels that come by WordNet id, not by the list: one in ILSVRC's order names other classes."""
    place = _flat(tmp_path / "imagenet1k", picture)
    _labels_file("tensorflow", place)
    names = list(prompts.known_classnames("imagenet1k"))
    (place / "classnames.txt").write_text("\n".join(names))
    assert sources.read_folder(place).labels.tolist() == [490, 361, 171, 822]
    (place / "classnames.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(ValueError, match="the field's class names in another order"):
        sources.read_folder(place)


def test_a_list_of_wordnet_ids_gets_names(tmp_path, picture):
    chosen = ["n02091244", "n01855672"]
    for name, more in (("wds_mini-imagenet", ""), ("wds_synsets", " tench, Tinca tinca")):
        listed = [f"{w}{more}" for w in chosen]
        place = write_webdataset(tmp_path / name, [picture] * 2, [0, 1], listed)
        assert sources.read_folder(place).prompts.classes == tuple(NAME[w] for w in chosen)
    place = folders(tmp_path / "mini", chosen, picture)
    (place / "classnames.txt").write_text("\n".join(sorted(chosen)))
    assert classes(sources.read_folder(place)) == {w: NAME[w] for w in chosen}


def test_a_ground_truth_without_its_key_is_refused(tmp_path, picture):
    place = _flat(tmp_path / "imagenet1k", picture)
    _devkit(place / "data")
    (place / "data" / "meta.mat").unlink()
    with pytest.raises(
        ValueError, match="its numbers are ILSVRC2012_IDs; the kit's meta.mat must lie beside"
    ):
        sources.read_folder(place)
    (place / "data" / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(ValueError, match="not readable together with meta.mat"):
        sources.read_folder(place)


def test_a_labels_file_that_leaves_a_picture_out(tmp_path, picture, any_count):
    place = _flat(tmp_path / "imagenet1k", picture)
    (place / "LOC_val_solution.csv").write_text(
        f"ImageId,PredictionString\nILSVRC2012_val_00000001,{IDS[0]} 1 2 3 4\n"
    )
    with pytest.raises(ValueError, match="no WordNet id for 3 of .*ILSVRC2012_val_00000002.JPEG"):
        sources.read_folder(place)


def test_tiny_imagenet_as_it_is_distributed(tmp_path, picture):
    place = tmp_path / "tiny-imagenet-200"
    (place / "val" / "images").mkdir(parents=True)
    (place / "test" / "images").mkdir(parents=True)
    folders(place / "train", ["n01855672/images", "n02091244/images"], picture)
    chosen = ["n02091244", "n01855672", "n02091244"]
    rows = []
    for i, wnid in enumerate(chosen):
        (place / "val" / "images" / f"val_{i}.JPEG").write_bytes(picture)
        (place / "test" / "images" / f"test_{i}.JPEG").write_bytes(picture)
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t1\t2\t3")
    (place / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    one = sources.read_folder(place)
    assert [one.prompts.classes[i] for i in one.labels] == [NAME[w] for w in chosen]
    assert len(one.prompts.classes) == 2


def test_pictures_that_have_the_id_in_their_names(tmp_path, picture):
    """As Hugging Face's ILSVRC val: no labels file is needed."""
    place = tmp_path / "imagenet-hf" / "val"
    place.mkdir(parents=True)
    for i, wnid in enumerate(IDS, 1):
        (place / f"ILSVRC2012_val_{i:08d}_{wnid}.JPEG").write_bytes(picture)
    one = sources.read_folder(place.parent)
    assert [one.prompts.classes[i] for i in one.labels] == [NAME[w] for w in IDS]
    assert one.notes == (f"labels from the pictures' names in {place}",)
    (place / "ILSVRC2012_val_00000005.JPEG").write_bytes(picture)
    with pytest.raises(ValueError, match="5 pictures of a validation set, in no class folders"):
        sources.read_folder(place.parent)


# -- other class folders ---------------------------------------------------------


@pytest.mark.parametrize("place", ["imagenet/images/val", "imagenet/val/images", "imagenet/images"])
def test_a_folder_within_a_set_is_the_set(tmp_path, picture, place):
    """CoOp's and Kaggle's folders, whichever of them is named."""
    folders(tmp_path / place, WNIDS[:3], picture)
    for root in (tmp_path / "imagenet", *(f for f in (tmp_path / place).parents if f.name == "images")):
        if place != "imagenet/images":
            with pytest.raises(ValueError, match="997 of imagenet1k's 1000 class folders are missing"):
                sources.read_folder(root)
    with pytest.raises(ValueError, match="997 of imagenet1k's 1000 class folders are missing"):
        sources.read_folder(tmp_path / place)


def test_the_same_letters_as_macs_write_them(tmp_path, picture):
    names = [unicodedata.normalize("NFD", "zebra éclair"), "apple"]
    place = folders(tmp_path / "food", names, picture)
    (place / "classnames.txt").write_text("zebra éclair\napple\n")
    assert classes(sources.read_folder(place)) == {names[0]: "zebra éclair", "apple": "apple"}


@given(st.permutations(range(6)), st.booleans())
def test_folders_called_as_the_classes_are_labelled_by_name(order, spelt):
    names = [f"Class_{i}" if spelt else f"class {i}" for i in sorted(range(6), key=str)]
    classes = [f"class {i}" for i in order]
    labels, called = classfolders._by_names(names, classes, Path("x"))
    assert called == 6 and [classes[i] for i in labels] == [n.lower().replace("_", " ") for n in names]


def test_a_name_that_is_another_class_is_refused():
    with pytest.raises(
        ValueError, match="class folder accordion is number 2 in order, the class .* number 1"
    ):
        classfolders._by_names(
            ["BACKGROUND_Google", "accordion", "airplanes"], ["accordion", "airplane", "x"], "d"
        )
    labels, called = classfolders._by_names(["AnnualCrop", "Forest"], ["annual crop land", "forest"], "d")
    assert labels == [0, 1] and called == 1


def test_labels_by_order_alone_are_said(tmp_path, picture, any_count):
    names = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture"]
    names += ["PermanentCrop", "Residential", "River", "SeaLake"]
    one = sources.read_folder(folders(tmp_path / "eurosat", names, picture))
    assert one.prompts.classes[3] == "highway or road" and classes(one)["Highway"] == "highway or road"
    assert "8 of 10 are not called as their class (AnnualCrop: 'annual crop land', …)" in one.notes[0]


def test_names_that_tell_nothing_are_refused(tmp_path, picture, any_count):
    """KITTI's folders sort in another order than the field's class names."""
    names = ["above_20", "below_20", "below_8", "no_vehicle"]
    place = folders(tmp_path / "vtab_kitti_closest_vehicle_distance", names, picture)
    with pytest.raises(ValueError, match="4 of 4 class folders are not called as .* nothing tells which"):
        sources.read_folder(place)
    names, far = ["above", "below", "close", "none"], ["far", "near", "beside", "no car"]
    place = folders(tmp_path / "kitti_closest_vehicle_distance", names, picture)
    (place / "classnames.txt").write_text("\n".join(far))
    assert classes(sources.read_folder(place)) == dict(zip(names, far))


@pytest.mark.parametrize("moved, refused", [(0, False), (2, True), (900, True)])
def test_a_list_of_another_order_and_other_spellings(moved, refused):
    """As ILSVRC's order would be: most of the names that both have stand elsewhere."""
    known = prompts.known_classnames("imagenet1k")
    listed = [f"{n}, an animal" if moved == 900 and i % 3 == 0 else n for i, n in enumerate(known)]
    listed[:moved] = listed[1:moved] + listed[: min(moved, 1)]
    if not refused:
        return prompts.check_order(listed, known, Path("x"))
    with pytest.raises(ValueError, match="the field's class names in another order"):
        prompts.check_order(listed, known, Path("x"))


SYSTEMS = ["__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN"]


@given(st.sets(st.sampled_from(SYSTEMS), min_size=1), st.booleans())
def test_a_systems_folders_are_no_classes(tmp_path_factory, names, deep):
    place = tmp_path_factory.mktemp("root") / "mix"
    folders(place, ["cat", "dog"], encoded(pictures(1)[0], "jpeg"))
    folders(place, [f"{n}/cat" if deep else n for n in names], encoded(pictures(1)[0], "jpeg"))
    one = sources.read_folder(place)
    assert one.prompts.classes == ("cat", "dog") and len(one.images) == 2


def test_a_train_among_vehicles_and_classes_only_in_train(tmp_path, picture):
    one = sources.read_folder(folders(tmp_path / "vehicles", ["bus", "ship", "train"], picture))
    assert one.prompts.classes == ("bus", "ship", "train")
    for split, names in (("train", ["0 deg", "180 deg", "90 deg"]), ("val", ["0 deg", "90 deg"])):
        folders(tmp_path / "turned" / split, names, picture)
    one = sources.read_folder(tmp_path / "turned")
    assert one.prompts.classes == ("0 deg", "90 deg")
    assert one.notes == ("1 classes of train/ are not in val/, so not among the answers: 180 deg",)
    assert sources.read_folder(folders(tmp_path / "contest", ["train", "test"], picture)) is None


@pytest.mark.parametrize(
    "names, classes",
    [
        (["train2014", "val2014"], False),
        (["cars_train", "cars_test"], False),
        (["trainA", "trainB", "testA", "testB"], False),
        (["JPEGImages", "SegmentationClass"], False),
        (["images", "masks"], False),
        (["ref", "p0", "p1"], False),
        (["with_mask", "without_mask"], True),
        (["bullet train", "model train"], True),
        (["images", "paintings"], True),
    ],
)
def test_parts_of_sets_are_no_classes(tmp_path, picture, names, classes):
    """COCO without its captions, segmentation, triplets: there is no "photo of a train2014"."""
    one = sources.read_folder(folders(tmp_path / "mine", names, picture))
    assert (one is not None) == classes


@pytest.mark.parametrize("train, held", [("Training", "Test"), ("train", "valid"), ("Train", "Validation")])
def test_splits_as_others_spell_them(tmp_path, picture, train, held):
    folders(tmp_path / "fruit" / train, ["apple", "pear"], picture, 3)
    folders(tmp_path / "fruit" / held, ["apple", "pear"], picture)
    one = sources.read_folder(tmp_path / "fruit")
    assert one.prompts.classes == ("apple", "pear") and len(one.images) == 2


def test_a_class_that_is_a_link_to_nowhere(tmp_path, picture):
    place = folders(tmp_path / "mix", ["cat", "dog"], picture)
    (place / "fox").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="mix/fox: a link to nowhere"):
        sources.read_folder(place)
    (place / "fox").unlink()
    (place / "cat" / "more").symlink_to("/nowhere")
    assert sources.read_folder(place).notes == ("1 files not read: 1 links to nowhere",)


def test_names_in_another_encoding(tmp_path, picture):
    place = folders(tmp_path / "mix", ["cat", "caf\udce9"], picture)
    with pytest.raises(ValueError, match=r"class folder 'caf\\udce9' is not UTF-8"):
        sources.read_folder(place)


@pytest.mark.parametrize("form", ["{}", "{:03d}", "class_{}", "c{}", "Label {}", "id-{}", "n{}"])
def test_numbers_with_a_word_before_name_no_class_either(tmp_path, picture, form):
    """As Kaggle's state-farm has c0 … c9: a figure for "a photo of a c3" would be chance."""
    place = folders(tmp_path / "mine", [form.format(i) for i in range(5)], picture)
    with pytest.raises(ValueError, match=r"class folders are numbered .* put classnames.txt there"):
        sources.read_folder(place)
    (place / "classnames.txt").write_text("\n".join(f"thing {c}" for c in "abcde"))
    assert list(classes(sources.read_folder(place)).values()) == [f"thing {c}" for c in "abcde"]


@pytest.mark.parametrize(
    "names, clear",
    [
        ([f"class_{i}" for i in range(12)], False),
        ([f"class_{i:02d}" for i in range(12)], True),
        (["Zoo", "ant", "bee"], False),
        (["ant", "bee", "zoo"], True),
        (list(map(str, range(12))), True),
    ],
)
def test_an_order_that_can_be_taken_in_two_ways(tmp_path, picture, names, clear):
    """A list of names beside folders called otherwise is in the order that its writer saw."""
    place = folders(tmp_path / "mine", names, picture)
    listed = [f"thing {'abcdefghijkl'[i]}" for i in range(len(names))]
    (place / "classnames.txt").write_text("\n".join(listed))
    if clear:
        assert classes(sources.read_folder(place)) == dict(zip(names, listed))
        return
    with pytest.raises(ValueError, match="can be taken in two ways"):
        sources.read_folder(place)
    (place / "classnames.txt").write_text("\n".join(n.replace("_", " ") for n in names))
    assert classes(sources.read_folder(place)) == {n: n.replace("_", " ") for n in names}


def test_numbered_folders_of_a_known_set(tmp_path, picture, any_count):
    good = folders(tmp_path / "GTSRB", [f"{i:05d}" for i in range(43)], picture)
    assert sources.read_folder(good).labels.tolist() == list(range(43))
    flowers = folders(tmp_path / "flowers", map(str, range(1, 103)), picture)
    with pytest.raises(ValueError, match="102 class folders, numbered 1 … 102; 0 … 101 are labels"):
        sources.read_folder(flowers)


def test_class_names_of_the_field_in_another_order(tmp_path, picture, any_count):
    place = folders(tmp_path / "imagenet-o", imagenet.wnids("imagenet-o"), picture)
    names = prompts.known_classnames("imagenet-o")
    (place / "classnames.txt").write_text("\n".join(sorted(names)))
    with pytest.raises(ValueError, match="the field's class names in another order"):
        sources.read_folder(place)
    images = [encoded(p) for p in pictures(3)]
    tars = write_webdataset(
        tmp_path / "wds_vtab-pcam", images, [0, 1, 1], prompts.known_classnames("pcam")[::-1]
    )
    assert sources.read_folder(tars).prompts.classes[1] == "lymph node"  # its own order holds within it
    with pytest.raises(ValueError, match="labels and names would not meet"):
        sources.read_folder(tars, "datacomp")


@pytest.mark.parametrize(
    "text, expected", [("\ufeffcat\ndog\n", ("cat", "dog")), ("cat\r\ndog\r\n", ("cat", "dog"))]
)
def test_marks_and_line_ends_in_class_names(tmp_path, picture, text, expected):
    place = folders(tmp_path / "beasts", ["1", "2"], picture)
    (place / "classnames.txt").write_bytes(text.encode())
    assert sources.read_folder(place).prompts.classes == expected
    (place / "classnames.txt").write_bytes(text.encode() + b"\n")
    with pytest.raises(ValueError, match="2 class folders but 3 class names"):
        sources.read_folder(place)


@pytest.mark.parametrize(
    "lines, what",
    [
        ("0 cat\n1 dog\n2 fox", "numbers before the names"),
        ("1: cat\n2: dog\n3: fox", "numbers before the names"),
        ("0\tcat\n1\tdog\n2\tfox", "numbers before the names"),
        ('["cat", "dog", "fox"]', "a list out of a program"),
        ("'cat',\n'dog',\n'fox'", "a list out of a program"),
        ("cat,\ndog,\nfox", "a list out of a program"),
        ("1 apple\n2 apples\n3 apples", None),
        ("747-200\nA320\nDR-400", None),
        ("10.5 mm\n11.5 mm\n12.5 mm", None),
    ],
)
def test_lists_of_classes_in_another_form(tmp_path, picture, lines, what):
    place = write_webdataset(tmp_path / "wds_beasts", [picture] * 3, [0, 1, 2], lines.splitlines())
    if what is None:
        assert sources.read_folder(place).prompts.classes == tuple(lines.splitlines())
        return
    with pytest.raises(ValueError, match=f"classnames.txt: {what} .*; a name alone on each line is expected"):
        sources.read_folder(place)


def test_a_tar_without_class_names(tmp_path, picture, any_count):
    place = write_webdataset(tmp_path / "wds_fashion-mnist", [picture] * 3, [0, 1, 2], ["x"])
    (place / "classnames.txt").unlink()
    said = "no classnames.txt: the labels are taken to be in the order of the field's names"
    assert said in sources.read_folder(place).notes


def test_a_blank_line_after_the_class_names_of_a_tar(tmp_path, picture):
    """It is a class if a picture has it (CLEVR's has no name), else a slip that would be one more answer."""
    for labels in ([0, 1, 2], [0, 1, 1]):
        place = tmp_path / f"wds_beasts{labels[2]}"
        write_webdataset(place, [picture] * 3, labels, ["cat", "dog", ""])
        if labels[2] == 2:
            assert sources.read_folder(place).prompts.classes == ("cat", "dog", "")
        else:
            with pytest.raises(ValueError, match="end in a blank line"):
                sources.read_folder(place)


# -- what is read, and what is not ---------------------------------------------------------

FORMATS = ["jpg", "JPEG", "jfif", "png", "bmp", "tif", "gif", "ppm", "webp", "ico", "tga", "jp2"]


def test_every_format_that_pillow_reads(tmp_path):
    place = tmp_path / "mix"
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True)
        for i, suffix in enumerate(FORMATS):
            form = Image.registered_extensions()["." + suffix.lower()]
            Image.new("RGB", (32, 32), (i, 99, 200)).save(place / name / f"{i}.{suffix}", form)
    one = sources.read_folder(place)
    assert len(one.images) == 2 * len(FORMATS) and one.notes == ()
    assert [one.images[i].size for i in range(len(one.images))] == [(32, 32)] * len(one.images)


def test_as_many_as_torchvisions_image_folder(tmp_path, picture):
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    place = folders(tmp_path / "mix", ["cat", "dog"], picture)
    for suffix in IMG_EXTENSIONS:
        (place / "cat" / f"x{suffix}").write_bytes(picture)
    theirs, one = ImageFolder(str(place)), sources.read_folder(place)
    assert len(one.images) == len(theirs) and one.labels.tolist() == theirs.targets
    assert [str(m[0]) for m in one.images.members] == [path for path, _ in theirs.samples]


def test_what_is_not_read_is_counted_and_named(tmp_path, picture):
    place = folders(tmp_path / "mix", ["cat", "dog"], picture, 2)
    (place / "cat" / "._0.jpg").write_bytes(b"Mac OS X")
    (place / "dog" / ".DS_Store").write_bytes(b"x")
    (place / "dog" / "notes.txt").write_text("x")
    (place / "dog" / "raw.heic").write_text("x")
    (place / "empty").mkdir()
    (place / "dog" / "more").mkdir()
    (place / "stray.jpg").write_bytes(picture)
    one = sources.read_folder(place)
    assert len(one.images) == 4 and one.prompts.classes == ("cat", "dog", "empty")
    assert one.notes == (
        "2 hidden files (names that begin with a dot) passed over",
        "3 files not read: 1 .heic, 1 .txt, 1 pictures outside class folders",
        "1 folders inside class folders not read: dog/more",
        "1 classes without a picture, still among the answers: empty",
    )
    assert not is_picture("._a.jpg") and is_picture("a.b.JPG") and not is_picture("jpg")


def test_splits_are_no_classes(tmp_path, picture):
    place = tmp_path / "beasts"
    for split in ("train", "test"):
        folders(place / split, ["cat", "dog"], picture)
    (place / "train" / "loose.jpg").write_bytes(picture)
    assert sources.read_folder(place).prompts.classes == ("cat", "dog")
    folders(place / "val", ["cat", "dog"], picture)
    assert "val/ is what is read, not test/" in sources.read_folder(place).notes


def test_a_root_of_sets_is_no_set_itself(tmp_path, picture):
    images = [encoded(p) for p in pictures(3)]
    write_webdataset(tmp_path / "wds_beasts", images, [0, 1, 2], ["a", "b", "c"])
    folders(tmp_path, ["flat-one", "flat-two"], picture)
    said = []
    assert [s.entry.key for s in sources.discover(tmp_path, say=said.append)] == ["beasts"]
    assert said == ["no evaluation set that is known here, passed over: flat-one, flat-two"]


def test_a_folder_of_triplets_is_no_set_of_classes(tmp_path, picture):
    folders(tmp_path / "triplets", ["ref", "distort"], picture)
    folders(tmp_path / "mix", ["cat", "dog"], picture)
    for place, names in (("triplets", "id,left_vote,right_vote,ref_path,left_path"), ("mix", "file,class")):
        (tmp_path / place / "data.csv").write_text(names)
    assert [s.entry.key for s in sources.discover(tmp_path)] == ["mix"]


def test_sets_of_captions_are_no_classes_of_their_root(tmp_path, picture):
    for place in (tmp_path / "here", tmp_path / "there"):
        folders(tmp_path, [place.name], picture, 2)
        rows = [{"file": f"{i}.jpg", "captions": [f"picture {i}"]} for i in range(2)]
        (place / "captions.json").write_text(json.dumps(rows))
    assert [s.captions for s in sources.discover(tmp_path)] == [[["picture 0"], ["picture 1"]]] * 2


def test_a_set_is_known_by_its_place(tmp_path, picture, monkeypatch):
    """`--data .`, and Hugging Face's cache, where the folder of a data set is called by its commit."""
    hub = tmp_path / "hub" / "datasets--clip-benchmark--wds_cifar10"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0f3a")
    inside = write_webdataset(hub / "snapshots" / "0f3a", [picture] * 3, [0, 1, 2], ["a", "b", "c"])
    for root in (hub.parent, hub, inside):
        with pytest.raises(ValueError, match="cifar10 has 10000 test images, 3 are here"):
            sources.discover(root)
    monkeypatch.chdir(folders(tmp_path / "pets at home", ["cat", "dog"], picture))
    assert [s.entry.key for s in sources.discover(Path("."))] == ["pets at home"]


def test_a_link_to_nowhere_is_one_unreadable_image(tmp_path, picture):
    from eval.crops import Cache

    place = folders(tmp_path / "mix", ["cat", "dog"], picture)
    os.symlink("/nowhere.jpg", place / "dog" / "b.jpg")
    one = sources.read_folder(place)
    assert len(one.images) == 3
    before = one.images.stamp(), Cache(tmp_path / "cache").identity(one.images)
    (place / "dog" / "b.jpg").unlink()
    (place / "dog" / "b.jpg").write_bytes(picture)
    after = sources.read_folder(place).images
    assert after.stamp() != before[0] and after.identity() != before[1]


# -- what is asked for ---------------------------------------------------------


@pytest.fixture
def two_sets(tmp_path):
    images = [encoded(p) for p in pictures(3)]
    for name in ("wds_emoji-names", "wds_beasts"):
        write_webdataset(tmp_path / name, images, [0, 1, 2], ["a", "b", "c"])
    return tmp_path


@pytest.mark.parametrize(
    "datasets, families, message",
    [
        (
            ["emoji-names", "emoji-nmaes"],
            [],
            r"--datasets emoji-nmaes: .*near it: emoji-names.*found: emoji-names",
        ),
        (["beasts", "beatss"], [], r"--datasets beatss: .*near it: beasts"),
        (["emoji-names", "vtab/dtd"], [], "--datasets vtab/dtd: no such set under"),
        (["wds_beasts"], ["VTAB"], "--families VTAB: no set of it"),
        (["wds_beasts", "emoji-names_test"], ["Demo", "Other"], None),
        ([], ["Other"], None),
    ],
)
def test_what_is_asked_for_must_be_there(two_sets, datasets, families, message):
    found = sources.discover(two_sets, catalog.select(datasets, families))
    entries = [one.entry for one in found]
    if message is None:
        catalog.check_found(datasets, families, entries, two_sets)
        assert "beasts" in [e.key for e in entries]  # of no family of the catalog: Other
    else:
        with pytest.raises(ValueError, match=message):
            catalog.check_found(datasets, families, entries, two_sets)


def test_a_damaged_set_that_is_not_asked_for_ends_nothing(two_sets, picture):
    folders(two_sets / "shards", ["00000", "00001"], picture)
    with pytest.raises(ValueError, match="numbered"):
        sources.discover(two_sets)
    assert [s.entry.key for s in sources.discover(two_sets, {"beasts"})] == ["beasts"]
    with pytest.raises(ValueError, match="numbered"):
        sources.discover(two_sets, {"shards"})
    with pytest.raises(ValueError, match=r"among beatss \(near it: beasts\)"):
        sources.discover(two_sets, {"beatss"})


@pytest.mark.parametrize(
    "names, expected",
    [
        (["n02085620.Chihuahua", "n02085782.Maltese"], ("Chihuahua", "Maltese")),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ("Chihuahua", "Japanese spaniel")),
        (
            ["001.Black_footed_Albatross", "002.Laysan_Albatross"],
            ("Black footed Albatross", "Laysan Albatross"),
        ),
        (["1_cat", "2_dog", "3_fox"], ("cat", "dog", "fox")),
        (["00-negative", "01-positive"], ("negative", "positive")),
        (["1_apple", "2_apples", "3_apples"], ("1 apple", "2 apples", "3 apples")),
        (["3_legs", "4_wheels"], ("3 legs", "4 wheels")),  # they do not count the classes
        (["001.ak47", "mug"], ("001.ak47", "mug")),  # not all: the name is the user's
        (["101.5", "102.5"], ("101.5", "102.5")),
    ],
)
def test_numbers_before_names_are_no_part_of_them(tmp_path, picture, names, expected):
    assert sources.read_folder(folders(tmp_path / "things", names, picture)).prompts.classes == expected


def test_a_tar_that_nshards_does_not_announce(tmp_path):
    images = [encoded(p) for p in pictures(6)]
    place = write_webdataset(tmp_path / "wds_beasts", images, [0, 1, 2] * 2, ["a", "b", "c"], shards=2)
    (place / "test" / "nshards.txt").write_text("1")
    with pytest.raises(ValueError, match="1.tar: not among the 1 that .*nshards.txt announces"):
        sources.read_folder(place)


def test_sixteen_bits_are_not_white(tmp_path):
    """Pillow clips them at 255, so that all of a 16-bit picture but its darkest 1 in 256 would be white."""
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    for name in ("cat", "dog"):
        (tmp_path / "mix" / name).mkdir(parents=True)
        Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "mix" / name / "a.png")
        Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "mix" / name / "b.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "mix" / "dog" / "c.tif")
    images = sources.read_folder(tmp_path / "mix").images
    for i in range(4):
        assert np.abs(np.asarray(images[i])[..., 0] - grey).max() < 1.01
    with pytest.raises(Unreadable, match="c.tif: .*mode F have no agreed range"):
        images[4]
