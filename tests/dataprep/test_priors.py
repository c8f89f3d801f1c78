"""BAPPS and THINGS, on fixtures of the genuine shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataprep.build_ffcv import main
from dataprep.sources import bapps, things
from dataprep.sources.things import Things
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

ONE = ["--workers", "1"]

# -- BAPPS --------------------------------------------------------------------------------------


def bapps_folder(folder: Path) -> Path:
    """2afc/{train,val}/SUBSET/{ref,p0,p1,judge}; votes 0, .5, 1 in train, fifths in val."""
    seed = 0
    for split, subset, count in (("train", "cnn", 3), ("train", "mix", 2), ("val", "color", 6)):
        for part in ("ref", "p0", "p1", "judge"):
            (folder / "2afc" / split / subset / part).mkdir(parents=True)
        for n in range(count):
            base = folder / "2afc" / split / subset
            for part in ("ref", "p0", "p1"):
                (base / part / f"{n:06d}.png").write_bytes(kit.jpeg(seed))
                seed += 1
            votes = n / 2 if split == "train" else n / 5
            np.save(base / "judge" / f"{n:06d}.npy", np.array([votes], np.float32))
    return folder


def test_bapps_keeps_soft_votes(tmp_path):
    source = bapps_folder(tmp_path / "in")
    assert main(["bapps", "--source", str(source), "--out", str(tmp_path), *ONE]) == 0
    train, val = Beton(tmp_path / "triplets-train.beton"), Beton(tmp_path / "triplets-val.beton")
    assert kit.keys(train) == [f"train/cnn/{n:06d}" for n in range(3)] + [
        f"train/mix/{n:06d}" for n in range(2)
    ]
    assert train.metadata["vote"].tolist() == [0, 0.5, 1, 0, 0.5]
    assert val.metadata["vote"] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(train.metadata["votes"]) == {2} and set(val.metadata["votes"]) == {5}
    assert [train.jpeg(1, name).tobytes() for name in ("ref", "left", "right")] == [
        kit.jpeg(n) for n in (3, 4, 5)
    ]
    assert train.info["votes"] == "human" and train.info["source"]["subsets"] == ["cnn", "mix"]


def test_bapps_mistakes(tmp_path, capsys):
    source = bapps_folder(tmp_path / "in")
    run = ["bapps", "--source", str(source), "--out", str(tmp_path / "out"), *ONE]
    assert main([*run, "--subsets", "superres"]) == 2
    assert "no subset superres; it has cnn, mix" in capsys.readouterr().err
    np.save(source / "2afc/train/cnn/judge/000001.npy", np.array([1.5]))
    assert main(run) == 2
    assert "train/cnn/000001: bad judgement" in capsys.readouterr().err
    (source / "2afc/train/cnn/judge/000001.npy").unlink()
    bapps._names.cache_clear()
    assert main(run) == 2
    assert "p1/000001.png, judge/000002.npy" in capsys.readouterr().err
    (source / "2afc/train/cnn/ref/000002.png").rename(source / "2afc/train/cnn/ref/000003.png")
    np.save(source / "2afc/train/cnn/judge/000001.npy", np.array([1.0]))
    bapps._names.cache_clear()
    assert main(run) == 2  # as many, but the third would be of another triplet
    assert "do not match: ref/000003.png, p0/000002.png" in capsys.readouterr().err


def test_bapps_whose_files_have_other_names_are_not_paired(tmp_path, capsys):
    source = bapps_folder(tmp_path / "in")
    base = source / "2afc/train/cnn"
    for part, number, end in (("ref", 0, "png"), ("p0", 2, "png"), ("p1", 1, "png"), ("judge", 2, "npy")):
        (base / part / f"{number:06d}.{end}").unlink()
    assert main(["bapps", "--source", str(source), "--out", str(tmp_path / "out"), *ONE]) == 2
    assert "do not match: ref/000001.png, p0/000000.png, p1/000000.png" in capsys.readouterr().err


def test_bapps_never_unpickles(tmp_path, capsys):
    source = bapps_folder(tmp_path / "in")
    np.save(source / "2afc/train/mix/judge/000000.npy", np.array([{"a": 1}]), allow_pickle=True)
    assert main(["bapps", "--source", str(source), "--out", str(tmp_path / "out"), *ONE]) == 2
    assert "allow_pickle=False" in capsys.readouterr().err


# -- THINGS -------------------------------------------------------------------------------------

OBJECTS = ["aardvark", "abacus", "accordion", "acorn", "airplane"]


def things_folder(folder: Path) -> Path:
    """Some objects as NAME.jpg, some as folders of several images."""
    for n, name in enumerate(OBJECTS):
        path = folder / "images" / (f"{name}.JPG" if n % 2 else f"{name}/{name}_01b.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kit.jpeg(n))
    (folder / "images/abacus.txt").write_text("no image")
    (folder / "images/accordion/._accordion_01b.jpg").write_bytes(b"from a Mac")
    (folder / "unique_id.txt").write_text("\n".join(OBJECTS) + "\n")
    np.savetxt(folder / "trainset.txt", [[0, 1, 2], [4, 3, 0]], fmt="%d")
    return folder


def check_answers(beton: Beton) -> None:
    """Each answer twice: the odd one is never the preferred one."""
    images = {kit.jpeg(n): n for n in range(len(OBJECTS))}
    rows = [tuple(images[beton.jpeg(i, n).tobytes()] for n in ("ref", "left", "right")) for i in range(4)]
    for (ref, left, right), vote, (a, b, odd) in zip(
        rows, beton.metadata["vote"], [(0, 1, 2), (1, 0, 2), (4, 3, 0), (3, 4, 0)]
    ):
        chosen, other = (right, left) if vote == 1 else (left, right)
        assert (ref, chosen, other) == (a, b, odd) and vote in (0, 1)
    assert kit.keys(beton) == ["0a", "0b", "1a", "1b"]


@pytest.mark.parametrize("ids", [True, False])
def test_things_answers_by_number(tmp_path, ids):
    folder = things_folder(tmp_path)
    arguments = ["things", "--answers", str(folder / "trainset.txt"), "--images", str(folder / "images")]
    arguments += ["--ids", str(folder / "unique_id.txt")] if ids else []
    assert main([*arguments, "--out", str(tmp_path / "t.beton"), *ONE]) == 0
    check_answers(Beton(tmp_path / "t.beton"))


def test_things_answers_by_name(tmp_path):
    folder = things_folder(tmp_path)
    lines = ["aardvark abacus accordion.jpg", "airplane, acorn, aardvark"]
    (folder / "names.txt").write_text("\n".join(lines))
    arguments = ["things", "--answers", str(folder / "names.txt"), "--images", str(folder / "images")]
    assert main([*arguments, "--out", str(tmp_path / "t.beton"), *ONE]) == 0
    check_answers(Beton(tmp_path / "t.beton"))


def test_things_pictures_of_any_ending_keep_the_order(tmp_path, capsys):
    """A picture that is not known as one would move all numbers after it."""
    folder = things_folder(tmp_path)
    (folder / "images/abacus.JPG").rename(folder / "images/abacus.BMP")
    np.savetxt(folder / "trainset.txt", [[0, 1, 2], [4, 3, 0]], fmt="%.1f")
    arguments = ["things", "--answers", str(folder / "trainset.txt"), "--images", str(folder / "images")]
    assert main([*arguments, "--out", str(tmp_path / "t.beton"), *ONE]) == 0
    check_answers(Beton(tmp_path / "t.beton"))
    assert not Beton(tmp_path / "t.beton").info["passed_over"]
    (folder / "images/zebra.jpg").write_bytes(kit.jpeg(9))
    things._images.cache_clear()
    assert main([*arguments, "--out", str(tmp_path / "u.beton"), *ONE]) == 0
    assert "passed over 1: images of no answer" in capsys.readouterr().out


def test_things_ids_are_lines(tmp_path, capsys):
    folder = things_folder(tmp_path)
    (folder / "images/acorn.JPG").rename(folder / "images/ice cream.jpg")
    names = ["aardvark", "abacus", "accordion", "ice cream", "airplane"]
    (folder / "unique_id.txt").write_text("\n".join(names) + "\n")
    arguments = [
        "things",
        "--answers",
        str(folder / "trainset.txt"),
        "--images",
        str(folder / "images"),
        *ONE,
    ]
    arguments += ["--ids", str(folder / "unique_id.txt"), "--out", str(tmp_path / "t.beton")]
    assert main(arguments) == 0
    check_answers(Beton(tmp_path / "t.beton"))
    (folder / "unique_id.txt").write_text("\n".join([*names[:-1], "abacus"]))
    things._images.cache_clear()
    assert main(arguments) == 2
    assert "unique_id.txt: abacus appears more than once" in capsys.readouterr().err


def test_sides_of_things_are_balanced(tmp_path):
    folder = things_folder(tmp_path)
    np.savetxt(folder / "many.txt", np.tile([0, 1, 2], (500, 1)), fmt="%d")
    source = Things(folder / "many.txt", folder / "images", folder / "unique_id.txt")
    votes = [raw.vote for raw in source.read(source.tasks()[0])]
    assert 0.42 < np.mean(votes) < 0.58


@pytest.mark.slow
def test_things_mistakes(tmp_path, capsys):
    folder = things_folder(tmp_path)
    for text, message in (
        ("0 1 9\n", "line 1: [0, 1, 9], there are 5 objects, from 0 on"),
        ("0 1 2\n1.5 2 3\n", "line 2: [1.5, 2, 3], there are 5 objects"),
        ("0 1 2\n3 4 3\n", "line 2: an object appears twice"),
        ("0 1\n", "rows of three objects"),
        ("aardvark abacus zebra\n", "line 1: no image of zebra"),
    ):
        (folder / "bad.txt").write_text(text)
        arguments = ["things", "--answers", str(folder / "bad.txt"), "--images", str(folder / "images")]
        assert main([*arguments, "--out", str(tmp_path / "t.beton"), *ONE]) == 2
        assert message in capsys.readouterr().err


def test_source_or_download(capsys):
    assert main(["nights"]) == 2
    assert "--source FOLDER or --download FOLDER" in capsys.readouterr().err
