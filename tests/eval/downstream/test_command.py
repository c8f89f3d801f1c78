"""`python -m eval.downstream` from its options to its files, and its section of the report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.downstream import command, records
from eval.downstream.options import Downstream
from eval.downstream.records import FILE, Evaluation
from eval.metrics.uncertainty import Interval
from eval.report import downstream
from eval.report.render import render
from eval.report.runs import Arm, Run, read_run
from eval.results import Evaluation as Results
from eval.sets import catalog
from tests.eval.downstream.conftest import (
    with_training,
    write_fsc147,
    write_instances,
    write_revisited,
)
from tests.kits import eval_runs
from tests.kits.eval import MODEL, encoded, pictures
from tests.kits.html import whole


@pytest.fixture
def root(tmp_path, monkeypatch):
    base = tmp_path / "sets"
    write_fsc147(base / "FSC147", monkeypatch)
    write_revisited(base / "rmine")
    write_instances(base / "shop")
    with_training(base / "wds_colours", ["red", "green", "blue"], [0, 1, 2] * 3, [0, 1, 2] * 6)
    return base


def _run(root, out, *more) -> int:
    arguments = ["--checkpoint", MODEL, "--data", root, "--out", out, "--batch-size", 8, *more]
    return command.main([str(a) for a in arguments])


@pytest.mark.slow
def test_all_tasks_of_one_model(root, tmp_path, capsys):
    assert _run(root, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "4 downstream tasks" in said and "colours: linear probe top-1 " in said
    data = json.loads((tmp_path / "out" / FILE).read_text())
    assert {s["key"] for s in data["sets"]} == {"fsc147", "rmine", "shop", "colours"}
    assert data["about"]["checkpoint"]["model"] == MODEL and data["about"]["checkpoint"]["weights"]
    found = Evaluation.read(tmp_path / "out").figures
    shares = [f for f in found if records.METRICS[f.metric][1] == records.SHARE]
    assert all(0 <= f.low <= f.value <= f.high <= 1 for f in shares)
    with np.load(tmp_path / "out" / "downstream" / "colours.npz") as arrays:
        linear = next(f for f in found if f.metric == "linear_acc1")
        assert np.mean(arrays["linear"] == arrays["labels"]) == linear.value
    assert _run(root, tmp_path / "again") == 0
    assert Evaluation.read(tmp_path / "again").figures == found


@pytest.mark.slow
def test_nothing_is_encoded_twice(root, tmp_path, monkeypatch):
    assert _run(root, tmp_path / "out") == 0
    features = sorted(p.name for p in (root / ".cache" / "features").iterdir())
    assert len(features) == 3 + 2 + 2 + 2  # lists of images of the four tasks
    monkeypatch.setattr("eval.encode._unit_rows", lambda *a: pytest.fail("encoded again"))
    assert _run(root, tmp_path / "again") == 0


def test_a_tower_without_texts_is_enough(root, tmp_path):
    arguments = ["--checkpoint", "timm:test_vit", "--data", str(root), "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--no-cache", "--datasets", "shop"]) == 0
    assert Evaluation.read(tmp_path / "out").about["checkpoint"]["model"] == "timm-test_vit"


@pytest.mark.slow
def test_unreadable_images_are_refused_or_left_out(root, tmp_path, capsys):
    shop = next((root / "shop" / "gallery" / "item0").iterdir())
    whole = shop.read_bytes()
    shop.write_bytes(b"no image")
    assert _run(root, tmp_path / "out", "--datasets", "shop", "--max-unreadable", 0.5) == 2
    assert "item0/a.png: no image that any decoder knows; 1 of shop's 10 images" in capsys.readouterr().err
    shop.write_bytes(whole)
    classes = tmp_path / "more" / "beasts"
    for split, count in (("train", 6), ("test", 3)):
        for i, name in enumerate(("ant", "bee")):
            (classes / split / name).mkdir(parents=True)
            for j, picture in enumerate(pictures(count, seed=i)):
                (classes / split / name / f"{j}.png").write_bytes(encoded(picture))
    (classes / "train" / "ant" / "0.png").write_bytes(b"no image")
    assert _run(classes, tmp_path / "out") == 2
    assert "train/ant/0.png: no image" in capsys.readouterr().err
    assert _run(classes, tmp_path / "out", "--max-unreadable", 0.1) == 0
    assert "1 of beasts's 12 images of one split cannot be read and are left out" in capsys.readouterr().out
    assert Evaluation.read(tmp_path / "out").figures[0].settings["training_images"] == 11


def test_mistakes_take_one_line(root, tmp_path, capsys):
    assert _run(root, tmp_path / "out", "--datasets", "nothing") == 2
    said = capsys.readouterr().err
    assert "--datasets nothing: no such task" in said and said.count("\n") == 1
    for wrong in ({"max_unreadable": 1.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="--max-unreadable 1.0: must lie|--batch-size and --workers"):
            Downstream(checkpoint=MODEL, data=root, **wrong)


# -- the report -------------------------------------------------------------------------------------


def _arm(tmp_path, label, *values, weights="w", n=10, place=""):
    runs = []
    for i, value in enumerate(values):
        folder = tmp_path / f"{label}{i}"
        made = records.figure(
            "cifar10", "CIFAR-10", "linear_acc1", Interval(value, 0.25, 0.75), 0.1, n, c=1.0
        )
        count = records.figure("fsc147", "FSC-147", "ridge_mae", Interval(12.5, 10.0, 15.25), 30.0, 7)
        records.write(
            folder,
            [records.Outcome(figures=[f], arrays={}) for f in (made, count)],
            {"checkpoint": {"weights": weights}},
        )
        results = Results(folder / place, {"checkpoint": {"weights": "w"}})
        runs.append(Run(label, folder, [results]))
    return Arm(label, runs)


def _page(section) -> str:
    return render("downstream.html.j2", downstream=section)


def test_the_section_has_a_column_for_every_arm_and_seed(tmp_path):
    found = downstream.section([_arm(tmp_path, "PI", 0.5, 0.625), _arm(tmp_path, "Baseline", 0.375)])
    assert found.columns == [("PI 1", 0), ("PI 2", 0), ("Baseline", 1)]
    share, count = found.rows
    assert share.cells == [("50.0", "25.0 to 75.0"), ("62.5", "25.0 to 75.0"), ("37.5", "25.0 to 75.0")]
    assert (share.chance, share.samples, share.differs) == ("10.0", "10", False)
    assert (
        count.cells[0] == ("12.50", "10.00 to 15.25") and count.metric == "ridge mean absolute error, objects"
    )
    text = _page(found)
    assert text.count("<tr>") == 3 and "62.5" in text and "Downstream" in text


def test_runs_of_other_data_and_runs_without_the_figure_are_marked(tmp_path):
    arms = [_arm(tmp_path, "PI", 0.5), _arm(tmp_path, "Baseline", 0.375, n=9)]
    (tmp_path / "none").mkdir()
    bare = Run("Bare", tmp_path / "none", [Results(tmp_path / "none", {"checkpoint": {"weights": "w"}})])
    found = downstream.section([*arms, Arm("Bare", [bare])])
    assert found.rows[0].differs and found.rows[0].cells[2] == ("–", "")
    assert "not the same data in all runs" in _page(found)
    assert downstream.section([Arm("Bare", [bare])]) is None


def test_figures_of_other_weights_are_not_shown(tmp_path):
    found = downstream.section([_arm(tmp_path, "PI", 0.5, weights="older")])
    assert found.rows == [] and "downstream.json is of other weights" in found.notes[0]
    assert "other weights" in _page(found)


def test_figures_beside_the_folders_of_single_steps_are_found(tmp_path):
    assert downstream.section([_arm(tmp_path, "PI", 0.5, place="step-000100")]).rows[0].cells[0][0] == "50.0"


def test_a_probe_that_did_not_converge_is_said(tmp_path):
    arm = _arm(tmp_path, "PI", 0.5)
    path = tmp_path / "PI0" / FILE
    path.write_text(path.read_text().replace('"c": 1.0', '"converged": false'))
    assert downstream.section([arm]).notes == ["PI: the linear probe stopped short of its optimum on cifar10"]


@pytest.mark.slow
def test_the_page_has_the_section_where_a_run_was_evaluated_so(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)
    sets = eval_runs.paper_sets(tmp_path / "sets")
    runs = [eval_runs.evaluated(sets, tmp_path / name, seed) for seed, name in enumerate(("pi", "baseline"))]
    bare, _ = eval_runs.page(*runs, tmp_path=tmp_path)
    assert "Downstream" not in bare
    for run in runs:
        final = read_run(str(run)).final
        weights = {"weights": final.data["checkpoint"].get("weights")}
        made = records.figure("cifar10", "CIFAR-10", "linear_acc1", Interval(0.8125, 0.75, 0.875), 0.1, 24)
        records.write(final.folder, [records.Outcome(figures=[made], arrays={})], {"checkpoint": weights})
    text, _ = eval_runs.page(*runs, tmp_path=tmp_path)
    assert "<h2>Downstream</h2>" in text and "75.0 to 87.5" in text and whole(text)
