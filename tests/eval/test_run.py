"""The evaluation command: its files, its messages, its watching."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
import torch

from eval import run, watch
from eval.options import Where
from eval.results import Evaluation
from pipeline.base.console import command
from tests.kits.eval import encoded, pictures, write_webdataset
from train import checkpoint
from train.model import create

MODEL = "debug-RN"
HEADLINE = {
    "names_top1", "names_top5", "subcategory_top1", "category_top1",
    "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5", "twoafc",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The demo's four sets in small, and three triplets in NIGHTS' layout beside them."""
    base = tmp_path_factory.mktemp("root")
    images = [encoded(p) for p in pictures(10)]
    names = [f"thing {i}" for i in range(10)]
    write_webdataset(base / "wds_emoji-names", images, list(range(10)), names)
    write_webdataset(base / "wds_emoji-subcategories", images, [i % 5 for i in range(10)], names[:5])
    write_webdataset(base / "wds_emoji-categories", images, [i % 3 for i in range(10)], names[:3])
    write_webdataset(base / "wds_emoji-retrieval", images, [[n, f"a {n}"] for n in names])
    triplets = base / "triplets"
    triplets.mkdir()
    for i, image in enumerate(images):
        (triplets / f"{i}.png").write_bytes(image)
    rows = ["id,left_vote,right_vote,votes,ref_path,left_path,right_path,split"]
    rows += [f"{i},{i % 2},{1 - i % 2},8,{i}.png,{i + 1}.png,{i + 2}.png,test" for i in range(8)]
    (triplets / "data.csv").write_text("\n".join(rows))
    return base


def save_step(folder, step: int, seed: int, steps: int = 0) -> None:
    """A checkpoint as the trainer writes it, of a model with random weights."""
    torch.manual_seed(seed)
    weights = {k: v.contiguous() for k, v in create(MODEL).state_dict().items()}
    recipe = {"name": "debug", "stage": 2, "model": MODEL, "seed": seed, "run": str(folder), "init": None}
    groups = {checkpoint.WEIGHTS: weights, checkpoint.OPTIMIZER: {"x": torch.zeros(1)}}
    state = checkpoint.State(step=step, steps=steps, samples=step * 16)
    checkpoint.write(folder / "checkpoints" / f"step-{step:06d}", state, recipe, groups)


def go(*arguments: object) -> int:
    return run.main([str(a) for a in arguments])


@pytest.mark.slow
def test_a_run_folder(root, tmp_path, capsys):
    save_step(tmp_path / "pi", 20, 0)
    what = ("--checkpoint", tmp_path / "pi", "--data", root, "--cache", tmp_path / "cache")
    assert go(*what, "--triplets", root / "triplets") == 0
    said = capsys.readouterr().out
    assert "emoji-names" in said and str(tmp_path / "pi" / "eval" / "results.json") in said
    found = Evaluation.read(tmp_path / "pi" / "eval")
    assert set(found.data["headline"]) == HEADLINE
    assert all(0 <= v <= 1 for v in found.data["headline"].values())
    about = found.data["checkpoint"]
    assert (about["step"], about["samples"], about["model"]) == (20, 320, MODEL)
    assert "acc5" not in found.datasets["emoji-categories"]["metrics"]
    assert found.data["triplets"]["metrics"]["triplets"] == 8
    top = found.arrays("emoji-names")["top"]
    assert (
        top.shape == (10, 5) and np.mean(top[:, 0] == np.arange(10)) == found.data["headline"]["names_top1"]
    )


@pytest.mark.slow
def test_what_other_tools_read(root, tmp_path):
    out = tmp_path / "out"
    assert go("--checkpoint", MODEL, "--data", root, "--out", out, "--no-cache") == 0
    found = Evaluation.read(out)
    lines = [json.loads(line) for line in (out / "eval_results.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == list(found.datasets)
    for line in lines:  # DataComp's aggregate takes key, dataset, metrics.main_metric
        ours = found.datasets[line["key"]]["metrics"]
        assert line["dataset"] == found.datasets[line["key"]]["name"]
        if "acc1" in ours:
            assert line["metrics"]["main_metric"] == ours["acc1"]
        else:
            recalls = ours["image_retrieval_recall@1"], ours["text_retrieval_recall@1"]
            assert line["metrics"]["main_metric"] == line["metrics"]["mean_recall@1"] == sum(recalls) / 2
        # it expands `metrics` into columns beside the others, and keys the figures by `dataset`
        assert set(line) == {"key", "dataset", "metrics"} and not set(line) & set(line["metrics"])
    assert len({line["dataset"] for line in lines}) == len(lines)
    with open(out / "results.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["name"] == MODEL and row["pretrained"] == "random-0"
    assert float(row["Emoji, names"]) == pytest.approx(found.data["headline"]["names_top1"], abs=1e-4)
    names = {p.name for p in (out / "clip_benchmark").iterdir()}
    assert f"emoji-names_random-0_{MODEL}_en_zeroshot_classification.json" in names and len(names) == 4
    # another selection leaves nothing of this one behind
    assert (
        go("--checkpoint", MODEL, "--data", root, "--out", out, "--no-cache", "--datasets", "emoji-names")
        == 0
    )
    assert len(list((out / "clip_benchmark").iterdir())) == len(list((out / "predictions").iterdir())) == 1


@pytest.mark.slow
def test_safetensors_are_the_same_model(root, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    save_file({k: v.contiguous() for k, v in create(MODEL).state_dict().items()}, tmp_path / "w.safetensors")
    common = ("--data", root, "--cache", tmp_path / "cache", "--datasets", "emoji-names")
    assert go("--checkpoint", MODEL, "--seed", 3, *common, "--out", tmp_path / "a") == 0
    assert go("--checkpoint", f"{MODEL},{tmp_path / 'w.safetensors'}", *common, "--out", tmp_path / "b") == 0
    a, b = Evaluation.read(tmp_path / "a"), Evaluation.read(tmp_path / "b")
    assert a.data["checkpoint"]["weights"] == b.data["checkpoint"]["weights"]
    assert a.datasets["emoji-names"]["metrics"] == b.datasets["emoji-names"]["metrics"]


BAD = [
    (
        ["--checkpoint", "ViT-X", "--data", "{root}"],
        "--checkpoint ViT-X: no such folder, and no model either",
    ),
    (["--checkpoint", "{tmp}", "--data", "{root}"], "holds no checkpoint"),
    (["--checkpoint", "./nowhere", "--data", "{root}"], "no such folder"),
    (["--checkpoint", "w.safetensors", "--data", "{root}"], "say which architecture"),
    (["--checkpoint", "debug-ViT,{tmp}/w.safetensors", "--data", "{root}"], "--checkpoint debug-ViT,"),
    (["--checkpoint", MODEL, "--data", "{tmp}/none"], "--data .*none: no such folder"),
    (["--checkpoint", MODEL, "--data", "{tmp}/empty"], "no evaluation set in it"),
    (["--checkpoint", MODEL, "--triplets", "{tmp}/none"], "--triplets .*none: no such file or folder"),
    (["--checkpoint", MODEL, "--triplets", "{tmp}/w.safetensors"], "w.safetensors: not an FFCV file"),
    (["--checkpoint", MODEL, "--data", "{root}", "--families", "VTAB+"], "--families VTAB\\+: unknown"),
    (["--checkpoint", MODEL, "--data", "{root}", "--families", "VTAB"], "no evaluation set in it among"),
    (["--checkpoint", "{tmp}", "--data", "{root}", "--watch", "0"], "is no run's folder"),
    (
        ["--checkpoint", MODEL, "--data", "{root}", "--device", "gpu"],
        "--device gpu: PyTorch has none of that name here",
    ),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input_is_one_line(root, tmp_path, capsys, arguments, message):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(200)}, tmp_path / "w.safetensors")
    (tmp_path / "empty").mkdir()
    arguments = [a.format(root=root, tmp=tmp_path) for a in arguments]
    assert go(*arguments, "--cache", tmp_path / "cache", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    import re

    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_options_are_checked_by_the_command_line(capsys):
    for arguments in (["--checkpoint", MODEL], ["--checkpoint", MODEL, "--data", "x", "--batch-size", "0"]):
        with pytest.raises(SystemExit) as stopped:
            run.main(arguments)
        assert stopped.value.code == 2
    assert "--data or --triplets" in "".join(capsys.readouterr())


def test_interrupted():
    def interrupt():
        raise KeyboardInterrupt

    assert command(interrupt) == 130


@pytest.mark.slow
def test_a_failed_set_leaves_no_results(root, tmp_path, monkeypatch):
    from eval import scoring

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(scoring, "retrieve", full)
    out = tmp_path / "out"
    assert go("--checkpoint", MODEL, "--data", root, "--out", out, "--cache", tmp_path / "cache") == 2
    assert not out.exists()


@pytest.mark.slow
def test_results_never_vouch_for_files_of_another_evaluation(root, tmp_path, monkeypatch):
    from eval import results

    out, what = tmp_path / "out", ("--checkpoint", MODEL, "--data", root, "--cache", tmp_path / "cache")
    assert go(*what, "--out", out) == 0

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(results, "datacomp_record", full)
    assert go(*what, "--seed", 1, "--out", out) == 2
    assert not (out / "results.json").exists()


@pytest.mark.slow
def test_a_diverged_checkpoint_leaves_nothing(root, tmp_path, capsys):
    from safetensors.torch import save_file

    weights = {k: v.contiguous() for k, v in create(MODEL).state_dict().items()}
    weights["text_projection"][0, 0] = torch.nan
    save_file(weights, tmp_path / "w.safetensors")
    what = ("--checkpoint", f"{MODEL},{tmp_path / 'w.safetensors'}", "--data", root)
    assert go(*what, "--cache", tmp_path / "cache", "--out", tmp_path / "out") == 2
    assert "embeddings are not finite" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_of_an_unknown_architecture(root, tmp_path, capsys):
    recipe = {"name": "debug", "stage": 2, "model": "ViT-Z-99"}
    groups = {checkpoint.WEIGHTS: {"x": torch.zeros(1)}, checkpoint.OPTIMIZER: {"x": torch.zeros(1)}}
    step = tmp_path / "pi" / "checkpoints" / "step-000020"
    checkpoint.write(step, checkpoint.State(step=20, samples=320), recipe, groups)
    assert go("--checkpoint", tmp_path / "pi", "--data", root, "--cache", tmp_path / "cache") == 2
    said = capsys.readouterr().err
    assert "ViT-Z-99" in said and said.count("\n") == 1 and not (tmp_path / "pi" / "eval").exists()


def test_no_watching_under_torchrun(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--watch: not under torchrun"):
        run.Evaluate(checkpoint="x", data=root, watch=0)


def test_watching_ends_with_the_run(tmp_path):
    folder, seen = tmp_path / "run", []
    save_step(folder, 10, 0, steps=20)

    def evaluate(path, out):
        seen.append(out.name)
        out.mkdir(parents=True)
        (out / "results.json").write_text("{}")
        if len(seen) == 1:
            save_step(folder, 20, 0, steps=20)

    assert not watch.has_ended(folder)
    assert watch.watch(folder, 1e9, evaluate, poll=0.01) == 2  # patience would outlast the test
    assert seen == ["step-000010", "step-000020"]


@pytest.mark.slow
def test_watch(root, tmp_path):
    folder = tmp_path / "run"
    for step in (10, 20):
        save_step(folder, step, step)
    common = (
        "--checkpoint",
        folder,
        "--data",
        root,
        "--cache",
        tmp_path / "cache",
        "--datasets",
        "emoji-names",
    )
    assert go(*common, "--watch", 0) == 0
    found = [Evaluation.read(folder / "eval" / f"step-0000{s}") for s in (10, 20)]
    assert [f.samples for f in found] == [160, 320]
    assert watch.pending(folder) == []
    # a checkpoint that appears while it waits is evaluated; one that vanishes is passed over
    seen = []

    def evaluate(path, out):
        seen.append(out.name)
        out.mkdir()
        (out / "results.json").write_text("{}")
        if len(seen) == 1:
            save_step(folder, 40, 0)

    save_step(folder, 30, 0)
    assert watch.watch(folder, 0.2, evaluate, poll=0.05) == 2 and seen == ["step-000030", "step-000040"]

    def vanishing(path, out):
        import shutil

        shutil.rmtree(path)
        raise ValueError("gone")

    save_step(folder, 50, 0)
    assert watch.watch(folder, 0, vanishing) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="submitit's local jobs need Linux")
def test_submitted_jobs(tmp_path):
    def evaluate(options, step, out):  # inside, so that it is pickled by value
        if options != "good":
            raise ValueError("no such option")
        out.write_text(step)

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    watch.submitted("local", tmp_path / "run", evaluate, "good", Where())("step-1", tmp_path / "said")
    assert (tmp_path / "said").read_text() == "step-1"
    with pytest.raises(ValueError, match="job .* for step-2 failed: no such option"):
        watch.submitted("local", tmp_path / "run", evaluate, "bad", Where())("step-2", tmp_path / "said")
