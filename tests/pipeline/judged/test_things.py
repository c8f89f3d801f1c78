"""THINGS answers in the layouts that are about, on constructed files of their shape."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.judged import named, things

HEADER = "image1\timage2\timage3\tchoice\tRT\tnoise_ceiling\tsubject_id\tage\tgender\tdate\n"
OBJECTS = ("aardvark", "abacus", "accordion", "zebra")


@pytest.fixture
def images(tmp_path):
    """Two objects as files of different endings, two as folders; named in the order of the alphabet."""
    folder = tmp_path / "images"
    for name in (
        "aardvark/aardvark_01b.jpg",
        "abacus.jpg",
        "accordion.PNG",
        "zebra/zebra_02s.jpg",
        ".hidden.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(folder, text, name="answers.txt"):
    path = folder / name
    path.write_text(text)
    return path


def test_numbers_count_the_objects_by_name(tmp_path, images):
    found = things.read(write(tmp_path, "0 1 3\n2 1 0\n"), images, None, 0, "last")
    paths = ("aardvark/aardvark_01b.jpg", "abacus.jpg", "accordion.PNG", "zebra/zebra_02s.jpg")
    assert found.images == paths and found.folder == images
    assert found.rows.tolist() == [[0, 1, 3], [2, 1, 0]] and found.rows.dtype == np.int32
    assert found.odd.tolist() == [[0, 0, 1]] * 2 and found.votes.tolist() == [1, 1]
    assert found.number.tolist() == [1, 2] and found.group.tolist() == ["", ""] and found.notes == ()


def test_ids_give_the_order_and_missing_images_keep_their_names(tmp_path, images):
    ids = write(tmp_path, "zebra\naardvark/aardvark_01b.jpg\n\nyak\n", "ids.txt")
    found = things.read(write(tmp_path, "3,1,2\n"), images, ids, 1, "first")
    assert found.images == ("zebra/zebra_02s.jpg", "aardvark/aardvark_01b.jpg", "yak.jpg")
    assert found.rows.tolist() == [[2, 0, 1]] and found.odd.tolist() == [[1, 0, 0]]


def test_images_of_no_answer_are_counted(tmp_path, images):
    assert things.read(write(tmp_path, "0 1 3\n"), images, None, 0, "last").notes == (
        "1 of 4 images are in no answer",
    )


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_the_whole_release_with_its_header(tmp_path, images, delimiter):
    rows = (
        "1\t2\t4\t3\t1203\t0\tSUBJ_1\tNaN\tMale\t2019-01-01\n4\t3\t2\t1\tNaN\t2\tSUBJ_2\t30\t\t2019-01-02\n"
    )
    path = write(tmp_path, (HEADER + rows).replace("\t", delimiter), "triplets_large.csv")
    found = things.read(path, images, None, 1, 4)
    assert found.rows.tolist() == [[0, 1, 3], [3, 2, 1]] and found.number.tolist() == [2, 3]
    assert found.odd.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_header_with_blank_lines_below_keeps_the_lines(tmp_path, images):
    path = write(tmp_path, "\ufeffa,b,c,odd\n0,1,2,0\n\n1,2,3,2\n\n")
    found = things.read(path, images, None, 0, 4)
    assert found.number.tolist() == [2, 4] and found.odd.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_a_label_without_a_header(tmp_path, images):
    found = things.read(write(tmp_path, "1 2 3 9 2\n2 3 4 9 3\n"), images, None, 1, 5)
    assert found.rows.tolist() == [[0, 1, 2], [1, 2, 3]] and found.odd.tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float32])
def test_arrays(tmp_path, images, dtype):
    np.save(tmp_path / "train_90.npy", np.array([[0, 1, 3], [2, 1, 0]], dtype))
    found = things.read(tmp_path / "train_90.npy", images, None, 0, "last")
    assert found.rows.tolist() == [[0, 1, 3], [2, 1, 0]] and found.number.tolist() == [0, 1]


def test_names_with_and_without_endings(tmp_path, images):
    text = "\ufeffabacus.jpg,zebra,accordion.png\r\naardvark abacus zebra.JPG\r\n\r\n"
    found = things.read(write(tmp_path, text), images, None, None, "last")
    assert found.rows.tolist() == [[1, 3, 2], [0, 1, 3]] and found.number.tolist() == [1, 2]


def test_a_name_that_looks_like_one_with_an_ending_is_itself(tmp_path):
    ids = write(tmp_path, "a\na.jpg\nb\nc\n", "ids.txt")
    found = things.read(write(tmp_path, "a.jpg b c\n"), tmp_path, ids, None, "last")
    assert found.rows.tolist() == [[1, 2, 3]]


ROW = st.permutations(range(4)).map(lambda order: order[:3])


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ROW, st.integers(0, 2)), min_size=1, max_size=8))
def test_all_ways_to_write_an_answer_mean_the_same(tmp_path_factory, answers):
    """Whichever base, and whether a column or the place tells the odd one, in a text or an array."""
    folder = tmp_path_factory.mktemp("things")
    ids = write(folder, "\n".join(OBJECTS), "ids.txt")
    odd = [row[place] for row, place in answers]
    rest = [[n for n in row if n != o] for (row, _), o in zip(answers, odd)]

    def read(rows, base, told):
        np.savetxt(folder / "a.txt", np.array(rows) + base, fmt="%d")
        np.save(folder / "a.npy", np.array(rows) + base)
        texts = things.read(folder / "a.txt", folder, ids, base, told)
        array = things.read(folder / "a.npy", folder, ids, base, told)
        assert texts.rows.tolist() == array.rows.tolist() and texts.odd.tolist() == array.odd.tolist()
        assert (texts.odd.sum(axis=1) == 1).all()
        return texts.rows[texts.odd == 1].tolist(), [sorted(row) for row in texts.rows.tolist()]

    expected = odd, [sorted(row) for row, _ in answers]
    for base in (0, 1):
        assert read([[*row, place] for row, place in answers], base, 4) == expected
        assert read([[*two, o] for two, o in zip(rest, odd)], base, "last") == expected
        assert read([[o, *two] for two, o in zip(rest, odd)], base, "first") == expected


@pytest.mark.parametrize(
    ("text", "base", "odd", "message"),
    [
        ("0 1 2\n1 2 4\n", 0, "last", "row 2: [1, 2, 4]; objects are 0 to 3"),
        ("1 2 3\n0 1 2\n", 1, "last", "row 2: [0, 1, 2]; objects are 1 to 4"),
        ("0 1 2\n0 -1 2\n", 0, "last", "row 2: [0, -1, 2]"),
        ("0 1 2\n2 1 2\n", 0, "last", "row 2: [2, 1, 2]; three different objects are expected"),
        ("0 1 2\n0 1.5 2\n", 0, "last", "row 2: '0 1.5 2'; 3 whole numbers are expected"),
        ("0 1 2\n0 nan 2\n", 0, "last", "row 2: '0 nan 2'"),
        ("0 1 2\n0 1\n", 0, "last", "row 2: '0 1'"),
        ("0 1 2 2\n", 0, "last", "row 1: '0 1 2 2'; 3 whole numbers"),
        ("0 1 2\n\n1 2 3\n", 0, "last", "row 2: ''"),
        ("zebra abacus aardvark\n", 0, "last", "row 1: 'zebra abacus aardvark'; 3 whole numbers"),
        ("", 0, "last", "it is empty"),
        ("0 1 2\n", 0, 4, "row 1: '0 1 2'; 4 whole numbers"),
        ("0 1 2 3\n", 0, 4, "row 1: [0, 1, 2, 3]; column 4 holds 0 to 2"),
        ("1 2 3 0\n", 1, 4, "row 1: [1, 2, 3, 0]; column 4 holds 1 to 3"),
        ("a,b,c,odd\n1,2,3,4\n", 1, 4, "row 2: [1, 2, 3, 4]; column 4 holds 1 to 3"),
        ("a,b,c,odd\n1,2,3,1\n1,2,x,1\n", 1, 4, "row 3: c is 'x'; a number from 1 to 4 is expected"),
        ("a,b,c,odd\n1,2,3,1\n1,2,,1\n", 1, 4, "row 3: c is ''"),
        ("a,b,c,odd\n1,2,3,1\n1,2,3\n", 1, 4, "row 3: 3 fields, the header has 4"),
        ("a,b,c,odd\n1,2,3,1\n1,2,3,1,9\n", 1, 4, "row 3: 5 fields, the header has 4"),
        ("a,b,a,odd\n1,2,3,1\n", 1, 4, "row 1: more than one column is called a"),
        ("a,b,c\n1,2,3\n", 1, 4, "row 1: it has fewer columns than the one"),
        ("a,b,c,odd\n", 1, 4, "no row below the header"),
        ("zebra abacus\n", None, "last", "row 1: three names expected, 2 found"),
        ("zebra abacus aardvark\nzebra abacus yak\n", None, "last", "row 2: no image of yak"),
        ("0 1 2\n", None, "last", "row 1: no image of 0; are these numbers? then declare --base 0 or 1"),
        ("zebra abacus zebra\n", None, "last", "row 1: [3, 1, 3]; three different objects"),
        (" \n", None, "last", "it is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, images, text, base, odd, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        things.read(path, images, None, base, odd)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("base", "odd", "message"),
    [
        (2, "last", "base 2: the first object has number 0 or 1"),
        (0, "middle", "odd 'middle': first, last, or the number of the column"),
        (0, 3, "odd 3: columns 1 to 3 are the three objects"),
        (None, 4, "odd 4: rows of names have no such column"),
    ],
)
def test_what_is_declared_is_checked(tmp_path, images, base, odd, message):
    with pytest.raises(ValueError) as caught:
        things.read(write(tmp_path, "0 1 2\n"), images, None, base, odd)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0, 1, 2], [0, 1, 4]]), "row 1: [0, 1, 4]; objects are 0 to 3"),
        (np.array([[0, 1, 2], [0, 1, np.nan]]), "row 1: [0.0, 1.0, nan]; 3 whole numbers"),
        (np.array([[0, 1, 1e300]]), "row 0: [0.0, 1.0, 1e+300]"),
        (np.array([[0, 1, 2, 2]]), "it holds int64 (1, 4); (N, 3) whole numbers are expected"),
        (np.array([0, 1, 2]), "it holds int64 (3,)"),
        (np.array([["0", "1", "2"]]), "it holds <U1 (1, 3)"),
        (np.zeros((0, 3), int), "it has no row"),
    ],
)
def test_arrays_that_are_wrong(tmp_path, images, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError) as caught:
        things.read(tmp_path / "a.npy", images, None, 0, "last")
    assert str(caught.value).startswith(f"{tmp_path / 'a.npy'}: {message}")


def test_pickles_are_not_opened(tmp_path, images):
    np.save(tmp_path / "a.npy", np.array([[0, 1, {}]], object), allow_pickle=True)
    with pytest.raises(ValueError, match="a pickle is not opened"):
        things.read(tmp_path / "a.npy", images, None, 0, "last")
    (tmp_path / "a.npy").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="a pickle is not opened"):
        things.read(tmp_path / "a.npy", images, None, 0, "last")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zebra\n\n../../etc/passwd\n", "row 3: '../../etc/passwd' leads out of"),
        ("/etc/passwd\n", "row 1: '/etc/passwd' leads out of"),
        ("zebra\nabacus\nzebra\n", "row 1: zebra appears more than once"),
        ("\n", "it is empty"),
    ],
)
def test_ids_that_are_wrong(tmp_path, images, text, message):
    ids = write(tmp_path, text, "ids.txt")
    with pytest.raises(ValueError) as caught:
        things.read(write(tmp_path, "0 1 2\n"), images, ids, 0, "last")
    assert str(caught.value).startswith(f"{ids}: {message}")


def test_what_is_not_there(tmp_path, images):
    for arguments, message in (
        ((tmp_path / "no.txt", images, None, 0, "last"), "no.txt: no such file"),
        ((tmp_path / "no.txt", images, None, 0, 4), "no.txt: no such file"),
        ((tmp_path / "no.txt", images, None, None, "last"), "no.txt: no such file"),
        ((tmp_path / "no.npy", images, None, 0, "last"), "no.npy: no such file"),
        ((tmp_path / "no.txt", tmp_path / "no", None, 0, "last"), "no such folder of object images"),
        ((tmp_path / "no.txt", images, tmp_path / "ids.txt", 0, "last"), "ids.txt: no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            things.read(*arguments)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in it"):
        things.read(tmp_path / "no.txt", tmp_path / "empty", None, 0, "last")


@pytest.mark.slow
def test_a_tenth_of_the_release_takes_a_moment(tmp_path):
    """470,000 rows: 4.7 million in two minutes of a slow core at the worst; here it takes a second."""
    names = "\n".join(f"object_{n:04}" for n in range(1854))
    ids = write(tmp_path, names, "ids.txt")
    rows = (np.arange(470_000)[:, None] + [0, 7, 900]) % 1854 + 1
    body = "\n".join(
        f"{a}\t{b}\t{c}\t3\t1203\tNaN\tSUBJ_1\tNaN\tMale\t2019-01-01" for a, b, c in rows.tolist()
    )
    path = write(tmp_path, HEADER + body + "\n", "wide.csv")
    started = time.process_time()
    found = things.read(path, tmp_path, ids, 1, 4)
    assert time.process_time() - started < 12
    assert (found.rows == rows - 1).all() and found.notes == ()


def test_names_are_found_as_paths_stems_and_folders(images):
    found = named.find(images, ["abacus.jpg", "accordion", "zebra", "yak", "aardvark/aardvark_01b"])
    assert [path and path.relative_to(images).as_posix() for path in found] == [
        "abacus.jpg",
        "accordion.PNG",
        "zebra/zebra_02s.jpg",
        None,
        "aardvark/aardvark_01b.jpg",
    ]
    assert [path.name for path in named.images_below(images)] == [
        "aardvark_01b.jpg", "abacus.jpg", "accordion.PNG", "zebra_02s.jpg",
    ]  # fmt: skip
