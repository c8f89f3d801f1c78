"""`--votes`: whose answers stage 1 learns, that the run says so, and that it keeps them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.beton.fields import Beton
from tests.kits import train as kit
from train import checkpoint, command, data, launch, model
from train.config import Stage1, Stage2, differences, to_dict
from train.distributed import World
from train.stages import votes
from train.stages.stage1 import PerceptualStage

SAMPLES = 48


def own(triplets) -> np.ndarray:
    return Beton(triplets).metadata["vote"].astype(np.float32)


def saved(folder, values) -> str:
    np.save(folder / "votes.npy", values)
    return str(folder / "votes.npy")


def test_shuffled_votes_keep_their_share_and_lose_their_triplets(triplets):
    file = Beton(triplets)
    first, other = (votes.of(Stage1(votes="shuffled", seed=seed), file) for seed in (0, 1))
    assert np.array_equal(np.sort(first), np.sort(own(triplets)))
    assert not np.array_equal(first, own(triplets)) and not np.array_equal(first, other)
    fewer = Stage1(votes="shuffled", data=replace(Stage1().data, fraction=0.25, data=triplets), batch=5)
    assert np.array_equal(first, votes.of(fewer, file))  # the seed's alone
    assert votes.of(Stage1(), file) is None


def test_the_shuffle_is_no_order_of_an_epoch(tmp_path):
    """Else a batch's votes would be those of the samples that came at a fixed distance."""
    file = Beton(kit.triplets(tmp_path / "graded.beton", 40))
    graded = np.arange(40) / 64
    table = file.metadata.copy()
    table["vote"] = graded
    shuffled = votes.of(Stage1(votes="shuffled"), _Table(table))
    source = (shuffled * 64).astype(int)
    assert np.array_equal(np.sort(source), np.arange(40))
    from pipeline.order import Order

    for epoch in range(64):
        _, order = Order().locate(0, 40, epoch * 40 + np.arange(40))
        assert not np.array_equal(order, source)


class _Table:
    def __init__(self, metadata):
        self.metadata = metadata

    def __len__(self):
        return len(self.metadata)


@pytest.mark.parametrize("engine", ["ffcv", pytest.param("dali", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["shuffled", "file"])
def test_every_batch_of_every_rank_has_them(engine, kind, triplets, tmp_path):
    given = np.linspace(0, 1, SAMPLES)
    name = "shuffled" if kind == "shuffled" else saved(tmp_path, given)
    recipe = kit.debug(1, triplets, tmp_path / "run", votes=name, engine=engine, fraction=0.75, micro=4)
    file = Beton(triplets)
    expected = votes.of(recipe, file)
    assert kind == "shuffled" or np.array_equal(expected, given.astype(np.float32))
    stage = PerceptualStage(recipe, model.build(recipe), World(), file)
    seen = []
    for rank in range(2):
        with data.stream(recipe, file, World(rank=rank, size=2), 16, 16) as loader:
            batches = iter(loader)
            for _ in range(4):
                batch = next(batches)
                parts = stage.prepare(batch)
                assert len(parts) == 2
                got = np.concatenate([part.vote.numpy() for part in parts])
                assert np.array_equal(got, expected[batch.index.numpy()])
                seen.append(got)
    assert not np.array_equal(np.concatenate(seen), own(triplets)[: sum(map(len, seen))])


def test_validation_keeps_the_files_own(triplets, tmp_path):
    file = Beton(triplets)
    recipe = kit.debug(1, triplets, tmp_path / "run", votes=saved(tmp_path, 1 - own(triplets)))
    scores = []
    for asked in (recipe, replace(recipe, votes="human")):
        stage = PerceptualStage(asked, model.build(asked), World(), file)
        scores.append(stage.validate(data.held_out(asked, file, World(), 16, 16)))
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_run_learns_them_and_is_continued_with_them(triplets, tmp_path):
    changes = dict(steps=5, batch=16, fraction=0.75)
    runs = {
        "human": "human",
        "same": saved(tmp_path, own(triplets)),
        "shuffled": "shuffled",
        "other": "shuffled",
    }
    for name, asked in runs.items():
        recipe = kit.debug(1, triplets, tmp_path / name, votes=asked, **changes)
        if name == "other":
            assert not kit.train(recipe, kit.Asked(2)).done
        assert kit.train(recipe).done
    weights = {name: checkpoint.weights(tmp_path / name) for name in runs}
    kit.assert_same(weights["human"], weights["same"])
    kit.assert_same(weights["shuffled"], weights["other"])
    assert any(not weights["human"][n].equal(weights["shuffled"][n]) for n in weights["human"])


@pytest.mark.slow
def test_the_folder_says_which_and_others_do_not_continue_it(triplets, tmp_path):
    name = saved(tmp_path, np.full(SAMPLES, 0.25))
    digest = hashlib.sha256((tmp_path / "votes.npy").read_bytes()).hexdigest()
    recipe = command.complete(kit.debug(1, triplets, tmp_path / "run", votes=name))
    assert not kit.train(recipe, kit.Asked(2)).done
    assert f"votes: {name} (SHA-256 {digest})" in (tmp_path / "run" / "log.txt").read_text()
    for text in (tmp_path / "run").rglob("recipe.json"):
        held = json.loads(text.read_text())
        assert (held["votes"], held["votes_sha256"]) == (name, digest)
    command.check(command.complete(recipe), 1)
    for other in ("human", "shuffled"):
        changed = replace(recipe, votes=other, votes_sha256="")
        with pytest.raises(ValueError, match="holds another run .votes was"):
            command.check(command.complete(changed), 1)
    np.save(name, np.full(SAMPLES, 0.75))
    with pytest.raises(ValueError, match="votes_sha256 was"):
        command.check(command.complete(replace(recipe, votes_sha256="")), 1)
    for late in (command.complete, kit.train):  # a job that waited in the queue meanwhile
        with pytest.raises(ValueError, match=f"has SHA-256 .* the run began with {digest}"):
            late(recipe)


@pytest.mark.parametrize(
    "values, said",
    [
        (np.zeros(47), r"holds float64 \(47,\); one number in \[0, 1\] for each of the 48 triplets"),
        (np.zeros((48, 1)), r"holds float64 \(48, 1\)"),
        (np.array(["1"] * 48), r"holds <U1 \(48,\)"),
        (np.r_[np.zeros(5), np.nan, np.zeros(42)], "holds nan at 5; one number"),
        (np.r_[np.zeros(7), np.inf, np.zeros(40)], "holds inf at 7; one number"),
        (np.r_[np.zeros(46), -1e-9, 0], "holds -1e-09 at 46; one number"),
        (np.full(48, 1.5), "holds 1.5 at 0; one number"),
        (np.full(48, None), "not an array of numpy's"),
        (b"", "not an array of numpy's"),
        (b"\x93NUMPY\x01\x00", "not an array of numpy's"),
        (None, "votes.npy: No such file"),
    ],
)
def test_a_file_that_is_none_is_one_line_and_code_2(values, said, triplets, tmp_path, capsys):
    import re

    name = tmp_path / "votes.npy"
    if isinstance(values, bytes):
        name.write_bytes(values)
    elif values is not None:
        np.save(name, values)
    args = ["--stage", "1", "--recipe", "debug", "--data", str(triplets), "--votes", str(name)]
    assert launch.main([*args, "--run", str(tmp_path / "run"), "--cluster", "local"]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: --votes") and re.search(said, told) and "\n" not in told
    assert not (tmp_path / "run").exists()


def test_a_word_that_is_none_is_named():
    with pytest.raises(ValueError, match="--votes humans: human, shuffled, or the name of a .npy file"):
        Stage1(votes="humans")


# Fields of recipe.json as 0.1.0 wrote it, beside `data`, `optim`, `compute` and `saving`.
BOTH = ("name", "stage", "model", "init", "run", "seed", "batch", "epochs", "steps")
OLD = {1: (*BOTH, "prior", "margin", "trainable"), 2: (*BOTH, "negatives", "scale_init", "scale_max")}
GROUPS = {
    "data": ("data", "val", "augment", "fraction", "crop_scale", "order", "lanes", "engine", "workers"),
    "optim": ("lr", "weight_decay", "betas", "eps", "warmup_steps", "schedule", "clip"),
    "compute": (
        "precision", "compile", "attention", "recompute", "micro", "pack", "threads", "nonfinite",
    ),
    "saving": ("save_every", "keep", "keep_epochs", "log_every", "val_every", "tensorboard"),
}  # fmt: skip


@pytest.mark.parametrize("stage", (1, 2))
def test_a_run_that_is_older_than_a_field_goes_on_with_its_default(stage):
    recipe = {1: Stage1, 2: Stage2}[stage]()
    now = to_dict(recipe)
    groups = {group: {name: now[group][name] for name in names} for group, names in GROUPS.items()}
    old = {name: now[name] for name in OLD[stage]} | groups
    assert differences(old, now) == []
    if stage == 1:
        changed = differences(old, to_dict(replace(recipe, votes="shuffled")))
        assert changed == ["votes was human, now shuffled"]
    del old["batch"]
    assert differences(old, now) == ["batch was None, now 256"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", (1, 2))
def test_an_old_runs_folder_is_continued(stage, split, triplets, tmp_path):
    file = triplets if stage == 1 else split
    recipe = command.complete(kit.debug(stage, file, tmp_path / "run"))
    assert not kit.train(recipe, kit.Asked(2)).done
    for path in (tmp_path / "run").rglob("recipe.json"):
        held = json.loads(path.read_text())
        path.write_text(json.dumps({name: held[name] for name in (*OLD[stage], *GROUPS)}))
    command.check(recipe, 1)
    assert kit.train(recipe).done
    kit.train(replace(recipe, run=tmp_path / "whole"))
    kit.assert_same(kit.tensors(tmp_path / "run"), kit.tensors(tmp_path / "whole"))
