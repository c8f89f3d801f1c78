"""Weights are used as they were trained, where anything tells; else the results say what was assumed."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from eval import assumptions, models, run
from eval.report import provenance
from eval.results import Evaluation
from tests.kits.eval import HALF, MODEL, beside, evaluate
from train import checkpoint, recipes
from train.model import check, create, load_file
from train.weights import origin

TOLD = [
    ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": HALF}, True, HALF),
    ("open_clip_config.json", {"model_cfg": {"embed_dim": 16}}, False, None),
    ("recipe.json", {"model": "ViT-B-32-quickgelu"}, True, origin.OURS),
    ("recipe.json", {"model": "ViT-B-32"}, False, origin.OURS),
    ("recipe.json", {"title": "goulash"}, None, None),
    ("config.json", {"vision_config": {"hidden_act": "quick_gelu"}}, True, None),
    ("config.json", {"vision_config": {"hidden_act": "gelu"}}, False, None),
    ("config.json", {"anything": 1}, None, None),
    (
        "preprocessor_config.json",
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 16, "width": 16}, "resample": 3},
        None,
        {**HALF, "interpolation": "bicubic"},
    ),
    (
        "preprocessor_config.json",
        {"image_mean": [0.4] * 3, "size": {"shortest_edge": 16}, "do_center_crop": True, "resample": 2},
        None,
        {"mean": [0.4] * 3, "resize_mode": "shortest", "interpolation": "bilinear"},
    ),
]


@pytest.mark.parametrize("name, content, quick, preprocess", TOLD)
def test_what_files_beside_the_weights_tell(weights, name, content, quick, preprocess):
    beside(weights, name, content)
    found = origin.of_weights(weights)
    assert (found.quick_gelu, found.preprocess) == (quick, preprocess)
    assert bool(found.says) == (quick is not None or preprocess is not None)


def test_a_damaged_neighbour_is_named(weights):
    (weights.parent / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match="open_clip_config.json: not JSON .*q.safetensors"):
        origin.of_weights(weights)


@pytest.mark.slow
def test_our_checkpoints_tell_it_themselves(root, tensors, tmp_path):
    """Also when the weights alone are copied somewhere else."""
    recipe = {"name": "debug", "stage": 2, "model": MODEL}
    groups = {checkpoint.WEIGHTS: tensors, checkpoint.OPTIMIZER: {"x": torch.zeros(1)}}
    step = tmp_path / "run" / "checkpoints" / "step-000020"
    checkpoint.write(step, checkpoint.State(step=20, samples=320), recipe, groups)
    alone = tmp_path / "elsewhere" / "mine.safetensors"
    alone.parent.mkdir()
    shutil.copy(step / checkpoint.WEIGHTS, alone)
    found = origin.of_weights(alone)
    assert found.quick_gelu is False and found.says == "mine.safetensors"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.preprocess.items()} == origin.OURS
    with safe_open(alone, "pt") as file:
        assert file.metadata()["model"] == MODEL
    data = evaluate(f"{MODEL},{alone}", root, tmp_path / "out")
    assert data["checkpoint"]["assumed"] == [] and data["checkpoint"]["activation"] == "GELU"


@pytest.mark.slow
def test_what_is_assumed_is_said(root, weights, tmp_path, capsys):
    data = evaluate(f"{MODEL},{weights}", root, tmp_path / "out")
    said = capsys.readouterr().out
    about = data["checkpoint"]
    assert about["activation"] == "GELU" and len(about["assumed"]) == 2
    assert all(f"note: {line}" in said for line in about["assumed"])
    assert "activation GELU, as debug-ViT has it" in about["assumed"][0]
    assert data["settings"]["preprocess"]["mean"] == list(origin.OURS["mean"])
    notes = assumptions.notes("ViT-B-32", create(MODEL), None, {})[1]
    assert notes == [
        "assumed, since no file tells: activation GELU, as ViT-B-32 has it "
        "(ViT-B-32-quickgelu has the same shapes and another activation)"
    ]


@pytest.mark.slow
def test_weights_are_used_as_they_were_trained(root, weights, tmp_path):
    """QuickGELU and SigLIP's pixels, told by a file beside: the very embeddings of such a model."""
    beside(weights, "open_clip_config.json", {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": HALF})
    data = evaluate(f"{MODEL},{weights}", root, tmp_path / "out")
    assert data["checkpoint"]["activation"] == "QuickGELU" and data["checkpoint"]["assumed"] == []
    assert data["checkpoint"]["told_by"].endswith("open_clip_config.json")
    assert provenance.weights_used_as(data)[1] == f"as {data['checkpoint']['told_by']} tells"
    used = data["settings"]["preprocess"]
    assert used["mean"] == used["std"] == [0.5] * 3 and "CenterCrop" not in str(used["steps"])
    expected = create(MODEL, quick_gelu=True).eval()
    expected.load_state_dict(checkpoint.weights(weights))
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model, _ = load_file(MODEL, weights)
    with torch.no_grad():
        ours, theirs = (m.eval().encode_image(image) for m in (model, expected))
        plain = create(MODEL).eval()
        plain.load_state_dict(checkpoint.weights(weights))
        assert torch.equal(ours, theirs) and not torch.allclose(ours, plain.encode_image(image))


def test_told_gelu_is_no_quick_gelu(weights):
    beside(weights, "recipe.json", {"model": "ViT-B-32"})
    with pytest.raises(
        ValueError, match="trained with GELU .says .*recipe.json., ViT-B-32-quickgelu has QuickGELU"
    ):
        load_file("ViT-B-32-quickgelu", weights)


@pytest.mark.parametrize("tag, forced", [("openai", True), ("laion2b_s34b_b79k", False)])
def test_published_weights_get_the_activation_of_their_tag(monkeypatch, tag, forced):
    """open_clip itself only warns: `ViT-B-32,openai` would run with GELU."""
    asked = {}

    def create_model(name, pretrained, force_quick_gelu):
        asked.update(name=name, tag=pretrained, quick=force_quick_gelu)

    monkeypatch.setattr("open_clip.create_model", create_model)
    models.from_tag("ViT-B-32", tag)
    assert asked == {"name": "ViT-B-32", "tag": tag, "quick": forced}


def test_a_models_own_preprocessing():
    laid, note = assumptions.preprocessing("ViT-B-16-SigLIP")
    assert laid == {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    assert "as all published weights of ViT-B-16-SigLIP" in note
    laid, note = assumptions.preprocessing("ViT-L-14")  # laion2b's has other pixels than OpenAI's
    assert laid == {} and "laion2b_s32b_b82k: mean 0.5/0.5/0.5" in note
    assert assumptions.preprocessing(MODEL) == ({}, "preprocessing: CLIP's mean, std and resizing")


def test_a_tokenizer_that_needs_a_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="tokenizer needs transformers: pip install transformers"):
        models.tokenizer_of("ViT-B-16-SigLIP")


def test_init_refuses_another_activation(weights):
    recipe = replace(recipes.RECIPES[1]["debug"], model=MODEL, init=weights)
    check(recipe)  # nothing tells: taken
    beside(weights, "open_clip_config.json", {"model_cfg": {"quick_gelu": True}})
    with pytest.raises(ValueError, match="--init .*trained with QuickGELU .says .*json., debug-ViT has GELU"):
        check(recipe)


# -- the command ---------------------------------------------------------


@pytest.mark.slow
def test_the_cache_keeps_embeddings_of_the_same_weights_apart(root, weights, tmp_path):
    """GELU and QuickGELU, these pixels and those: same tensors, other figures."""

    def features(out, told: dict | None) -> dict:
        if told is not None:
            beside(weights, "open_clip_config.json", told)
        arguments = ["--checkpoint", f"{MODEL},{weights}", "--data", root, "--out", tmp_path / out]
        arguments += ["--cache", tmp_path / "cache"]
        assert run.main([str(a) for a in arguments]) == 0
        return Evaluation.read(tmp_path / out)

    plain = features("plain", None)
    quick = features("quick", {"model_cfg": {"quick_gelu": True}})
    pixels = features("pixels", {"model_cfg": {}, "preprocess_cfg": {**HALF, "resize_mode": "shortest"}})
    again = features("again", {"model_cfg": {}, "preprocess_cfg": dict(origin.OURS)})
    scores = [one.arrays("emoji-names")["scores"].tolist() for one in (plain, quick, pixels, again)]
    assert scores[0] == scores[3] and scores[0] != scores[1] and scores[0] != scores[2]
    names = [one.data["checkpoint"]["weights"] for one in (plain, quick, pixels, again)]
    assert names[0] == names[3] and len({*names}) == 3


@pytest.mark.slow
def test_a_stage_one_checkpoint_and_a_damaged_one_are_said(root, tensors, tmp_path):
    groups = {checkpoint.WEIGHTS: tensors, checkpoint.OPTIMIZER: {"x": torch.zeros(1)}}
    for step in (10, 20):
        recipe = {"name": "debug", "stage": 1, "model": MODEL, "init": None}
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        checkpoint.write(folder, checkpoint.State(step=step, samples=step), recipe, groups)
    (folder / checkpoint.WEIGHTS).write_bytes(b"x")
    about = evaluate(tmp_path / "run", root, tmp_path / "out")["checkpoint"]
    assert about["step"] == 10
    assert "step-000020: damaged" in about["assumed"][0] and "text tower is random" in about["assumed"][1]


# -- what is said of names, and where results go --------------------------------------------------


@pytest.mark.parametrize("name, value", [("device", "mps"), ("device", "gpu"), ("out", "{file}/x")])
def test_what_could_not_be_done_is_said_before_anything_is_computed(root, weights, capsys, name, value):
    arguments = ["--checkpoint", MODEL, "--data", root, "--no-cache", f"--{name}", value.format(file=weights)]
    assert run.main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: --{name} ") and "top-1" not in said.out
