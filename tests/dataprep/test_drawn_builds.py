"""`build_ffcv.py embedding` and `matrix`: from numbers and images to .beton, and what users get wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from dataprep.build_ffcv import main
from dataprep.sources.drawn import images, source, spaces
from dataprep.sources.drawn.images import Listing
from dataprep.sources.drawn.rule import Rule
from dataprep.sources.drawn.source import Drawn, EmbeddingPrior
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

SIZE = 24
SPLITS, SIDES = ("train", "val", "test"), ("ref", "left", "right")


def forget() -> None:
    """A command is a process of its own: what was read in another is read anew."""
    for cached in (source._images, source._scale, source._drawn, spaces.open_embedding, spaces.open_matrix,
                   spaces.check_matrix, images.sha256):  # fmt: skip
        cached.cache_clear()


@pytest.fixture
def folder(tmp_path) -> Path:
    """x.npy, an embedding; its images are in images/, and names.txt lists them in an order of its own."""
    (tmp_path / "images").mkdir()
    names = [f"{n * 7 % SIZE:02d}" for n in range(SIZE)]
    for n, name in enumerate(names):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(kit.jpeg(n))
    (tmp_path / "names.txt").write_text("\n".join(names))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((SIZE, 6)))
    return tmp_path


def run(folder: Path, *more: str, kind: str = "embedding", table: str = "x.npy", names: bool = True) -> int:
    """The command on the fixture's folder; writes to out/."""
    forget()
    listing = ["--images", str(folder / "images"), *(["--names", str(folder / "names.txt")] if names else [])]
    arguments = [kind, "--source", str(folder / table), *listing, "--out", str(folder / "out")]
    return main([*arguments, "--workers", "1", *more])


def rows_of(beton: Beton) -> np.ndarray:
    """(T, 3) numbers of images, by the stored bytes; they must be those that the key names."""
    numbers = {kit.jpeg(n): n for n in range(SIZE)}
    rows = [[numbers[beton.jpeg(i, side).tobytes()] for side in SIDES] for i in range(len(beton))]
    assert kit.keys(beton) == [f"{a},{b},{c}" for a, b, c in rows]
    return np.array(rows)


def opened(folder: Path, split: str) -> Beton:
    return Beton(folder / "out" / f"triplets-{split}.beton")


@pytest.mark.slow
def test_an_embedding_becomes_triplets(folder, capsys):
    distance = pytest.importorskip("scipy.spatial.distance")
    assert run(folder, "--triplets", "60", "--held-out", "0.3", "--margin", "0.4") == 0
    said = capsys.readouterr().out
    x = np.load(folder / "x.npy")
    d, sd = distance.cdist(x, x, "cosine"), distance.pdist(x, "cosine").std()
    seen = {}
    for split in SPLITS:
        beton = opened(folder, split)
        ref, left, right = rows_of(beton).T
        difference = d[ref, left] - d[ref, right]
        assert (np.abs(difference) >= 0.4 * sd * (1 - 1e-5)).all()
        assert (beton.metadata["vote"] == (difference > 0)).all() and not beton.metadata["votes"].any()
        seen[split] = set(rows_of(beton).ravel().tolist())
        assert f"  {split}: {len(beton)} triplets of {len(seen[split])} images" in said
        info = beton.info
        assert info["votes"] == "computed from x.npy, no human vote of its own"
        assert info["source"]["sha256"] == hashlib.sha256((folder / "x.npy").read_bytes()).hexdigest()
        assert info["source"]["split"] == split and info["source"]["sd"] == pytest.approx(sd, rel=1e-5)
        assert info["source"]["distance"] == "cosine of 6 dimensions"
    assert len(opened(folder, "train")) == 60 and len(opened(folder, "val")) <= 18
    assert not any(seen[a] & seen[b] for a, b in (("train", "val"), ("train", "test"), ("val", "test")))


@pytest.mark.slow
def test_another_prior_over_the_same_images_divides_them_alike(folder):
    assert run(folder, "--held-out", "0.3", "--triplets", "9999", "--margin", "0") == 0
    splits = {split: set(rows_of(opened(folder, split)).ravel().tolist()) for split in SPLITS}
    order = np.random.default_rng(1).permutation(SIZE)
    names = np.array((folder / "names.txt").read_text().split())[order]
    (folder / "names.txt").write_text("\n".join(f"{name}.jpg" for name in names))
    m = np.abs(np.subtract.outer(order, order)).astype(float)
    np.savetxt(folder / "m.csv", m, delimiter=",")
    more = ["--held-out", "0.3", "--triplets", "9999", "--seed", "5", "--margin", "0", "--restart"]
    assert run(folder, *more, kind="matrix", table="m.csv") == 0
    numbers = {kit.jpeg(n): n for n in range(SIZE)}
    for split in SPLITS:
        beton = opened(folder, split)
        held = {numbers[beton.jpeg(i, side).tobytes()] for i in range(len(beton)) for side in SIDES}
        assert held == splits[split]


@pytest.mark.slow
def test_spose_as_its_authors_publish_it(folder):
    """Text of numbers, unique_id.txt and folders of images; the model's own probability as the vote."""
    for path in sorted((folder / "images").iterdir()):
        (folder / "images" / path.stem).mkdir()
        path.rename(folder / "images" / path.stem / f"{path.stem}_01b.jpg")
        (folder / "images" / path.stem / f"{path.stem}_02s.jpg").write_bytes(kit.jpeg(999))
    x = np.random.default_rng(0).random((SIZE, 49)) * 2
    np.savetxt(folder / "spose_embedding_49d_sorted.txt", x)
    more = ["--metric", "dot", "--margin", "0", "--soft", "1", "--units", "absolute", "--triplets", "50"]
    more += ["--held-out", "0", "--splits", "train"]
    assert run(folder, *more, table="spose_embedding_49d_sorted.txt") == 0
    beton = opened(folder, "train")
    for (a, b, c), vote in zip(rows_of(beton), beton.metadata["vote"]):
        weight = np.exp([x[a] @ x[b], x[a] @ x[c]])  # Hebart et al. 2020, equations 1 and 2
        assert vote == pytest.approx(weight[1] / weight.sum(), rel=1e-9)
    assert beton.info["source"]["vote"] == "1 / (1 + exp((d(ref, right) - d(ref, left)) / 1))"


@pytest.mark.slow
def test_it_is_up_to_date_until_something_changes(folder, capsys):
    more = ["--splits", "train", "--triplets", "50"]
    assert run(folder, *more) == 0
    before = (folder / "out/triplets-train.beton").read_bytes()
    assert run(folder, *more) == 0 and "up to date" in capsys.readouterr().out
    assert run(folder, *more, "--restart") == 0
    assert (folder / "out/triplets-train.beton").read_bytes() == before
    for change in (["--margin", "0.6"], ["--metric", "euclidean"], ["--seed", "1"], ["--soft", "1"]):
        assert run(folder, *more, *change) == 0 and "up to date" not in capsys.readouterr().out
        assert (folder / "out/triplets-train.beton").read_bytes() != before


@pytest.mark.slow
def test_what_cannot_be_used_is_left_out_if_asked(folder, capsys):
    x = np.load(folder / "x.npy")
    x[3, 1] = np.nan
    np.save(folder / "nan.npy", x)
    (folder / "images" / f"{5 * 7 % SIZE:02d}.jpg").unlink()
    (folder / "images" / f"{8 * 7 % SIZE:02d}.jpg").write_bytes(kit.jpeg(2))
    assert run(folder, "--held-out", "0", "--splits", "train", "--skip-unusable", table="nan.npy") == 0
    assert set(rows_of(opened(folder, "train")).ravel().tolist()) == set(range(SIZE)) - {3, 5, 8}
    reasons = ["images equal to one before", "images without a file", "images without finite numbers"]
    assert opened(folder, "train").info["passed_over"] == dict.fromkeys(reasons, 1)
    assert "left out" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_diagonal_of_nan_is_said(folder, capsys):
    m = np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE))) + np.diag([np.nan] * SIZE)
    np.save(folder / "m.npy", m)
    assert run(folder, "--splits", "train", "--triplets", "9", kind="matrix", table="m.npy") == 0
    assert "  24 numbers of the diagonal are not finite, and are not needed" in capsys.readouterr().out


# -- mistakes -----------------------------------------------------------------------------------


def symmetric() -> np.ndarray:
    return np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE))).astype(float)


def changed(array: np.ndarray, at, value) -> np.ndarray:
    array[at] = value
    return array


X = np.random.default_rng(0).standard_normal((SIZE, 6))
NUMBERS = {
    "a matrix": (symmetric(), "embedding", "symmetric, so a matrix and no embedding"),
    "too few rows": (X[:-1], "embedding", "names.txt: 24 names (is the first a heading?), but"),
    "on its side": (X.T, "embedding", "has 6 rows"),
    "three axes": (np.zeros((2, SIZE, SIZE)), "matrix", "shape (2, 24, 24), one matrix is expected"),
    "one axis": (np.zeros(SIZE), "embedding", "an embedding has a row an image"),
    "objects": (np.array([{"a": 1}]), "embedding", "Python objects in dtype"),
    "complex": (X * 1j, "embedding", "an array of complex128, real numbers"),
    "none": (X[:0], "embedding", "no numbers in it"),
    "nan": (changed(X.copy(), (3, 1), np.nan), "embedding", "row 3 (from 0): a number is not finite"),
    "zeros": (changed(X.copy(), 4, 0), "embedding", "row 4 (from 0): a number is not finite, or all are 0"),
    "the same": (np.ones((SIZE, 2)), "embedding", "all dissimilarities are the same"),
    "no square": (X, "matrix", "24 × 6, a matrix is N × N; build_ffcv.py embedding"),
    "skew": (changed(symmetric(), (2, 9), 1.5), "matrix", "not symmetric, [2, 9] is 1.5 and [9, 2] is 7"),
    "a similarity": (30 - symmetric(), "matrix", "but [0, 0] is 30; if large means alike, say --similarity"),
    "pairs": (changed(changed(symmetric(), (2, 9), np.nan), (9, 2), np.nan), "matrix", "the first [2, 9]"),
    "condensed": (np.ones(277), "matrix", "277 numbers, which are N (N − 1) / 2 for no N"),
    "condensed of more": (np.ones(25 * 12), "matrix", "24 names, but"),
}  # fmt: skip
TEXTS = {
    "heading": ("a,b\n1,2\n", "could not convert string 'a' to float64 at row 0, column 1"),
    "ragged": ("1 2\n3\n", "the number of columns changed from 2 to 1 at row 2"),
    "index": ("0,.5,1\n1,.25,1\n2,.5,3\n", "its first column counts the rows"),
    "empty": ("\n", "no numbers in it"),
    "matlab": ("MATLAB 5.0 MAT-file", "neither .npy nor text but a MATLAB file: scipy.io.loadmat"),
    "zip": ("PK\x03\x04", "neither .npy nor text but a zip (.npz"),
}
FLAGS = {
    "few": (["--held-out", "0.01"], "0 of 24 images fall to split val, three are the least"),
    "share": (["--held-out", "0.6"], "--held-out is a share from 0 to 0.5, not 0.6"),
    "split": (["--splits", "train", "dev"], "--splits dev: choose from train val test"),
    "margin": (["--margin", "99"], "the 20 images of split train has distances that differ by 40.8"),
    "both": (["--margin", "1", "--quantile", ".1"], "give --margin or --quantile, not both"),
}


def refused(folder: Path, capsys, message: str, *more: str, **which) -> None:
    """Exit code 2, and one line that says so."""
    assert run(folder, *more, **which) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_are_something_else(folder, capsys, case):
    array, kind, message = NUMBERS[case]
    np.save(folder / "bad.npy", array)
    refused(folder, capsys, message, kind=kind, table="bad.npy")


@pytest.mark.slow
@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_something_else(folder, capsys, case):
    text, message = TEXTS[case]
    (folder / "bad.txt").write_text(text)
    refused(folder, capsys, message, table="bad.txt")


@pytest.mark.slow
@pytest.mark.parametrize("case", FLAGS)
def test_flags_that_do_not_fit(folder, capsys, case):
    refused(folder, capsys, FLAGS[case][1], *FLAGS[case][0])


@pytest.mark.slow
def test_a_similarity_whose_diagonal_is_not_the_largest(folder, capsys):
    np.save(folder / "s.npy", changed(30 - symmetric(), (7, 7), 1))
    message = "the diagonal of a similarity is the largest of its row, 29, but [7, 7] is 1"
    refused(folder, capsys, message, "--similarity", kind="matrix", table="s.npy")
    np.save(folder / "s.npy", 30 - symmetric())
    more = ["--similarity", "--splits", "train", "--triplets", "50"]
    assert run(folder, *more, kind="matrix", table="s.npy") == 0
    ref, left, right = rows_of(opened(folder, "train")).T
    assert (opened(folder, "train").metadata["vote"] == (abs(right - ref) < abs(left - ref))).all()


@pytest.mark.slow
def test_files_that_are_cut_short_or_not_there(folder, capsys):
    data = (folder / "x.npy").read_bytes()
    (folder / "cut.npy").write_bytes(data[:-8])
    refused(folder, capsys, "cut.npy: ", table="cut.npy")
    refused(folder, capsys, "none.npy: no such file", table="none.npy")
    (folder / "names.txt").rename(folder / "other.txt")
    refused(folder, capsys, "names.txt: no such file")


@pytest.mark.slow
def test_images_that_are_missing_or_the_same(folder, capsys):
    (folder / "images/14.jpg").write_bytes(kit.jpeg(0))
    refused(folder, capsys, "names.txt: line 3: 14: the same image as")
    (folder / "images/14.jpg").unlink()
    refused(folder, capsys, "names.txt: line 3: 14: no such image in")
    assert "--skip-unusable leaves out such images (1)" not in capsys.readouterr().err
    refused(folder, capsys, "images: 23 images, but", names=False)


# -- training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_stage_1_trains_on_what_was_drawn(shared_data, tmp_path):
    """Of real photographs, by a matrix of their colours."""
    pytest.importorskip("open_clip")
    from PIL import Image

    from tests.kits import train

    photos = sorted((shared_data / "photos").glob("*.jpg"))[:40]
    colours = np.array([np.asarray(Image.open(p).convert("RGB").resize((1, 1)), float)[0, 0] for p in photos])
    np.save(tmp_path / "rdm.npy", np.abs(colours[:, None] - colours).sum(2))
    (tmp_path / "names.txt").write_text("".join(f"{path.name}\n" for path in photos))
    arguments = ["matrix", "--source", tmp_path / "rdm.npy", "--names", tmp_path / "names.txt"]
    arguments += ["--images", shared_data / "photos", "--out", tmp_path, "--size", "64"]
    arguments += ["--triplets", "100", "--soft", "0.5"]
    assert main([*map(str, arguments), "--splits", "train", "--workers", "1"]) == 0
    split = tmp_path / "triplets-train.beton"
    assert main(["verify", str(split), "--decode", "--workers", "1"]) == 0
    assert train.train(train.debug(1, split, tmp_path / "run", batch=16, steps=2)).done
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


@pytest.mark.slow
def test_the_source_is_what_a_worker_gets(folder):
    """It travels to other processes by pickle, without what was read."""
    listing = Listing(images=folder / "images", names=folder / "names.txt")
    prior = EmbeddingPrior(
        table=folder / "x.npy", listing=listing, rule=Rule(), held_out=0.1, seed=0, metric="dot"
    )
    drawn = Drawn(prior, "train")
    sent, expected = pickle.dumps(drawn), drawn.triplets()
    forget()
    again = pickle.loads(sent).triplets()
    assert len(sent) < 2_000 and again.names == expected.names
    assert (again.rows == expected.rows).all() and (again.vote == expected.vote).all()
