"""Image towers without texts: timm's, and open_clip's from a file that holds nothing else."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from eval import models, run
from eval.assumptions import activation
from eval.results import Evaluation
from tests.kits.eval import MODEL, encoded, pictures, refused

CPU = torch.device("cpu")
TIMM = ("test_vit", "test_resnet", "test_convnext")


def _encoders(what: str):
    return models.encoders_for(models.load(what), CPU, "fp32")


def _saved(name: str, file, change=lambda state: state, **more):
    """(timm's model with random weights, its weights in a file)."""
    torch.manual_seed(5)
    model = timm.create_model(name, pretrained=False, **more).eval()
    state = {k: v.contiguous() for k, v in change(model.state_dict()).items()}
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return model


# -- timm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMM)
def test_features_and_pixels_are_timms_own(name, tmp_path):
    model = _saved(name, tmp_path / "w.safetensors")
    made = _encoders(f"timm:{name},{tmp_path / 'w.safetensors'}")
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    for picture in pictures(3, size=(300, 220)):
        pixels = made.preprocess.tensor(made.preprocess.crop(picture)[None])
        torch.testing.assert_close(pixels[0], theirs(picture), atol=1e-6, rtol=0)
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(made.image(pixels), expected)
    json.dumps(made.preprocess.describe())
    assert made.preprocess.mean == tuple(config["mean"])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {k: v for k, v in state.items() if not k.startswith("head")},
        lambda state: {k: v[:3] if k.startswith("head") else v for k, v in state.items()},
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_prefixes_are_taken_off_and_the_classifier_does_not_count(tmp_path, change, ending):
    file = tmp_path / f"w.{ending}"
    model = _saved("test_vit", file, change)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(_encoders(f"timm:test_vit,{file}").image(pixels), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda state: {k: v for k, v in state.items() if "blocks.1" not in k},
            "blocks.1.* is absent in the file",
        ),
        (
            lambda state: state | {"more.weight": torch.zeros(2)},
            r"more.weight is \(2,\) in the file, expected absent",
        ),
        (
            lambda state: state | {"pos_embed": torch.zeros(1, 5, 64)},
            r"pos_embed is \(1, 5, 64\) in the file",
        ),
        (lambda state: {"state": torch.zeros(2)}, "is absent in the file, expected"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, message):
    _saved("test_vit", tmp_path / "w.safetensors", change)
    with pytest.raises(ValueError, match=f"--checkpoint timm:test_vit,.*: .*{message}"):
        models.load(f"timm:test_vit,{tmp_path / 'w.safetensors'}")


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return print, ("unpickled",)

    torch.save({"state_dict": Code()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not tensors alone, and nothing else is unpickled"):
        models.load(f"timm:test_vit,{tmp_path / 'w.pth'}")
    assert "unpickled" not in capsys.readouterr().out


def test_random_weights_are_said_and_follow_the_seed():
    one, same, other = (models.load("timm:test_vit", seed) for seed in (0, 0, 1))
    assert one.assumed == ("random weights: no pretrained tag and no file stands after the name",)
    assert one.about["pretrained"] == "random-0" and other.about["pretrained"] == "random-1"
    states = [loaded.model.state_dict() for loaded in (one, same, other)]
    name = "visual.model.blocks.0.attn.qkv.weight"
    assert torch.equal(states[0][name], states[1][name]) and not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(
    "what, message",
    [
        ("timm:no_such_model", r"--checkpoint timm:no_such_model: Unknown model \(no_such_model\)"),
        ("timm:test_vit,nowhere.pth", "nowhere.pth: no such file"),
        ("timm:test_vit.r160_in1k", "the pretrained tag stands after a comma: timm:test_vit,r160_in1k"),
        ("timm:", "--checkpoint timm:: "),
        (
            "timm:test_vit,no_tag",
            "--checkpoint timm:test_vit,no_tag: .*; without a network: timm:test_vit,FILE",
        ),
    ],
)
def test_names_that_cannot_be_had(what, message):
    with pytest.raises(ValueError, match=message):
        models.load(what)


def test_a_tag_that_is_not_on_this_machine_is_refused_in_one_line(monkeypatch, tmp_path):
    def absent(*args, **kwargs):
        raise OSError("not in the cache,\nand no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", absent)
    with pytest.raises(ValueError) as error:
        models.load("timm:test_vit,r160_in1k")
    assert str(error.value) == (
        "--checkpoint timm:test_vit,r160_in1k: not in the cache, and no network; without a network: "
        "timm:test_vit,FILE.safetensors"
    )


@pytest.mark.slow
def test_a_tag_beside_a_file_tells_the_pixels(tmp_path):
    file = tmp_path / "w.safetensors"
    _saved("resnet18", file)
    plain, tagged = (f"timm:resnet18{tag},{file}" for tag in ("", ".tv_in1k"))
    made = [_encoders(what).preprocess for what in (plain, tagged)]
    assert made[0].mean == made[1].mean == (0.485, 0.456, 0.406)
    steps = ["\n".join(each.describe()["steps"]) for each in made]
    assert "bicubic" in steps[0] and "bilinear" in steps[1]
    assert models.load(tagged).assumed == (
        "assumed, since no file tells: pixels as timm has them for resnet18.tv_in1k",
    )


def test_what_the_results_say_of_the_activation():
    assert activation(models.load("timm:test_vit").model) == "GELU"
    assert activation(models.load("timm:test_resnet").model) == "neither QuickGELU nor GELU"


# -- open_clip's image tower alone ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["visual.", ""], ids=["named", "bare"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_an_image_tower_alone_gives_the_whole_models_features(weights, tensors, ending, prefix):
    alone = {prefix + k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    file = weights.with_name(f"tower.{ending}")
    save_file(alone, file) if ending == "safetensors" else torch.save({"state_dict": alone}, file)
    whole, tower = (_encoders(f"{MODEL},{path}") for path in (weights, file))
    pixels = torch.rand(3, 3, *whole.preprocess.size)
    assert torch.equal(whole.image(pixels), tower.image(pixels))
    assert whole.preprocess.describe() == tower.preprocess.describe()
    assert "the image tower alone is in the file" in models.load(f"{MODEL},{file}").assumed


@pytest.mark.parametrize(
    "change",
    [
        lambda alone: dict(list(alone.items())[:-1]),
        lambda alone: alone | {"logit_scale": torch.ones(())},
    ],
)
def test_a_part_of_a_tower_is_refused(weights, tensors, change):
    save_file(change({k: v for k, v in tensors.items() if k.startswith("visual.")}), weights)
    with pytest.raises(ValueError, match="Missing key|positional_embedding is"):
        models.load(f"{MODEL},{weights}")


# -- where texts are needed -------------------------------------------------------------------------


def test_texts_are_refused_by_name(root, capsys):
    said = refused("timm:test_vit", root, capsys)
    assert "--checkpoint timm:test_vit: an image tower alone, and " in said
    with pytest.raises(ValueError, match="--checkpoint timm:test_vit: an image tower alone"):
        _encoders("timm:test_vit").text(torch.zeros(1, 77, dtype=torch.int64))


@pytest.mark.slow
def test_triplets_need_no_texts(tmp_path):
    """A folder laid out as NIGHTS, constructed."""
    folder = tmp_path / "nights"
    rows = ["id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet,prompt"]
    for i, picture in enumerate(pictures(4)):
        for part in ("ref", "left", "right"):
            path = folder / part / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = picture if part != "right" else picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            path.write_bytes(encoded(shown))
        rows.append(f"{i},6,0,6,ref/{i}.png,left/{i}.png,right/{i}.png,test,False,x")
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    arguments = [
        "--checkpoint",
        "timm:test_vit",
        "--triplets",
        folder,
        "--out",
        tmp_path / "out",
        "--no-cache",
    ]
    assert run.main([str(a) for a in arguments]) == 0
    found = Evaluation.read(tmp_path / "out")
    assert found.data["triplets"]["metrics"]["twoafc"] == 1.0  # the left one is the reference itself
    assert found.data["checkpoint"]["assumed"][0].startswith("random weights")
