"""`--init-lengths` and `--init-norms`: what of a trained image tower a warm start takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kits import train as kit
from train import checkpoint, launch, model
from train.config import Stage1, Stage2

MODELS = ("debug-ViT", "debug-RN")


@pytest.fixture(scope="module", params=MODELS)
def trained(request, triplets, tmp_path_factory):
    """(a stage-1 run whose weights have moved, a stage-2 recipe that starts from it, its fresh model)."""
    run = tmp_path_factory.mktemp("runs") / "stage1"
    kit.train(kit.debug(1, triplets, run, model=request.param, lr=0.05, steps=6))
    recipe = replace(kit.debug(2, triplets, run.with_name("stage2")), model=request.param, seed=5)
    fresh = model.build(recipe).state_dict()
    return run, replace(recipe, init=run), fresh


def lengthened(name: str, value: torch.Tensor) -> bool:
    """By shape, not by the optimizer's rule."""
    return name.startswith("visual.") and value.ndim >= 2


def normalises(name: str) -> bool:
    """By open_clip's names, not by the modules' types."""
    owner = name.removeprefix("visual.").rsplit(".", 1)[0].rsplit(".", 1)[-1]
    return name.startswith("visual.") and (
        owner.startswith(("ln_", "bn")) or ".downsample.1." in name or ".downsample.bn" in name
    )


def test_by_default_the_tower_is_taken_as_it_is(trained):
    run, recipe, fresh = trained
    first, started = checkpoint.weights(run), model.build(recipe).state_dict()
    for name in fresh:
        assert started[name].equal((first if name.startswith("visual.") else fresh)[name]), name
    assert any(not first[name].equal(fresh[name]) for name in fresh)


def test_fresh_lengths_turn_nothing(trained):
    run, recipe, fresh = trained
    first = checkpoint.weights(run)
    started = model.build(replace(recipe, init_lengths="fresh")).state_dict()
    changed = 0
    for name, value in started.items():
        if not lengthened(name, value):
            assert value.equal((first if name.startswith("visual.") else fresh)[name]), name
            continue
        wide, before, drawn = (x[name].double().flatten() for x in (started, first, fresh))
        assert wide.norm().item() == pytest.approx(drawn.norm().item(), rel=1e-6), name
        # float32 rounds each number by 6e-8 at most.
        assert torch.cosine_similarity(wide, before, 0).item() == pytest.approx(1, abs=1e-12), name
        assert abs(before.norm() / drawn.norm() - 1) > 1e-4, f"{name} had not grown, so nothing was tested"
        changed += 1
    assert changed >= 10


def test_fresh_norms_are_the_seeds(trained):
    run, recipe, fresh = trained
    first = checkpoint.weights(run)
    started = model.build(replace(recipe, init_norms="fresh")).state_dict()
    renewed = {name for name in started if normalises(name)}
    kinds = {name.rsplit(".", 1)[-1] for name in renewed}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert kinds == {"weight", "bias"} | (statistics if recipe.model == "debug-RN" else set())
    for name, value in started.items():
        own = fresh if name in renewed or not name.startswith("visual.") else first
        assert value.equal(own[name]), name
    assert all(any(not first[n].equal(fresh[n]) for n in renewed if n.endswith(kind)) for kind in kinds)


def test_both_together_leave_the_text_tower_alone(trained):
    run, recipe, fresh = trained
    both = model.build(replace(recipe, init_lengths="fresh", init_norms="fresh")).state_dict()
    lengths = model.build(replace(recipe, init_lengths="fresh")).state_dict()
    for name, value in both.items():
        kept = name.startswith("visual.") and not normalises(name)
        assert value.equal((lengths if kept else fresh)[name]), name


def test_stage1_carries_the_whole_model_and_renews_the_tower(trained):
    run, recipe, _ = trained
    first = checkpoint.weights(run)
    tuned = replace(Stage1(model=recipe.model, init=run, seed=5), init_lengths="fresh", init_norms="fresh")
    started = model.build(tuned).state_dict()
    renewed = {name for name in first if not started[name].equal(first[name])}
    assert renewed and all(normalises(n) or lengthened(n, first[n]) for n in renewed)


def test_zeros_stay(trained, tmp_path, monkeypatch):
    run, recipe, _ = trained
    weights = checkpoint.weights(run)
    name = next(n for n, value in weights.items() if lengthened(n, value))
    weights[name] = torch.zeros_like(weights[name])
    monkeypatch.setattr(checkpoint, "weights", lambda path: weights)
    started = model.build(replace(recipe, init_lengths="fresh")).state_dict()
    assert started[name].equal(weights[name])


@pytest.mark.parametrize("flag", ("lengths", "norms"))
@pytest.mark.parametrize("stage", (1, 2))
def test_without_a_start_they_are_refused(flag, stage, split, triplets, tmp_path, capsys):
    with pytest.raises(ValueError, match=f"--init-{flag} fresh: needs --init RUN"):
        {1: Stage1, 2: Stage2}[stage](**{f"init_{flag}": "fresh"})
    file = str(triplets if stage == 1 else split)
    args = ["--stage", str(stage), "--recipe", "debug", "--data", file, "--run", str(tmp_path / "run")]
    assert launch.main([*args, f"--init-{flag}", "fresh", "--cluster", "local"]) == 2
    told = capsys.readouterr().err.strip()
    assert told == f"error: --init-{flag} fresh: needs --init RUN"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_they_identify_a_run(trained, split, tmp_path):
    from train import command

    _, recipe, _ = trained
    recipe = kit.debug(2, split, tmp_path / "run", model=recipe.model, init=recipe.init, init_lengths="fresh")
    assert kit.train(recipe).done
    command.check(recipe, 1)
    with pytest.raises(ValueError, match="init_lengths was fresh, now keep"):
        command.check(replace(recipe, init_lengths="keep"), 1)
    with pytest.raises(ValueError, match="init_norms was keep, now fresh"):
        command.check(replace(recipe, init_norms="fresh"), 1)
