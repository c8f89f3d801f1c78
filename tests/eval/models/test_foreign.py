"""Weights that others' training leaves: taken whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval import assumptions, models
from tests.kits.eval import HALF, MODEL, refused
from train.weights import origin

PARAMS_HALF = "image_mean: [0.5, 0.5, 0.5]\nimage_std: (0.5, 0.5, 0.5)\n"


PARAMS_HALF += "image_interpolation: bilinear\nimage_resize_mode: squash"

PARAMS = [
    ("model: ViT-B-32-quickgelu\nforce_quick_gelu: False\nimage_mean: None", True, None),
    ("model: ViT-B-32\nforce_quick_gelu: True", True, None),
    ("model: ViT-B-32\nforce_quick_gelu: False\npretrained: ", False, None),
    ("model: ViT-B-32\npretrained: openai", None, None),  # QuickGELU in some versions, GELU in others
    ("model: ViT-B-32-quickgelu\npretrained: openai", True, None),
    (f"model: my-own\n{PARAMS_HALF}", None, HALF | {"interpolation": "bilinear"}),
    ("batch_size: 4", None, None),
]


@pytest.mark.parametrize("text, quick, preprocess", PARAMS)
def test_open_clips_trainer_tells(weights, text, quick, preprocess):
    """RUN/params.txt, over RUN/checkpoints/epoch_N.pt."""
    inside = weights.parent / "checkpoints" / "epoch_1.pt"
    (weights.parent / "params.txt").write_text(text)
    for file in (weights, inside):
        found = origin.of_weights(file)
        assert (found.quick_gelu, found.preprocess) == (quick, preprocess)


@pytest.mark.parametrize(
    "name, text",
    [
        ("params.txt", "image_mean: half"),
        ("params.txt", "image_std: [0.5]"),
        ("preprocessor_config.json", '{"image_mean": "x"}'),
        ("open_clip_config.json", '{"preprocess_cfg": {"std": [1, 2, null]}}'),
    ],
)
def test_pixels_that_are_no_numbers_are_named(weights, name, text):
    (weights.parent / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}.* three numbers are expected"):
        origin.of_weights(weights)


def _saved(weights, tensors, change) -> Path:
    file = weights.with_suffix(".pt")
    torch.save(change({f"module.{n}": t for n, t in tensors.items()}), file)
    return file


class _Code:
    def __reduce__(self):
        return print, ("unpickled",)


def _stretched(held: dict) -> dict:
    name = "module.positional_embedding"
    return {"epoch": 1, "state_dict": held | {name: held[name].repeat(2, 1)}}


@pytest.mark.parametrize(
    "change, message",
    [
        (_stretched, "positional_embedding is .* weights of another resolution or length of text"),
        (
            lambda held: {"state_dict": held, "args": _Code()},
            "not tensors alone, and nothing else is unpickled",
        ),
        (lambda held: [*held.values()], "no weights by name in it"),
        (lambda held: {}, "no weights by name in it"),
        (lambda held: dict(list(held.items())[:-1]), "Missing key"),
    ],
)
def test_other_files_of_weights_are_taken_whole_or_refused(weights, tensors, change, message, capsys):
    with pytest.raises(ValueError, match=message):
        models.load(f"{MODEL},{_saved(weights, tensors, change)}")
    weights.with_suffix(".pt").write_bytes(b"")
    with pytest.raises(ValueError, match="no weights by name in it"):
        models.load(f"{MODEL},{weights.with_suffix('.pt')}")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", ""]
)
@pytest.mark.parametrize("form", ["state_dict", "model_ema", "alone", "safetensors"])
def test_weights_are_the_same_by_whatever_names(weights, tensors, prefix, form):
    """DDP's, torch.compile's, trainers'; beside an optimizer, or as the only weights under another name."""
    named = {prefix + name: value for name, value in tensors.items()}
    file = weights.with_name("named.safetensors" if form == "safetensors" else "named.pt")
    if form == "safetensors":
        save_file(named, file)
    else:
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        torch.save(named if form == "alone" else {"epoch": 3, form: named, "optimizer": optimizer}, file)
    state = models.load(f"{MODEL},{file}").model.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in state)


def test_openais_own_weights_have_their_activation(weights, tensors):
    marks = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(7))
    torch.save({name: value.half() for name, value in (tensors | marks).items()}, weights.with_suffix(".pt"))
    found = models.load(f"{MODEL},{weights.with_suffix('.pt')}")
    assert assumptions.activation(found.model) == "QuickGELU" and found.assumed == ()
    assert "OpenAI's input_resolution" in found.about["told_by"]


def _written(file: Path, kind: str, tensors) -> Path:
    if kind == "script":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    elif kind == "ema":
        torch.save({"state_dict": tensors, "state_dict_ema": tensors}, file)
    elif kind == "transformers":
        torch.save({"vision_model.embeddings.class_embedding": torch.zeros(3)}, file)
    elif kind == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "lora":
        torch.save(tensors | {"visual.transformer.resblocks.0.attn.lora_A": torch.zeros(3)}, file)
    else:
        torch.save(tensors, file)
        file.write_bytes(file.read_bytes()[:5000])
    return file


@pytest.mark.parametrize(
    "kind, message",
    [
        ("script", "a TorchScript archive, as OpenAI's are, .* save its tensors: python -c"),
        ("ema", "more than one set of weights is in it: state_dict, state_dict_ema"),
        ("transformers", "the names are transformers', open_clip's are expected"),
        ("lora", "merge them into the weights first"),
        ("pointer", "a pointer of Git LFS in the file's place"),
        ("cut", "not a whole file of torch.save's"),
    ],
)
def test_what_is_no_models_weights_is_said(weights, tensors, kind, message):
    file = _written(weights.with_suffix(".pt"), kind, tensors)
    with pytest.raises(ValueError, match=message):
        models.load(f"{MODEL},{file}")


def test_files_beside_the_weights_that_are_another_models(root, weights, tmp_path, capsys):
    beside = weights.parent / "open_clip_config.json"
    beside.write_text(json.dumps({"preprocess_cfg": {"size": 64}}))
    assert "tells of images of 64 pixels" in refused(f"{MODEL},{weights}", root, capsys)
    for told in ({"interpolation": "sinc"}, {"resize_mode": "fit"}):
        beside.write_text(json.dumps({"preprocess_cfg": told}))
        said = refused(f"{MODEL},{weights}", root, capsys)
        assert "open_clip has no resizing" in said and "open_clip_config.json tells" in said
    beside.unlink()
    (weights.parent / "config.json").write_text('{"vision_config": "vit"}')
    assert origin.of_weights(weights).quick_gelu is None
    (weights.parent / "preprocessor_config.json").write_text('{"image_std": [0, 0.5, 0.5]}')
    with pytest.raises(ValueError, match="std of the pixels is .0, 0.5, 0.5"):
        origin.of_weights(weights)
    (weights.parent / "preprocessor_config.json").write_text('{"image_mean": [123.7, 116.3, 103.5]}')
    with pytest.raises(ValueError, match="of pixels from 0 to 1 is expected"):
        origin.of_weights(weights)
