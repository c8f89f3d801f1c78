"""BAPPS on a constructed folder of the genuine shape (its judge files: shape (1,), float32)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.formats.judged import bapps

SETS = (("train", "cnn", 3), ("train", "traditional", 2), ("val", "color", 6))


@pytest.fixture
def folder(tmp_path) -> Path:
    """The votes are 0, 0.5, 1 in train and fifths in val; the pictures are no pictures."""
    for split, subset, count in SETS:
        for part in bapps.PARTS:
            (tmp_path / "2afc" / split / subset / part).mkdir(parents=True)
        for n in range(count):
            base = tmp_path / "2afc" / split / subset
            for part in bapps.PARTS[:-1]:
                (base / part / f"{n:06d}.png").write_bytes(b"no picture")
            vote = n / 2 if split == "train" else n / 5
            np.save(base / "judge" / f"{n:06d}.npy", np.array([vote], np.float32))
    return tmp_path


def test_soft_votes_are_kept(folder):
    train, val = bapps.read(folder, "train"), bapps.read(folder, "val")
    assert train.vote.tolist() == [0, 0.5, 1, 0, 0.5] and train.votes.tolist() == [2] * 5
    assert val.vote == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=1e-7) and set(val.votes) == {5}
    assert train.group.tolist() == ["cnn"] * 3 + ["traditional"] * 2
    assert train.number.tolist() == [0, 1, 2, 0, 1]
    assert (train.rows.dtype, train.vote.dtype, train.votes.dtype) == (np.int32, np.float64, np.int32)
    assert train.voters == "human" and train.notes == ()


def test_files_of_a_triplet_belong_together(folder):
    found = bapps.read(folder, "train")
    of = [[found.images[image] for image in row] for row in found.rows]
    assert of[4] == [f"2afc/train/traditional/{part}/000001.png" for part in ("ref", "p0", "p1")]
    assert all((folder / image).is_file() for row in of for image in row)


def test_the_folder_may_be_2afc_itself(folder):
    outer, inner = bapps.read(folder, "val"), bapps.read(folder / "2afc", "val")
    assert [f"2afc/{image}" for image in inner.images] == list(outer.images)
    assert inner.vote.tolist() == outer.vote.tolist()


def test_subsets_are_chosen(folder):
    found = bapps.read(folder, "train", ("traditional", "traditional"))
    assert found.group.tolist() == ["traditional"] * 2 and found.vote.tolist() == [0, 0.5]


def test_hidden_files_are_passed_over(folder):
    for part in bapps.PARTS:
        (folder / "2afc/train/cnn" / part / "._000000.png").write_bytes(b"from a Mac")
    (folder / "2afc/train/.DS_Store").write_bytes(b"from a Mac")
    assert len(bapps.read(folder, "train").vote) == 5


def judgement(folder: Path) -> Path:
    return folder / "2afc/train/cnn/judge/000001.npy"


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (np.array([1.5], np.float32), "1.5 is no fraction"),
        (np.array([np.nan], np.float32), "nan is no fraction"),
        (np.array([-0.5], np.float32), "-0.5 is no fraction"),
        (np.array([], np.float32), "one float is expected, not 0 of float32"),
        (np.array([0.5, 0.5], np.float32), "one float is expected"),
        (np.array([1]), "one float is expected"),
        (np.array([True]), "one float is expected"),
        (np.array(["1"]), "one float is expected"),
        (np.array([{"a": 1}]), "allow_pickle=False"),
        (b"", "no array of numpy but something else"),
        (b"\x80\x04K\x01.", "no array of numpy but something else"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no array of numpy but a pointer of Git LFS"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', ", "EOF"),
    ],
)  # fmt: skip
def test_a_damaged_judgement_is_named(folder, held, message):
    if isinstance(held, bytes):
        judgement(folder).write_bytes(held)
    else:
        np.save(judgement(folder), held, allow_pickle=True)
    with pytest.raises(ValueError) as caught:
        bapps.read(folder, "train")
    assert str(caught.value).startswith(f"{judgement(folder)}: ") and message in str(caught.value)


def test_an_archive_is_no_judgement(folder):
    np.savez(folder / "a.npz", np.array([0.5]))
    (folder / "a.npz").rename(judgement(folder))
    with pytest.raises(ValueError, match=r"000001\.npy: no array of numpy but a zip"):
        bapps.read(folder, "train")


def test_folders_that_do_not_match(folder):
    judgement(folder).unlink()
    with pytest.raises(ValueError, match=r"cnn: its folders do not match: ref/000001\.png, p0/000001\.png, "):
        bapps.read(folder, "train")


def test_a_missing_last_file_is_seen(folder):
    (folder / "2afc/train/cnn/p1/000002.png").unlink()
    with pytest.raises(ValueError, match=r"p0/000002\.png, p1/no more, judge/000002\.npy"):
        bapps.read(folder, "train")


@pytest.mark.parametrize(
    ("split", "subsets", "message"),
    [
        ("test", (), "split is 'test'; BAPPS has train and val"),
        ("train", ("cnn", "superres"), "no subset superres; it has cnn, traditional"),
        ("train", ("../val/color",), "no subset ../val/color; it has cnn, traditional"),
    ],
)
def test_what_is_not_there(folder, split, subsets, message):
    with pytest.raises(ValueError) as caught:
        bapps.read(folder, split, subsets)
    assert message in str(caught.value)


def test_folders_that_are_not_bapps(tmp_path):
    with pytest.raises(ValueError, match="train: no such folder; BAPPS has 2afc/SPLIT/SUBSET"):
        bapps.read(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train: no triplets"):
        bapps.read(tmp_path, "train")
    (tmp_path / "train/cnn/ref").mkdir(parents=True)
    with pytest.raises(ValueError, match="p0: no such folder"):
        bapps.read(tmp_path, "train")
