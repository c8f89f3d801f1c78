"""Every layout of image–caption sources, on small fixtures in the genuine shapes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataprep.build import RunSettings, build
from dataprep.samples import Bad
from dataprep.shard import SampleSettings
from dataprep.sources import parquet, tables
from dataprep.sources.columns import Choice
from dataprep.sources.pairs import open_pairs, recognise
from dataprep.sources.parquet import token_rows
from pipeline.beton.fields import Beton
from pipeline.text import tokenize
from tests.kits import dataprep as kit

RUN = RunSettings(workers=1, max_rejects=0.9)


def built(source, tmp_path, **settings_) -> Beton:
    build(source, tmp_path / "out.beton", SampleSettings(**settings_), RUN)
    return Beton(tmp_path / "out.beton")


def check(beton: Beton, seeds: list[int], captions: list[list[str]], keys: list[str] | None = None) -> None:
    assert [beton.jpeg(i).tobytes() for i in range(len(beton))] == [kit.jpeg(s) for s in seeds]
    assert (kit.tokens(beton) == kit.expected_tokens(captions)).all()
    if keys is not None:
        assert kit.keys(beton) == keys


# -- tars ---------------------------------------------------------------------------------------


def img2dataset_folder(folder, shards: int = 2, each: int = 4):
    """As img2dataset writes: 00000.tar, 00000.parquet, 00000_stats.json."""
    folder.mkdir()
    for shard in range(shards):
        members = []
        for n in range(shard * each, (shard + 1) * each):
            key = f"{shard:05d}{n % each:04d}"
            told = {"caption": kit.caption(n), "url": "http://x", "key": key, "status": "success"}
            members += [(f"{key}.jpg", kit.jpeg(n)), (f"{key}.json", json.dumps(told).encode())]
            members += [(f"{key}.txt", kit.caption(n).encode())]
        kit.write_tar(folder / f"{shard:05d}.tar", members)
        pq.write_table(pa.table({"url": ["http://x"]}), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


@pytest.mark.slow
def test_img2dataset(tmp_path):
    source = open_pairs(img2dataset_folder(tmp_path / "in"))
    assert source.describe()["layout"] == "tars" and len(source.tasks()) == 2
    keys = [f"{s:05d}{n:04d}" for s in range(2) for n in range(4)]
    check(built(source, tmp_path), list(range(8)), [[kit.caption(n)] for n in range(8)], keys)


def test_tars_with_other_caption_keys(tmp_path):
    told = [{"title": f"title {n}", "description": f"words {n}", "tags": ["a", f"tag {n}"]} for n in range(3)]
    members = [(f"a/{n}.{e}", d) for n in range(3) for e, d in
               (("jpeg", kit.jpeg(n)), ("json", json.dumps(told[n]).encode()))]  # fmt: skip
    tar = kit.write_tar(tmp_path / "x.tar", members)
    check(built(open_pairs(tar), tmp_path), [0, 1, 2], [[f"title {n}", f"words {n}"] for n in range(3)],
          ["a/0", "a/1", "a/2"])  # fmt: skip
    source = open_pairs(tar, choice=Choice(captions=("tags", "title")))
    check(built(source, tmp_path), [0, 1, 2], [["a", f"tag {n}", f"title {n}"] for n in range(3)])
    source = open_pairs(tar, choice=Choice(captions=("tags", "title")), captions=2)
    beton = built(source, tmp_path)
    assert kit.tokens(beton).shape == (3, 2, 77) and beton.info["captions"]["left_out"] == 3


def test_bad_members_of_tars_are_named(tmp_path):
    members = [
        ("0.jpg", kit.jpeg(0)), ("0.txt", b"fine"), ("1.txt", b"no image"), ("2.jpg", kit.jpeg(2)),
        ("3.jpg", kit.jpeg(3)), ("3.json", b"{not json"), ("4.jpg", b""), ("4.txt", b"empty image"),
        ("5.jpg", kit.jpeg(5)), ("5.txt", b"fine too"),
    ]  # fmt: skip
    tar = kit.write_tar(tmp_path / "x.tar", members)
    beton = built(open_pairs(tar), tmp_path)
    assert kit.keys(beton) == ["0", "5"]
    reasons = {row["key"]: row["reason"] for row in kit.rejects(beton.path)}
    assert reasons == {"1": "no image", "2": "empty caption", "3": "bad caption", "4": "empty file"}


@pytest.mark.parametrize("cut", [5_000, 5_632, 6_144, 8_192])
def test_a_cut_tar_gives_what_it_still_holds(tmp_path, cut):
    folder = img2dataset_folder(tmp_path / "in", 1, 6)
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(whole[:cut])
    beton = built(open_pairs(folder), tmp_path)
    assert 1 <= len(beton) < 6
    assert kit.rejects(beton.path)[-1]["reason"] == "damaged tar"


def test_members_above_the_limit_are_not_read(tmp_path):
    tar = kit.write_tar(
        tmp_path / "x.tar", [("0.jpg", kit.jpeg(0)), ("0.txt", b"a"), ("1.jpg", bytes(9999)), ("1.txt", b"b")]
    )
    source = open_pairs(tar, max_bytes=5000)
    raws = list(source.read(source.tasks()[0]))
    assert isinstance(raws[1], Bad) and raws[1].reason == "too many bytes"


# -- parquet --------------------------------------------------------------------------------------


def write_rwkv(path, seeds, struct=False, row_group_size=100) -> None:
    """RWKV-CLIP's YFCC15M: `images`, and `texts` as token ids stored as floats."""
    images = [kit.jpeg(n) for n in seeds]
    texts = [tokenize([kit.caption(n)])[0].astype(np.float32).tolist() for n in seeds]
    if struct:
        images = [{"bytes": data, "path": f"{n}.jpg"} for n, data in zip(seeds, images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    table = pa.table({"images": pa.array(images, kind), "texts": pa.array(texts, pa.list_(pa.float32()))})
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.mark.parametrize("struct", [False, True])
def test_rwkv_clip(tmp_path, struct, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS", 3)
    (tmp_path / "in").mkdir()
    write_rwkv(tmp_path / "in/train-00000-of-00002.parquet", range(5), struct, row_group_size=2)
    write_rwkv(tmp_path / "in/train-00001-of-00002.parquet", range(5, 8), struct)
    source = open_pairs(tmp_path / "in")
    assert source.describe()["layout"] == "parquet"
    assert [(t.start, t.stop, t.most) for t in source.tasks()] == [(0, 2, 4), (2, 3, 1), (0, 1, 3)]
    keys = [f"train-00000-of-00002/{n}" for n in range(5)] + [f"train-00001-of-00002/{n}" for n in range(3)]
    check(built(source, tmp_path), list(range(8)), [[kit.caption(n)] for n in range(8)], keys)


def test_parquet_with_strings_and_lists(tmp_path):
    lists = [["one", "two", "three"], ["four"], []]
    table = pa.table({"jpg": [kit.jpeg(n) for n in range(3)], "caption": lists, "other": [1, 2, 3]})
    pq.write_table(table, tmp_path / "x.parquet")
    beton = built(open_pairs(tmp_path / "x.parquet"), tmp_path)
    check(beton, [0, 1], lists[:2])
    assert beton.info["rejected"] == {"empty caption": 1}
    table = pa.table(
        {"bytes": [kit.jpeg(n) for n in range(2)], "title": ["a", "b"], "description": ["c", "d"]}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    parquet._most_captions.cache_clear()
    check(built(open_pairs(tmp_path / "x.parquet"), tmp_path), [0, 1], [["a", "c"], ["b", "d"]])


@pytest.mark.parametrize(
    "value, message",
    [
        ([49406, 5.5, 49407], "whole"), ([49406, 49408], "outside"), ([49406, -1, 49407], "outside"),
        ([5, 49407], "go from"), ([49406, 5], "go from"), ([1.0] * 100, "not rows of 77"),
        ([float("nan")], "whole"),
    ],
)  # fmt: skip
def test_token_ids_are_checked(value, message):
    with pytest.raises(ValueError, match=message):
        token_rows(value)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_token_ids_come_back(captions):
    ids = tokenize(captions)
    assert (token_rows(ids.astype(np.float32).reshape(-1).tolist()) == ids).all()
    assert (token_rows(ids.tolist()) == ids).all()
    short = ids[0][: ids[0].argmax() + 1]
    assert (token_rows(short.tolist()) == ids[:1]).all()


# -- tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending, delimiter", [("csv", ","), ("tsv", "\t"), ("csv", "\t"), ("csv", ";")])
def test_tables_with_all_delimiters_quotes_and_newlines(tmp_path, ending, delimiter, monkeypatch):
    monkeypatch.setattr(tables, "SHARD", 2)
    rows = kit.folder_of_images(tmp_path, 7)
    said = [f'a "quoted", one\nin two; lines\t{n} é' for n in range(7)]
    rows = [(name, words) for (name, _), words in zip(rows, said)]
    kit.write_csv(tmp_path / f"captions.{ending}", rows, delimiter=delimiter)
    source = open_pairs(tmp_path)
    assert [t.most for t in source.tasks()] == [2, 2, 2, 1]
    check(built(source, tmp_path), list(range(7)), [[words] for words in said], [name for name, _ in rows])


def test_byte_order_mark_and_bad_rows(tmp_path):
    rows = kit.folder_of_images(tmp_path, 3)
    body = f"filepath,caption\n{rows[0][0]},one\n{rows[1][0]}\n\n{rows[2][0]},three\xff\n"
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + body.encode("latin-1"))
    beton = built(open_pairs(tmp_path / "c.csv"), tmp_path)
    assert kit.keys(beton) == [rows[0][0]]
    short, foreign = kit.rejects(beton.path)
    assert (short["key"], short["detail"]) == ("line 3", "1 fields where the header has 2")
    assert foreign["key"] == "line 5" and foreign["detail"].startswith(r"not UTF-8: 'three\xff'")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shards_of_a_table_are_its_rows_in_order(tmp_path_factory, data):
    """Any cells, any shard size: reading the shards gives what reading the whole table gives."""
    folder = tmp_path_factory.mktemp("table")
    cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)
    names = data.draw(
        st.lists(st.sampled_from(["a.jpg", "b.jpg", "ü.jpg", "c d.jpg"]), min_size=1, max_size=12)
    )
    rows = [(name, data.draw(cell)) for name in names]
    path = kit.write_csv(folder / "t.csv", rows)
    table = tables.TableFile(path, Choice())
    grouped: list[tuple[str, list[str]]] = []
    with open(path, newline="", encoding="utf-8") as file:  # the csv module's own reading
        for name, words in list(csv.reader(file))[1:]:
            if grouped and grouped[-1][0] == name:
                grouped[-1][1].append(words)
            else:
                grouped.append((name, [words]))
    old, tables.SHARD = tables.SHARD, data.draw(st.integers(1, 4))
    try:
        tasks = tables.Table(table, folder, 0).tasks()
    finally:
        tables.SHARD = old
    read = [r for task in tasks for r in table.groups(task.start, task.stop)]
    assert [(r.image, r.captions) for r in read] == grouped
    assert sum(task.most for task in tasks) == len(grouped)


def test_declip_json_lines(tmp_path, monkeypatch):
    """`yfcc15m_clean_open_data.json`: json lines; a caption is a string or a list of strings."""
    monkeypatch.setattr(tables, "SHARD", 2)
    rows = kit.folder_of_images(tmp_path, 5)
    said = [["one"], ["two", "zwei"], ["three"], [], ["five"]]
    lines = [
        json.dumps({"filename": rows[n][0], "url": "http://x", "caption": s[0] if len(s) == 1 else s})
        for n, s in enumerate(said)
    ]
    lines.insert(2, "{broken")
    (tmp_path / "yfcc15m_clean_open_data.json").write_text("\n".join(lines) + "\n")
    beton = built(open_pairs(tmp_path), tmp_path)
    check(beton, [0, 1, 2, 4], [said[n] for n in (0, 1, 2, 4)])
    assert beton.info["rejected"] == {"bad row": 1, "empty caption": 1}


def test_following_rows_of_one_image_are_its_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SHARD", 1)
    rows = kit.folder_of_images(tmp_path, 3)
    said = [["a", "b", "c"], ["d"], ["e", "f"]]
    flat = [(rows[n][0], words) for n in range(3) for words in said[n]]
    kit.write_csv(tmp_path / "c.csv", flat)
    check(built(open_pairs(tmp_path / "c.csv"), tmp_path), [0, 1, 2], said)


def test_named_columns(tmp_path):
    rows = kit.folder_of_images(tmp_path, 2)
    kit.write_csv(tmp_path / "c.csv", [("x", *row, "more") for row in rows], ("path", "where", "says", "too"))
    source = open_pairs(tmp_path / "c.csv", choice=Choice(image="where", captions=("too", "says")))
    check(built(source, tmp_path), [0, 1], [["more", kit.caption(n)] for n in range(2)])


# -- SLIP's zips ------------------------------------------------------------------------------------


def slip_folder(folder):
    kit.write_zip(folder / "12/345.zip", {"678.jpg": kit.jpeg(0), "679.jpg": kit.jpeg(1)})
    kit.write_zip(folder / "00/000.zip", {"007.jpg": kit.jpeg(2)})
    (folder / "99").mkdir()
    (folder / "99/999.zip").write_bytes(b"no zip")
    rows = [(12345678, "a title", "some words"), (12345679, "", "only words"), (12345680, "not", "there"),
            (7, "seven", ""), (99999999, "broken", "zip"), ("x", "no", "number"),
            (55555555, "no", "zip")]  # fmt: skip
    kit.write_csv(folder / "meta.csv", rows, ("index", "title", "description"))
    return folder


def test_slip(tmp_path):
    source = open_pairs(slip_folder(tmp_path / "in"))
    assert source.describe()["layout"] == "zips"
    beton = built(source, tmp_path)
    check(beton, [0, 1, 2], [["a title", "some words"], ["only words"], ["seven"]],
          ["12345678", "12345679", "00000007"])  # fmt: skip
    reasons = [row["reason"] for row in kit.rejects(beton.path)]
    assert reasons == ["missing file", "unreadable zip", "bad row", "missing file"]


# -- recognising --------------------------------------------------------------------------------------


def test_layouts_are_recognised_and_can_be_forced(tmp_path):
    img2dataset_folder(tmp_path / "tars")
    assert recognise(tmp_path / "tars", None) == "tars"
    (tmp_path / "rwkv").mkdir()
    write_rwkv(tmp_path / "rwkv/a.parquet", [0])
    assert recognise(tmp_path / "rwkv", None) == "parquet"
    (tmp_path / "deep/part0").mkdir(parents=True)
    write_rwkv(tmp_path / "deep/part0/a.parquet", [0])
    assert recognise(tmp_path / "deep", None) == "parquet"
    kit.write_csv(tmp_path / "rwkv/c.csv", [("a.jpg", "b")])
    assert recognise(tmp_path / "rwkv", None) == "parquet"
    assert open_pairs(tmp_path / "rwkv", layout="table").describe()["layout"] == "table"
    assert recognise(slip_folder(tmp_path / "slip"), None) == "zips"


@pytest.mark.slow
def test_the_shared_sets_build(shared_data, tmp_path):
    for name, samples in (("photos", 132), ("coco36", 36)):
        beton = built(open_pairs(shared_data / name), tmp_path)
        assert len(beton) == samples and not kit.rejects(beton.path)
    assert kit.tokens(beton).shape[1] == 5 and (kit.tokens(beton)[..., 0] != 0).all()


def test_reading_and_converting_leave_the_process_as_it_was(tmp_path):
    """csv's longest field and Pillow's largest image are limits of the whole process."""
    limits = csv.field_size_limit(), Image.MAX_IMAGE_PIXELS
    table = kit.table_of(
        tmp_path / "c.csv", f'file_name,caption\n0.jpg,"a, {"very " * 60_000} long caption"\n'
    )
    assert kit.make(table, tmp_path / "out.beton", "--max-pixels", "10000") == 0
    assert Beton(tmp_path / "out.beton").info["rejected"] == {}
    assert (csv.field_size_limit(), Image.MAX_IMAGE_PIXELS) == limits and limits[0] < 300_000
