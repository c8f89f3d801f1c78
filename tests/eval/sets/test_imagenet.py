"""ImageNet's forms on disk: labels by WordNet id, the flat validation folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip import IMAGENET_CLASSNAMES

from eval.sets import catalog, imagenet, prompts, sources
from tests.kits.eval import class_folders, classes_by_folder, write_webdataset

WNIDS = prompts.packaged()["imagenet_wnids"]

NAME = dict(zip(WNIDS, IMAGENET_CLASSNAMES))


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["imagenetv2-matched-frequency-format-val", "imagenetv2-top-images-format-val"]
)
def test_v2_is_labelled_by_number(tmp_path, picture, any_count, name):
    place = class_folders(tmp_path / name, map(str, range(1000)), picture)
    one = sources.read_folder(place)
    assert classes_by_folder(one) == {str(i): c for i, c in enumerate(IMAGENET_CLASSNAMES)}
    assert (one.entry.key == "imagenetv2") == ("matched" in name)


def test_v2_with_other_numbers_is_refused(tmp_path, picture, any_count):
    class_folders(tmp_path / "imagenetv2", map(str, range(12)), picture)
    with pytest.raises(ValueError, match="12 numbered class folders; imagenetv2 has 0 … 999"):
        sources.read_folder(tmp_path / "imagenetv2")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["imagenet1k", "imagenet-a", "imagenet-o", "imagenet-r", "imagenet_sketch"])
def test_wnids_settle_the_labels_of_imagenets_sets(tmp_path, picture, any_count, key):
    """The real order is that of the field's class list; and every other naming of the folders is refused."""
    expected = imagenet.wnids(key)
    one = sources.read_folder(class_folders(tmp_path / "good" / key, reversed(expected), picture))
    assert classes_by_folder(one) == {w: NAME[w] for w in expected}
    assert one.prompts.classes == prompts.known_classnames(key)
    for first in (0, 1):  # the sorted numbers, and ILSVRC's
        numbers = [str(i + first) for i in range(len(expected))]
        bad = class_folders(tmp_path / f"numbers{first}" / key, numbers, picture)
        with pytest.raises(ValueError, match=f"numbered .*numbers do not tell {key}'s classes"):
            sources.read_folder(bad)
    other = [*expected[1:], "n99999999"]
    with pytest.raises(ValueError, match=r"1 of \d+ class folders are none of .*n99999999"):
        sources.read_folder(class_folders(tmp_path / "foreign" / key, other, picture))
    with pytest.raises(ValueError, match=f"class folders are missing .first: {expected[3]}"):
        sources.read_folder(class_folders(tmp_path / "short" / key, [*expected[:3], *expected[4:]], picture))


def test_the_200_of_one_set_are_not_those_of_another(tmp_path, picture, any_count):
    place = class_folders(tmp_path / "imagenet-a", imagenet.wnids("imagenet-o"), picture)
    with pytest.raises(ValueError, match="are none of imagenet-a's 200 WordNet ids"):
        sources.read_folder(place)


@given(st.lists(st.sampled_from(WNIDS), min_size=2, max_size=20, unique=True))
def test_any_subset_by_wnid_gets_its_names(chosen):
    assert imagenet.class_names(chosen, Path("/nowhere")) == tuple(NAME[w] for w in chosen)


@pytest.mark.parametrize("inside", [".", "val", "test"])
def test_a_wnid_named_subset(tmp_path, picture, inside):
    chosen = ["n02091244", "n01855672", "n04251144"]
    place = tmp_path / "mini-imagenet"
    class_folders(place / inside, chosen, picture, 2)
    one = sources.read_folder(place)
    assert one.entry.key == "mini-imagenet" and len(one.images) == 6
    assert classes_by_folder(one) == {w: NAME[w] for w in chosen}
    assert sources.read_folder(place / inside).entry.key == "mini-imagenet"  # --data …/val


def test_wnids_that_imagenet_has_not(tmp_path, picture):
    place = class_folders(tmp_path / "imagenet-21k", ["n01855672", "n00004475"], picture)
    with pytest.raises(ValueError, match="1 of 2 classes are WordNet ids that are none of .*n00004475"):
        sources.read_folder(place)
    (place / "words.txt").write_text("n00004475\torganism, being\nn00001740\tentity\n")
    assert classes_by_folder(sources.read_folder(place))["n00004475"] == "organism"
    (place / "words.txt").unlink()
    (place / "Labels.json").write_text(json.dumps({"n00004475": "organism, being"}))
    assert classes_by_folder(sources.read_folder(place))["n00004475"] == "organism"
    (place / "classnames.txt").write_text("a being\na goose\n")  # the user's list wins, in the folders' order
    assert classes_by_folder(sources.read_folder(place)) == {"n00004475": "a being", "n01855672": "a goose"}
    (place / "classnames.txt").unlink()
    with pytest.raises(ValueError, match="2 of 2 classes are WordNet ids that are none of .*N01855672"):
        sources.read_folder(class_folders(tmp_path / "capitals", ["N01855672", "N02091244"], picture))
    class_folders(place, ["spare"], picture)
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
    with pytest.raises(ValueError, match="4 images of a validation set.*LOC_val_solution.csv"):
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
    place = class_folders(tmp_path / "mini", chosen, picture)
    (place / "classnames.txt").write_text("\n".join(sorted(chosen)))
    assert classes_by_folder(sources.read_folder(place)) == {w: NAME[w] for w in chosen}


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
    class_folders(place / "train", ["n01855672/images", "n02091244/images"], picture)
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
    assert one.notes == (f"labels from the images' names in {place}",)
    (place / "ILSVRC2012_val_00000005.JPEG").write_bytes(picture)
    with pytest.raises(ValueError, match="5 images of a validation set, in no class folders"):
        sources.read_folder(place.parent)
