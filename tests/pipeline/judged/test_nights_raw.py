"""NIGHTS before its filter, on a constructed table; the filtered one's reader is the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.formats import nights
from pipeline.formats.judged import nights_raw

HEADER = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet,prompt"
ROWS = (
    "32,1.0,0.0,8,ref/000/032.png,distort/000/032_0.png,distort/000/032_1.png,test,False,pharmacy",
    "57,0.25,0.75,4,ref/000/057.png,distort/000/057_1.png,distort/000/057_0.png,train,False,stable",
    '61,0.5,0.5,2,ref/000/061.png,distort/000/061_0.png,distort/000/061_1.png,train,True,"cat, wild"',
    "99,0.0,0.0,0,ref/000/099.png,distort/000/099_0.png,distort/000/099_1.png,train,True,dog",
    "100,2,1,3,ref/001/000.png,distort/001/000_0.png,distort/001/000_1.png,val,True,dog",
)


def table(folder: Path, rows=ROWS, header: str = HEADER) -> Path:
    path = folder / nights_raw.TABLE
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_split_votes_are_kept_and_unanswered_rows_are_counted(tmp_path):
    table(tmp_path)
    found = nights_raw.read(tmp_path)
    assert found.vote == pytest.approx([0, 0.75, 0.5, 1 / 3]) and found.votes.tolist() == [8, 4, 2, 3]
    assert found.number.tolist() == [2, 3, 4, 6]
    assert found.group.tolist() == ["test", "train", "train", "val"]
    assert found.notes == ("1 of 5 rows left out: nobody answered",)
    assert [found.images[i] for i in found.rows[1]] == [
        "ref/000/057.png", "distort/000/057_1.png", "distort/000/057_0.png",
    ]  # fmt: skip
    assert not any("099" in image for image in found.images)  # nobody needs to embed them
    assert found.rows.dtype == np.int32 and found.votes.dtype == np.int32 and found.folder == tmp_path


def test_it_agrees_with_the_reader_of_the_filtered_set(tmp_path):
    answered = [row for row in ROWS if ",0.0,0.0,0," not in row]
    expected = nights.read(table(tmp_path, answered), nights.PARTS, min_votes=0)
    found = nights_raw.read(tmp_path)
    assert [row.vote for row in expected] == found.vote.tolist()
    assert [row.votes for row in expected] == found.votes.tolist()
    assert [row.split for row in expected] == found.group.tolist()
    assert [row.paths for row in expected] == [tuple(found.images[i] for i in row) for row in found.rows]


def test_genuine_rows(tmp_path, shared_data):
    (tmp_path / nights_raw.TABLE).write_bytes((shared_data / "nights_sample/data.csv").read_bytes())
    found = nights_raw.read(tmp_path)
    expected = nights.read(shared_data / "nights_sample/data.csv", nights.PARTS, min_votes=0)
    assert [row.vote for row in expected] == found.vote.tolist() and len(expected) == 20
    assert all((shared_data / "nights_sample" / image).is_file() for image in found.images)


def test_a_table_without_counts_and_splits(tmp_path):
    table(tmp_path, ("1,0,r.png,a.png,b.png", "0,2,r.png,a.png,c.png"), ",".join(HEADER.split(",")[1:3]) +
          ",ref_path,left_path,right_path")  # fmt: skip
    found = nights_raw.read(tmp_path)
    assert found.vote.tolist() == [0, 1] and found.votes.tolist() == [0, 0]
    assert found.group.tolist() == ["", ""] and found.images == ("r.png", "a.png", "b.png", "c.png")


def test_repeated_rows_count_and_are_told(tmp_path):
    table(tmp_path, (*ROWS[:3], ROWS[1]))
    found = nights_raw.read(tmp_path)
    assert len(found.vote) == 4
    assert found.notes == ("rows whose images an earlier row has too: 1 (first: row 5, as row 3)",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.25", "-0.25", "row 3: left_vote is '-0.25'; a number from 0"),
        ("0.25", "", "row 3: left_vote is ''"),
        ("0.75", "nan", "row 3: right_vote is 'nan'"),
        ("0.75,4", "0.75,4.5", "row 3: votes is '4.5'; a whole number"),
        ("0.75,4", "0.75,0", "row 3: votes is '0'; left_vote and right_vote say otherwise"),
        ("0.25,0.75", "0,0", "row 3: votes is '4'; left_vote and right_vote say otherwise"),
        ("0.25,0.75", "1,0,0.75", "row 3: 11 fields, the header has 10"),
        ("ref/000/057.png", "../057.png", "row 3: ref_path is '../057.png'"),
        ("distort/000/057_0.png", "", "row 3: right_path is ''"),
        ("left_vote", "left", "row 1: no column left_vote; it has id, left"),
        ('"cat, wild"', '"cat', "row 4: its quotation marks do not pair up"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    path = table(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1) + '1,1,0,1,r,a,b,"test",x,y\n')
    with pytest.raises(ValueError) as caught:
        nights_raw.read(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_table_without_answers(tmp_path):
    table(tmp_path, ROWS[3:4])
    with pytest.raises(ValueError, match=r"nights_raw\.csv: nobody answered any of its 1 rows"):
        nights_raw.read(tmp_path)


def test_no_table(tmp_path):
    with pytest.raises(ValueError, match=r"nights_raw\.csv: no such file"):
        nights_raw.read(tmp_path)


def test_a_split_holds_no_row_of_another(tmp_path):
    table(tmp_path)
    found = nights_raw.read_split(tmp_path, "train")
    assert found.number.tolist() == [3, 4] and found.vote.tolist() == [0.75, 0.5]
    assert "2 of 4 rows are of other splits than train" in found.notes
    assert not any("032" in image or "001/" in image for image in found.images)
    with pytest.raises(ValueError, match=r"nights_raw\.csv: no row of split test2; it has test, train, val"):
        nights_raw.read_split(tmp_path, "test2")


def test_without_splits_it_is_said_that_test_triplets_may_be_there(tmp_path):
    table(tmp_path, [",".join(row.split(",")[:7]) for row in ROWS], HEADER.split(",split")[0])
    found = nights_raw.read_split(tmp_path, "train")
    assert len(found.rows) == 4 and "triplets that NIGHTS tests with may be among these" in found.notes[-1]
