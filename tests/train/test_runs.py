"""Whole runs: continuing them, starting one from another, what their folder holds, what may break."""

from __future__ import annotations

import json
from dataclasses import replace

import open_clip
import pytest
import torch

from pipeline.augment import AUGMENTS, lookup_table, normalise
from pipeline.beton.fields import Beton
from tests.kits import train as kit
from train import checkpoint, data, loop, model
from train.distributed import World
from train.stages.stage1 import PerceptualStage
from train.stages.stage2 import ContrastiveStage

pytestmark = pytest.mark.slow  # processes and whole runs


@pytest.fixture(scope="module")
def perceptual(triplets, tmp_path_factory):
    """A finished stage-1 run."""
    run = tmp_path_factory.mktemp("runs") / "stage1"
    kit.train(kit.debug(1, triplets, run))
    return run


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(rows: list[dict]) -> list[dict]:
    clock = ("seconds", "data_wait", "pairs_per_s", "triplets_per_s", "memory_gb")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


@pytest.mark.parametrize("stage, name", [(1, "debug-ViT"), (2, "debug-ViT"), (2, "debug-RN")])
def test_a_continued_run_ends_with_the_same_bits(stage, name, split, triplets, tmp_path):
    file = triplets if stage == 1 else split
    changes = dict(model=name, steps=7, augment="paper", warmup_steps=2, micro=8)
    whole = kit.train(kit.debug(stage, file, tmp_path / "whole", **changes))
    assert whole.done and whole.step == 7
    recipe = kit.debug(stage, file, tmp_path / "parts", **changes)
    for after, step in ((2, 2), (3, 5)):
        assert not kit.train(recipe, kit.Asked(after)).done
        assert f"interrupted after step {step} of 7" in (recipe.folder / "log.txt").read_text()
    assert kit.train(recipe).done
    kit.assert_same(kit.tensors(tmp_path / "whole"), kit.tensors(tmp_path / "parts"))
    assert untimed(lines(tmp_path / "whole")) == untimed(lines(tmp_path / "parts"))


def test_a_run_killed_after_its_checkpoint_drops_the_lines_past_it(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", steps=6, save_every=2)
    kit.train(recipe, kit.Asked(4))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "samples": 80, "loss": 1.0}\n{"step": 6, "sam')
    kit.train(recipe)
    assert [row["step"] for row in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_another_file_does_not_continue_a_run(split, tmp_path):
    kit.train(kit.debug(2, split, tmp_path / "run"), kit.Asked(2))
    other = kit.pairs(tmp_path / "other.beton", 40)
    with pytest.raises(ValueError, match="has 40 samples, but .* was trained on a file of 48"):
        kit.train(kit.debug(2, other, tmp_path / "run"))


def test_a_complete_run_is_left_alone(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run")
    kit.train(recipe)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != "log.txt"}
    outcome = kit.train(recipe)
    assert outcome.done
    assert "complete (4 steps); nothing to do" in (tmp_path / "run" / "log.txt").read_text()
    for path, written in before.items():
        assert path.is_dir() or path.stat().st_mtime_ns == written


def test_perceptual_initialisation_changes_the_image_tower_and_nothing_else(split, perceptual, tmp_path):
    base = kit.debug(2, split, tmp_path / "base", augment="paper")
    pi = replace(base, run=tmp_path / "pi", init=perceptual)
    random, started = (model.build(r).state_dict() for r in (base, pi))
    first = checkpoint.weights(perceptual)
    for name in random:
        if name.startswith("visual."):
            assert started[name].equal(first[name]), name
        else:
            assert started[name].equal(random[name]), name
    assert any(not started[n].equal(random[n]) for n in random)
    seen = []
    for recipe in (base, pi):
        with data.stream(recipe, Beton(split), World(), 16, 0) as loader:
            batches = iter(loader)
            seen.append([next(batches) for _ in range(5)])
    for left, right in zip(*seen):
        assert left.index.equal(right.index) and left.tokens.equal(right.tokens)
        assert left.images.equal(right.images)


def test_stage1_leaves_the_rest_of_the_model_as_it_was_drawn(triplets, perceptual):
    drawn = model.build(kit.debug(1, triplets, perceptual)).state_dict()
    for name, tensor in checkpoint.weights(perceptual).items():
        assert name.startswith("visual.") or tensor.equal(drawn[name]), name


@pytest.mark.parametrize("trainable", ("qkv", "qkv+bias"))
def test_fine_tuning_changes_the_projections_alone(trainable, split, triplets, tmp_path):
    kit.train(kit.debug(2, split, tmp_path / "base"))
    tuned = kit.debug(1, triplets, tmp_path / "pft", init=tmp_path / "base", trainable=trainable, lr=1e-2)
    kit.train(tuned)
    before, after = (checkpoint.weights(tmp_path / run) for run in ("base", "pft"))
    changed = {name for name in before if not before[name].equal(after[name])}
    ends = {"qkv": ("attn.in_proj_weight",), "qkv+bias": ("attn.in_proj_weight", "attn.in_proj_bias")}
    blocks = [f"visual.transformer.resblocks.{i}." for i in range(2)]
    assert changed == {block + end for block in blocks for end in ends[trainable]}


def test_a_frozen_parameter_that_moves_ends_the_run(triplets, tmp_path, monkeypatch):
    def constrain(self):
        self.clip.token_embedding.weight.data[0, 0] += 1

    monkeypatch.setattr(PerceptualStage, "constrain", constrain)
    with pytest.raises(loop.TrainingStopped, match="must not change"):
        kit.train(kit.debug(1, triplets, tmp_path / "run"))


@pytest.mark.parametrize("name", ("debug-ViT", "debug-RN"))
def test_weights_are_open_clips(name, split, tmp_path):
    kit.train(kit.debug(2, split, tmp_path / "run", model=name))
    ours, config = model.load_run(tmp_path / "run")
    assert config["model"] == name
    open_clip.add_model_config(model.CONFIGS)
    theirs = open_clip.create_model(name)
    theirs.load_state_dict(checkpoint.weights(tmp_path / "run"))
    theirs.eval()
    images = torch.randn(3, 3, 32 if name == "debug-RN" else 16, 32 if name == "debug-RN" else 16)
    tokens = torch.zeros(3, 77, dtype=torch.long)
    tokens[:, 0], tokens[:, 1] = kit.START, kit.END
    with torch.no_grad():
        assert theirs.encode_image(images).equal(ours.encode_image(images))
        assert theirs.encode_text(tokens).equal(ours.encode_text(tokens))


def test_the_folder_tells_everything(split, tmp_path):
    run = tmp_path / "run"
    kit.train(kit.debug(2, split, run, save_every=1, keep=2, val=split))
    assert (run / "latest").read_text().strip() == "step-000004"
    assert [p.name for p in checkpoint.folders(run)] == ["step-000004", "step-000003"]
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe == json.loads((run / "checkpoints" / "step-000004" / "recipe.json").read_text())
    assert json.loads((run / "versions.json").read_text())["torch"] == torch.__version__.split("+")[0]
    rows = lines(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4]
    assert {
        "samples",
        "seconds",
        "loss",
        "lr",
        "logit_scale",
        "grad_norm",
        "pairs_per_s",
        "data_wait",
    } <= rows[0].keys()
    assert rows[-1].keys() == {"step", "val_loss"}


def test_a_slow_image_tower_is_said(split, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "why_slow", lambda visual: "it has block.gate")
    kit.train(kit.debug(2, split, tmp_path / "run"))
    said = [row for row in (tmp_path / "run" / "log.txt").read_text().splitlines() if "savings" in row]
    assert len(said) == 1 and "none of the savings: it has block.gate" in said[0]


def test_epoch_checkpoints_stay(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", steps=10, save_every=1, keep=1, keep_epochs=1)
    kit.train(recipe)  # 48 samples, 16 a step: epochs end after steps 3, 6 and 9
    assert [p.name[-2:] for p in checkpoint.folders(tmp_path / "run")] == ["10", "09", "06", "03"]


def test_validation_is_the_mean_over_the_file(triplets, tmp_path):
    run = tmp_path / "run"
    kit.train(kit.debug(1, triplets, run, steps=2, val=triplets, val_every=1, log_every=2))
    found = [row for row in lines(run) if "val_twoafc" in row]
    assert [row["step"] for row in found] == [1, 2]
    clip, _ = model.load_run(run)
    batch = next(data.held_out(kit.debug(1, triplets, run), Beton(triplets), World(), 16, 48))
    table = lookup_table(AUGMENTS["eval"], torch.float32)
    with torch.no_grad():
        ref, left, right = (
            clip.encode_image(normalise(x, table)) for x in (batch.ref, batch.left, batch.right)
        )
    near = torch.cosine_similarity(ref, right) > torch.cosine_similarity(ref, left)
    share = (near == (batch.vote > 0.5)).float().mean().item()
    for name in ("val_twoafc", "val_twoafc_soft"):  # one and the same where everybody agrees
        assert found[-1][name] == pytest.approx(share, abs=1e-5)


def break_file(folder, name, how):
    file = folder / name
    if how == "absent":
        file.unlink()
    elif how == "short":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x40
        file.write_bytes(content)


@pytest.mark.parametrize(
    "name, how",
    [
        (checkpoint.WEIGHTS, "absent"),
        (checkpoint.WEIGHTS, "changed"),
        (checkpoint.OPTIMIZER, "short"),
        (checkpoint.STATE, "absent"),
        (checkpoint.STATE, "short"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(name, how, split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "whole", steps=6, save_every=2)
    kit.train(recipe)
    damaged = replace(recipe, run=tmp_path / "run")
    kit.train(damaged, kit.Asked(4))
    newest = checkpoint.folders(tmp_path / "run")[0]
    break_file(newest, name, how)
    with pytest.raises(ValueError, match=f"{newest.name}.*damaged.*{name}"):
        checkpoint.check(newest)
    assert kit.train(damaged).done
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{newest}: damaged: {name}" in log and "continuing" in log and "step-000002" in log
    kit.assert_same(kit.tensors(tmp_path / "whole"), kit.tensors(tmp_path / "run"))


def test_another_architecture_is_refused(split, perceptual, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", model="debug-RN", init=perceptual)
    with pytest.raises(ValueError, match="not a debug-RN: visual"):
        model.check(recipe)


def test_a_full_disk_is_an_os_error_and_leaves_the_last_checkpoint(split, tmp_path, monkeypatch):
    recipe = kit.debug(2, split, tmp_path / "run", steps=6, save_every=2)
    original = checkpoint.save_file

    def save_file(tensors, path, metadata):
        if "step-000004" in str(path):
            raise OSError(28, "No space left on device")
        original(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(OSError, match="No space left"):
        kit.train(recipe)
    assert checkpoint.latest(tmp_path / "run").name == "step-000002"
    monkeypatch.undo()
    assert kit.train(recipe).done
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def poison(monkeypatch, *steps):
    """Make the gradient of these steps (from 1) infinite."""
    original, count = ContrastiveStage.gradients, iter(range(1, 100))

    def gradients(self, batch):
        measured = original(self, batch)
        if next(count) in steps:
            self.clip.visual.proj.grad[0, 0] = torch.inf
        return measured

    monkeypatch.setattr(ContrastiveStage, "gradients", gradients)


def test_a_gradient_that_is_not_finite_is_left_out_and_named(split, tmp_path, monkeypatch):
    poison(monkeypatch, 2, 3)
    assert kit.train(kit.debug(2, split, tmp_path / "run", nonfinite=2, log_every=4)).done
    assert (
        "step 2, 3: the gradient is not finite, update left out (2 of at most 2)"
        in (tmp_path / "run" / "log.txt").read_text()
    )
    assert all(tensor.isfinite().all() for tensor in kit.tensors(tmp_path / "run").values())


def test_more_than_the_allowed_ones_end_the_run(split, tmp_path, monkeypatch):
    poison(monkeypatch, 2)
    with pytest.raises(loop.TrainingStopped, match="step 2: the gradient is not finite"):
        kit.train(kit.debug(2, split, tmp_path / "run"))


def test_a_file_whose_images_do_not_decode_ends_the_run(split, tmp_path):
    broken = tmp_path / "broken.beton"
    content = bytearray(split.read_bytes())
    file = Beton(split)
    for index in range(0, len(file), 2):
        start, size = (int(v) for v in file.rows(index).spans("image"))
        content[start : start + size] = bytes(size)
    broken.write_bytes(content)
    with pytest.raises(loop.TrainingStopped, match="are damaged"):
        kit.train(kit.debug(2, broken, tmp_path / "run"))


def test_fraction_keeps_the_steps(split, tmp_path):
    kit.train(kit.debug(2, split, tmp_path / "run", fraction=0.5, steps=4))
    assert lines(tmp_path / "run")[-1]["epoch"] == pytest.approx(64 / 24)
    state = checkpoint.check(checkpoint.latest(tmp_path / "run"))
    assert state.step == state.steps == 4
