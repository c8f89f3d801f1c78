"""Triplets as people hold them: which split, whose vote, and the two scores called 2AFC."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.build_ffcv import main as build
from eval import evaluate, run
from eval.metrics import perceptual
from eval.report import compare
from tests.kits import train as kit
from train.distributed import World


def nights(folder: Path) -> Path:
    """A folder in NIGHTS' layout with three triplets a split, jpegs that dataprep keeps byte for byte."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["left_vote,right_vote,votes,ref_path,left_path,right_path,split,id,is_imagenet"]
    for i in range(9):
        names = [f"{i}-{side}.jpg" for side in "rlx"]
        for name in names:
            (folder / name).write_bytes(kit._picture(rng, 32).data)
        split = ("train", "val", "test")[i % 3]
        rows.append(f"{i % 2},{1 - i % 2},8,{','.join(names)},{split},{i},False")
    (folder / "data.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    base = tmp_path_factory.mktemp("nights")
    source = nights(base / "source")
    assert build(["nights", "--source", str(source), "--out", str(base / "out"), "--size", "none"]) == 0
    return base


def _same(a: perceptual.Triplets, b: perceptual.Triplets) -> None:
    assert a.vote.tolist() == b.vote.tolist() and a.split.tolist() == b.split.tolist()
    for row, other in zip(a.rows, b.rows):
        assert [a.images.read(i) for i in row] == [b.images.read(i) for i in other]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_file_knows_its_split(built, split):
    one = perceptual.read(built / "out" / f"triplets-{split}.beton")
    assert set(one.split) == {split} and len(one.vote) == 3
    _same(one, perceptual.read(built / "source", (split,)))  # the training split too


@pytest.mark.parametrize("splits", [("val",), ("val", "test"), ("train",)])
def test_a_folder_of_betons_is_the_folder_it_was_made_of(built, splits):
    ours, theirs = perceptual.read(built / "out", splits), perceptual.read(built / "source", splits)
    assert len(ours.vote) == 3 * len(splits)
    _same(ours, theirs)


def test_a_split_that_is_not_there_is_refused(built, tmp_path):
    with pytest.raises(ValueError, match=r"no split fit among triplets-test.beton \(test\), triplets-train"):
        perceptual.read(built / "out", ("fit",))
    with pytest.raises(ValueError, match="data.csv"):
        perceptual.read(tmp_path)


@pytest.mark.parametrize(
    "splits, absent", [(["train"], None), (["train", "tset"], "tset"), ([], None), (["val", "test"], None)]
)
@pytest.mark.parametrize("what", ["out", "source"])
def test_splits_asked_for_must_be_there(built, what, splits, absent):
    options = run.Evaluate(
        checkpoint="x",
        triplets=built / what,
        no_cache=True,
        **({"triplet_splits": tuple(splits)} if splits else {}),
    )
    if absent:
        with pytest.raises(ValueError, match=f"--triplet-splits {absent}: .* has no such split, but train"):
            evaluate.read_data(options)
    else:
        assert {*evaluate.read_data(options).triplets.split} == {*(splits or ("val", "test"))}


def test_the_table_itself_halves_of_the_test_set_and_bapps(built, tmp_path):
    table = built / "source" / "data.csv"
    _same(perceptual.read(table), perceptual.read(built / "source"))
    half = perceptual.read(built / "source", ("test_no_imagenet",))
    assert set(half.split) == {"test_no_imagenet"} and len(half.vote) == 3
    (tmp_path / "bapps" / "val" / "cnn" / "p0").mkdir(parents=True)
    for place in ("bapps", "bapps/val", "bapps/val/cnn"):
        with pytest.raises(ValueError, match="BAPPS; .*build_ffcv.py bapps"):
            perceptual.read(tmp_path / place)


def test_a_file_without_a_word_goes_by_its_name(tmp_path):
    for name, split in (("triplets-val", "val"), ("mine", "test")):
        file = kit.triplets(tmp_path / f"{name}.beton", 4)
        assert set(perceptual.read(file).split) == {split}
    file.with_suffix(".json").write_text(json.dumps({"source": {"split": None}}))
    assert set(perceptual.read(file).split) == {"test"}


@pytest.mark.parametrize(
    "votes, voters",
    [("constructed", "constructed"), ("constructed, no human vote", "constructed"), ("human", "human")],
)
def test_a_file_tells_whose_votes_it_has(tmp_path, votes, voters):
    """By a key; older files have a sentence in its place."""
    file = kit.triplets(tmp_path / "mine.beton", 4)
    file.with_suffix(".json").write_text(json.dumps({"votes": votes, "source": {"name": "demo"}}))
    triplets = perceptual.read(file)
    assert (triplets.voters, triplets.source) == (voters, "demo")
    words = perceptual.describe_votes(triplets.voters)
    assert words == ("human" if voters == "human" else "constructed, no human vote")


# -- majority and share of people ---------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2), st.integers(0, 10)), min_size=1, max_size=30))
def test_the_two_scores(rows):
    """They agree where everybody does; the soft one never passes the ceiling."""
    dist = np.array([r[:2] for r in rows], np.float32)
    vote = np.array([r[2] / 10 for r in rows])
    found = perceptual.metrics(perceptual.Choices(dist, vote, np.full(len(rows), "test")))
    assert found["twoafc_soft"] <= found["ceiling"] + 1e-12
    crisp = perceptual.metrics(perceptual.Choices(dist, np.round(vote), np.full(len(rows), "test")))
    assert crisp["twoafc"] == pytest.approx(crisp["twoafc_soft"]) and crisp["ceiling"] == 1
    assert ("twoafc" in found) == bool((vote != 0.5).any())
    shown = compare.twoafc(found)
    assert len(shown) == (1 if found["ceiling"] == 1 else 2) and {m.key for m in shown} <= {
        "twoafc",
        "twoafc_soft",
    }


def test_training_and_evaluation_call_them_alike(tmp_path):
    """Stage 1's validation and `perceptual.metrics` on the same distances, votes soft and even among them."""
    import torch

    from pipeline.batch import Triplet
    from train.stages.stage1 import PerceptualStage

    recipe = kit.debug(1, tmp_path / "x.beton", tmp_path / "run")
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(3, 40, 8)).astype(np.float32))
    features[2, :3] = features[1, :3]  # exact ties
    vote = torch.from_numpy(rng.integers(0, 6, 40).astype(np.float32) / 5)
    vote[5:9] = 0.5
    valid = torch.ones(40, dtype=torch.bool)
    valid[10] = False
    stage = PerceptualStage.__new__(PerceptualStage)
    stage.recipe, stage.world, stage.votes = recipe, World(), None  # the batch's own
    stage.towers = lambda images: (torch.cat(list(features)), None)
    blank = torch.zeros(40, 3, 1, 1)
    batch = Triplet(ref=blank, left=blank, right=blank, vote=vote, index=torch.arange(40), valid=valid)
    found = stage.validate([batch])
    unit = torch.nn.functional.normalize(features, dim=-1)
    dist = np.stack([(1 - (unit[0] * unit[i]).sum(1)).numpy() for i in (1, 2)], 1)
    kept = valid.numpy()
    expected = perceptual.metrics(
        perceptual.Choices(dist[kept], vote.double().numpy()[kept], np.full(39, "val"))
    )
    assert found["val_twoafc"] == pytest.approx(expected["twoafc"], abs=1e-6)
    assert found["val_twoafc_soft"] == pytest.approx(expected["twoafc_soft"], abs=1e-6)
    assert found["val_twoafc"] != pytest.approx(found["val_twoafc_soft"], abs=1e-3)
    stage.replica, stage.micro = stage.towers, 40
    features.requires_grad_()
    measured = stage.gradients(stage.prepare(batch))
    assert float(measured["twoafc_soft"]) == pytest.approx(found["val_twoafc_soft"] * 39 / 40, abs=1e-6)
    batch = Triplet(
        ref=blank, left=blank, right=blank, vote=torch.full((40,), 0.5), index=batch.index, valid=valid
    )
    assert "val_twoafc" not in stage.validate([batch])  # nobody has a majority


def test_triplets_left_out_for_few_voters_said(tmp_path):
    folder = nights(tmp_path / "source")
    table = folder / "data.csv"
    assert perceptual.read(folder).notes == ()
    lines = table.read_text().splitlines()
    few = [line.replace(",8,", ",5,") if ",val," in line and not line.endswith("1,False") else line
           for line in lines]  # fmt: skip
    table.write_text("\n".join(few))
    found = perceptual.read(folder)
    assert len(found.vote) == 4 and found.voters == "votes as given in data.csv"
    assert found.notes == ("2 triplets of fewer than 6 votes left out",)
    _same(found, _built(folder, tmp_path / "out", "val", "test"))
    told = _built(folder, tmp_path / "out", "val", "test").notes
    assert len(told) == 1 and "when triplets-val.beton was built: 2 rows with too few votes" in told[0]


def _built(folder: Path, out: Path, *splits: str) -> perceptual.Triplets:
    command = ["nights", "--source", str(folder), "--out", str(out), "--size", "none", "--splits", *splits]
    assert build(command) == 0
    return perceptual.read(out, splits)


@pytest.mark.slow
def test_notes_on_triplets_reach_the_results_and_the_report(tmp_path, capsys):
    from eval.report.command import Report, build
    from eval.results import Evaluation

    folder = nights(tmp_path / "source")
    table = folder / "data.csv"
    table.write_text(table.read_text().replace(",8,", ",5,", 2))
    arguments = ["--checkpoint", "debug-ViT", "--triplets", folder, "--no-cache", "--out", tmp_path / "run"]
    assert run.main([str(a) for a in arguments]) == 0
    note = "1 triplets of fewer than 6 votes left out"
    assert f"note: triplets: {note}" in capsys.readouterr().out
    assert Evaluation.read(tmp_path / "run").data["triplets"]["notes"] == [note]
    page, _ = build(Report(runs=(str(tmp_path / "run"),), out=tmp_path))
    assert note in page


def test_a_split_of_the_test_set(tmp_path):
    """NIGHTS' test_imagenet is a part of its test rows; as a folder and as a file it has that name."""
    folder = nights(tmp_path / "source")
    table = folder / "data.csv"
    table.write_text(table.read_text().replace("8,False", "8,True"))
    for split, count in (("test_imagenet", 1), ("test_no_imagenet", 2)):
        found = perceptual.read(folder, (split,))
        assert len(found.vote) == count and {*found.split} == {split}
        _same(found, _built(folder, tmp_path / "out", split))


@pytest.mark.slow
def test_the_reports_pictures_are_of_the_split_that_was_evaluated(built, tmp_path):
    from eval.report.panels import Images
    from eval.results import Evaluation

    for what in ("out", "source"):
        arguments = ["--checkpoint", "debug-ViT", "--triplets", built / what, "--triplet-splits", "train"]
        assert run.main([str(a) for a in [*arguments, "--no-cache", "--out", tmp_path / what]]) == 0
        shown = Images(Evaluation.read(tmp_path / what), "triplets")
        expected = perceptual.read(built / what, ("train",)).images
        for i in range(len(expected)):
            picture = expected[i]
            picture.thumbnail((112, 112))
            assert shown.thumbnail(i).image.tobytes() == picture.tobytes()
