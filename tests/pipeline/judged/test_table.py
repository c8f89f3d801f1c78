"""The generic table, on constructed files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.judged import table
from pipeline.formats.judged.forms import Comparisons, OddOnes

TWO = "ref,left,right,vote,votes,group\nr/0.png,a.png,b.png,0.25,4,test\nr/0.png,b.png,c.png,1,0,train\n"
ODD = "a,b,c,odd,votes,group\nx.png,y.png,z.png,b,3,coarse\nz.png,y.png,x.png,a,1,\n"
PATHS, ODDS = ("2afc", None, None), ("odd", None, None)


@pytest.fixture
def images(tmp_path):
    for name in ("images/b/1.png", "images/a.png", "images/c.jpg", "images/b/0.png", "images/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "images"


def write(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_comparisons_of_paths(tmp_path, images):
    found = table.read(write(tmp_path, TWO), images, "2afc", None, None)
    assert isinstance(found, Comparisons) and found.folder == images
    assert set(found.images) == {
        "r/0.png", "a.png", "b.png", "c.png",
    }  # fmt: skip
    named = [[found.images[n] for n in row] for row in found.rows]
    assert named == [["r/0.png", "a.png", "b.png"], ["r/0.png", "b.png", "c.png"]]
    assert found.vote.tolist() == [0.25, 1] and found.votes.tolist() == [4, 0]
    assert found.number.tolist() == [2, 3] and found.group.tolist() == ["test", "train"]


def test_columns_of_any_order_in_a_tsv(tmp_path, images):
    text = "\ufeffnote\tright\tvote\tleft\tref\r\n\tb.png\t.5\ta.png\tr.png\r\n\r\n"
    found = table.read(write(tmp_path, text, "t.tsv"), images, "2afc", None, None)
    assert [found.images[n] for n in found.rows[0]] == ["r.png", "a.png", "b.png"]
    assert found.votes.tolist() == [0] and found.group.tolist() == [""] and found.vote.tolist() == [0.5]


def test_odd_ones_of_paths(tmp_path, images):
    found = table.read(write(tmp_path, ODD), images, "odd", None, None)
    assert isinstance(found, OddOnes)
    assert found.odd.tolist() == [[0, 1, 0], [1, 0, 0]] and found.votes.tolist() == [3, 1]
    assert found.group.tolist() == ["coarse", ""]


@pytest.mark.parametrize(("odd", "place"), [("first", 0), ("last", 2)])
def test_a_declared_place(tmp_path, images, odd, place):
    found = table.read(write(tmp_path, "a,b,c\nx.png,y.png,z.png\n"), images, "odd", None, odd)
    assert found.odd.tolist() == [np.eye(3)[place].tolist()]


@pytest.mark.parametrize("base", [0, 1])
def test_numbers_count_the_images_below_the_folder(tmp_path, images, base):
    text = f"a,b,c,odd\n{base},{base + 3},{base + 1},{base + 2}\n"
    found = table.read(write(tmp_path, text), images, "odd", base, None)
    assert found.images == ("a.png", "b/0.png", "b/1.png", "c.jpg")
    assert found.rows.tolist() == [[0, 3, 1]] and found.odd.tolist() == [[0, 0, 1]]


def test_numbers_count_the_lines_of_ids(tmp_path, images):
    ids = write(tmp_path, "c\nb\na.png\n", "ids.txt")
    found = table.read(write(tmp_path, "ref,left,right,vote\n3,1,2,0\n"), images, "2afc", 1, None, ids)
    assert found.images == ("c.jpg", "b/0.png", "a.png") and found.rows.tolist() == [[2, 0, 1]]


def test_repeated_rows_count_and_are_told(tmp_path, images):
    found = table.read(write(tmp_path, TWO + TWO.splitlines()[1] + "\n"), images, "2afc", None, None)
    assert len(found.vote) == 3
    (note,) = found.notes
    assert "row 4" in note and "row 2" in note


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.permutations(range(5)), st.integers(0, 2)), min_size=1, max_size=6))
def test_letters_and_both_bases_mean_the_same(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    names = [f"{n}.png" for n in range(5)]
    ids = write(folder, "\n".join(names), "ids.txt")

    def read(base, field, letter, ids=None):
        lines = [",".join([*(field(n) for n in order[:3]), letter(odd)]) for order, odd in rows]
        found = table.read(write(folder, "\n".join(["a,b,c,odd", *lines])), folder, "odd", base, None, ids)
        return [[found.images[n] for n in row] for row in found.rows], found.odd.tolist()

    expected = (
        [[names[n] for n in order[:3]] for order, _ in rows],
        [np.eye(3)[odd].tolist() for _, odd in rows],
    )
    assert read(None, lambda n: names[n], lambda n: "abc"[n]) == expected
    assert read(0, str, str, ids) == expected
    assert read(1, lambda n: str(n + 1), lambda n: str(n + 1), ids) == expected


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (TWO.replace("0.25", "1.5"), PATHS, "row 2: vote is '1.5'; a number from 0 to 1"),
        (TWO.replace("0.25", "nan"), PATHS, "row 2: vote is 'nan'"),
        (TWO.replace("0.25", ""), PATHS, "row 2: vote is ''"),
        (TWO.replace("0.25,4", "0.25,2.5"), PATHS, "row 2: votes is '2.5'; a whole number"),
        (TWO.replace("0.25,4", "0.25,-1"), PATHS, "row 2: votes is '-1'"),
        (TWO.replace("a.png,b", "b.png,b"), PATHS, "row 2: right is 'b.png'; an image other"),
        (TWO.replace("b.png,c", "r/0.png,c"), PATHS, "row 3: left is 'r/0.png'; an image other"),
        (TWO.replace("c.png", "../c.png"), PATHS, "row 3: right is '../c.png'"),
        (TWO.replace("c.png", "/c.png"), PATHS, "row 3: right is '/c.png'"),
        (TWO.replace("c.png", ""), PATHS, "row 3: right is ''"),
        (TWO.replace("c.png", "7"), PATHS, "row 3: right is '7', a number; declare --base 0 or 1"),
        (TWO.replace("c.png", "c,png"), PATHS, "row 3: 7 fields, the header has 6"),
        (TWO.replace(",test", ""), PATHS, "row 2: 5 fields"),
        (TWO.replace("vote,", "share,"), PATHS, "row 1: no column vote; it has ref"),
        (TWO.replace(",", ";"), PATHS, "row 1: no column ref, left, right, vote"),
        (TWO.replace("group", "ref"), PATHS, "row 1: more than one column is called ref"),
        (ODD, PATHS, "row 1: no column ref, left, right, vote; it has a, b, c, odd"),
        ("", PATHS, "row 1: no column ref"),
        (TWO.splitlines()[0], PATHS, "no row below the header"),
        (ODD.replace("a,1,", "a,,"), ODDS, "row 3: votes is ''"),
        (ODD.replace(",b,3", ",2,3"), ODDS, "row 2: odd is '2'; a, b or c is expected (numbers"),
        (ODD.replace(",b,3", ",y.png,3"), ODDS, "row 2: odd is 'y.png'; a, b or c"),
        (ODD, ("odd", None, "last"), "row 1: it has a column odd; leave out --odd last, or the column"),
        ("a,b,c\nx.png,y.png,z.png\n", ODDS, "row 1: no column odd; it has a, b, c; or declare --odd"),
        ("a,b,c,odd\n0,1,4,0\n", ("odd", 0, None), "row 2: c is '4'; a number from 0 to 3"),
        ("a,b,c,odd\n1,2,0,1\n", ("odd", 1, None), "row 2: c is '0'; a number from 1 to 4"),
        ("a,b,c,odd\n1,2,3,0\n", ("odd", 1, None), "row 2: odd is '0'; a number from 1 to 3"),
        ("a,b,c,odd\n0,1,2,b\n", ("odd", 0, None), "row 2: odd is 'b'; a number from 0 to 2"),
        ("a,b,c,odd\n0,1,1.0,0\n", ("odd", 0, None), "row 2: c is '1.0'; an image other than that of b"),
        ("a,b,c,odd\n0,1,a.png,0\n", ("odd", 0, None), "row 2: c is 'a.png'; a number from 0 to 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, images, text, arguments, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        table.read(path, images, *arguments)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("3afc", None, None), "kind '3afc': 2afc or odd is expected"),
        (("odd", 2, None), "base 2: the first image has number 0 or 1"),
        (("odd", None, "middle"), "odd 'middle': first or last"),
        (("2afc", None, "last"), "odd 'last': first or last is expected, for tables of kind odd"),
    ],
)
def test_what_is_declared_is_checked(tmp_path, images, arguments, message):
    with pytest.raises(ValueError) as caught:
        table.read(write(tmp_path, ODD), images, *arguments)
    assert str(caught.value).startswith(message)


def test_what_numbers_count_has_to_be_there(tmp_path, images):
    path, ids = write(tmp_path, "a,b,c,odd\n0,1,2,0\n"), write(tmp_path, "a\nb\nc\n", "ids.txt")
    (tmp_path / "empty").mkdir()
    for folder, base, names, message in (
        (images, None, ids, "ids.txt: names that numbers count, but the table holds paths; declare --base"),
        (tmp_path / "none", 0, None, "none: no such folder of images"),
        (tmp_path / "empty", 0, None, "empty: no image in it"),
        (images, 0, tmp_path / "no.txt", "no.txt: no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            table.read(path, folder, "odd", base, None, names)
