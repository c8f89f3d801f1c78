"""TPIPS on constructed rows: odd-one-out as the package tpips reads it, 2AFC as the reader declares it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from pipeline.formats.judged import tpips


def odd(a: str, b: str, c: str, **factors) -> dict:
    """A triplet; its factors by name: (label, probs)."""
    named = [{"name": name, "label": label, "probs": probs} for name, (label, probs) in factors.items()]
    return {"p0_path": a, "p1_path": b, "p2_path": c, "factors": named}


ROWS = [
    odd("0.jpg", "1.jpg", "2.jpg", overall=("p1", [0.2, 0.6, 0.2]), lighting=("p0", [1, 0, 0])),
    odd("0.jpg", "3.jpg", "1.jpg", overall=("none", [0.4, 0.4, 0.2])),
    odd("4.jpg", "3.jpg", "1.jpg", lighting=("p2", [0, 0, 1])),
    odd("images/5.jpg", "0.jpg", "1.jpg", overall=("p2", [1 / 3, 0.0, 0.66667])),
]
COMPARED = [
    {"ref_path": "r.jpg", "p0_path": "a.jpg", "p1_path": "b.jpg",
     "factors": [{"name": "overall", "label": "p0", "probs": [0.8, 0.2]}]},
    {"ref_path": "r.jpg", "p0_path": "b.jpg", "p1_path": "c.jpg",
     "factors": [{"name": "pose", "probs": [0, 1]}]},
]  # fmt: skip


def put(folder: Path, rows: list, kind: str = "jsonl", split: str = "test") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def triples(found) -> list[list[str]]:
    return [[found.images[image] for image in row] for row in found.rows]


@pytest.mark.parametrize(("kind", "numbers"), [("jsonl", [1, 4]), ("parquet", [0, 3])])
def test_soft_votes_of_a_factor(tmp_path, kind, numbers):
    put(tmp_path, ROWS, kind)
    found = tpips.read_odd(tmp_path, "test")
    assert triples(found) == [["0.jpg", "1.jpg", "2.jpg"], ["images/5.jpg", "0.jpg", "1.jpg"]]
    np.testing.assert_allclose(found.odd, [[0.2, 0.6, 0.2], [1 / 3, 0, 2 / 3]], atol=1e-5)
    np.testing.assert_allclose(found.odd.sum(axis=1), 1, rtol=1e-15)
    assert found.number.tolist() == numbers and found.votes.tolist() == [0, 0]
    assert found.notes == (
        "1 of 4 rows left out: nobody was asked about 'overall'",
        "1 of 4 rows left out: no majority for one of the three",
    )
    assert (found.rows.dtype, found.number.dtype, found.votes.dtype) == (np.int32, np.int64, np.int32)


def test_another_factor(tmp_path):
    put(tmp_path, ROWS)
    found = tpips.read_odd(tmp_path, "test", "lighting")
    assert found.odd.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert triples(found) == [["0.jpg", "1.jpg", "2.jpg"], ["4.jpg", "3.jpg", "1.jpg"]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_comparisons(tmp_path, kind):
    put(tmp_path, COMPARED, kind)
    found = tpips.read_2afc(tmp_path, "test")
    assert triples(found) == [["r.jpg", "a.jpg", "b.jpg"]] and found.vote.tolist() == [
        0.2
    ]  # the share for p1
    assert found.notes == ("1 of 2 rows left out: nobody was asked about 'overall'",)


def test_parts_of_a_parquet_file(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for part in range(2):
        path = data / f"train-{part:05d}-of-00002.parquet"
        parquet.write_table(arrow.Table.from_pylist(ROWS[3 * part : 3 * part + 3]), path)
    found = tpips.read_odd(tmp_path, "train")
    assert found.number.tolist() == [0, 0] and triples(found)[1][0] == "images/5.jpg"
    path.unlink()
    with pytest.raises(ValueError, match="1 parts of train are here, not all of train-00000-of-00002"):
        tpips.read_odd(tmp_path, "train")


def test_repeated_rows_count_and_are_told(tmp_path):
    put(tmp_path, [ROWS[0], ROWS[3], ROWS[0]])
    found = tpips.read_odd(tmp_path, "test")
    assert found.notes == ("rows whose images an earlier row has too: 1 (first: row 3, as row 1)",)


def with_factor(**changed) -> dict:
    row = odd("0.jpg", "1.jpg", "2.jpg", overall=("p1", [0.2, 0.6, 0.2]))
    row["factors"][0].update(changed)
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (with_factor(probs=[0.2, 0.6]), "probs of overall is [0.2, 0.6]; 3 shares with sum 1 are expected"),
        (with_factor(probs=[0.2, 0.6, 0.3]), "3 shares with sum 1 are expected"),
        (with_factor(probs=[1, 3, 1]), "shares from 0 to 1 are expected"),
        (with_factor(probs=[float("nan"), 0.6, 0.2]), "probs of overall is [nan, 0.6, 0.2]; shares from 0"),
        (with_factor(probs=["0.2", 0.6, 0.2]), "shares from 0 to 1 are expected"),
        (with_factor(probs=None), "probs of overall is None"),
        (with_factor(label="p0"), "label of overall is p0, but probs are [0.2, 0.6, 0.2]"),
        ({**ROWS[0], "p2_path": "../2.jpg"}, "p2_path is '../2.jpg'; the path of an image inside the folder"),
        ({**ROWS[0], "p0_path": "/0.jpg"}, "p0_path is '/0.jpg'"),
        ({**ROWS[0], "p0_path": ""}, "p0_path is ''"),
        ({**ROWS[0], "p1_path": None}, "p1_path is None"),
        ({**ROWS[0], "factors": {"name": ["overall"]}}, "factors is no list of {name, label, probs}"),
        ({**ROWS[0], "factors": [{"label": "p0"}]}, "factors is no list of {name, label, probs}"),
        ({**ROWS[0], "factors": ROWS[0]["factors"] * 2}, "factors has a name twice"),
        ([ROWS[0]], "factors is no list of {name, label, probs}"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(tmp_path, row, message):
    path = put(tmp_path, [ROWS[0], row])
    with pytest.raises(ValueError) as caught:
        tpips.read_odd(tmp_path, "test")
    assert str(caught.value).startswith(f"{path}: row 2: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"p0_path": "a.jpg",\n', "row 1: not JSON"),
        ("[" * 100_000, "row 1: not JSON"),
        ("\n\np0_path,p1_path\n", "row 3: not JSON"),
        ("", "none of 0 rows of test answers for 'overall'; factors: none"),
    ],
)
def test_a_file_that_is_no_jsonl(tmp_path, text, message):
    (tmp_path / "test.jsonl").write_text(text)
    with pytest.raises(ValueError) as caught:
        tpips.read_odd(tmp_path, "test")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_factor_that_nobody_was_asked_about(tmp_path):
    put(tmp_path, ROWS)
    with pytest.raises(
        ValueError, match="none of 4 rows of test answers for 'pose'; factors: lighting, overall"
    ):
        tpips.read_odd(tmp_path, "test", "pose")


def test_the_two_sets_are_not_mixed_up(tmp_path):
    put(tmp_path, ROWS)
    with pytest.raises(ValueError, match="row 1: ref_path is None"):
        tpips.read_2afc(tmp_path, "test")
    put(tmp_path, COMPARED)
    with pytest.raises(ValueError, match="row 1: p2_path is None"):
        tpips.read_odd(tmp_path, "test")
    (tmp_path / "test.jsonl").unlink()
    put(tmp_path, COMPARED, "parquet")
    with pytest.raises(ValueError, match=r"test\.parquet: no column p2_path; it has ref_path, p0_path"):
        tpips.read_odd(tmp_path, "test")


def test_files_that_are_not_there_or_there_twice(tmp_path):
    with pytest.raises(
        ValueError, match=r"either test\.jsonl or test-\*\.parquet is expected.*found: neither"
    ):
        tpips.read_odd(tmp_path, "test")
    put(tmp_path, ROWS)
    put(tmp_path, ROWS, "parquet")
    with pytest.raises(ValueError, match=r"found: test\.jsonl, test\.parquet"):
        tpips.read_odd(tmp_path, "test")
    with pytest.raises(ValueError, match=r"split is '\.\./test'"):
        tpips.read_odd(tmp_path, "../test")


def test_a_damaged_parquet_file(tmp_path):
    path = put(tmp_path, ROWS, "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"test\.parquet: "):
        tpips.read_odd(tmp_path, "test")
