"""open_clip's names, folders and hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from eval import models, run
from eval.results import Evaluation
from tests.kits.eval import HALF, MODEL, evaluate, refused
from train import architectures

# -- open_clip's folders ---------------------------------------------------------


def open_clip_folder(place: Path, tensors) -> Path:
    place.mkdir(parents=True)
    config = json.loads(architectures.model_files()[MODEL].read_text())
    told = {"model_cfg": {**config, "quick_gelu": True}, "preprocess_cfg": HALF}
    (place / "open_clip_config.json").write_text(json.dumps(told))
    save_file(tensors, place / "open_clip_model.safetensors")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("form", ["local-dir", "folder", "cache"])
def test_folders_that_open_clip_keeps_models_in(root, tensors, tmp_path, form):
    if form == "cache":  # of Hugging Face: models--ORG--NAME
        what = tmp_path / "models--org--tiny"
        open_clip_folder(what / "snapshots" / "abc", tensors)
        open_clip_folder(what / "snapshots" / "old", tensors)
        (what / "refs").mkdir()
        (what / "refs" / "main").write_text("abc")
    else:
        what = open_clip_folder(tmp_path / "tiny", tensors)
    data = evaluate(f"local-dir:{what}" if form == "local-dir" else what, root, tmp_path / "out")
    assert data["checkpoint"]["activation"] == "QuickGELU" and data["checkpoint"]["assumed"] == []
    assert data["settings"]["preprocess"]["mean"] == [0.5] * 3
    assert data["checkpoint"]["model"] == what.name


@pytest.mark.slow
def test_a_folder_that_leaves_pixels_to_defaults_is_said(root, tensors, tmp_path):
    what = open_clip_folder(tmp_path / "tiny", tensors)
    told = json.loads((what / "open_clip_config.json").read_text())
    del told["preprocess_cfg"]
    (what / "open_clip_config.json").write_text(json.dumps(told))
    data = evaluate(what, root, tmp_path / "out")
    assert "CLIP's mean, std and resizing" in data["checkpoint"]["assumed"][0]


def test_a_hub_model_that_leaves_pixels_to_defaults_is_said(tensors, tmp_path, monkeypatch):
    place = open_clip_folder(tmp_path / "tiny", tensors)
    told = json.loads((place / "open_clip_config.json").read_text())

    def downloaded(repo_id, filename, **_):
        assert repo_id == "org/tiny"
        if not (place / filename).is_file():
            raise OSError("no such file")
        return str(place / filename)

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", downloaded)
    assert models.load("hf-hub:org/tiny").assumed == ()
    del told["preprocess_cfg"]
    (place / "open_clip_config.json").write_text(json.dumps(told))
    assert "CLIP's mean, std and resizing" in models.load("hf-hub:org/tiny").assumed[0]


@pytest.mark.slow
def test_results_of_weights_with_one_name_do_not_meet(root, tensors, tmp_path, monkeypatch):
    """Neither in the folder they go to by default nor in what other tools tell models apart by."""
    what = [open_clip_folder(tmp_path / name / "tiny", tensors) for name in "ab"]
    files = [f"{MODEL},{place / 'open_clip_model.safetensors'}" for place in what]
    monkeypatch.chdir(tmp_path)
    for one in (*what, *files, files[0]):
        assert run.main(["--checkpoint", str(one), "--data", str(root), "--no-cache"]) == 0
    found = [Evaluation.read(p).data["checkpoint"] for p in sorted((tmp_path / "eval-results").iterdir())]
    assert len({(one["model"], one["pretrained"]) for one in found}) == len(found) == 4
    assert {one["model"] for one in found} == {"tiny", MODEL}


@pytest.mark.slow
def test_names_that_cannot_be_had_are_refused_in_words(root, tensors, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    said = refused("hf-hub:laion/x", root, capsys)
    assert "--checkpoint hf-hub:laion/x" in said and "local-dir:FOLDER, or NAME,FILE.safetensors" in said
    assert "no such folder" not in said
    assert "not found" in refused(f"local-dir:{tmp_path}/none", root, capsys)
    folder = open_clip_folder(tmp_path / "bare", tensors)
    (folder / "open_clip_model.safetensors").unlink()
    assert "could not be loaded" in refused(f"local-dir:{folder}", root, capsys)  # never random weights


# -- what is said of names, and where results go --------------------------------------------------


@pytest.mark.parametrize(
    "what, message",
    [
        ("ViT-B/32,openai", "no such folder, and open_clip's name is ViT-B-32"),
        (f"{MODEL},{{w}}", "a folder; name the file in it"),
        (f"{MODEL},nowhere.pt", "nowhere.pt: no such file"),
        ("{w}/q.safetensors", "a file; say which architecture: NAME,.* or name the run's folder"),
    ],
)
def test_names_that_are_nearly_right(weights, what, message):
    with pytest.raises(ValueError, match=message):
        models.load(what.format(w=weights.parent))


def test_a_home_after_a_comma(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert models.load(f"{MODEL},~/q.safetensors").about["source"] == str(weights)
