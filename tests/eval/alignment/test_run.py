"""The commands: figures against plain loops over single images, and what is left on disk."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy import stats

from eval import results, run
from eval.alignment import categories, command, evaluate, sets
from eval.alignment.records import SHARE, Score, SetScores
from eval.alignment.results import ALIGNMENT, Alignment, Scored
from eval.cache import Cache
from eval.results import RESULTS, Evaluation
from tests.eval.alignment import kit
from tests.kits.eval import MODEL, encoded, pictures, write_webdataset

pytestmark = pytest.mark.slow  # all load open_clip's model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return kit.root(tmp_path_factory.mktemp("root"))


def go(module, *arguments: object) -> int:
    return module.main([str(a) for a in ("--checkpoint", MODEL, "--workers", 1, *arguments)])


@pytest.fixture(scope="module")
def out(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert go(command, "--data", root, "--out", out, "--no-cache") == 0
    return out


@pytest.fixture(scope="module")
def found(out):
    return Alignment.read(out)


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    return kit.session(tmp_path_factory.mktemp("session"))


def figures(found: Alignment, key: str) -> dict[tuple[str, str], Score]:
    (about,) = [each for each in found.sets if each.name == key]
    return {(score.metric, score.group): score for score in about.scores}


def value(found: Alignment, key: str, metric: str, group: str = "") -> float:
    return figures(found, key)[metric, group].value


# -- figures, image by image ------------------------------------------------------------------------


def test_nights(root, found, now):
    lines = [line.split(",") for line in (root / "nights" / "data.csv").read_text().splitlines()[1:]]
    credits: dict[str, list[float]] = {"": [], "ImageNet": [], "not ImageNet": []}
    soft = []
    for _, left, right, _, *paths, split, imagenet, _ in lines:
        if split == "test":
            ref, a, b = kit.vectors(now, [root / "nights" / path for path in paths])
            chosen = float(left if ref @ a > ref @ b else right)
            soft.append(chosen)
            if float(left) != float(right):
                for group in ("", "ImageNet" if imagenet == "True" else "not ImageNet"):
                    credits[group].append(chosen > 0.5)
    for group, credit in credits.items():
        assert value(found, "nights", "twoafc", group) == pytest.approx(np.mean(credit))
        assert figures(found, "nights")["twoafc", group].n == len(credit)
    assert value(found, "nights", "twoafc_soft") == pytest.approx(np.mean(soft))
    top = figures(found, "nights")["twoafc_soft", ""]
    assert len(soft) == 12 and top.ceiling < 1 and top.value <= top.ceiling


def test_things(root, found, now):
    vectors = kit.vectors(now, [root / "things" / "images" / f"object_{i:02d}.png" for i in range(12)])
    right = []
    for trio in np.load(root / "things" / "triplets" / "test_10.npy"):
        a, b, odd = vectors[trio]
        right.append(a @ b > max(a @ odd, b @ odd))
    score = figures(found, "things")["odd_one_out", ""]
    assert score.value == pytest.approx(np.mean(right)) and score.n == 60
    assert score.chance == pytest.approx(1 / 3) and score.ceiling == 0.6722
    assert "not verified" in score.ceiling_source and score.low < score.value < score.high


def test_bapps(root, found, now):
    means = {}
    for subset, count in (("cnn", 9), ("color", 5)):
        base, credit = root / "BAPPS" / "2afc" / "val" / subset, []
        for i in range(count):
            ref, p0, p1 = kit.vectors(now, [base / part / f"{i:06d}.png" for part in ("ref", "p0", "p1")])
            gt = float(np.load(base / "judge" / f"{i:06d}.npy")[0])
            credit.append(gt if ref @ p1 > ref @ p0 else 1 - gt)
        means[subset] = np.mean(credit)
        assert value(found, "bapps", "twoafc_soft", subset) == pytest.approx(means[subset])
    about = next(each for each in found.sets if each.key == "bapps")
    assert (about.scores[0].metric, about.scores[0].group) == ("twoafc_soft", "mean")
    assert about.scores[0].value == pytest.approx(np.mean([*means.values()]))


def test_levels(root, found, now):
    lines = [line.split(",") for line in (root / "Levels" / "levels.csv").read_text().splitlines()[1:]]
    for level in ("coarse", "fine", "boundary"):
        right = []
        for *paths, odd, group in lines:
            if group == level:
                a, b, c = kit.vectors(now, [root / "Levels" / path for path in paths])
                right.append("abc"[int(np.argmax([b @ c, a @ c, a @ b]))] == odd)
        assert value(found, "levels", "odd_one_out", level) == pytest.approx(np.mean(right))


def test_matrices(root, found, now):
    """As perform_rsa of gLocal (utils/evaluation/helpers.py): Spearman's ρ of pairs above the diagonal."""
    from scipy.io import loadmat

    rho = {}
    for category, count in (("animals", 7), ("fruits", 8)):
        base = root / "Peterson" / category
        similar = loadmat(base / "sim_judgments" / "simMatrix.mat")["simMatrix"]
        vectors = kit.vectors(now, [base / "images" / f"{i}.png" for i in range(count)])
        pairs = [p for p in itertools.combinations(range(count), 2) if not np.isnan(similar[p])]
        rho[category] = stats.spearmanr([vectors[i] @ vectors[j] for i, j in pairs],
                                        [similar[p] for p in pairs]).statistic  # fmt: skip
        score = figures(found, "peterson")["rsa", category]
        assert score.value == pytest.approx(rho[category]) and score.n == len(pairs)
    assert {group for _, group in figures(found, "peterson")} == {"mean", "animals", "fruits"}
    assert value(found, "peterson", "rsa", "mean") == pytest.approx(np.mean([*rho.values()]))


def test_rated_distortions(root, found, now):
    base = root / "tid2013"
    near, marks = [], []
    for line in (base / "mos_with_names.txt").read_text().splitlines():
        mark, name = line.split()
        ref, image = kit.vectors(now, [base / "reference_images" / f"{name[:3].upper()}.BMP",
                                       base / "distorted_images" / name])  # fmt: skip
        near.append(ref @ image)
        marks.append(float(mark))
    assert value(found, "tid2013", "srcc") == pytest.approx(stats.spearmanr(near, marks).statistic)
    assert value(found, "tid2013", "krcc") == pytest.approx(stats.kendalltau(near, marks).statistic)


def test_just_noticeable_differences(root, found, now):
    rows = [line.split(",") for line in (root / "jnd" / "jnd_votes.csv").read_text().splitlines()[1:]]
    near = []
    for ref, other, *_ in rows:
        a, b = kit.vectors(now, [root / "jnd" / ref, root / "jnd" / other])
        near.append(a @ b)
    same = np.array([float(row[2]) for row in rows])[np.argsort(near)[::-1]]
    hits = np.cumsum(same)
    precision = hits / np.arange(1, 13)
    expected = sum(same[k] / hits[-1] * max(precision[k:]) for k in range(12))
    score = figures(found, "jnd")["ap", ""]
    assert score.value == pytest.approx(expected) and score.chance == pytest.approx(same.mean())


# -- files ------------------------------------------------------------------------------------------


def test_what_is_left(root, out, found):
    assert found.data["checkpoint"]["model"] == MODEL and found.data["settings"]["ranks"] == 1
    assert "folders of no known set passed over: holiday" in found.data["notes"]
    for about in found.sets:
        arrays = found.arrays(about)
        assert len(arrays["group"]) == len(arrays["number"]) and about.source.startswith(str(root.resolve()))
        for score in about.scores:
            assert score.n > 0
            if score.low is None:  # five answers that are all right, or all wrong
                assert score.value in (0, 1) and score.n == 5
            else:
                assert score.low <= score.value + 1e-12 and score.low < score.high
    voters = {about.key: about.voters for about in found.sets}
    assert voters["things"] == "human" and voters["nights"] == "votes as given in data.csv"
    assert not (out / RESULTS).exists()


def test_after_the_zero_shot_sets(root, out, tmp_path, capsys):
    """eval.run --alignment leaves the same file, beside its own."""
    write_webdataset(tmp_path / "data" / "wds_a", [encoded(p) for p in pictures(4)], [0, 1, 0, 1], ["a", "b"])
    arguments = ("--data", tmp_path / "data", "--alignment", root, "--out", tmp_path / "out")
    assert go(run, *arguments) == 0
    ours, alone = Alignment.read(tmp_path / "out"), Alignment.read(out)
    assert ours.sets == alone.sets and [*Evaluation.read(tmp_path / "out").datasets] == ["a"]
    assert (root / ".cache" / "features").is_dir()  # each beside its own data
    said = capsys.readouterr().out
    assert "things: " in said and "odd one out of 60" in said and str(tmp_path / "out" / ALIGNMENT) in said
    assert go(command, "--data", root, "--out", tmp_path / "out", "--sets", "things") == 0  # from the cache
    assert [each.key for each in Alignment.read(tmp_path / "out").sets] == ["things"]
    assert Alignment.read(tmp_path / "out").sets[0] == next(s for s in alone.sets if s.key == "things")


def test_nights_has_one_figure_in_both_evaluations(root, found, tmp_path):
    arguments = ("--triplets", root / "nights", "--triplet-splits", "test", "--out", tmp_path, "--no-cache")
    assert go(run, *arguments) == 0
    metrics = Evaluation.read(tmp_path).data["triplets"]["metrics"]
    for name in ("twoafc", "twoafc_soft"):
        assert value(found, "nights", name) == metrics[name]
    assert figures(found, "nights")["twoafc_soft", ""].ceiling == metrics["ceiling"]


def test_what_is_there_before_results_json(root, tmp_path, monkeypatch):
    """results.json vouches for the whole evaluation, so it comes last."""
    there = []
    write = results.write
    monkeypatch.setattr(
        results, "write", lambda out, *rest: there.append((out / ALIGNMENT).is_file()) or write(out, *rest)
    )
    arguments = ("--triplets", root / "nights", "--alignment", root, "--out", tmp_path, "--no-cache")
    assert go(run, *arguments) == 0
    assert there == [True] and (tmp_path / RESULTS).is_file()


def test_a_probe_is_reported_apart(tmp_path, capsys):
    kit.things(tmp_path / "root" / "things", objects=20, answers=400)
    kit.nights(tmp_path / "root" / "nights")
    assert go(command, "--data", tmp_path / "root", "--out", tmp_path / "out", "--no-cache", "--probe") == 0
    found = Alignment.read(tmp_path / "out")
    assert [each.name for each in found.sets] == ["nights", "nights-probe", "things", "things-probe"]
    nights, things = found.sets[1], found.sets[3]
    assert nights.probe == "linear probe, fitted on 4 judgements of the training split"
    assert nights.scores[0].n == found.sets[0].scores[0].n
    assert "0 of 36 images are in the training split too, in other judgements" in nights.notes
    assert things.probe.startswith("linear probe, fitted in 5 folds of the images")
    rows = np.load(tmp_path / "root" / "things" / "triplets" / "test_10.npy")
    fold = np.random.default_rng(0).permutation(20) % 5
    together = int((fold[rows] == fold[rows][:, :1]).all(1).sum())
    assert things.scores[0].n == together > 0
    assert f"{400 - together} judgements over images of several folds left out" in things.notes
    kit.things(tmp_path / "root" / "things", objects=20, answers=400, train=300)
    assert go(command, "--data", tmp_path / "root", "--out", tmp_path / "out", "--no-cache", "--probe") == 0
    things = Alignment.read(tmp_path / "out").sets[3]
    assert things.probe == "linear probe, fitted on 300 judgements of the training split"
    assert "20 of 20 images are in the training split too, in other judgements" in things.notes
    assert "odd one out of 400 (linear probe, fitted on 300" in capsys.readouterr().out


def _rank(rank, world, rendezvous, root, out):
    os.environ.update(WORLD_SIZE=str(world), RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        evaluate.evaluate(kit.session(out), sets.discover(root), Cache(None))
    finally:
        dist.destroy_process_group()


def test_ranks_share_the_images(root, out, tmp_path):
    mp.spawn(_rank, (2, tmp_path / "rendezvous", root, tmp_path / "out"), nprocs=2)
    shared = Alignment.read(tmp_path / "out")
    assert shared.sets == Alignment.read(out).sets and shared.data["settings"]["ranks"] == 2


def test_a_set_that_another_module_scores(tmp_path, now, monkeypatch):
    """It gets its folder, and vectors for whatever images it wants."""
    (tmp_path / "cifar100").mkdir()
    kit.pngs(tmp_path, ["a.png", "b.png"])

    def score(folder, embed):
        vectors = embed(sets.judgements._files(tmp_path, ["a.png", "b.png"]))
        cosine = float(vectors[0] @ vectors[1])
        figure = Score(metric="own", group="", value=cosine, low=None, high=None, chance=None, ceiling=None,
                       ceiling_source="", n=1, unit=SHARE)  # fmt: skip
        about = SetScores(key="cifar100", title="C", scores=(figure,), source=str(folder))
        return Scored(scores=about, arrays=None, judgements="x")

    monkeypatch.setattr(categories, "score", score)
    evaluate.evaluate(now, sets.discover(tmp_path), Cache(None))
    found = Alignment.read(now.out)
    a, b = kit.vectors(now, [tmp_path / "a.png", tmp_path / "b.png"])
    assert value(found, "cifar100", "own") == pytest.approx(a @ b, abs=1e-5)
    assert found.sets[0].source == str(tmp_path / "cifar100")


# -- what is refused ----------------------------------------------------------------------------------


def test_an_image_that_cannot_be_read_ends_the_run(tmp_path, capsys):
    folder = kit.things(tmp_path / "root" / "things")
    (folder / "images" / "object_03.png").write_bytes(b"nothing")
    assert go(command, "--data", tmp_path / "root", "--out", tmp_path / "out", "--no-cache") == 2
    said = capsys.readouterr().err
    assert "object_03.png" in said and "1 of things's 12 images cannot be read" in said
    assert said.count("\n") == 1 and not (tmp_path / "out" / ALIGNMENT).exists()


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (command, ("--data", "/nowhere"), "/nowhere: no such folder of sets of human similarity"),
        (run, ("--triplets", "/", "--alignment", "/nowhere"), "/nowhere: no such folder of sets"),
    ],
)
def test_bad_options(capsys, module, arguments, message):
    assert go(module, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match="python -m eval.alignment and eval.downstream need neither"):
        run.Evaluate(checkpoint="x", alignment=Path("/"))
    with pytest.raises(ValueError, match="--batch-size and --workers: at least 1"):
        command.Align(checkpoint="x", data=Path("/"), workers=0)


def test_equal_votes_alone_make_no_figure_of_majorities(tmp_path):
    kit.nights(tmp_path / "root" / "nights", 8)
    table = tmp_path / "root" / "nights" / "data.csv"
    header, *rows = table.read_text().splitlines()
    rows = [",".join([r.split(",")[0], "1", "1", *r.split(",")[3:]]) for r in rows]
    table.write_text("\n".join([header, *rows]) + "\n")
    assert go(command, "--data", tmp_path / "root", "--out", tmp_path / "out", "--no-cache") == 0
    (about,) = Alignment.read(tmp_path / "out").sets
    assert {score.metric for score in about.scores} == {"twoafc_soft"}
    assert {score.value for score in about.scores} == {0.5}
    assert json.loads((tmp_path / "out" / ALIGNMENT).read_text())["schema"] == 1
