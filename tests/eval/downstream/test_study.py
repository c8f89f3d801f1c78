"""Downstream figures in eval.run and in studies, where they are paired by seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval import run
from eval.downstream import records
from eval.downstream.records import Evaluation
from eval.metrics import seeds
from eval.metrics.uncertainty import Interval
from eval.results import RESULTS
from eval.study.findings import report as study
from tests.eval.downstream.conftest import with_training
from tests.eval.downstream.test_command import _run
from tests.kits import eval_study
from tests.kits.eval import MODEL
from tests.kits.html import whole


@pytest.mark.slow
def test_eval_run_does_the_same_after_its_own_sets(tmp_path):
    root = tmp_path / "sets"
    with_training(root / "wds_colours", ["red", "green", "blue"], [0, 1, 2] * 3, [0, 1, 2] * 6)
    assert _run(root, tmp_path / "alone") == 0
    words = ["--checkpoint", MODEL, "--data", root, "--downstream", root, "--out", tmp_path / "both"]
    assert run.main([str(word) for word in (*words, "--batch-size", 8)]) == 0
    assert (tmp_path / "both" / RESULTS).is_file()
    assert Evaluation.read(tmp_path / "both").figures == Evaluation.read(tmp_path / "alone").figures


def figures(level: float, images: int = 50) -> list[records.Figure]:
    """Of one run, made up."""

    def made(key: str, metric: str, value: float, chance: float, **settings) -> records.Figure:
        interval = Interval(value, value - 0.1, value + 0.1)
        return records.figure(key, key.upper(), metric, interval, chance, images, **settings)

    return [
        made("colours", "linear_acc1", level, 0.1, training_images=80),
        made("fsc147", "ridge_mae", 20 * level, 30.0),
    ]


@pytest.fixture
def arms(tmp_path):
    level = eval_study.steady
    made = [
        eval_study.arm(tmp_path, "PI", range(3), level(0.33), "subject"),
        eval_study.arm(tmp_path, "Baseline", range(3), level(0.30), "baseline"),
    ]
    for each, value in zip(made, (0.7, 0.5)):
        for seed, trained in enumerate(each.runs):
            put(trained, figures(value + seed * seed / 100))
    return made


def put(trained, found: list[records.Figure]) -> None:
    folder = trained / "eval" / "step-000080"
    weights = json.loads((folder / RESULTS).read_text())["checkpoint"].get("weights")
    outcome = records.Outcome(figures=found, arrays={})
    records.write(folder, [outcome], {"checkpoint": {"weights": weights}, "settings": {}, "versions": {}})


def report(arms, out) -> tuple[str, dict]:
    study.write("s", "", arms, out)
    text = (out / "index.html").read_text()
    whole(text)
    return text, json.loads((out / "study.json").read_text())["groups"][0]


@pytest.mark.slow
def test_in_a_study_they_are_paired_by_seed(arms, tmp_path):
    text, data = report(arms, tmp_path / "report")
    (found,) = data["downstream"]
    assert (found["arm"], found["against"], found["seeds"]) == ("PI", "Baseline", [0, 1, 2])
    a, b = (np.array([[value + seed * seed / 100 for seed in range(3)]]) for value in (0.7, 0.5))
    linear = found["figures"]["downstream:colours/linear_acc1"]
    assert linear["arm"] == pytest.approx(a[0]) and linear["against"] == pytest.approx(b[0])
    over = seeds.paired(a, b)[0]
    assert (
        linear["difference"]["value"] == pytest.approx(over.mean.value)
        and linear["difference"]["p"] == over.p
    )
    error = found["figures"]["downstream:fsc147/ridge_mae"]
    assert error["less_is_better"] and error["difference"]["value"] == pytest.approx(4.0)
    assert "<h2>Downstream" in text and "20.00" in text and "4.00" in text


@pytest.mark.slow
def test_figures_of_other_data_are_not_compared(arms, tmp_path):
    put(arms[1].runs[2], figures(0.5, images=49))
    text, data = report(arms, tmp_path / "report")
    assert data["downstream"] == [] and "<h2>Downstream" not in text
