"""Just noticeable differences, on constructed tables."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.judged import jnd

GOOD = "ref_path,path,same,votes\nref/0.png,distort/0_0.png,0.67,3\nref/0.png,distort/0_1.png,0,5\n"


def test_shares_are_kept(tmp_path):
    (tmp_path / jnd.TABLE).write_text(GOOD)
    found = jnd.read(tmp_path)
    assert found.images == ("ref/0.png", "distort/0_0.png", "distort/0_1.png")
    assert found.rows.tolist() == [[0, 1], [0, 2]] and found.rows.dtype == np.int32
    assert found.same.tolist() == [0.67, 0] and found.votes.tolist() == [3, 5]
    assert found.number.tolist() == [2, 3] and found.group.tolist() == ["", ""] and found.notes == ()


def test_votes_may_be_missing(tmp_path):
    (tmp_path / jnd.TABLE).write_text("same,path,ref_path\n.123,b.png,a.png\n")
    found = jnd.read(tmp_path)
    assert found.votes.tolist() == [0] and found.same.tolist() == [0.123] and found.rows.tolist() == [[0, 1]]


def test_repeated_pairs_count_and_are_told(tmp_path):
    (tmp_path / jnd.TABLE).write_text(GOOD + "ref/0.png,distort/0_0.png,1,1\n")
    found = jnd.read(tmp_path)
    assert len(found.same) == 3
    assert found.notes == ("rows whose images an earlier row has too: 1 (first: row 4, as row 2)",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.67", "2", "row 2: same is '2'; a number from 0 to 1 is expected"),
        ("0.67", "nan", "row 2: same is 'nan'"),
        ("0.67", "0.5", "row 2: same is '0.5'; no number of people in votes has this share"),
        ("0.67,3", "0.67,0", "row 2: votes is '0'; a number from 1"),
        ("distort/0_1.png", "a/../../0_1.png", "row 3: path is 'a/../../0_1.png'"),
        ("same", "votes_same", "row 1: no column same; it has ref_path, path, votes_same, votes"),
        (",3\n", ",3,\n", "row 2: 5 fields, the header has 4"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    path = tmp_path / jnd.TABLE
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        jnd.read(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")
