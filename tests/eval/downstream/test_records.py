"""Figures with their intervals, on disk and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.downstream import records
from eval.downstream.records import Evaluation, Outcome
from eval.metrics.uncertainty import Interval
from eval.metrics.zeroshot import mean_per_class_recall

ABOUT = {"checkpoint": {"weights": "abc"}}


def _outcome(key: str = "vtab/dtd", value: float = 0.5) -> Outcome:
    made = records.figure(key, "DTD", "linear_acc1", Interval(value, 0.4, 0.6), 1 / 47, 10, c=1.0)
    return Outcome(figures=[made], arrays={"labels": np.arange(3)}, notes=("a note",))


def test_what_is_written_is_read_back(tmp_path):
    outcomes = [_outcome(), _outcome("cifar10")]
    path = records.write(tmp_path, outcomes, ABOUT)
    found = Evaluation.read(tmp_path)
    assert found.path == path and found.about == ABOUT
    assert found.figures == [o.figures[0] for o in outcomes]
    assert sorted(p.name for p in (tmp_path / "downstream").iterdir()) == ["cifar10.npz", "vtab-dtd.npz"]
    assert json.loads(path.read_text())["notes"] == {"vtab/dtd": ["a note"], "cifar10": ["a note"]}
    records.write(tmp_path, outcomes[:1], ABOUT)
    assert [p.name for p in (tmp_path / "downstream").iterdir()] == ["vtab-dtd.npz"]


def test_no_file_is_none(tmp_path):
    assert Evaluation.read(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data | {"schema": 2},
        lambda data: {"schema": 1},
        lambda data: data | {"sets": [{"key": "a"}]},
        lambda data: data | {"sets": [data["sets"][0] | {"metric": "knn7"}]},
        lambda data: data | {"sets": [data["sets"][0] | {"value": float("nan")}]},
        lambda data: [],
    ],
)
def test_damaged_files_are_named(tmp_path, change):
    path = records.write(tmp_path, [_outcome()], ABOUT)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=r"downstream.json: damaged, or of another version"):
        Evaluation.read(tmp_path)


def test_a_file_that_is_being_replaced_vouches_for_nothing(tmp_path, monkeypatch):
    records.write(tmp_path, [_outcome()], ABOUT)
    monkeypatch.setattr(np, "savez_compressed", lambda *a, **k: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        records.write(tmp_path, [_outcome()], ABOUT)
    assert Evaluation.read(tmp_path) is None


def test_intervals_hold_the_figure_and_narrow_with_more_samples():
    rng = np.random.default_rng(0)
    few, many = (rng.random(n) < 0.7 for n in (50, 5000))
    for values in (few, many):
        found = records.mean(values)
        assert found.value == values.mean() and found.low < found.value < found.high
        spread = 1.96 * values.std() / len(values) ** 0.5
        assert found.high - found.low == pytest.approx(2 * spread, rel=0.1)
    together = records.mean(np.repeat(few, 4), np.repeat(np.arange(50), 4))
    assert together.high - together.low == pytest.approx(
        records.mean(few).high - records.mean(few).low, rel=0.1
    )


def test_the_root_of_a_mean():
    values = np.random.default_rng(0).random(100) * 9
    found, plain = records.root_mean(values), records.mean(values)
    assert (found.value**2, found.low**2, found.high**2) == pytest.approx(
        (plain.value, plain.low, plain.high)
    )


def test_mean_recall_is_over_classes_and_drawn_over_images():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3], [300, 40, 6])  # no image of class 1
    hits = rng.random(len(labels)) < np.array([0.9, 0, 0.5, 0.2])[labels]
    found = records.mean_recall(labels, hits)
    assert found.value == mean_per_class_recall(labels, np.where(hits, labels, 1))
    drawn = []
    for _ in range(2000):
        i = rng.integers(len(labels), size=len(labels))
        drawn.append(mean_per_class_recall(labels[i], np.where(hits[i], labels[i], 1)))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_are_finite(value):
    with pytest.raises(ValueError, match="vtab/dtd linear_acc1: a figure is not finite"):
        _outcome(value=value)
