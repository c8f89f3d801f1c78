"""What img2dataset and captioners write, how sources are named, and how much space they take."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep import disk_space
from dataprep.build import RunSettings, build
from dataprep.shard import SampleSettings
from dataprep.sources import sidecars
from dataprep.sources.columns import Choice
from dataprep.sources.pairs import named, open_pairs
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

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
        kit.tar_of(folder / "00000.tar", *parts)
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


@pytest.mark.slow
def test_a_shard_of_which_only_the_statistics_are_there_is_told(tmp_path, capsys):
    folder = img2dataset(tmp_path / "in", "webdataset")
    for number in ("00001", "00002"):
        (folder / f"{number}_stats.json").write_text('{"successes": 9}')
        kit.tar_of(folder / f"{number}.tar", (number, {"jpg": kit.jpeg(0), "txt": "x"}))
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
    assert passed_over == {"files whose names differ only in capitals from one that was taken": 1}


# -- names of sources -----------------------------------------------------------------------------


@pytest.mark.slow
def test_brace_lists_several_sources_and_globs(tmp_path, capsys):
    for n in range(12):
        kit.tar_of(tmp_path / f"s/{n:05}.tar", (str(n), {"jpg": kit.jpeg(n), "txt": f"t {n}"}))
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
    kit.tar_of(tmp_path / "in/0.tar", ("0", {"jpg": kit.jpeg(0), "txt": "x"}))
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


@pytest.mark.slow
def test_the_estimate_of_space_is_near_what_is_written(tmp_path):
    """Images that grow along the source, and captions: the first images alone say half of it."""
    rows = [(f"{n:03}.jpg", *(kit.caption(5 * n + k) for k in range(5))) for n in range(300)]
    for n, (name, *_) in enumerate(rows):
        (tmp_path / name).write_bytes(kit.jpeg(n, 30 + n, 30 + n))
    path = kit.write_csv(tmp_path / "c.csv", rows, ("filepath", *"abcde"))
    source = open_pairs(path, choice=Choice(captions=tuple("abcde")))
    settings = SampleSettings()
    told = disk_space.needed(source, settings, 1)
    build(source, tmp_path / "out.beton", settings, RunSettings(workers=1))
    beton = Beton(tmp_path / "out.beton")
    index = np.arange(300)
    written = sum(int(beton.rows(index).spans(name)[1].sum()) for name in ("image", "tokens", "key"))
    assert 0.8 < told / written < 1.25


def test_the_sizes_read_in_words():
    assert [disk_space._in_words(n) for n in (900, 16.6e6, 2.5e9)] == ["0.9 KB", "16.6 MB", "2.5 GB"]
