"""Levels, on constructed tables: the release's own layout is not known here."""

from __future__ import annotations

import pytest

from pipeline.formats.judged import levels

GOOD = """a,b,c,odd,group,votes
x.png,y.png,z.png,b,coarse,5
x.png,y.png,w.png,c,fine,1
w.png,y.png,z.png,a,boundary,2
"""


def test_the_level_is_the_group(tmp_path):
    (tmp_path / "levels.csv").write_text(GOOD)
    found = levels.read(tmp_path)
    assert found.group.tolist() == ["coarse", "fine", "boundary"] == list(levels.LEVELS)
    assert [found.images[n] for n in found.rows[1]] == ["x.png", "y.png", "w.png"]
    assert found.odd.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]] and found.votes.tolist() == [5, 1, 2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fine", "medium", "row 3: group is 'medium'; coarse, fine, boundary are expected"),
        ("coarse", "", "row 2: group is ''"),
        ("group", "level", "row 2: group is ''"),
        ("odd", "odd_one", "row 1: no column odd"),
        ("w.png,c", "../w.png,c", "row 3: c is '../w.png'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    (tmp_path / "levels.csv").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        levels.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'levels.csv'}: {message}")


def test_no_table(tmp_path):
    with pytest.raises(ValueError, match="levels.csv: no such file"):
        levels.read(tmp_path)
