"""The commands for sets of judgements: each builds what its reader says, whole, and tells it in its JSON.

What the readers make of damaged tables: tests/pipeline/judged/.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dataprep.build_ffcv import main
from dataprep.sources.comparisons import as_triplets
from dataprep.verify import verify
from pipeline.beton.fields import Beton
from pipeline.beton.triplets import SIDES
from pipeline.formats.judged import alignet, bapps, jnd, nights_raw, pieapp, quality, table, things, tpips
from pipeline.formats.judged.forms import Judged
from tests.kits import dataprep as kit

ONE = ["--workers", "1"]


class Case(NamedTuple):
    """A constructed set of the genuine shape: how to lay it out in a folder, read it, and build it."""

    files: dict[str, str]
    pictures: str  # their names, in one string
    read: Callable[[Path], Judged]
    arguments: Callable[[Path], list[str]]
    out: str = "t.beton"


def flags(name: str, **given: str) -> Callable[[Path], list[str]]:
    """Arguments of a command; `.` begins paths in the folder."""

    def made(folder: Path) -> list[str]:
        out = [name]
        for flag, value in given.items():
            is_path = value.startswith("./") or value == "."
            out += [f"--{flag.replace('_', '-')}", str(folder / value) if is_path else value]
        return out

    return made


SPLIT = "triplets-train.beton"
FACTOR = {"name": "overall", "label": "p1", "probs": [0.2, 0.6, 0.2]}
CASES = {
    "things": Case(
        {"answers.txt": "0 1 2\n3 2 0\n", "ids.txt": "ant\nbee\ncat\ndog\n"},
        "i/ant.jpg i/bee.jpg i/cat.jpg i/dog.jpg",
        lambda f: things.read(f / "answers.txt", f / "i", f / "ids.txt", 0, "last"),
        flags("things", answers="./answers.txt", images="./i", ids="./ids.txt", base="0", odd="last"),
    ),
    "things with labels": Case(
        {"answers.tsv": "image1\timage2\timage3\tchoice\n1\t2\t3\t2\n4\t2\t1\t3\n"},
        "i/ant.jpg i/bee.jpg i/cat.jpg i/dog.jpg",
        lambda f: things.read(f / "answers.tsv", f / "i", None, 1, 4),
        flags("things", answers="./answers.tsv", images="./i", base="1", odd="4"),
    ),
    "things by name": Case(
        {"answers.txt": "ant bee cat.jpg\ndog, cat, ant\n"},
        "i/ant.jpg i/bee.jpg i/cat.jpg i/dog.jpg",
        lambda f: things.read(f / "answers.txt", f / "i", None, None, "last"),
        flags("things", answers="./answers.txt", images="./i", odd="last"),
    ),
    "nights-raw": Case(
        {
            "nights_raw.csv": "id,left_vote,right_vote,votes,ref_path,left_path,right_path\n"
            "7,3,1,4,ref/a.png,distort/a_0.png,distort/a_1.png\n"
            "9,0,2,2,ref/b.png,distort/b_0.png,distort/b_1.png\n"
        },
        "ref/a.png distort/a_0.png distort/a_1.png ref/b.png distort/b_0.png distort/b_1.png",
        nights_raw.read,
        flags("nights-raw", source="."),
    ),
    "jnd": Case(
        {"jnd_votes.csv": "ref_path,path,same,votes\na.png,b.png,0.25,4\na.png,c.png,0.5,4\n"},
        "a.png b.png c.png",
        jnd.read,
        flags("jnd", source="."),
    ),
    "tpips": Case(
        {
            "train.jsonl": json.dumps(
                {"p0_path": "a.png", "p1_path": "b.png", "p2_path": "c.png", "factors": [FACTOR]}
            )
        },
        "a.png b.png c.png",
        lambda f: tpips.read_odd(f, "train"),
        flags("tpips", source=".", kind="odd"),
        SPLIT,
    ),
    "quality": Case(
        {
            "dmos.csv": "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.5,0.5\n"
            "I01_01_02.png,I01.png,3,0.8\nI01_02_01.png,I01.png,2,1\n"
        },
        "images/I01.png images/I01_01_01.png images/I01_01_02.png images/I01_02_01.png",
        quality.kadid,
        flags("quality", source=".", set="kadid", splits="train", held_out="0"),
        SPLIT,
    ),
    "table": Case(
        {"t.csv": "ref,left,right,vote,votes\na.png,b.png,c.png,0.75,4\nc.png,a.png,b.png,0,1\n"},
        "i/a.png i/b.png i/c.png",
        lambda f: table.read(f / "t.csv", f / "i", "2afc", None, None),
        flags("table", source="./t.csv", images="./i", kind="2afc"),
    ),
    "table of odd ones": Case(
        {"t.csv": "a,b,c,odd,votes\n1,2,3,2,1\n3,1,2,3,1\n"},
        "i/a.png i/b.png i/c.png",
        lambda f: table.read(f / "t.csv", f / "i", "odd", 1, None),
        flags("table", source="./t.csv", images="./i", kind="odd", base="1", odd="column"),
    ),
}


def laid_out(case: Case, folder: Path) -> Path:
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for seed, name in enumerate(case.pictures.split()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(kit.jpeg(seed))
    return folder


def check(out: Path, judged: Judged) -> Beton:
    """That the file holds what the reader read."""
    beton, expected = Beton(out), as_triplets(judged)
    assert len(beton) == len(expected) > 0
    assert kit.keys(beton) == [key.decode() for key in expected.key.tolist()]
    assert beton.metadata["vote"].tolist() == expected.vote.tolist()
    assert beton.metadata["votes"].tolist() == expected.votes.tolist()
    for sample, row in enumerate(expected.rows.tolist()):
        pictures = [(judged.folder / judged.images[i]).read_bytes() for i in row]
        assert [beton.jpeg(sample, side).tobytes() for side in SIDES] == pictures
    assert beton.info["votes"] == judged.voters and not verify(out, 1, decode=True).counts
    return beton


@pytest.mark.parametrize("name", CASES)
def test_a_command_builds_what_its_reader_says(tmp_path, name):
    case = CASES[name]
    folder = laid_out(case, tmp_path / "in")
    out = tmp_path / case.out
    place = str(out if case.out == "t.beton" else tmp_path)
    assert main([*case.arguments(folder), "--out", place, *ONE]) == 0
    check(out, case.read(folder))


def test_bapps_of_both_splits(tmp_path):
    for split, subset, count in (("train", "cnn", 3), ("train", "mix", 2), ("val", "color", 6)):
        for seed, part in enumerate(bapps.PARTS[:-1]):
            for n in range(count):
                path = tmp_path / "in/2afc" / split / subset / part / f"{n:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(kit.jpeg(10 * seed + n))
        (tmp_path / "in/2afc" / split / subset / "judge").mkdir()
        for n in range(count):
            vote = n / 2 if split == "train" else n / 5
            np.save(
                tmp_path / "in/2afc" / split / subset / f"judge/{n:06d}.npy", np.array([vote], np.float32)
            )
    run = ["bapps", "--source", str(tmp_path / "in"), "--out", str(tmp_path), *ONE]
    assert main(run) == 0
    for split in ("train", "val"):
        beton = check(tmp_path / f"triplets-{split}.beton", bapps.read(tmp_path / "in", split))
        assert beton.info["source"]["split"] == split
    assert main([*run[:3], "--out", str(tmp_path / "o"), "--subsets", "superres"]) == 2


def test_alignet_of_its_npz(tmp_path):
    names = [f"n0144076{n % 2}/n0144076{n % 2}_{n}.JPEG" for n in range(4)]
    for seed, name in enumerate(names):
        (tmp_path / "i" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "i" / name).write_bytes(kit.jpeg(seed))
    rows = np.array([[0, 1, 2], [3, 0, 1]])
    np.savez_compressed(
        tmp_path / "alignet_train.npz", indices=rows,
        similarities=np.array([[3, 1, 2], [5, 4, 1]], np.float32),
        filenames=np.array([name.split("/")[1] for name in names])[rows],
    )  # fmt: skip
    run = ["alignet", "--table", str(tmp_path / "alignet_train.npz"), "--images", str(tmp_path / "i"), *ONE]
    read = partial(alignet.read, tmp_path / "alignet_train.npz", tmp_path / "i")
    assert main([*run, "--out", str(tmp_path / "hard.beton")]) == 0
    assert len(check(tmp_path / "hard.beton", read())) == 4  # two of each answer
    assert main([*run, "--out", str(tmp_path / "soft.beton"), "--temperature", "1"]) == 0
    soft = check(tmp_path / "soft.beton", read(1.0))
    assert len(soft) == 6 and "human" not in soft.info["votes"].split(",")[0]
    assert soft.info["source"]["options"]["temperature"] == 1


def test_pieapp_of_both_layouts(tmp_path):
    (tmp_path / "in/labels/train").mkdir(parents=True)
    (tmp_path / "in/train_reference_list.txt").write_text("ref_1.png\n")
    (tmp_path / "in/labels/train/ref_1_pairwise_labels.csv").write_text(
        "ref. image, distorted image A, distorted image B, raw preference for A, processed preference for A\n"
        "ref_1.png,distA_1.png,distB_1.png,0.6,0.7\n"
    )
    judged = None
    try:
        judged = pieapp.read(tmp_path / "in", "train")
    except ValueError as error:
        pytest.fail(str(error))
    for seed, name in enumerate(judged.images):
        (judged.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (judged.folder / name).write_bytes(kit.jpeg(seed))
    run = ["pieapp", "--source", str(tmp_path / "in"), "--out", str(tmp_path), "--splits", "train", *ONE]
    assert main(run) == 0
    check(tmp_path / SPLIT, judged)


def test_references_of_ratings_are_in_one_split_each(tmp_path):
    rows = ["dist_img,ref_img,dmos,var"]
    (tmp_path / "in/images").mkdir(parents=True)
    for ref in range(12):
        (tmp_path / f"in/images/I{ref:02d}.png").write_bytes(kit.jpeg(3 * ref))
        for n in (1, 2):
            (tmp_path / f"in/images/I{ref:02d}_01_{n:02d}.png").write_bytes(kit.jpeg(3 * ref + n))
            rows.append(f"I{ref:02d}_01_{n:02d}.png,I{ref:02d}.png,{1 + n},1")
    (tmp_path / "in/dmos.csv").write_text("\n".join(rows) + "\n")
    run = ["quality", "--set", "kadid", "--source", str(tmp_path / "in"), "--out", str(tmp_path), *ONE]
    assert main([*run, "--held-out", "0.3"]) == 0
    parts = [Beton(tmp_path / f"triplets-{split}.beton") for split in ("train", "val", "test")]
    shown = [{part.jpeg(i, side).tobytes() for i in range(len(part)) for side in SIDES} for part in parts]
    assert sum(map(len, parts)) == 12 and sum(map(len, shown)) == 36 == len(set.union(*shown))


@pytest.mark.parametrize(
    "name, more, message",
    [
        ("things", ["--base", "1"], "3 2 0"),
        ("table", ["--kind", "odd"], "--odd first, last or column"),
        ("table of odd ones", ["--odd", "last"], "leave out --odd last"),
        ("quality", ["--held-out", "0.6"], "--held-out is a share from 0 to 0.5"),
    ],
)
def test_what_is_not_declared_is_no_guess(tmp_path, capsys, name, more, message):
    case = CASES[name]
    folder = laid_out(case, tmp_path / "in")
    out = tmp_path if case.out == SPLIT else tmp_path / "t.beton"
    assert main([*case.arguments(folder), *more, "--out", str(out), *ONE]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and (message in told or name == "things")
    assert not list(tmp_path.glob("*.beton"))
