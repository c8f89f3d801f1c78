"""Sources as people really hold them: every sample is taken, or named, or counted as never one."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep import space
from dataprep.build import RunSettings, build
from dataprep.shard import Bad, Pair, SampleSettings
from dataprep.sources import sidecars
from dataprep.sources.columns import Choice
from dataprep.sources.members import Reading
from dataprep.sources.pairs import named, open_pairs
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

# -- tars ---------------------------------------------------------------------------------------


def tar_of(path, *samples: tuple[str, dict[str, bytes | str]]):
    """A tar of (key, {ending: content})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [(f"{key}.{end}", data) for key, parts in samples for end, data in parts.items()]
    encoded = [(name, data.encode() if isinstance(data, str) else data) for name, data in members]
    return kit.write_tar(path, encoded)


def test_tars_of_every_kind_in_one_folder(tmp_path, capsys):
    """Repeated keys, joined tars, packed tars, macOS's members, a BOM, other scripts."""
    folder = tmp_path / "in"
    tar_of(
        folder / "0.tar", ("a", {"jpg": kit.jpeg(0), "txt": "one"}), ("a", {"jpg": kit.jpeg(1), "txt": "two"})
    )
    first, second = (
        tar_of(tmp_path / f"{n}.tar", (f"j{n}", {"jpg": kit.jpeg(2 + n), "txt": f"joined {n}"}))
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
        tar_of(tmp_path / "in" / where, (f"s{n}", {"jpg": kit.jpeg(n), "txt": kit.caption(n)}))
    (tmp_path / "in/a/back").symlink_to(tmp_path / "in")
    assert kit.make(tmp_path / "in", tmp_path / "out.beton") == 0
    assert sorted(kit.keys(Beton(tmp_path / "out.beton"))) == ["s0", "s1", "s2", "s3"]
    (tmp_path / "p/q/r").mkdir(parents=True)
    pq.write_table(pa.table({"jpg": [kit.jpeg(0)], "caption": ["x"]}), tmp_path / "p/q/r/x.parquet")
    assert kit.make(tmp_path / "p", tmp_path / "p.beton") == 0


def test_half_a_character_in_json_is_a_reject(tmp_path):
    parts = [("a", {"jpg": kit.jpeg(0), "json": r'{"caption": "red \ud83d"}'})]
    parts += [("b", {"jpg": kit.jpeg(1), "json": r'{"caption": "red \ud83d\ude00"}'})]
    tar_of(tmp_path / "0.tar", *parts)
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


def test_an_unsorted_tar_is_one_line_and_one_reject_a_sample(tmp_path, capsys):
    parts = [{"jpg": kit.jpeg(0)}, {"jpg": kit.jpeg(1)}, {"txt": "a"}, {"txt": "b"}]
    tar = tar_of(tmp_path / "0.tar", *zip("abab", parts), ("c", {"jpg": kit.jpeg(2), "txt": "whole"}))
    assert kit.make(tar, tmp_path / "out.beton") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 3 samples" in error and "a: not sorted by key" in error and "tar --sort=name" in error
    assert kit.make(tar, tmp_path / "out.beton", "--max-rejects", "0.9") == 0
    assert [row["key"] for row in kit.rejects(tmp_path / "out.beton")] == ["a", "b"]
    assert kit.taken(tmp_path / "out.beton") == [("c", ["whole"])]


def test_captions_beside_broken_json_and_in_several_places(tmp_path):
    both = json.dumps({"caption": "short", "text": "long"})
    tar = tar_of(
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
    assert over["pictures beside the one taken"] == 1
    assert [count for what, count in over.items() if what.startswith("json field text beside caption")] == [1]
    columns = ["--caption-columns", "caption", "text", "--max-rejects", "0.9"]
    assert kit.make(tar, tmp_path / "two.beton", *columns) == 0
    assert dict(kit.taken(tmp_path / "two.beton"))["3"] == ["short", "long"]


@pytest.mark.parametrize("place", [".", "test"])
def test_retrieval_tars_are_lines_of_captions(tmp_path, place):
    folder = tmp_path / "flickr"
    tar_of(folder / "test" / "0.tar", ("0", {"jpg": kit.jpeg(0), "txt": "one\ntwo\n\nthree"}))
    assert kit.make(folder / place, tmp_path / "one.beton") == 0
    assert kit.taken(tmp_path / "one.beton") == [("0", ["one two three"])]
    assert "further lines of captions" in str(Beton(tmp_path / "one.beton").info["passed_over"])
    assert kit.make(folder / place, tmp_path / "lines.beton", "--caption-lines") == 0
    (folder / "dataset_type.txt").write_text("\ufeffretrieval\r\n")
    assert kit.make(folder / place, tmp_path / "told.beton") == 0
    for name in ("lines", "told"):
        assert kit.taken(tmp_path / f"{name}.beton") == [("0", ["one", "two", "three"])]
        assert Beton(tmp_path / f"{name}.beton").info["passed_over"] == {}


# -- img2dataset's formats -----------------------------------------------------------------------


def rows_of(count: int) -> list[dict]:
    """What img2dataset knows of `count` rows, of which every third could not be fetched."""
    return [
        {"key": f"{n:09}", "caption": kit.caption(n), "status": "success" if n % 3 else "failed_to_download"}
        for n in range(count)
    ]


def img2dataset(folder, form: str, count: int = 9):
    """The three formats as its writers make them: only the parquet form holds failed rows."""
    folder.mkdir()
    told = {
        "count": count,
        "successes": count * 2 // 3,
        "failed_to_download": count // 3,
        "failed_to_resize": 0,
    }
    (folder / "00000_stats.json").write_text(json.dumps(told))
    rows = rows_of(count)
    images = [kit.jpeg(n) if row["status"] == "success" else None for n, row in enumerate(rows)]
    table = pa.Table.from_pylist(rows)
    if form == "parquet":
        table = table.append_column("jpg", pa.array(images, pa.binary()))
    pq.write_table(table, folder / "00000.parquet")
    parts = [
        (row["key"], {"jpg": data, "txt": row["caption"].encode(), "json": json.dumps(row).encode()})
        for row, data in zip(rows, images)
        if data
    ]
    if form == "webdataset":
        tar_of(folder / "00000.tar", *parts)
    elif form == "files":
        (folder / "00000").mkdir()
        for key, contents in parts:
            for ending, data in contents.items():
                (folder / "00000" / f"{key}.{ending}").write_bytes(data)
    return folder


@pytest.mark.parametrize("form", ["webdataset", "parquet", "files"])
def test_img2datasets_formats(tmp_path, form, monkeypatch):
    """The same samples of each; a third never came, which is told and no fault."""
    monkeypatch.setattr(sidecars, "SHARD", 2)
    assert kit.make(img2dataset(tmp_path / "in", form), tmp_path / "out.beton") == 0
    beton = Beton(tmp_path / "out.beton")
    kept = [n for n in range(9) if n % 3]
    assert [beton.jpeg(i).tobytes() for i in range(6)] == [kit.jpeg(n) for n in kept]
    assert (kit.tokens(beton) == kit.expected_tokens([[kit.caption(n)] for n in kept])).all()
    assert beton.info["rejected"] == {} and beton.info["seen"] == 6
    assert beton.info["passed_over"] == {"rows never downloaded (failed_to_download)": 3}


def test_a_shard_of_which_only_the_statistics_are_there_is_told(tmp_path, capsys):
    folder = img2dataset(tmp_path / "in", "webdataset")
    for number in ("00001", "00002"):
        (folder / f"{number}_stats.json").write_text('{"successes": 9}')
        tar_of(folder / f"{number}.tar", (number, {"jpg": kit.jpeg(0), "txt": "x"}))
    for source in (folder, folder / "00000.tar"):
        assert kit.make(source, tmp_path / f"{source.stem}.beton") == 0
        assert "without their tar" not in capsys.readouterr().out
    (folder / "00001.tar").unlink()
    assert kit.make(folder, tmp_path / "o.beton") == 0
    assert "passed over 1: shards without their tar, 00001 the first" in capsys.readouterr().out


def test_a_parquet_row_without_image_and_status_is_a_reject_and_null_is_no_text(tmp_path, capsys):
    table = pa.table({"jpg": [kit.jpeg(0), None, kit.jpeg(2)], "caption": ["NA", "b", None]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert kit.make(tmp_path / "x.parquet", tmp_path / "out.beton") == 1
    assert "a larger --max-rejects goes on" in capsys.readouterr().err
    assert kit.make(tmp_path / "x.parquet", tmp_path / "out.beton", "--max-rejects", "0.9") == 0
    assert kit.taken(tmp_path / "out.beton") == [("x/0", ["na"])]
    assert [row["reason"] for row in kit.rejects(tmp_path / "out.beton")] == ["no image", "empty caption"]


def test_a_source_of_which_nothing_was_downloaded(tmp_path, capsys):
    rows = {"jpg": pa.array([None], pa.binary()), "caption": ["x"], "status": ["failed_to_download"]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    assert kit.make(tmp_path / "x.parquet", tmp_path / "out.beton") == 2
    assert "no sample could be taken; 1 rows never downloaded (failed" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_text_written_anew_is_read_anew(tmp_path, capsys):
    for n in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{n}.jpg").write_bytes(kit.jpeg(n))
        (tmp_path / f"in/{n}.txt").write_text("old")
    assert kit.make(tmp_path / "in", tmp_path / "o.beton") == 0
    (tmp_path / "in/1.txt").write_text("new words")
    assert kit.make(tmp_path / "in", tmp_path / "o.beton") == 0
    assert kit.taken(tmp_path / "o.beton") == [("0", ["old"]), ("1", ["new words"])]
    assert kit.make(tmp_path / "in", tmp_path / "o.beton") == 0
    assert "up to date" in capsys.readouterr().out


def test_images_that_were_missing_are_remembered(tmp_path, capsys):
    table = kit.table_of(tmp_path / "c.csv", "file_name,caption\n0.jpg,x\nlate.jpg,y\n")
    assert kit.make(table, tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    (tmp_path / "late.jpg").write_bytes(kit.jpeg(0))
    assert kit.make(table, tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    assert "1 images were missing or unreadable then; --restart" in capsys.readouterr().out


def test_texts_beside_images(tmp_path):
    """Captioners' folders: names with dots, folders within, hidden files, a text without an image."""
    folder = tmp_path / "in"
    for n, name in enumerate(("b.1", "a", "sub/c")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.JPG").write_bytes(kit.jpeg(n))
        (folder / f"{name}.txt").write_text(f"words {n}")
    (folder / "._a.jpg").write_bytes(b"x")
    (folder / "alone.txt").write_text("no image")
    (folder / "a.jpg").write_bytes(kit.jpeg(3))  # beside a.JPG
    assert kit.make(folder, tmp_path / "out.beton", "--max-rejects", "0.5") == 0
    assert kit.taken(tmp_path / "out.beton") == [
        ("a", ["words 1"]),
        ("b.1", ["words 0"]),
        ("sub/c", ["words 2"]),
    ]
    rejects = {row["key"]: row["reason"] for row in kit.rejects(tmp_path / "out.beton")}
    assert rejects == {"alone": "no image"}
    passed_over = Beton(tmp_path / "out.beton").info["passed_over"]
    assert passed_over == {"files named like one that was taken but for capitals": 1}


# -- names of sources -----------------------------------------------------------------------------


def test_brace_lists_several_sources_and_globs(tmp_path, capsys):
    for n in range(12):
        tar_of(tmp_path / f"s/{n:05}.tar", (str(n), {"jpg": kit.jpeg(n), "txt": f"t {n}"}))
    tars = [tmp_path / f"s/{n:05}.tar" for n in range(12)]
    assert named(f"{tmp_path}/s/{{00008..00011}}.tar") == tars[8:]
    assert named(f"{tmp_path}/s/0000{{1,3}}.tar::{tmp_path}/s/00010.tar") == [tars[1], tars[3], tars[10]]
    assert named(f"{tmp_path}/s/*.tar") == tars
    kit.table_of(tmp_path / "c.csv", "filepath,title\n1.jpg,x\n")
    for source, message in (
        (f"{tmp_path}/s/{{00010..00013}}.tar", "00012.tar: no such file"),
        ("s3://bucket/{0..3}.tar", "remote sources are not read"),
        (f"{tmp_path}/s::{tmp_path}/c.csv", "several sources"),
    ):
        assert kit.make(source, tmp_path / "out.beton") == 2
        assert message in capsys.readouterr().err
    assert kit.make(f"{tmp_path}/s/{{00000..00002}}.tar::{tars[7]}", tmp_path / "out.beton") == 0
    assert kit.keys(Beton(tmp_path / "out.beton")) == ["0", "1", "2", "7"]


def test_hidden_files_on_the_disk_are_no_tars(tmp_path):
    tar_of(tmp_path / "in/0.tar", ("0", {"jpg": kit.jpeg(0), "txt": "x"}))
    (tmp_path / "in/._0.tar").write_bytes(b"from a Mac")
    assert kit.make(tmp_path / "in", tmp_path / "out.beton") == 0
    assert Beton(tmp_path / "out.beton").info["rejected"] == {}


def test_a_folder_with_tables_within_is_asked_about(tmp_path, capsys):
    kit.table_of(tmp_path / "in/annotations/captions_train2017.json", "{}")
    (tmp_path / "in/annotations/captions_val2017.json").write_text("{}")
    assert kit.make(tmp_path / "in", tmp_path / "out.beton") == 2
    assert (
        "found annotations/captions_train2017.json, annotations/captions_val2017" in capsys.readouterr().err
    )


# -- how much space ---------------------------------------------------------------------------------


def test_the_estimate_of_space_is_near_what_is_written(tmp_path):
    """Images that grow along the source, and captions: the first images alone say half of it."""
    rows = [(f"{n:03}.jpg", *(kit.caption(5 * n + k) for k in range(5))) for n in range(300)]
    for n, (name, *_) in enumerate(rows):
        (tmp_path / name).write_bytes(kit.jpeg(n, 30 + n, 30 + n))
    path = kit.write_csv(tmp_path / "c.csv", rows, ("filepath", *"abcde"))
    source = open_pairs(path, choice=Choice(captions=tuple("abcde")))
    settings_ = SampleSettings()
    told = space.needed(source, settings_, 1)
    build(source, tmp_path / "out.beton", settings_, RunSettings(workers=1))
    beton = Beton(tmp_path / "out.beton")
    index = np.arange(300)
    written = sum(int(beton.spans(name, index)[1].sum()) for name in ("image", "tokens", "key"))
    assert 0.8 < told / written < 1.25


def test_the_sizes_read_in_words():
    assert [space._in_words(n) for n in (900, 16.6e6, 2.5e9)] == ["0.9 KB", "16.6 MB", "2.5 GB"]


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
