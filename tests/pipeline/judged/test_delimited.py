"""Tables and lines of numbers, as people save them and as they break them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.formats.judged import delimited

GOOD = "a.png,b.png,0.5,3\nb.png,c.png,1,4\n"
HEADER = "ref, path ,same,votes\n"
NAMES = ("ref", "path", "same", "votes")


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def use(path: Path) -> tuple:
    """Everything that a reader asks of a table."""
    found = delimited.columns(path, NAMES)
    return found.images("ref", "path"), found.number("same", 0, 1), found.integer("votes", 1, 9), found.line


@pytest.mark.parametrize(
    "text",
    [
        HEADER + GOOD,
        "\ufeff" + HEADER + GOOD,
        (HEADER + GOOD).replace("\n", "\r\n"),
        (HEADER + GOOD).replace("\n", "\r"),
        (HEADER + GOOD).rstrip(),
        HEADER + GOOD + "\n  \n",
        "votes,id,same,path, ref\n3.0,x,.5,b.png, a.png\n4e0,y,1.0,c.png,b.png \n",
        'ref, "path",same,votes\n"a.png", "b.png",0.5,3\nb.png,c.png,1,4\n',
    ],
)
def test_tables_that_say_the_same(tmp_path, text):
    (images, rows), same, votes, line = use(table(tmp_path, text))
    assert images == ("a.png", "b.png", "c.png")
    assert rows.tolist() == [[0, 1], [1, 2]] and rows.dtype == np.int32
    assert same.tolist() == [0.5, 1] and same.dtype == np.float64
    assert votes.tolist() == [3, 4] and votes.dtype == np.int64
    assert line.tolist() == [2, 3] and line.dtype == np.int64


def test_tabs_are_expected_in_a_tsv_and_where_they_are_declared(tmp_path):
    text = (HEADER + GOOD).replace(",", "\t")
    expected = ["a.png", "b.png"]
    assert delimited.columns(table(tmp_path, text, "t.tsv"), NAMES).text("ref") == expected
    assert delimited.columns(table(tmp_path, text, "t.txt"), NAMES, delimiter="\t").text("ref") == expected


def test_rows_after_blank_lines_keep_their_lines(tmp_path):
    assert use(table(tmp_path, HEADER + "\n" + GOOD.replace("\n", "\n\n")))[3].tolist() == [3, 5]


def test_columns_that_may_be_missing(tmp_path):
    path = table(tmp_path, HEADER + GOOD)
    found = delimited.columns(path, ("ref",), optional=("votes", "split"))
    assert set(found.columns) == {"ref", "votes"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "row 1: no column ref, path, same, votes; it has none"),
        (HEADER, "no row below the header"),
        (HEADER + "\n\n", "no row below the header"),
        (HEADER.replace("same", "Same") + GOOD, "row 1: no column same; it has ref, path, Same, votes"),
        (HEADER.replace("votes", "same") + GOOD, "row 1: more than one column is called same"),
        ((HEADER + GOOD).replace(",", ";"), "',' was expected between columns, not ';'"),
        ((HEADER + GOOD).replace(",", "\t"), r"',' was expected between columns, not '\t'"),
        (HEADER + GOOD + "c.png,d.png,1\n", "row 4: 3 fields, the header has 4"),
        (HEADER + "c.png,d.png,1,2,3\n" + GOOD, "row 2: 5 fields, the header has 4"),
        (HEADER + GOOD + "c,d.png,e.png,1,2\n", "row 4: 5 fields, the header has 4"),
        (HEADER + GOOD + "c.png,d.png,nan,2\n", "row 4: same is 'nan'; a number from 0 to 1 is expected"),
        (HEADER + GOOD + "c.png,d.png,,2\n", "row 4: same is ''; a number from 0 to 1 is expected"),
        (HEADER + GOOD + "c.png,d.png,1.01,2\n", "row 4: same is '1.01'"),
        (HEADER + GOOD + "\nc.png,d.png,half,2\n", "row 5: same is 'half'"),
        (HEADER + GOOD + "c.png,d.png,0.5,2.5\n", "row 4: votes is '2.5'; a whole number from 1 to 9 is"),
        (HEADER + GOOD + "c.png,d.png,0.5,0\n", "row 4: votes is '0'; a number from 1 to 9 is expected"),
        (HEADER + GOOD + "c.png,d.png,0.5,inf\n", "row 4: votes is 'inf'"),
        (HEADER + GOOD + "c.png,,0.5,2\n", "row 4: path is ''; the path of an image inside the folder"),
        (HEADER + GOOD + "c.png,../d.png,0.5,2\n", "row 4: path is '../d.png'"),
        (HEADER + GOOD + "/etc/c.png,d.png,0.5,2\n", "row 4: ref is '/etc/c.png'"),
        (HEADER + GOOD + '"c.png,d.png,0.5,2\n', "row 4: its quotation marks do not pair up"),
        (HEADER + GOOD + '"c"x.png,d.png,0.5,2\n' + GOOD, "row 4: its quotation marks do not pair up"),
        (HEADER + '"c.png,d.png,0.5,2\n' + GOOD + '",d.png,.5,2\n', "row 2: a quotation mark opens here and"),
        ((HEADER + GOOD).encode("utf-16"), "not UTF-8 text but UTF-16"),
        (HEADER.encode() + "é.png,b.png,1,1".encode("cp1252"), "not UTF-8 text: byte 0xe9 in line 2"),
        (b"\x80\x04\x95" + b"\x00" * 20, "not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = table(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        use(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    for read in (lambda path: delimited.columns(path, NAMES), lambda path: delimited.numbers(path, 3)):
        with pytest.raises(ValueError, match=r"none\.csv: no such file"):
            read(tmp_path / "none.csv")


@pytest.mark.parametrize("at_once", [1, 2, 7, 1 << 16])
def test_a_table_is_the_same_however_many_rows_are_parsed_at_once(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(delimited, "_AT_ONCE", at_once)
    path = table(tmp_path, HEADER + GOOD * 7 + "\n" + GOOD)
    found = delimited.columns(path, NAMES)
    assert found.line.tolist() == [*range(2, 16), 17, 18]
    assert found.text("votes") == ["3", "4"] * 8
    path.write_text(HEADER + GOOD * 7 + "x\n" + GOOD)
    with pytest.raises(ValueError, match="row 16: 1 fields"):
        delimited.columns(path, NAMES)


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)] * 3), min_size=1
    )
)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    rows = [(f"x{a}", b, c) for a, b, c in rows]
    out = io.StringIO()
    csv.writer(out).writerows([("a", "b", "c"), *rows])
    path = table(tmp_path_factory.mktemp("t"), out.getvalue())
    found = delimited.columns(path, ("c", "a"))
    assert found.text("a") == [row[0].strip() for row in rows]
    assert found.text("c") == [row[2].strip() for row in rows]


# -- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0 1 2\n3 4 5\n",
        "0\t1\t2\r\n3\t4\t5",
        "\ufeff0,1,2\n3, 4,5\n\n",
        "  0  1 2\r3 4   5\r",
        "0 1 2.0\n3e0 4 5",
    ],
)
def test_numbers_that_say_the_same(tmp_path, text):
    found = delimited.numbers(table(tmp_path, text), 3)
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]] and found.dtype == np.int64


def test_numbers_of_numpy_itself(tmp_path):
    answers = np.random.default_rng(0).integers(-5, 10**9, (1000, 3))
    for fmt in ("%d", "%.18e"):  # its default
        np.savetxt(tmp_path / "t.txt", answers, fmt=fmt)
        np.testing.assert_array_equal(delimited.numbers(tmp_path / "t.txt", 3), answers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("0 1 2\n3 4\n", "row 2: '3 4'; 3 whole numbers are expected"),
        ("0 1\n2 3 4 5\n", "row 1: '0 1'"),
        ("0 1 2 3\n4 5 6 7\n", "row 1: '0 1 2 3'"),
        ("0 1 2\n\n3 4 5\n", "row 2: ''"),
        ("0,1,2\n3,,5\n", "row 2: '3,,5'"),
        ("0,1,2\n3 4 5\n", "row 2: '3 4 5'"),
        ("0;1;2\n", "row 1: '0;1;2'"),
        ("0 1 2\n3 4 5.5\n", "row 2: '3 4 5.5'"),
        ("0 1 2\n3 nan 5\n", "row 2: '3 nan 5'"),
        ("0 1 2\n3 inf 5\n", "row 2: '3 inf 5'"),
        ("0 1 2\n3 4 99999999999999999999\n", "row 2: '3 4 9999"),
        ("a b c\n0 1 2\n", "row 1: 'a b c'"),
        ("0 1 2\n# 3 4\n", "row 2: '# 3 4'"),
        (b"\x93NUMPY\x01\x00", "not UTF-8 text but a numpy array"),
    ],
)
def test_numbers_that_are_none(tmp_path, text, message):
    path = table(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        delimited.numbers(path, 3)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


# -- rows over images ------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), max_size=12))
def test_rows_that_repeat_others(pairs):
    rows = np.array(pairs, np.int32).reshape(-1, 2)
    again = [i for i in range(len(pairs)) if pairs[i] in pairs[:i]]
    notes = delimited.repeats(rows, np.arange(2, len(rows) + 2))
    if not again:
        assert notes == ()
        return
    first = again[0]
    assert notes == (
        f"rows whose images an earlier row has too: {len(again)} "
        f"(first: row {first + 2}, as row {pairs.index(pairs[first]) + 2})",
    )


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6))
def test_images_that_rows_still_name(triples):
    images = [f"{n}.png" for n in range(10)]
    rows = np.array(triples)
    left, found = delimited.used(images, rows)
    assert [[left[i] for i in row] for row in found] == [[images[i] for i in row] for row in rows]
    assert set(left) == {images[i] for i in rows.flat} and found.dtype == np.int32
