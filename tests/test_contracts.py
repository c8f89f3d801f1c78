"""Contracts between the rooms: the same data, read by each of them, is the same."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import tyro

from dataprep.build_ffcv import COMMANDS, main
from eval.metrics import perceptual
from eval.sets import sources
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit
from tests.kits.eval import write_webdataset
from train.config import Prior
from train.splits import PRIOR_DATA

# -- triplets: a NIGHTS folder, and the .beton made of it ------------------------------------------


def told(triplets: perceptual.Triplets) -> list[tuple]:
    """(the three files' bytes, vote, split) of every triplet."""
    files = [triplets.images.read(i) for i in range(len(triplets.images))]
    rows = [tuple(files[i] for i in row) for row in triplets.rows.tolist()]
    return list(zip(rows, triplets.vote.tolist(), triplets.split.tolist()))


def as_beton(folder, out, split: str) -> list[tuple]:
    command = ["nights", "--source", str(folder), "--out", str(out), "--splits", split, "--workers", "1"]
    assert main([*command, "--size", "none"]) == 0
    return told(perceptual.read(out / f"triplets-{split}.beton"))


@pytest.mark.slow
@pytest.mark.parametrize("votes", [8, 4])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("table", ["data.csv", "triplets.csv"])
def test_a_nights_folder_and_its_beton_hold_the_same_triplets(tmp_path, votes, mark, table):
    """Few votes, many, a byte-order mark, soft votes: the same rows with the same votes and splits."""
    folder = kit.nights_folder(tmp_path / "nights", 24, votes)
    lines = (folder / "data.csv").read_text().splitlines()
    lines[3] = lines[3].replace(f"2,0,1,{votes}", f"2,0.25,0.75,{votes}", 1)
    lines[8] = lines[8].replace(f"7,1,0,{votes}", "7,1,0,3", 1)  # in NIGHTS as it is published: left out
    (folder / "data.csv").unlink()
    (folder / table).write_text(mark + "\n".join(lines))
    whole = told(perceptual.read(folder))
    assert {split for *_, split in whole} == {"val", "test"}
    for split in ("val", "test"):
        assert as_beton(folder, tmp_path / "out", split) == [row for row in whole if row[2] == split]
    assert len(whole) == (11 if votes == 8 else 12)
    assert 0.75 in [vote for _, vote, _ in whole]


@pytest.mark.slow
def test_faults_of_a_triplet_table_are_the_same_line_in_both_rooms(tmp_path, capsys):
    folder = kit.nights_folder(tmp_path / "nights", 8)
    good = (folder / "data.csv").read_bytes()
    for body in (
        good.replace(b"test", b"holdout", 1),
        good.replace(b"3,1,0,8", b"3,one,0,8", 1),
        good.replace(b"prompt 3", b"caf\xe9", 1),
        good.decode().encode("utf-16"),
        good.replace(b"left_vote", b"l", 1),
    ):
        (folder / "data.csv").write_bytes(body)
        with pytest.raises(ValueError) as error:
            perceptual.read(folder)
        command = ["nights", "--source", str(folder), "--out", str(tmp_path / "out"), "--splits", "test"]
        assert main(command) == 2
        assert capsys.readouterr().err == f"error: {error.value}\n"
        assert str(folder / "data.csv") in str(error.value)
    (folder / "data.csv").unlink()
    with pytest.raises(ValueError, match="neither data.csv nor triplets.csv is in it"):
        perceptual.read(folder)


def test_old_line_ends_are_read_the_same(tmp_path):
    folder = kit.nights_folder(tmp_path / "nights", 8)
    expected = told(perceptual.read(folder))
    for end in (b"\r", b"\r\n"):
        (folder / "data.csv").write_bytes((folder / "data.csv").read_bytes().replace(b"\r\n", b"\n"))
        (folder / "data.csv").write_bytes((folder / "data.csv").read_bytes().replace(b"\n", end))
        assert told(perceptual.read(folder)) == expected


# -- captions: eval's own readers, and the .beton made of the same files ---------------------------

SAID = [["one", "zwei, drei"], ["a café", "fish & chips", "five"], ["six"]]


def captions_of(beton: Beton) -> np.ndarray:
    """(N, K, 77) token ids."""
    return kit.tokens(beton)


def same(folder, source, tmp_path) -> None:
    """Images and captions in eval's set of `folder` are those of the .beton made of `source`."""
    theirs = sources.read_folder(folder)
    command = ["pairs", "--source", str(source), "--images", str(folder), "--out", str(tmp_path / "o.beton")]
    assert main([*command, "--size", "none", "--workers", "1"]) == 0
    beton = Beton(tmp_path / "o.beton")
    assert (captions_of(beton) == kit.expected_tokens(theirs.captions)).all()
    assert [beton.jpeg(i).tobytes() for i in range(len(beton))] == [theirs.images.read(i) for i in range(3)]
    assert beton.info["rejected"] == {} and beton.info["passed_over"] == {}


def test_a_retrieval_tar_gives_both_rooms_the_same_captions(tmp_path):
    folder = write_webdataset(
        tmp_path / "wds_x", [kit.jpeg(n) for n in range(3)], SAID, shards=2, suffix="jpg"
    )
    same(folder, folder, tmp_path)


@pytest.mark.parametrize("form", ["captions.json", "coco_test_karpathy.json"])
def test_caption_files_give_both_rooms_the_same_captions(tmp_path, form):
    folder = tmp_path / "set"
    folder.mkdir()
    names = [f"{n}.jpg" for n in range(3)]
    for n, name in enumerate(names):
        (folder / name).write_bytes(kit.jpeg(n))
    listed = [{"file": name, "captions": said} for name, said in zip(names, SAID)]
    coco = {
        "images": [{"id": n, "file_name": name} for n, name in reversed(list(enumerate(names)))],
        "annotations": [{"image_id": n, "caption": c} for n, said in enumerate(SAID) for c in said],
    }
    (folder / form).write_text("\ufeff" + json.dumps(coco if "coco" in form else listed, indent=2))
    same(folder, folder / form, tmp_path)


def test_of_several_pictures_both_rooms_take_the_same(tmp_path):
    """clip-benchmark's order: webp, png, jpg, jpeg."""
    members = [("0.jpg", kit.jpeg(1)), ("0.png", kit.jpeg(2)), ("0.gif", kit.jpeg(3)), ("0.txt", b"x")]
    (tmp_path / "wds_x/test").mkdir(parents=True)
    kit.write_tar(tmp_path / "wds_x/test/0.tar", members)
    (tmp_path / "wds_x/test/nshards.txt").write_text("1")
    (tmp_path / "wds_x/dataset_type.txt").write_text("retrieval")
    theirs = sources.read_folder(tmp_path / "wds_x")
    command = ["pairs", "--source", str(tmp_path / "wds_x"), "--out", str(tmp_path / "o.beton")]
    assert main([*command, "--workers", "1"]) == 0
    assert Beton(tmp_path / "o.beton").jpeg(0).tobytes() == theirs.images.read(0) == kit.jpeg(2)


# -- the share of the data --------------------------------------------------------------------------


@pytest.mark.slow
def test_fraction_is_trainings_word(tmp_path, capsys):
    """Training draws a share of a file; building a part of a source is another thing with another name."""
    for command in ("pairs", "nights"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--source", str(tmp_path), "--out", "x.beton", "--fraction", "0.5"])
        assert exit_.value.code == 2 and "--fraction" in capsys.readouterr().err


@pytest.mark.parametrize("prior", get_args(Prior))
def test_the_command_that_training_names_builds_the_file_it_looks_for(prior):
    file, words = PRIOR_DATA[prior]
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=words.split())
    assert file in (command.out, command.out / "triplets-train.beton")
    splits = getattr(command, "splits", ("train",))
    assert "train" in splits and getattr(command, "split", "train") == "train"
