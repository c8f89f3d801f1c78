"""Whole builds through the command: results, rejects, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dataprep.build import Job, RunSettings, TooManyRejects, build
from dataprep.build_ffcv import DEMO, main
from dataprep.shard import SampleSettings
from dataprep.sources import emoji
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

ROOT = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- results ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pairs_from_a_table(tmp_path, capsys):
    out = tmp_path / "out" / "pairs.beton"
    assert (
        main(
            [
                "pairs",
                "--source",
                str(kit.captions_table(tmp_path / "in", 7)),
                "--out",
                str(out),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    beton = Beton(out)
    assert beton.kind == "pairs" and kit.keys(beton) == [f"images/{n:03d}.jpg" for n in range(7)]
    assert (kit.tokens(beton) == kit.expected_tokens([[kit.caption(n)] for n in range(7)])).all()
    assert [beton.jpeg(n).tobytes() for n in range(7)] == [kit.jpeg(n) for n in range(7)]  # passed through
    info = beton.info
    assert info["samples"] == 7 and info["rejected"] == {} and info["images_kept_byte_for_byte"] == 7
    assert info["captions"]["count"] == 7 and sum(info["captions"]["lengths"]) == 7
    lengths = (kit.tokens(beton) != 0).sum(-1)
    assert info["captions"]["mean_tokens"] == pytest.approx(lengths.mean(), abs=1e-3)
    assert sorted(os.listdir(out.parent)) == ["pairs.beton", "pairs.json", "pairs.rejects.jsonl"]
    assert "7 samples" in capsys.readouterr().out


def test_nights_splits_filter_and_soft_votes(tmp_path):
    source = kit.nights_folder(tmp_path / "nights", 16)
    lines = (source / "data.csv").read_text().splitlines()
    lines[1] = lines[1].replace("0,0,1,8", "0,0.25,0.75,8", 1)  # a soft vote
    lines[2] = lines[2].replace(",8,", ",5,", 1)  # too few votes
    (source / "data.csv").write_text("\n".join(lines))
    splits = ["train", "test", "test_imagenet", "test_no_imagenet"]
    arguments = [
        "nights",
        "--source",
        str(source),
        "--out",
        str(tmp_path),
        "--splits",
        *splits,
        "--workers",
        "1",
    ]
    assert main(arguments) == 0
    train = Beton(tmp_path / "triplets-train.beton")
    assert train.kind == "triplets" and train.info["votes"] == "human"
    assert kit.keys(train) == [str(n) for n in range(16) if n % 4 < 2 and n != 1]
    assert train.metadata["vote"].tolist() == [0.75] + [float(not n % 2) for n in (4, 5, 8, 9, 12, 13)]
    assert (train.metadata["votes"] == 8).all()
    for name, column in (("ref", 0), ("left", 1), ("right", 2)):
        assert train.jpeg(1, name).tobytes() == kit.jpeg(1000 + 3 * 4 + column)
    assert kit.keys(Beton(tmp_path / "triplets-test_imagenet.beton")) == ["3", "11"]
    assert kit.keys(Beton(tmp_path / "triplets-test_no_imagenet.beton")) == ["7", "15"]


@pytest.mark.slow
def test_the_demo_is_the_same_every_time_and_is_reused(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "a")]) == 0  # no source: the demo
    assert "constructed, no human vote" in capsys.readouterr().out
    build(emoji.EmojiPairs(), tmp_path / "b" / "pairs-train.beton", DEMO, kit.ONE)
    for name, data in files_of(tmp_path / "b").items():
        assert (tmp_path / "a" / name).read_bytes() == data
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.*")}
    assert main(["demo", "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.count("up to date") == 4
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.*")} == before
    pairs, triplets = Beton(tmp_path / "a/pairs-train.beton"), Beton(tmp_path / "a/triplets-train.beton")
    assert (
        len(pairs) == 2 * 1599
        and len(triplets) == 1738
        and len(Beton(tmp_path / "a/triplets-test.beton")) == 405
    )
    assert triplets.info["votes"] == "constructed"
    assert main(["verify", str(pairs.path), "--workers", "1"]) == 0


@pytest.mark.slow
def test_another_vendor_is_held_out_of_all_that_trains(tmp_path, capsys):
    """With triplets that show none of its drawings."""
    out = tmp_path / "noto"
    assert main(["demo", "--held-out", "noto", "--out", str(out)]) == 2
    assert "constructed triplets show its drawings" in capsys.readouterr().err and not out.exists()
    human = ["--nights", str(kit.nights_folder(tmp_path / "nights", 12))]
    assert main(["demo", "--held-out", "noto", "--out", str(out), *human]) == 0
    pairs = Beton(out / "pairs-train.beton")
    assert {key.split("/")[0] for key in kit.keys(pairs)} == {"twemoji", "fluent3d"}
    assert pairs.info["source"]["vendors"] == ["twemoji", "fluent3d"]
    with tarfile.open(out / "eval" / "wds_emoji-names" / "test" / "0.tar") as tar:
        first = tar.extractfile("0000.png").read()
    assert first == emoji._png(emoji.rows("noto")[0]["image"])
    assert main(["demo", "--held-out", "noto", "--out", str(out), *human]) == 0
    assert "up to date, 4 evaluation sets of the held-out vendor noto" in capsys.readouterr().out


@pytest.mark.slow
def test_workers_do_not_change_the_file(tmp_path, small_shards, monkeypatch):
    """One process and two (spawned anew, so the small shards are set in the tasks)."""
    table = kit.captions_table(tmp_path / "in", 23)
    source = open_pairs(table)
    for workers in (1, 2):
        build(source, tmp_path / f"{workers}.beton", SampleSettings(), RunSettings(workers=workers))
    assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "2.beton").read_bytes()
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    assert kit.keys(Beton(tmp_path / "1.beton")) == [f"images/{n:03d}.jpg" for n in range(23)]


@pytest.mark.slow
def test_shares_are_nested_and_seeded(tmp_path, small_shards):
    source = open_pairs(kit.captions_table(tmp_path / "in", 60))
    taken = {}
    for seed in (0, 1):
        for share in (0.1, 0.3, 0.7, 1.0):
            out = tmp_path / f"{seed}-{share}.beton"
            build(source, out, SampleSettings(share=share, seed=seed), kit.ONE)
            taken[seed, share] = set(kit.keys(Beton(out)))
        assert taken[seed, 0.1] < taken[seed, 0.3] < taken[seed, 0.7] < taken[seed, 1.0]
    assert taken[0, 0.3] != taken[1, 0.3] and len(taken[0, 1.0]) == 60


def test_duplicates_keep_the_first(tmp_path, small_shards):
    rows = kit.folder_of_images(tmp_path, 12)
    for copy, original in ((7, 2), (8, 2), (11, 10)):
        (tmp_path / rows[copy][0]).write_bytes((tmp_path / rows[original][0]).read_bytes())
    source = open_pairs(kit.write_csv(tmp_path / "captions.csv", rows))
    info = build(source, tmp_path / "out.beton", SampleSettings(dedup=True), kit.ONE)
    beton = Beton(tmp_path / "out.beton")
    assert kit.keys(beton) == [rows[n][0] for n in range(12) if n not in (7, 8, 11)]
    assert info["rejected"] == {"duplicate": 3} and info["samples"] == info["captions"]["count"] == 9
    assert info["captions"]["mean_tokens"] == pytest.approx((kit.tokens(beton) != 0).sum(-1).mean(), abs=1e-3)
    assert [r["key"] for r in kit.rejects(beton.path)] == [rows[n][0] for n in (7, 8, 11)]
    assert main(["verify", str(beton.path), "--workers", "1"]) == 0


def test_json_is_plain(tmp_path):
    build(
        open_pairs(kit.captions_table(tmp_path / "in", 4)), tmp_path / "out.beton", SampleSettings(), kit.ONE
    )
    info = json.loads((tmp_path / "out.json").read_text())
    assert {"kind", "source", "samples", "settings", "versions", "rejected", "captions"} <= set(info)


# -- rejects ------------------------------------------------------------------------------------


def bad_table(folder: Path) -> Path:
    """Ten rows, five of them bad in different ways."""
    rows = kit.folder_of_images(folder, 10)
    (folder / rows[1][0]).write_bytes(b"no image")
    (folder / rows[2][0]).unlink()
    rows[3] = (rows[3][0], "  &nbsp; ")
    (folder / rows[4][0]).write_bytes(kit.jpeg(4)[:500])
    rows[5] = ("", "no name")
    return kit.write_csv(folder / "captions.csv", rows)


def test_bad_samples_are_named_counted_and_left_out(tmp_path, capsys):
    out = tmp_path / "out.beton"
    table = bad_table(tmp_path / "in")
    arguments = ["pairs", "--source", str(table), "--out", str(out), "--workers", "1", "--max-rejects", "0.5"]
    assert main(arguments) == 0
    assert kit.keys(Beton(out)) == [f"images/{n:03d}.jpg" for n in (0, 6, 7, 8, 9)]
    named = {row["key"]: row["reason"] for row in kit.rejects(out)}
    assert named["images/001.jpg"] == "not an image" and named["images/002.jpg"] == "missing file"
    assert named["images/003.jpg"] == "empty caption" and named["images/004.jpg"] == "cannot decode"
    assert len(named) == 5 and Beton(out).info["rejected"]["missing file"] == 1
    assert "rejected 1: missing file" in capsys.readouterr().out


def test_past_the_limit_the_exit_code_is_1_and_nothing_is_written(tmp_path, capsys):
    out = tmp_path / "out.beton"
    arguments = ["pairs", "--source", str(bad_table(tmp_path / "in")), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 1
    assert "past --max-rejects 0.05" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--max-rejects", "0.5"]) == 0  # the shards were kept
    assert len(Beton(out)) == 5


def test_many_rejects_end_a_build_early(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr("dataprep.build._ENOUGH", 5)
    source = open_pairs(bad_table(tmp_path / "in"))
    job = Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    with job.lock(), pytest.raises(TooManyRejects, match="4 of 5"):
        for number in range(len(job.tasks)):
            job.finished(number, job.write(number, lambda n: None))


# -- mistakes: one line, exit code 2, nothing half-written ------------------------------------------


def mistakes(folder: Path) -> dict[str, tuple[list[str], str]]:
    table = kit.captions_table(folder / "ok", 3)
    other = kit.write_csv(folder / "other.csv", [("a", "b")], ("picture", "words"))
    (folder / "empty.csv").write_text("")
    kit.write_csv(folder / "header.csv", [])
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    (folder / "empty").mkdir()
    (folder / "hopeless.csv").write_text("filepath,caption\nnone.jpg,a cat\n")
    nights = kit.nights_folder(folder / "nights", 8)
    (nights / "ref/000/001.png").unlink()
    votes = kit.nights_folder(folder / "votes", 8)
    (votes / "data.csv").write_text((votes / "data.csv").read_text().replace("1,1,0,8", "1,yes,0,8", 1))
    (folder / "folder.beton").mkdir()
    no_columns = folder / "no_columns"
    no_columns.mkdir()
    kit.write_csv(no_columns / "data.csv", [("a", 1)], ("id", "votes"))
    (folder / "coco.json").write_text('{"images": [], "annotations": []}')
    found = ["pairs", "--source", str(folder / "coco.json")]
    pairs = ["pairs", "--out", str(folder / "out.beton"), "--source"]
    triplets = ["nights", "--out", str(folder / "out"), "--source"]
    return {
        "missing source": ([*pairs, str(folder / "nowhere")], "no such file or folder"),
        "empty folder": ([*pairs, str(folder / "empty")], "no webdataset tars"),
        "columns": ([*pairs, str(other)], "it has picture, words"),
        "named column": ([*pairs, str(table), "--caption-columns", "title"], "no caption column title"),
        "empty csv": ([*pairs, str(folder / "empty.csv")], "no header line"),
        "no rows": ([*pairs, str(folder / "header.csv")], "no rows"),
        "broken parquet": ([*pairs, str(folder / "broken.parquet")], "not a readable parquet"),
        "images": ([*pairs, str(table), "--images", str(folder / "nowhere")], "no such folder of images"),
        "name": (["pairs", "--source", str(table), "--out", str(folder / "out.bin")], "end in .beton"),
        "out is a folder": ([*found, "--out", str(folder / "folder.beton")], "a folder lies there"),
        "out in a file": ([*found, "--out", str(other / "out.beton")], "other.csv: a file lies there"),
        "out is a file": (
            ["nights", "--source", str(nights), "--out", str(other)], "where --out needs a folder"),
        "the source's JSON": ([*found, "--out", str(folder / "coco.beton")], "and this is another"),
        "nothing left": ([*pairs, str(folder / "hopeless.csv"), "--max-rejects", "1"], "no sample could"),
        "nights file": ([*triplets, str(nights)], "000/001.png"),
        "nights votes": ([*triplets, str(votes)], "row 3: a vote is not a number"),
        "nights columns": ([*triplets, str(no_columns)], "no column left_vote"),
        "nights folder": ([*triplets, str(folder / "nowhere")], "a NIGHTS folder holds data.csv"),
        "nights split": ([*triplets, str(votes), "--splits", "all"], "choose from train val test"),
        "few votes": ([*triplets, str(nights), "--min-votes", "99"], "no row of split 'train'"),
        "verify": (["verify", str(folder / "nowhere.beton")], "no such file"),
        "inspect": (["inspect", str(table)], "not an FFCV file"),
    }  # fmt: skip


@pytest.mark.slow
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys):
    for name, (arguments, message) in mistakes(tmp_path).items():
        before = set(tmp_path.rglob("*"))
        assert main([*arguments, "--workers", "1"] if arguments[0] != "inspect" else arguments) == 2, name
        error = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("left")]
        assert len(error) == 1 and error[0].startswith("error: ") and message in error[0], (name, error)
        assert {p for p in tmp_path.rglob("*") if p.is_file()} <= before, name


@pytest.mark.slow
def test_wrong_arguments_are_exit_code_2(capsys):
    for arguments, message in (
        (["imagenet"], "imagenet"),
        (["pairs"], "--source"),
        (["demo", "--colour", "red"], "--colour"),
        (["nights", "--source", "x", "--size", "3"], "size must be"),
        (["nights", "--source", "x", "--share", "2"], "share must be"),
        (["nights", "--source", "x", "--max-rejects", "5"], "max_rejects is a share"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", [["dataprep/build_ffcv.py"], ["-m", "dataprep.build_ffcv"]])
def test_both_ways_to_call_it(tmp_path, command):
    table = kit.captions_table(tmp_path / "in", 3)
    arguments = ["pairs", "--source", str(table), "--out", str(tmp_path / "a.beton"), "--workers", "2"]
    done = subprocess.run([sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(Beton(tmp_path / "a.beton")) == 3
