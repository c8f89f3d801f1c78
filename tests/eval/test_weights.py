"""Weights are used as they were trained, where anything tells; else the results say what was assumed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eval import assumed, models, run
from eval.results import Evaluation
from pipeline.base import console
from tests.kits.eval import encoded, pictures, write_webdataset
from train import checkpoint, recipes
from train.model import check, create, load_file
from train.weights import origin

MODEL, PLAIN = "debug-ViT", {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("root")
    images = [encoded(p) for p in pictures(10)]
    write_webdataset(base / "wds_emoji-names", images, list(range(10)), [f"thing {i}" for i in range(10)])
    return base


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(3)
    return {k: v.contiguous() for k, v in create(MODEL).state_dict().items()}


@pytest.fixture
def weights(tmp_path, tensors) -> Path:
    """Weights that tell nothing, in a folder of their own."""
    (tmp_path / "w").mkdir()
    save_file(tensors, tmp_path / "w" / "q.safetensors")
    return tmp_path / "w" / "q.safetensors"


def evaluate(what, root, out) -> dict:
    arguments = ["--checkpoint", what, "--data", root, "--out", out, "--no-cache"]
    assert console.command(lambda: run.main([str(a) for a in arguments])) == 0
    return Evaluation.read(out).data


def refused(what, root, capsys) -> str:
    arguments = ["--checkpoint", what, "--data", root, "--no-cache"]
    assert console.command(lambda: run.main([str(a) for a in arguments])) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def beside(weights: Path, name: str, content: dict) -> None:
    (weights.parent / name).write_text(json.dumps(content))


TOLD = [
    ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": PLAIN}, True, PLAIN),
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
        {**PLAIN, "interpolation": "bicubic"},
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
    found = origin.told(weights)
    assert (found.quick_gelu, found.preprocess) == (quick, preprocess)
    assert bool(found.says) == (quick is not None or preprocess is not None)


def test_a_damaged_neighbour_is_named(weights):
    (weights.parent / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match="open_clip_config.json: not JSON .*q.safetensors"):
        origin.told(weights)


def test_our_checkpoints_tell_it_themselves(root, tensors, tmp_path):
    """Also when the weights alone are copied somewhere else."""
    recipe = {"name": "debug", "stage": 2, "model": MODEL}
    groups = {checkpoint.WEIGHTS: tensors, checkpoint.OPTIMIZER: {"x": torch.zeros(1)}}
    step = tmp_path / "run" / "checkpoints" / "step-000020"
    checkpoint.write(step, checkpoint.State(step=20, samples=320), recipe, groups)
    alone = tmp_path / "elsewhere" / "mine.safetensors"
    alone.parent.mkdir()
    shutil.copy(step / checkpoint.WEIGHTS, alone)
    found = origin.told(alone)
    assert found.quick_gelu is False and found.says == "mine.safetensors"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.preprocess.items()} == origin.OURS
    with safe_open(alone, "pt") as file:
        assert file.metadata()["model"] == MODEL
    data = evaluate(f"{MODEL},{alone}", root, tmp_path / "out")
    assert data["checkpoint"]["assumed"] == [] and data["checkpoint"]["activation"] == "GELU"


def test_what_is_assumed_is_said(root, weights, tmp_path, capsys):
    data = evaluate(f"{MODEL},{weights}", root, tmp_path / "out")
    said = capsys.readouterr().out
    about = data["checkpoint"]
    assert about["activation"] == "GELU" and len(about["assumed"]) == 2
    assert all(f"note: {line}" in said for line in about["assumed"])
    assert "activation GELU, as debug-ViT has it" in about["assumed"][0]
    assert data["settings"]["preprocess"]["mean"] == list(origin.OURS["mean"])
    notes = assumed.notes("ViT-B-32", create(MODEL), None, {})[1]
    assert notes == [
        "assumed, since no file tells: activation GELU, as ViT-B-32 has it "
        "(ViT-B-32-quickgelu has the same shapes and another activation)"
    ]


def test_weights_are_used_as_they_were_trained(root, weights, tmp_path):
    """QuickGELU and SigLIP's pixels, told by a file beside: the very embeddings of such a model."""
    beside(weights, "open_clip_config.json", {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": PLAIN})
    data = evaluate(f"{MODEL},{weights}", root, tmp_path / "out")
    assert data["checkpoint"]["activation"] == "QuickGELU" and data["checkpoint"]["assumed"] == []
    assert data["checkpoint"]["told_by"].endswith("open_clip_config.json")
    assert assumed.taken_as(data)[1] == f"as {data['checkpoint']['told_by']} tells"
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
    laid, note = assumed.preprocessing("ViT-B-16-SigLIP")
    assert laid == {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    assert "as all published weights of ViT-B-16-SigLIP" in note
    laid, note = assumed.preprocessing("ViT-L-14")  # laion2b's has other pixels than OpenAI's
    assert laid == {} and "laion2b_s32b_b82k: mean 0.5/0.5/0.5" in note
    assert assumed.preprocessing(MODEL) == ({}, "preprocessing: CLIP's mean, std and resizing")


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


# -- open_clip's folders ---------------------------------------------------------


def open_clip_folder(place: Path, tensors) -> Path:
    place.mkdir(parents=True)
    config = json.loads(recipes.model_files()[MODEL].read_text())
    told = {"model_cfg": {**config, "quick_gelu": True}, "preprocess_cfg": PLAIN}
    (place / "open_clip_config.json").write_text(json.dumps(told))
    save_file(tensors, place / "open_clip_model.safetensors")
    return place


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
    assert run.load("hf-hub:org/tiny").assumed == ()
    del told["preprocess_cfg"]
    (place / "open_clip_config.json").write_text(json.dumps(told))
    assert "CLIP's mean, std and resizing" in run.load("hf-hub:org/tiny").assumed[0]


def test_results_of_weights_with_one_name_do_not_meet(root, tensors, tmp_path, monkeypatch):
    """Neither in the folder they go to by default nor in what other tools tell models apart by."""
    what = [open_clip_folder(tmp_path / name / "tiny", tensors) for name in "ab"]
    files = [f"{MODEL},{place / 'open_clip_model.safetensors'}" for place in what]
    monkeypatch.chdir(tmp_path)
    for one in (*what, *files, files[0]):
        run.main(["--checkpoint", str(one), "--data", str(root), "--no-cache"])
    found = [Evaluation.read(p).data["checkpoint"] for p in sorted((tmp_path / "eval-results").iterdir())]
    assert len({(one["model"], one["pretrained"]) for one in found}) == len(found) == 4
    assert {one["model"] for one in found} == {"tiny", MODEL}


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


# -- the command ---------------------------------------------------------


def test_workers_are_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert run.Evaluate(checkpoint="x", data=Path("y")).workers == 1


def test_nobody_reading_is_no_error():
    """`… | head -1`: what is left to do is done."""
    program = (
        "from pipeline.base import console\n"
        "def main():\n"
        "    for i in range(20000):\n"
        "        console.say('x' * 100)\n"
        "    import sys; print('done', file=sys.stderr)\n"
        "raise SystemExit(console.command(main))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "done\n" and process.wait() == 0
    process.stderr.close()


def test_names_asked_for_without_data(capsys):
    arguments = ["--checkpoint", MODEL, "--triplets", "/", "--datasets", "x"]
    assert console.command(lambda: run.main(arguments)) == 2
    assert "--data, which is not given" in capsys.readouterr().err


def test_notes_reach_the_results(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "mix" / name).mkdir(parents=True)
        (tmp_path / "mix" / name / "a.png").write_bytes(encoded(pictures(1)[0]))
    (tmp_path / "mix" / "cat" / "a.heic").write_text("x")
    data = evaluate(MODEL, tmp_path, tmp_path / "out")
    assert data["datasets"]["mix"]["notes"] == ["1 files not read: 1 .heic"]
    assert "acc5" not in data["datasets"]["mix"]["metrics"]  # two classes
    assert "note: mix: 1 files" in capsys.readouterr().out


def test_the_cache_keeps_embeddings_of_the_same_weights_apart(root, weights, tmp_path):
    """GELU and QuickGELU, these pixels and those: same tensors, other figures."""

    def features(out, told: dict | None) -> dict:
        if told is not None:
            beside(weights, "open_clip_config.json", told)
        arguments = ["--checkpoint", f"{MODEL},{weights}", "--data", root, "--out", tmp_path / out]
        arguments += ["--cache", tmp_path / "cache"]
        assert console.command(lambda: run.main([str(a) for a in arguments])) == 0
        return Evaluation.read(tmp_path / out)

    plain = features("plain", None)
    quick = features("quick", {"model_cfg": {"quick_gelu": True}})
    pixels = features("pixels", {"model_cfg": {}, "preprocess_cfg": {**PLAIN, "resize_mode": "shortest"}})
    again = features("again", {"model_cfg": {}, "preprocess_cfg": dict(origin.OURS)})
    scores = [one.arrays("emoji-names")["scores"].tolist() for one in (plain, quick, pixels, again)]
    assert scores[0] == scores[3] and scores[0] != scores[1] and scores[0] != scores[2]
    names = [one.data["checkpoint"]["weights"] for one in (plain, quick, pixels, again)]
    assert names[0] == names[3] and len({*names}) == 3


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


# -- what others' training leaves ---------------------------------------------------------

HALF = "image_mean: [0.5, 0.5, 0.5]\nimage_std: (0.5, 0.5, 0.5)\n"
HALF += "image_interpolation: bilinear\nimage_resize_mode: squash"
PARAMS = [
    ("model: ViT-B-32-quickgelu\nforce_quick_gelu: False\nimage_mean: None", True, None),
    ("model: ViT-B-32\nforce_quick_gelu: True", True, None),
    ("model: ViT-B-32\nforce_quick_gelu: False\npretrained: ", False, None),
    ("model: ViT-B-32\npretrained: openai", None, None),  # QuickGELU in some versions, GELU in others
    ("model: ViT-B-32-quickgelu\npretrained: openai", True, None),
    (f"model: my-own\n{HALF}", None, PLAIN | {"interpolation": "bilinear"}),
    ("batch_size: 4", None, None),
]


@pytest.mark.parametrize("text, quick, preprocess", PARAMS)
def test_open_clips_trainer_tells(weights, text, quick, preprocess):
    """RUN/params.txt, over RUN/checkpoints/epoch_N.pt."""
    inside = weights.parent / "checkpoints" / "epoch_1.pt"
    (weights.parent / "params.txt").write_text(text)
    for file in (weights, inside):
        found = origin.told(file)
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
        origin.told(weights)


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
        run.load(f"{MODEL},{_saved(weights, tensors, change)}")
    weights.with_suffix(".pt").write_bytes(b"")
    with pytest.raises(ValueError, match="no weights by name in it"):
        run.load(f"{MODEL},{weights.with_suffix('.pt')}")
    assert "unpickled" not in capsys.readouterr().out


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
    state = run.load(f"{MODEL},{file}").model.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in state)


def test_openais_own_weights_have_their_activation(weights, tensors):
    marks = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(7))
    torch.save({name: value.half() for name, value in (tensors | marks).items()}, weights.with_suffix(".pt"))
    found = run.load(f"{MODEL},{weights.with_suffix('.pt')}")
    assert assumed.activation(found.model) == "QuickGELU" and found.assumed == ()
    assert "OpenAI's input_resolution" in found.about["told_by"]


def _written(file: Path, kind: str, tensors) -> Path:
    if kind == "script":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    elif kind == "ema":
        torch.save({"state_dict": tensors, "state_dict_ema": tensors}, file)
    elif kind == "transformers":
        torch.save({"vision_model.embeddings.class_embedding": torch.zeros(3)}, file)
    elif kind == "image":
        torch.save({name: value for name, value in tensors.items() if name.startswith("visual.")}, file)
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
        ("image", "the image tower alone"),
        ("pointer", "a pointer of Git LFS in the file's place"),
        ("cut", "not a whole file of torch.save's"),
    ],
)
def test_what_is_no_models_weights_is_said(weights, tensors, kind, message):
    file = _written(weights.with_suffix(".pt"), kind, tensors)
    with pytest.raises(ValueError, match=message):
        run.load(f"{MODEL},{file}")


def test_files_beside_the_weights_that_are_another_models(root, weights, tmp_path, capsys):
    beside = weights.parent / "open_clip_config.json"
    beside.write_text(json.dumps({"preprocess_cfg": {"size": 64}}))
    assert "tells of pictures of 64 pixels" in refused(f"{MODEL},{weights}", root, capsys)
    for told in ({"interpolation": "sinc"}, {"resize_mode": "fit"}):
        beside.write_text(json.dumps({"preprocess_cfg": told}))
        said = refused(f"{MODEL},{weights}", root, capsys)
        assert "open_clip has no resizing" in said and "open_clip_config.json tells" in said
    beside.unlink()
    (weights.parent / "config.json").write_text('{"vision_config": "vit"}')
    assert origin.told(weights).quick_gelu is None
    (weights.parent / "preprocessor_config.json").write_text('{"image_std": [0, 0.5, 0.5]}')
    with pytest.raises(ValueError, match="std of the pixels is .0, 0.5, 0.5"):
        origin.told(weights)
    (weights.parent / "preprocessor_config.json").write_text('{"image_mean": [123.7, 116.3, 103.5]}')
    with pytest.raises(ValueError, match="of pixels from 0 to 1 is expected"):
        origin.told(weights)


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
        run.load(what.format(w=weights.parent))


def test_a_home_after_a_comma(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert run.load(f"{MODEL},~/q.safetensors").about["source"] == str(weights)


@pytest.mark.parametrize("name, value", [("device", "mps"), ("device", "gpu"), ("out", "{file}/x")])
def test_what_could_not_be_done_is_said_before_anything_is_computed(root, weights, capsys, name, value):
    arguments = ["--checkpoint", MODEL, "--data", root, "--no-cache", f"--{name}", value.format(file=weights)]
    assert console.command(lambda: run.main([str(a) for a in arguments])) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: --{name} ") and "top-1" not in said.out
