"""Whose label is whose in folders that are classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip import IMAGENET_CLASSNAMES

from eval.sets import classfolders, prompts, sources
from tests.kits.eval import class_folders, classes_by_folder, encoded, pictures

# -- the other forms ---------------------------------------------------------


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


WNIDS = prompts.packaged()["imagenet_wnids"]

NAME = dict(zip(WNIDS, IMAGENET_CLASSNAMES))


# -- other class folders ---------------------------------------------------------


@pytest.mark.parametrize("place", ["imagenet/images/val", "imagenet/val/images", "imagenet/images"])
def test_a_folder_within_a_set_is_the_set(tmp_path, picture, place):
    """CoOp's and Kaggle's folders, whichever of them is named."""
    class_folders(tmp_path / place, WNIDS[:3], picture)
    for root in (tmp_path / "imagenet", *(f for f in (tmp_path / place).parents if f.name == "images")):
        if place != "imagenet/images":
            with pytest.raises(ValueError, match="997 of imagenet1k's 1000 class folders are missing"):
                sources.read_folder(root)
    with pytest.raises(ValueError, match="997 of imagenet1k's 1000 class folders are missing"):
        sources.read_folder(tmp_path / place)


def test_the_same_letters_as_macs_write_them(tmp_path, picture):
    names = [unicodedata.normalize("NFD", "zebra éclair"), "apple"]
    place = class_folders(tmp_path / "food", names, picture)
    (place / "classnames.txt").write_text("zebra éclair\napple\n")
    assert classes_by_folder(sources.read_folder(place)) == {names[0]: "zebra éclair", "apple": "apple"}


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
    one = sources.read_folder(class_folders(tmp_path / "eurosat", names, picture))
    assert (
        one.prompts.classes[3] == "highway or road" and classes_by_folder(one)["Highway"] == "highway or road"
    )
    assert "8 of 10 are not called as their class (AnnualCrop: 'annual crop land', …)" in one.notes[0]


def test_names_that_tell_nothing_are_refused(tmp_path, picture, any_count):
    """KITTI's folders sort in another order than the field's class names."""
    names = ["above_20", "below_20", "below_8", "no_vehicle"]
    place = class_folders(tmp_path / "vtab_kitti_closest_vehicle_distance", names, picture)
    with pytest.raises(ValueError, match="4 of 4 class folders are not called as .* nothing tells which"):
        sources.read_folder(place)
    names, far = ["above", "below", "close", "none"], ["far", "near", "beside", "no car"]
    place = class_folders(tmp_path / "kitti_closest_vehicle_distance", names, picture)
    (place / "classnames.txt").write_text("\n".join(far))
    assert classes_by_folder(sources.read_folder(place)) == dict(zip(names, far))


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
    class_folders(place, ["cat", "dog"], encoded(pictures(1)[0], "jpeg"))
    class_folders(place, [f"{n}/cat" if deep else n for n in names], encoded(pictures(1)[0], "jpeg"))
    one = sources.read_folder(place)
    assert one.prompts.classes == ("cat", "dog") and len(one.images) == 2


def test_a_train_among_vehicles_and_classes_only_in_train(tmp_path, picture):
    one = sources.read_folder(class_folders(tmp_path / "vehicles", ["bus", "ship", "train"], picture))
    assert one.prompts.classes == ("bus", "ship", "train")
    for split, names in (("train", ["0 deg", "180 deg", "90 deg"]), ("val", ["0 deg", "90 deg"])):
        class_folders(tmp_path / "turned" / split, names, picture)
    one = sources.read_folder(tmp_path / "turned")
    assert one.prompts.classes == ("0 deg", "90 deg")
    assert one.notes == ("1 classes of train/ are not in val/, so not among the answers: 180 deg",)
    assert sources.read_folder(class_folders(tmp_path / "contest", ["train", "test"], picture)) is None


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
    one = sources.read_folder(class_folders(tmp_path / "mine", names, picture))
    assert (one is not None) == classes


@pytest.mark.parametrize("train, held", [("Training", "Test"), ("train", "valid"), ("Train", "Validation")])
def test_splits_as_others_spell_them(tmp_path, picture, train, held):
    class_folders(tmp_path / "fruit" / train, ["apple", "pear"], picture, 3)
    class_folders(tmp_path / "fruit" / held, ["apple", "pear"], picture)
    one = sources.read_folder(tmp_path / "fruit")
    assert one.prompts.classes == ("apple", "pear") and len(one.images) == 2


def test_a_class_that_is_a_link_to_nowhere(tmp_path, picture):
    place = class_folders(tmp_path / "mix", ["cat", "dog"], picture)
    (place / "fox").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="mix/fox: a link to nowhere"):
        sources.read_folder(place)
    (place / "fox").unlink()
    (place / "cat" / "more").symlink_to("/nowhere")
    assert sources.read_folder(place).notes == ("1 files not read: 1 links to nowhere",)


def test_names_in_another_encoding(tmp_path, picture):
    place = class_folders(tmp_path / "mix", ["cat", "caf\udce9"], picture)
    with pytest.raises(ValueError, match=r"class folder 'caf\\udce9' is not UTF-8"):
        sources.read_folder(place)


@pytest.mark.parametrize("form", ["{}", "{:03d}", "class_{}", "c{}", "Label {}", "id-{}", "n{}"])
def test_numbers_with_a_word_before_name_no_class_either(tmp_path, picture, form):
    """As Kaggle's state-farm has c0 … c9: a figure for "a photo of a c3" would be chance."""
    place = class_folders(tmp_path / "mine", [form.format(i) for i in range(5)], picture)
    with pytest.raises(ValueError, match=r"class folders are numbered .* put classnames.txt there"):
        sources.read_folder(place)
    (place / "classnames.txt").write_text("\n".join(f"thing {c}" for c in "abcde"))
    assert list(classes_by_folder(sources.read_folder(place)).values()) == [f"thing {c}" for c in "abcde"]


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
    place = class_folders(tmp_path / "mine", names, picture)
    listed = [f"thing {'abcdefghijkl'[i]}" for i in range(len(names))]
    (place / "classnames.txt").write_text("\n".join(listed))
    if clear:
        assert classes_by_folder(sources.read_folder(place)) == dict(zip(names, listed))
        return
    with pytest.raises(ValueError, match="can be taken in two ways"):
        sources.read_folder(place)
    (place / "classnames.txt").write_text("\n".join(n.replace("_", " ") for n in names))
    assert classes_by_folder(sources.read_folder(place)) == {n: n.replace("_", " ") for n in names}


def test_numbered_folders_of_a_known_set(tmp_path, picture, any_count):
    good = class_folders(tmp_path / "GTSRB", [f"{i:05d}" for i in range(43)], picture)
    assert sources.read_folder(good).labels.tolist() == list(range(43))
    flowers = class_folders(tmp_path / "flowers", map(str, range(1, 103)), picture)
    with pytest.raises(ValueError, match="102 class folders, numbered 1 … 102; 0 … 101 are labels"):
        sources.read_folder(flowers)


# -- what is asked for ---------------------------------------------------------


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
    assert sources.read_folder(class_folders(tmp_path / "things", names, picture)).prompts.classes == expected
