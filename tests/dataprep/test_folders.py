"""What lies in and around the folders that people hold: other files, splits, links, an output inside."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.build import Job, RunSettings
from dataprep.shard import SampleSettings
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import Beton
from pipeline.text import tokenize
from tests.kits import dataprep as kit

ROOT = Path(__file__).resolve().parents[2]


def texts(folder, count: int, ending: str = "txt"):
    """`count` pictures NAME.jpg with NAME.ENDING beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(kit.jpeg(n))
        (folder / f"{n}.{ending}").write_text(f"caption {n}")
    return folder


def passed_over(out) -> dict:
    return Beton(out).info["passed_over"]


# -- an output in its own source ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["table", "files"])
def test_a_file_built_into_its_source_is_no_part_of_it(tmp_path, capsys, layout):
    folder = texts(tmp_path, 3)
    if layout == "table":
        kit.write_csv(folder / "c.csv", [("0.jpg", "one"), ("gone.jpg", "two")])
    out = folder / "out.beton"
    assert kit.make(folder, out, "--max-rejects", "0.5") == 0
    assert kit.make(folder, out, "--max-rejects", "0.5") == 0
    assert "up to date" in capsys.readouterr().out
    assert len(Beton(out)) == (1 if layout == "table" else 3)


def test_a_build_killed_inside_its_source_goes_on(tmp_path, monkeypatch):
    """The last moment: the only shard has become the file, and its JSON is not written."""
    folder = texts(tmp_path, 3)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "_info", killed)
        assert kit.make(folder, folder / "out.beton") == 130
    assert (folder / "out.beton").is_file() and (folder / "out.beton.parts").is_dir()
    assert kit.make(folder, folder / "out.beton") == 0
    assert [said for _, (said,) in kit.taken(folder / "out.beton")] == [f"caption {n}" for n in range(3)]
    assert not (folder / "out.beton.parts").exists()


def test_a_folder_in_the_place_of_the_output_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "out.beton").mkdir()
    assert kit.make(texts(tmp_path / "in", 1), tmp_path / "out.beton") == 2
    assert "a folder lies there, where a file is to be written" in capsys.readouterr().err
    assert not (tmp_path / "out.beton.parts").exists()


def test_what_a_killed_build_was_joining_is_removed(tmp_path):
    left = [tmp_path / ".out.beton.4242.tmp", tmp_path / ".out.more.beton.4242.tmp"]
    for path in left:
        path.touch()
    assert kit.make(texts(tmp_path / "in", 1), tmp_path / "out.beton") == 0
    assert [path.exists() for path in left] == [False, True]  # the other is of another build


def test_a_file_system_that_keeps_open_files_does_not_fail_a_build(tmp_path, monkeypatch):
    """NFS: the lock's file stays in the folder of parts until it is closed."""

    def rmtree(path, ignore_errors=False):
        for file in path.iterdir():
            if file.name != "lock":
                file.unlink()
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr("shutil.rmtree", rmtree)
    assert kit.make(texts(tmp_path / "in", 1), tmp_path / "out.beton") == 0
    assert len(Beton(tmp_path / "out.beton")) == 1


@pytest.mark.slow
def test_without_a_terminal_or_a_log(tmp_path):
    """`2>&- >&-`: no file may come to stand where a library writes its complaints."""
    source = texts(tmp_path / "in", 1)
    command = f"exec {sys.executable} dataprep/build_ffcv.py pairs --source {source} --out {tmp_path}/o.beton"
    assert subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], cwd=ROOT, timeout=300).returncode == 0
    assert len(Beton(tmp_path / "o.beton")) == 1


# -- beside each other ----------------------------------------------------------------------------


def parquet(path, images, captions, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, column: captions}), path)
    return path


def test_what_a_folder_of_tars_holds_besides_is_told(tmp_path, capsys):
    """Splits are not mixed without a word, nor is parquet with images passed over."""
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        kit.write_tar(tmp_path / f"in/{split}/0.tar", [("a.jpg", kit.jpeg(0)), ("a.txt", b"x")])
    parquet(tmp_path / "in/more.parquet", [kit.jpeg(1)], ["y"])
    assert kit.make(tmp_path / "in", tmp_path / "out.beton") == 0
    said = capsys.readouterr().out
    assert "several splits (test, train) are taken together" in said
    assert "there are parquet files with images too, which are not read" in said
    assert kit.make(tmp_path / "in/train", tmp_path / "train.beton") == 0
    assert "splits" not in capsys.readouterr().out


def test_a_source_given_twice_is_read_once(tmp_path):
    kit.write_tar(tmp_path / "0.tar", [("a.jpg", kit.jpeg(0)), ("a.txt", b"x")])
    assert kit.make(f"{tmp_path}::{tmp_path}/0.tar", tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [("a", ["x"])]


def test_parquet_files_of_several_kinds_in_one_folder(tmp_path, capsys):
    """Without images (told), without rows, other names of columns, view types, lists of captions."""
    pq.write_table(pa.table({"id": [1]}), tmp_path / "0_meta.parquet")
    parquet(tmp_path / "1.parquet", pa.array([], pa.binary()), pa.array([], pa.string()))
    parquet(tmp_path / "2.parquet", [{"bytes": kit.jpeg(2), "path": "x"}], [["two", "zwei"]])
    views = pa.array([kit.jpeg(3)], pa.binary_view()), pa.array(["three"], pa.string_view())
    parquet(tmp_path / "3.parquet", *views, column="caption")
    assert kit.make(tmp_path, tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [("2/0", ["two", "zwei"]), ("3/0", ["three"])]
    assert passed_over(tmp_path / "out.beton") == {
        "parquet files without image bytes, 0_meta.parquet the first": 1
    }


def test_a_damaged_parquet_that_is_not_needed(tmp_path, capsys):
    """As img2dataset leaves it when it is killed, beside the pictures as files."""
    texts(tmp_path / "in/00000", 2)
    (tmp_path / "in/00000.parquet").touch()
    assert kit.make(tmp_path / "in", tmp_path / "out.beton") == 0
    assert len(Beton(tmp_path / "out.beton")) == 2
    (tmp_path / "alone").mkdir()
    (tmp_path / "in/00000.parquet").rename(tmp_path / "alone/00000.parquet")
    assert kit.make(tmp_path / "alone", tmp_path / "more.beton") == 2
    assert "00000.parquet: not a readable parquet file" in capsys.readouterr().err


def test_parts_without_a_sample_do_not_bind_the_next_build(tmp_path):
    """The first try took nothing; the command that mends it needs no --restart."""
    (tmp_path / "texts").mkdir()
    table = kit.write_csv(tmp_path / "texts/c.csv", [("0.jpg", "one")])
    images = texts(tmp_path / "images", 1)
    assert kit.make(table, tmp_path / "out.beton") == 1
    assert kit.make(table, tmp_path / "out.beton", "--images", str(images)) == 0


def test_token_ids_in_parquet_whose_first_file_has_no_rows(tmp_path):
    kind = pa.list_(pa.float64())
    parquet(tmp_path / "0.parquet", pa.array([], pa.binary()), pa.array([], kind))
    ids = tokenize(["a cat"])[0].astype(float).tolist()
    parquet(tmp_path / "1.parquet", [kit.jpeg(0)], pa.array([ids], kind))
    assert kit.make(tmp_path, tmp_path / "out.beton", "--caption-columns", "text") == 0
    assert kit.taken(tmp_path / "out.beton") == [("1/0", ["a cat"])]


def test_of_several_columns_of_bytes_none_is_guessed(tmp_path, capsys):
    table = pa.table({"thumb": [kit.jpeg(0)], "full": [kit.jpeg(1)], "text": ["x"]})
    pq.write_table(table, tmp_path / "0.parquet")
    assert kit.make(tmp_path, tmp_path / "out.beton") == 2
    assert "it has thumb, full; name it with --image-column" in capsys.readouterr().err
    assert kit.make(tmp_path, tmp_path / "out.beton", "--image-column", "full") == 0
    assert Beton(tmp_path / "out.beton").jpeg(0).tobytes() == kit.jpeg(1)


def test_parquet_that_names_its_images_only(tmp_path, capsys):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    parquet(tmp_path / "0.parquet", pa.array([{"bytes": None, "path": "7.jpg"}], kind), ["x"])
    assert kit.make(tmp_path, tmp_path / "out.beton") == 1
    assert "its bytes are null, there is only a path: 7.jpg" in capsys.readouterr().err


# -- what cannot be read --------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TABLE = b"filepath,title\n0.jpg,one\n"


@pytest.mark.parametrize(
    "name, data, code, told",
    [
        ("c.csv.gz", gzip.compress(TABLE, mtime=0), 2, "found instead: packed files (gunzip them)"),
        ("c.csv", gzip.compress(TABLE, mtime=0), 2, "not UTF-8 text but gzip data; gunzip it"),
        ("c.csv", b"PK\x03\x04\x14\0\0\0", 2, "but a zip or a spreadsheet"),
        ("c.csv", POINTER, 2, "but a pointer of Git LFS; git lfs pull fetches the file"),
        ("0.parquet", POINTER, 2, "not parquet but a pointer of Git LFS"),
        ("0.tar", POINTER, 1, "no tar but a pointer of Git LFS"),
        ("c.xlsx", b"PK\x03\x04", 2, "found instead: a spreadsheet (save it as csv in UTF-8)"),
        ("captions.txt", TABLE, 2, "found instead: texts (a table of captions: name the file itself)"),
        ("images.zip", b"PK\x03\x04", 2, "found instead: zips (unpack them)"),
        ("data-00000-of-00001.arrow", b"\xff\xff\xff\xff", 2, "Dataset.to_parquet writes what is read here"),
    ],
)
def test_what_lies_there_instead_is_named(tmp_path, capsys, name, data, code, told):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "dataset_info.json").write_text("{}")  # Hugging Face's, no table
    assert kit.make(tmp_path, tmp_path / "o/out.beton") == code
    assert told in capsys.readouterr().err


def test_urls_are_to_be_downloaded_first(tmp_path, capsys):
    pq.write_table(pa.table({"URL": ["http://x/1.jpg"], "TEXT": ["x"]}), tmp_path / "laion.parquet")
    assert kit.make(tmp_path / "laion.parquet", tmp_path / "out.beton") == 2
    kit.table_of(tmp_path / "c.csv", "url,caption\nhttp://x/1.jpg,x\n")
    assert kit.make(tmp_path / "c.csv", tmp_path / "out.beton") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "it has URL, TEXT: download the images first" in first
    assert "addresses in url: download the images first, with img2dataset" in second


# -- names ------------------------------------------------------------------------------------------


def test_texts_are_named_after_the_whole_name_of_the_picture(tmp_path):
    """NAME.jpg.txt as taggers write it, NAME.jpg.json as gallery-dl does."""
    folder = texts(tmp_path / "in", 2, "jpg.txt")
    (folder / "v1.0.jpg").write_bytes(kit.jpeg(5))
    (folder / "v1.0.jpg.json").write_text(json.dumps({"caption": "five"}))
    assert kit.make(folder, tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [
        ("0", ["caption 0"]), ("1", ["caption 1"]), ("v1.0", ["five"]),
    ]  # fmt: skip


def test_links_to_nowhere_capitals_and_other_endings_cost_a_sample_each(tmp_path):
    folder = texts(tmp_path / "in", 1)
    os.symlink("/nowhere.jpg", folder / "link.jpg")
    (folder / "0.JPG").write_bytes(kit.jpeg(9))
    (folder / "photo.heic").write_bytes(b"x")
    (folder / "silent.jpg").write_bytes(kit.jpeg(1))
    (folder / "silent.json").write_text('{"prompt": "x"}')
    for name in ("link", "photo"):
        (folder / f"{name}.txt").write_text(name)
    assert kit.make(folder, tmp_path / "out.beton", "--max-rejects", "0.9") == 0
    rows = {row["key"]: (row["reason"], row["detail"]) for row in kit.rejects(tmp_path / "out.beton")}
    assert rows == {
        "link": ("missing file", str(folder / "link.jpg")),
        "photo": ("no image", "it has heic, txt"),
        "silent": ("empty caption", "it has jpg, json; the json: prompt (--caption-columns names one)"),
    }
    beton = Beton(tmp_path / "out.beton")
    assert beton.jpeg(0).tobytes() == kit.jpeg(9)  # by name, capitals first
    assert beton.info["passed_over"] == {
        "files whose names differ only in capitals from one that was taken": 1
    }


def test_pictures_of_a_tar_with_dots_in_their_names_are_counted(tmp_path):
    members = [
        ("img.1.jpg", kit.jpeg(1)),
        ("img.1.txt", b"one"),
        ("img.jpg", kit.jpeg(2)),
        ("img.txt", b"two"),
    ]
    kit.write_tar(tmp_path / "0.tar", members)
    assert kit.make(tmp_path, tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [("img", ["two"])]
    assert list(passed_over(tmp_path / "out.beton").values()) == [1]


def test_parts_of_a_tar_are_chosen_by_their_endings(tmp_path):
    """KEY.input.jpg and KEY.outputs.txt, as webdataset's writer makes them of such fields."""
    members = [
        (f"s{n}.{e}", d) for n in range(2) for e, d in (("input.jpg", kit.jpeg(n)), ("outputs.txt", b"x"))
    ]
    kit.write_tar(tmp_path / "0.tar", [*members, ("s2.jpg", kit.jpeg(2)), ("s2.txt", b"y")])
    more = "--image-column", "input.jpg", "--caption-columns", "outputs.txt", "--max-rejects", "0.5"
    assert kit.make(tmp_path, tmp_path / "out.beton", *more) == 0
    assert kit.taken(tmp_path / "out.beton") == [("s0", ["x"]), ("s1", ["x"])]
    assert [row["key"] for row in kit.rejects(tmp_path / "out.beton")] == ["s2"]


def test_a_field_of_captions_that_is_not_there_is_counted(tmp_path):
    fields = json.dumps({"caption": "one", "title": None}).encode()
    kit.write_tar(tmp_path / "0.tar", [("a.jpg", kit.jpeg(0)), ("a.json", fields)])
    more = "--caption-columns", "caption", "title", "captoin"
    assert kit.make(tmp_path, tmp_path / "out.beton", *more) == 0
    assert passed_over(tmp_path / "out.beton") == {
        "samples without captoin, which --caption-columns names": 1
    }


def test_a_tar_that_grows_meanwhile_is_told(tmp_path):
    """It is still being downloaded: room was made for as many samples as it held."""
    members = [("a.jpg", kit.jpeg(0)), ("a.txt", b"x")]
    source = open_pairs(kit.write_tar(tmp_path / "0.tar", members))
    job = Job(source, tmp_path / "out.beton", SampleSettings(), RunSettings(workers=1))
    kit.write_tar(tmp_path / "0.tar", [(f"{n}{name}", data) for n in range(50) for name, data in members])
    with job.lock(), pytest.raises(ValueError, match="0.tar: it changed since this build began"):
        job.write(0, lambda n: None)


def test_damage_that_is_met_twice_is_one_reject(tmp_path):
    members = [(f"{n}.{end}", data) for n in range(30) for end, data in (("jpg", kit.jpeg(n)), ("txt", b"x"))]
    whole = gzip.compress(kit.write_tar(tmp_path / "0.tar", members).read_bytes())
    (tmp_path / "0.tar").write_bytes(whole[: len(whole) // 2])
    assert kit.make(tmp_path, tmp_path / "out.beton", "--max-rejects", "0.5") == 0
    assert len(kit.rejects(tmp_path / "out.beton")) == 1


def test_names_that_are_no_text_are_printed_all_the_same(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"d\xe9")
    kit.write_csv(texts(folder, 1) / "c.csv", [("0.jpg", "one")])
    assert kit.make(folder, tmp_path / "out.beton") == 0
    assert r"d\udce9: layout table" in capsys.readouterr().out
