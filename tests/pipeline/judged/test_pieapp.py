"""PieAPP on constructed tables of the genuine shape; its columns have leading blanks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.formats.judged import pieapp

TRAIN = "ref. image, distorted image A, distorted image B, raw preference for A, processed preference for A"
TEST = "ref. image, distorted image A, distorted image B, preference for A"


def put(folder: Path, split: str, tables: dict[str, tuple[str, ...]]) -> Path:
    """The tables of a split, with the list of their references."""
    labels = folder / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_reference_list.txt").write_text("".join(f"{name}.png\n" for name in tables))
    for name, rows in tables.items():
        header = TEST if split == "test" else TRAIN
        (labels / f"{name}_pairwise_labels.csv").write_text("\n".join((header, *rows)) + "\n")
    return folder


@pytest.fixture
def train(tmp_path) -> Path:
    return put(
        tmp_path,
        "train",
        {
            "ref_7": (
                "ref_7.png,distort_7_blur_inter_0.png,distort_7_noise_inter_1.png,0.9,0.875",
                "ref_7.png,distort_7_noise_inter_1.png,distort_7_jpeg_inter_4.png,,0.25",  # nobody was asked
            ),
            "ref_12": ("ref_12.png,distort_12_a_intra_0.png,distort_12_a_intra_3.png,0.5,0.5",),
        },
    )


@pytest.fixture
def tested(tmp_path) -> Path:
    rows = ("d_a.png,d_b.png,0.9", "ref_3.png,d_a.png,1.0", "d_b.png,d_c.png,0.4", "d_a.png,d_c.png,0.6",
            "d_c.png,d_d.png,0.39", "d_d.png,ref_3.png,0.1")  # fmt: skip
    put(tmp_path, "test", {"ref_3": tuple(f"ref_3.png, {row}" for row in rows)})
    (tmp_path / "labels/test/ref_3_per_image_score.csv").write_text("ref. image, distorted image\n")
    return tmp_path


def triples(found) -> list[tuple[str, ...]]:
    return [tuple(found.images[image] for image in row) for row in found.rows]


def test_train_reads_the_processed_preference(train):
    found = pieapp.read(train, "train")
    assert found.vote == pytest.approx([1 - 0.875, 1 - 0.25, 0.5])  # the share for B, which is right
    assert triples(found) == [
        tuple(f"{folder}/{name}.png" for folder, name in zip(("reference_images/train", *[where] * 2), row))
        for where, row in (
            ("distorted_images/train/ref_7", ("ref_7", "distort_7_blur_inter_0", "distort_7_noise_inter_1")),
            ("distorted_images/train/ref_7", ("ref_7", "distort_7_noise_inter_1", "distort_7_jpeg_inter_4")),
            ("distorted_images/train/ref_12", ("ref_12", "distort_12_a_intra_0", "distort_12_a_intra_3")),
        )
    ]
    assert found.number.tolist() == [2, 3, 2] and found.votes.tolist() == [0, 0, 0] and found.notes == ()
    assert found.voters == "human, estimated by maximum likelihood"
    assert (found.rows.dtype, found.votes.dtype) == (np.int32, np.int32)


def test_pairs_with_the_reference_itself_are_left_out_and_counted(tested):
    found = pieapp.read(tested, "test")
    assert found.vote == pytest.approx([0.1, 0.6, 0.4, 0.61]) and found.number.tolist() == [2, 4, 5, 6]
    assert found.notes == ("2 of 6 pairs left out: the reference is an alternative",)
    assert found.votes.tolist() == [40] * 4 and found.voters == "human"
    assert triples(found)[0] == (
        "reference_images/test/ref_3.png",
        "distorted_images/test/ref_3/d_a.png",
        "distorted_images/test/ref_3/d_b.png",
    )


def test_unsure_preferences_may_be_left_out(tested):
    """As UniSim's data/two_afc/pie_app.py keeps them: above 0.6 or below 0.4, not at either."""
    found = pieapp.read(tested, "test", skip_unsure=True)
    assert found.vote == pytest.approx([0.1, 0.61]) and found.number.tolist() == [2, 6]
    assert [[image[-7:-4] for image in row] for row in triples(found)] == [
        ["f_3", "d_a", "d_b"],
        ["f_3", "d_c", "d_d"],
    ]
    assert found.notes == (
        "2 of 6 pairs left out: the reference is an alternative",
        "2 of 6 pairs left out: a preference from 0.4 to 0.6",
    )


def test_nothing_left(train):
    put(train, "val", {"ref_9": ("ref_9.png,a.png,b.png,0.5,0.5",)})
    with pytest.raises(ValueError, match="val: no pair is left of 1"):
        pieapp.read(train, "val", skip_unsure=True)


def test_images_of_two_references_with_one_name_are_two(tmp_path):
    put(tmp_path, "val", {name: (f"{name}.png,a.png,b.png,,0.1",) for name in ("ref_1", "ref_2")})
    found = pieapp.read(tmp_path, "val")
    assert len(set(found.images)) == 6 and found.rows.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_repeated_pairs_count_and_are_told(tmp_path):
    rows = ("ref_1.png,a.png,b.png,,0.1", "ref_1.png,b.png,a.png,,0.9", "ref_1.png,a.png,b.png,,0.1")
    put(tmp_path, "val", {"ref_1": rows})
    found = pieapp.read(tmp_path, "val")
    assert len(found.vote) == 3
    assert found.notes == (
        "ref_1_pairwise_labels.csv: rows whose images an earlier row has too: 1 (first: row 4, as row 2)",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",0.875", ",", "row 2: processed preference for A is ''; a number from 0 to 1 is expected"),
        ("0.875", "87.5", "row 2: processed preference for A is '87.5'"),
        ("0.875", "nan", "row 2: processed preference for A is 'nan'"),
        ("0.9,0.875", "0.875", "row 2: 4 fields, the header has 5"),
        ("\nref_7.png,", "\nref_8.png,", "row 2: ref. image is 'ref_8.png'; ref_7.png is expected"),
        ("distort_7_blur_inter_0.png", "../x.png", "row 2: distorted image A is '../x.png'"),
        (" processed", " raw", "row 1: no column processed preference for A; it has ref. image, distorted"),
        (
            " distorted image B",
            " distorted image A",
            "row 1: more than one column is called distorted image A",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_named(train, old, new, message):
    path = train / "labels/train/ref_7_pairwise_labels.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        pieapp.read(train, "train")
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("ref_7.png\nref_12.png\nref_7.png\n", "train_reference_list.txt: ref_7 is there twice"),
        ("ref_7.png\nref_13.png\n", "train_reference_list.txt: it lists ref_13, but there is no "),
        ("ref_7.png\n", "ref_12_pairwise_labels.csv: train_reference_list.txt does not list it"),
        ("../ref_7.png\n", "it lists ../ref_7, but there is no "),
        ("\n", "train_reference_list.txt: it is empty"),
    ],
)
def test_the_list_and_the_tables_must_be_the_same(train, listed, message):
    (train / "train_reference_list.txt").write_text(listed)
    with pytest.raises(ValueError) as caught:
        pieapp.read(train, "train")
    assert message in str(caught.value)


def test_what_is_not_there(train):
    with pytest.raises(ValueError, match="split is 'valid'; PieAPP has train, val, test"):
        pieapp.read(train, "valid")
    with pytest.raises(ValueError, match=r"test_reference_list\.txt: no such file; it lists"):
        pieapp.read(train, "test")
