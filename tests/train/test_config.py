"""Recipes and the command line: what is accepted, and the one line that a mistake gets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kits import train as kit
from train import launch, loop, model, recipes
from train.cluster.signals import Stop
from train.config import Compute, Data, Optim, Saving, Stage1, Stage2, differences, to_dict
from train.distributed import World


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: Data(fraction=0.0), "--fraction 0.0"),
        (lambda: Data(fraction=1.1), "--fraction 1.1"),
        (lambda: Data(order="block", lanes=0), "--lanes 0: at least 1"),
        (lambda: Data(lanes=2), "--lanes 2: needs --order block"),
        (lambda: Stage2(batch=7, data=Data(order="block", lanes=2)), "--batch 7: not divisible by --lanes 2"),
        (lambda: Data(workers=0), "--workers 0"),
        (lambda: Data(crop_scale=(0.5, 0.2)), "--crop-scale"),
        (lambda: Optim(lr=0.0), "--lr 0.0"),
        (lambda: Optim(betas=(0.9, 1.0)), "--betas"),
        (lambda: Optim(weight_decay=-1), "--weight-decay -1"),
        (lambda: Optim(clip=-1), "--clip -1"),
        (lambda: Saving(keep=0), "--keep 0"),
        (lambda: Saving(save_every=-1), "--save-every -1"),
        (lambda: Stage2(batch=0), "--batch 0"),
        (lambda: Stage2(epochs=0), "--epochs and --steps"),
        (lambda: Stage2(steps=5, optim=Optim(warmup_steps=5)), "--warmup-steps 5"),
        (lambda: Stage2(scale_init=5.0), "--scale-init 5.0"),
        (lambda: Stage1(margin=-0.1), "--margin -0.1"),
        (lambda: replace(Stage2(), seed=-1), "--seed -1"),
    ],
)
def test_a_wrong_field_is_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()


@given(
    samples=st.integers(1, 10**7),
    batch=st.integers(1, 10**4),
    epochs=st.floats(0.1, 40),
    share=st.floats(0.01, 1),
)
def test_steps_cover_the_epochs(samples, batch, epochs, share):
    recipe = Stage2(batch=batch, epochs=epochs, data=Data(fraction=share))
    used = max(1, round(samples * share))
    if used < batch:
        with pytest.raises(ValueError, match="--batch"):
            recipe.total_steps(samples)
        return
    steps = recipe.total_steps(samples)
    assert (steps - 1) * batch < epochs * used <= steps * batch


@given(batch=st.integers(1, 5000), micro=st.integers(0, 600), world=st.integers(1, 16))
def test_a_batch_is_shared_evenly_or_refused(batch, micro, world):
    recipe = replace(Stage2(batch=batch), compute=replace(Stage2().compute, micro=micro))
    even = batch % world == 0 and (micro == 0 or (batch // world) % micro == 0)
    if even:
        assert recipe.rank_batch(world) * world == batch
    else:
        with pytest.raises(ValueError, match="--batch|--micro"):
            recipe.rank_batch(world)


@pytest.mark.parametrize("stage", (1, 2))
def test_only_what_decides_the_numbers_separates_two_runs(stage, tmp_path):
    for recipe in recipes.RECIPES[stage].values():
        same = replace(recipe, run=tmp_path, saving=replace(recipe.saving, keep=9, log_every=3))
        assert differences(to_dict(recipe), to_dict(same)) == []
        other = replace(recipe, optim=replace(recipe.optim, lr=0.125))
        assert differences(to_dict(recipe), to_dict(other)) == [f"lr was {recipe.optim.lr}, now 0.125"]


def test_another_start_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = recipes.STAGE2["debug"]
    saved = to_dict(replace(base, init=tmp_path / "stage1"))
    assert differences(saved, to_dict(replace(base, init=Path("stage1")))) == []
    assert len(differences(saved, to_dict(base))) == 1
    assert len(differences(saved, to_dict(replace(base, init=Path("other"))))) == 1


def test_the_paper_recipe_is_the_papers():
    first, second = recipes.STAGE1["paper"], recipes.STAGE2["paper"]
    assert (first.epochs, first.margin, first.trainable) == (32, 0.05, "image")
    assert (second.epochs, second.batch) == (32, 30_720)
    assert math.exp(second.scale_init) == pytest.approx(100)
    assert first.data.augment == second.data.augment == "paper"
    tuned = recipes.STAGE1["pft"]
    assert (tuned.epochs, tuned.trainable, tuned.optim.weight_decay) == (8, "qkv", 0)


def test_flags_change_the_recipe(split, tmp_path):
    (command,) = launch.parse(
        ["--stage", "2", "--recipe=debug", "--data", str(split), "--lr", "3e-3", "--steps", "9", "--run",
         str(tmp_path), "--betas", "0.8", "0.9", "--ngpus", "2"]
    )  # fmt: skip
    recipe = command.recipe
    assert (recipe.optim.lr, recipe.steps, recipe.optim.betas, command.launch.ngpus) == (
        3e-3,
        9,
        (0.8, 0.9),
        2,
    )
    assert isinstance(recipe, Stage2) and recipe.run == tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, said",
    [
        (["--stage", "3"], "--stage 3: there are stages 1"),
        ([], "--stage 1 (perceptual) or --stage 2 (contrastive) is missing"),
        (["--stage"], "Missing value for argument '--stage'"),
        (["--stage", "2", "--recipe", "papper"], "--recipe papper: stage 2 has paper, strong, demo, debug"),
        (["--stage", "2", "--recipe", "pft"], "--recipe pft: stage 2 has"),
        (["--stage", "1", "--prior", "lpips"], "--prior"),
        (["--stage", "2", "--lr", "much"], "--lr"),
        (["--stage", "2", "--lr", "-1"], "--lr -1.0: must be positive"),
        (["--stage", "2", "--lrr", "1"], "--lrr"),
        (["--stage", "2", "--steps", "10", "--warmup-steps", "10"], "--warmup-steps 10"),
        (
            ["--stage", "2", "--recipe", "debug", "--data", "no/such.beton"],
            "no/such.beton: no such file; build it",
        ),
        (
            ["--stage", "2", "--recipe", "debug", "--data", "TRIPLETS"],
            "holds triplets; stage 2 trains on pairs",
        ),
        (["--stage", "1", "--recipe", "debug", "--data", "PAIRS"], "holds pairs; stage 1 trains on triplets"),
        (["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--model", "ViT-Q"], "--model ViT-Q"),
        (
            ["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--batch", "4096"],
            "--batch 4096: larger than",
        ),
        (
            ["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--batch", "15", "--ngpus", "2"],
            "--batch 15",
        ),
        (["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--micro", "5"], "--micro 5"),
        (
            ["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--attention", "triton"],
            "--attention triton: needs --precision bf16",
        ),
        (["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--nodes", "2"], "--nodes 2"),
        (["--stage", "2", "--recipe", "debug", "--data", "PAIRS", "--init", "EMPTY"], "holds no checkpoint"),
        (["--stage", "1", "--recipe", "pft", "--batch", "8", "--data", "TRIPLETS"], "--init RUN"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(args, said, split, triplets, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    names = {"PAIRS": str(split), "TRIPLETS": str(triplets), "EMPTY": str(empty)}
    args = [names.get(a, a) for a in args]
    code = launch.main(
        [*args, "--run", str(tmp_path / "run"), "--cluster", "local"] if "--stage" in args[:-1] else args
    )
    told = capsys.readouterr().err.strip()
    assert code == 2
    assert told.startswith("error: ") and said in told and "\n" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_text_tower_that_cannot_be_rewritten_is_refused(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", model="ViT-B-16-SigLIP")
    with pytest.raises(ValueError, match="--model ViT-B-16-SigLIP: .*pooled by 'last'"):
        model.check(recipe)


def test_triton_attention_needs_a_gpu(split, tmp_path):
    compute = Compute(precision="bf16", attention="triton")
    recipe = replace(
        recipes.choose("2", "debug"), compute=compute, data=Data(data=split), run=tmp_path / "run"
    )
    with pytest.raises(ValueError, match="--attention triton: needs a GPU"):
        loop.train(recipe, World(), Stop())


@pytest.mark.slow
def test_a_dry_run_needs_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--stages", "1,2", "--recipe", "paper", "--nodes", "1", "--cluster", "slurm", "--dry-run"]
    assert launch.main(args) == 0
    told = capsys.readouterr().out
    assert told.count("is not there yet") == 2 and "#SBATCH --dependency=afterok:" in told
    assert "#SBATCH --ntasks-per-node=6" in told and not list(tmp_path.iterdir())
    assert launch.main([*args, "--prior", "none"]) == 0
    told = capsys.readouterr().out
    assert told.count("is not there yet") == 1 and "dependency" not in told
    assert launch.main([*args, "--batch", "7"]) == 2


@pytest.mark.slow
def test_missing_data_names_the_command_that_builds_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args in (["--stage", "1"], ["--stage", "2"], ["--stage", "1", "--prior", "bapps"]):
        assert launch.main(args) == 2
        assert "build it with: python dataprep/build_ffcv.py" in capsys.readouterr().err
