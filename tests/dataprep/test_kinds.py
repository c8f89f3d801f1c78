"""Tars and parquet as people really hold them: every sample is taken, or named, or counted as never one."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.samples import Bad, Pair
from dataprep.sources.columns import Choice
from dataprep.sources.members import Reading
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

# -- tars ---------------------------------------------------------------------------------------


def test_tars_of_every_kind_in_one_folder(tmp_path, capsys):
    """Repeated keys, joined tars, packed tars, macOS's members, a BOM, other scripts."""
    folder = tmp_path / "in"
    kit.tar_of(
        folder / "0.tar", ("a", {"jpg": kit.jpeg(0), "txt": "one"}), ("a", {"jpg": kit.jpeg(1), "txt": "two"})
    )
    first, second = (
        kit.tar_of(tmp_path / f"{n}.tar", (f"j{n}", {"jpg": kit.jpeg(2 + n), "txt": f"joined {n}"}))
        for n in range(2)
    )
    (folder / "1.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with tarfile.open(folder / "2.tar.gz", "w:gz") as tar:
        for name, data in (("._z.jpg", b"x"), ("z.jpg", kit.jpeg(4)), ("z.txt", "\ufeffgrüße".encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert kit.make(folder, tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [
        ("a", ["one"]), ("a", ["two"]), ("j0", ["joined 0"]), ("j1", ["joined 1"]), ("z", ["grüße"]),
    ]  # fmt: skip
    beton = Beton(tmp_path / "out.beton")
    assert [beton.jpeg(n).tobytes() for n in range(5)] == [kit.jpeg(n) for n in range(5)]
    assert beton.info["passed_over"] == {"hidden members": 1} and beton.info["seen"] == 5
    assert "passed over 1: hidden members" in capsys.readouterr().out


@pytest.mark.slow
def test_a_packed_tar_of_more_samples_than_its_size_lets_expect(tmp_path):
    """The place for metadata is reserved by the size; a packed tar's size says nothing."""
    samples = [(f"{n:04}", {"jpg": kit.jpeg(0), "txt": "the same words"}) for n in range(600)]
    path = tmp_path / "x.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for key, parts in samples:
            for ending, data in parts.items():
                data = data.encode() if isinstance(data, str) else data
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert path.stat().st_size // 1024 < 300
    assert kit.make(path, tmp_path / "out.beton") == 0 and len(Beton(tmp_path / "out.beton")) == 600


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["jpg", "txt"]), min_size=1, max_size=12))
def test_a_repeated_key_never_gets_anothers_caption(tmp_path_factory, endings):
    """The n-th image of a name belongs to its n-th text, however the two are mixed in the tar."""
    seen = {"jpg": 0, "txt": 0}
    members = []
    for ending in endings:
        members.append((f"a.{ending}", b"%d" % seen[ending]))
        seen[ending] += 1
    path = kit.write_tar(tmp_path_factory.mktemp("tar") / "0.tar", members)
    source = open_pairs(path)
    raws = list(source.read(source.tasks()[0]))
    taken = [raw for raw in raws if isinstance(raw, Pair)]
    assert all(raw.captions == [raw.image.decode()] for raw in taken)
    assert len(taken) == len(endings) / 2 or any(isinstance(raw, Bad) for raw in raws)
    if endings == ["jpg", "txt"] * (len(endings) // 2):
        assert len(taken) == len(endings) / 2


def test_tars_and_parquet_lie_at_any_depth(tmp_path):
    """A folder that is called like a tar is a folder; one that links back is not walked for ever."""
    for n, where in enumerate(("0.tar", "train/1.tar", "a/b/c/2.tar", "x.tar/3.tar")):
        kit.tar_of(tmp_path / "in" / where, (f"s{n}", {"jpg": kit.jpeg(n), "txt": kit.caption(n)}))
    (tmp_path / "in/a/back").symlink_to(tmp_path / "in")
    assert kit.make(tmp_path / "in", tmp_path / "out.beton") == 0
    assert sorted(kit.keys(Beton(tmp_path / "out.beton"))) == ["s0", "s1", "s2", "s3"]
    (tmp_path / "p/q/r").mkdir(parents=True)
    pq.write_table(pa.table({"jpg": [kit.jpeg(0)], "caption": ["x"]}), tmp_path / "p/q/r/x.parquet")
    assert kit.make(tmp_path / "p", tmp_path / "p.beton") == 0


def test_half_a_character_in_json_is_a_reject(tmp_path):
    parts = [("a", {"jpg": kit.jpeg(0), "json": r'{"caption": "red \ud83d"}'})]
    parts += [("b", {"jpg": kit.jpeg(1), "json": r'{"caption": "red \ud83d\ude00"}'})]
    kit.tar_of(tmp_path / "0.tar", *parts)
    assert kit.make(tmp_path / "0.tar", tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    assert kit.taken(tmp_path / "o.beton") == [("b", ["red 😀"])]
    (row,) = kit.rejects(tmp_path / "o.beton")
    assert row["key"] == "a" and row["detail"].startswith(r"a.json: half a character (\ud83d")


def test_a_damaged_parquet_costs_its_own_rows(tmp_path):
    images = [kit.jpeg(n) for n in range(6)]
    whole = pa.table({"jpg": images, "caption": [kit.caption(n) for n in range(6)]})
    pq.write_table(whole, tmp_path / "a.parquet", row_group_size=2, compression="snappy")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + 30 : start + 300] = b"\xaa" * 270
    (tmp_path / "a.parquet").write_bytes(data)
    assert kit.make(tmp_path / "a.parquet", tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    assert kit.keys(Beton(tmp_path / "o.beton")) == ["a/0", "a/1", "a/4", "a/5"]
    rows = kit.rejects(tmp_path / "o.beton")
    assert [(row["key"], row["reason"]) for row in rows] == [(f"a/{n}", "damaged parquet") for n in (2, 3)]


@pytest.mark.slow
def test_parquet_captions_that_are_no_text(tmp_path, capsys):
    for n, captions in enumerate(([7], [b"x"], [True])):
        path = tmp_path / f"{n}.parquet"
        pq.write_table(pa.table({"jpg": [kit.jpeg(0)], "caption": captions}), path)
        assert kit.make(path, tmp_path / "o.beton", "--image-column", "jpg") == 2
        assert f"{path}: caption holds" in capsys.readouterr().err
    texts = pa.array([b"red", b"gr\xfcn", b"blue"]).view(pa.string())
    pq.write_table(pa.table({"jpg": [kit.jpeg(n) for n in range(3)], "caption": texts}), path)
    assert kit.make(path, tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    assert kit.taken(tmp_path / "o.beton") == [("2/0", ["red"]), ("2/2", ["blue"])]
    assert [row["detail"] for row in kit.rejects(tmp_path / "o.beton")] == ["not UTF-8 text"]


def test_parquet_files_that_are_not_alike(tmp_path, capsys):
    """Lists of captions in one file, none in the other."""
    said = [["a"], ["b", "c"], [], ["d"]]
    whole = pa.table({"jpg": [kit.jpeg(n) for n in range(4)], "caption": said})
    pq.write_table(whole, tmp_path / "a.parquet", row_group_size=1)
    assert kit.make(tmp_path, tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    assert [captions for _, captions in kit.taken(tmp_path / "o.beton")] == [["a"], ["b", "c"], ["d"]]
    pq.write_table(pa.table({"jpg": [kit.jpeg(0)]}), tmp_path / "b.parquet")
    assert kit.make(tmp_path, tmp_path / "p.beton") == 2
    assert f"{tmp_path / 'b.parquet'}: no caption column" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "parquet"])
def test_captions_in_further_columns_are_told(tmp_path, form, capsys):
    row = {"file_name": "0.jpg", "text": "one", "caption": "two"}
    path = kit.table_of(tmp_path / f"c.{form}", "")
    if form == "csv":
        path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist([row | {"jpg": kit.jpeg(0)}]), path)
    else:
        path.write_text(json.dumps(row if form == "jsonl" else [row]))
    assert kit.make(path, tmp_path / "o.beton") == 0
    assert "passed over 1: captions in text, beside caption" in capsys.readouterr().out
    assert kit.make(path, tmp_path / "b.beton", "--caption-columns", "caption", "text") == 0
    assert [said for _, said in kit.taken(tmp_path / "b.beton")] == [["two", "one"]]
    assert "passed over" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_unsorted_tar_is_one_line_and_one_reject_a_sample(tmp_path, capsys):
    parts = [{"jpg": kit.jpeg(0)}, {"jpg": kit.jpeg(1)}, {"txt": "a"}, {"txt": "b"}]
    tar = kit.tar_of(tmp_path / "0.tar", *zip("abab", parts), ("c", {"jpg": kit.jpeg(2), "txt": "whole"}))
    assert kit.make(tar, tmp_path / "out.beton") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 3 samples" in error and "a: not sorted by key" in error and "tar --sort=name" in error
    assert kit.make(tar, tmp_path / "out.beton", "--max-rejects", "0.9") == 0
    assert [row["key"] for row in kit.rejects(tmp_path / "out.beton")] == ["a", "b"]
    assert kit.taken(tmp_path / "out.beton") == [("c", ["whole"])]


def test_captions_beside_broken_json_and_in_several_places(tmp_path):
    both = json.dumps({"caption": "short", "text": "long"})
    tar = kit.tar_of(
        tmp_path / "0.tar",
        ("0", {"jpg": kit.jpeg(0), "txt": "good", "json": ""}),
        ("1", {"jpg": kit.jpeg(1), "txt": "fine", "json": "{broken"}),
        ("2", {"jpg": kit.jpeg(2), "txt": "", "json": json.dumps({"caption": "from json"})}),
        ("3", {"jpg": kit.jpeg(3), "json": both}),
        ("4", {"jpg": kit.jpeg(4), "png": b"another", "json": json.dumps({"caption": "c", "text": "c"})}),
        ("5", {"jpg": kit.jpeg(5), "json": "[" * 100_000}),
        ("6", {"jpg": kit.jpeg(6), "txt": "café".encode("latin-1")}),
        ("7.5", {"jpg": kit.jpeg(7), "txt": "dots"}),
        ("8", {"jpg": kit.jpeg(8), "cls": "3"}),
    )
    assert kit.make(tar, tmp_path / "out.beton", "--max-rejects", "0.9") == 0
    assert kit.taken(tmp_path / "out.beton") == [
        ("0", ["good"]), ("1", ["fine"]), ("2", ["from json"]), ("3", ["short"]),
    ]  # fmt: skip
    told = {row["key"]: f"{row['reason']}: {row['detail']}" for row in kit.rejects(tmp_path / "out.beton")}
    assert told["4"].startswith("not an image")  # the png comes first, as in clip-benchmark
    assert told["5"].startswith("bad caption: 5.json: not JSON")
    assert "6.txt: not UTF-8 text: byte 0xe9 in line 1" in told["6"]
    assert "a key ends at the first dot" in told["7"]
    assert told["8"] == "empty caption: it has jpg, cls"
    over = Beton(tmp_path / "out.beton").info["passed_over"]
    assert over["images beside the one taken"] == 1
    assert [count for what, count in over.items() if what.startswith("json field text beside caption")] == [1]
    columns = ["--caption-columns", "caption", "text", "--max-rejects", "0.9"]
    assert kit.make(tar, tmp_path / "two.beton", *columns) == 0
    assert dict(kit.taken(tmp_path / "two.beton"))["3"] == ["short", "long"]


@pytest.mark.parametrize("place", [".", "test"])
def test_retrieval_tars_are_lines_of_captions(tmp_path, place):
    folder = tmp_path / "flickr"
    kit.tar_of(folder / "test" / "0.tar", ("0", {"jpg": kit.jpeg(0), "txt": "one\ntwo\n\nthree"}))
    assert kit.make(folder / place, tmp_path / "one.beton") == 0
    assert kit.taken(tmp_path / "one.beton") == [("0", ["one two three"])]
    assert "further lines of captions" in str(Beton(tmp_path / "one.beton").info["passed_over"])
    assert kit.make(folder / place, tmp_path / "lines.beton", "--caption-lines") == 0
    (folder / "dataset_type.txt").write_text("\ufeffretrieval\r\n")
    assert kit.make(folder / place, tmp_path / "told.beton") == 0
    for name in ("lines", "told"):
        assert kit.taken(tmp_path / f"{name}.beton") == [("0", ["one", "two", "three"])]
        assert Beton(tmp_path / f"{name}.beton").info["passed_over"] == {}


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["txt", "json", "text", "cls"]), st.binary(max_size=20)))
def test_any_texts_give_captions_or_say_what_is_wrong(texts):
    reading = Reading(Choice(), lines=False)
    try:
        captions, _ = reading.captions("key", texts)
    except ValueError as error:
        assert str(error).startswith("key.")
    else:
        assert all(isinstance(caption, str) for caption in captions)
