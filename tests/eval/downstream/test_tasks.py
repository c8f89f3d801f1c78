"""Finding the tasks under a folder, and classification sets with their training split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.cache import Cache
from eval.downstream import logistic, neighbours, tasks
from eval.downstream.probes import COUNTING, ClassTask
from eval.metrics.zeroshot import mean_per_class_recall
from eval.sets import catalog, sources
from tests.eval.downstream.conftest import (
    coloured,
    with_training,
    write_fsc147,
    write_instances,
    write_revisited,
)
from tests.kits.eval import encoded, pictures, write_webdataset

NAMES = ["red", "green", "blue"]


def _find(root, *datasets, notes=None):
    return tasks.find(root, datasets, Cache(None), (notes if notes is not None else []).append)


@pytest.fixture
def root(tmp_path, monkeypatch):
    write_fsc147(tmp_path / "FSC147_384_V2", monkeypatch)
    write_revisited(tmp_path / "rmine")
    write_instances(tmp_path / "shop")
    with_training(tmp_path / "wds_colours", NAMES, [0, 1, 2, 0], [0, 1, 2] * 4)
    write_webdataset(tmp_path / "wds_alone", [coloured(i, i) for i in range(2)], [0, 1], NAMES[:2])
    write_webdataset(tmp_path / "wds_told", [encoded(p) for p in pictures(2)], [["a"], ["b"]])
    return tmp_path


def test_every_layout_is_found_and_the_rest_is_said(root):
    notes = []
    assert {t.key for t in _find(root, notes=notes)} == {"fsc147", "rmine", "shop", "colours"}
    (note,) = notes
    assert "alone (no training split beside it)" in note and "told (captions, no classes)" in note


@pytest.mark.parametrize("name, key", [("fsc147", "fsc147"), ("shop", "shop"), ("wds_colours", "colours")])
def test_sets_by_name(root, name, key):
    assert [t.key for t in _find(root, name)] == [key]


@pytest.mark.parametrize(
    "name, message",
    [
        ("alone", r"--datasets alone: no such task under .* \(no training split beside it\); found: colours"),
        ("colour", r"--datasets colour: no such task under .* \(near it: colours\)"),
    ],
)
def test_a_set_that_is_asked_for_and_not_there_is_an_error(root, name, message):
    with pytest.raises(ValueError, match=message):
        _find(root, "colours", name)


def test_a_damaged_set_is_an_error_unless_others_are_asked_for(root):
    (root / "rmine" / "gnd_rmine.json").write_text("{")
    with pytest.raises(ValueError, match="gnd_rmine.json: not JSON"):
        _find(root)
    assert [t.key for t in _find(root, "shop")] == ["shop"]


def test_the_root_may_be_the_set(root, tmp_path):
    for name, key in (("shop", "shop"), ("FSC147_384_V2", "fsc147"), ("wds_colours", "colours")):
        assert [t.key for t in _find(root / name)] == [key]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no downstream task in it"):
        _find(tmp_path / "none")
    with pytest.raises(ValueError, match="--data .*nowhere: no such folder"):
        _find(tmp_path / "nowhere")


def test_one_key_twice(root):
    (root / "colours").symlink_to(root / "wds_colours", target_is_directory=True)
    with pytest.raises(ValueError, match="both hold colours"):
        _find(root)


# -- classes ----------------------------------------------------------------------------------------


def _task(folder) -> ClassTask:
    test = sources.read_folder(folder)
    return ClassTask(test, sources.read_training(test))


def _write_classes(folder, split, names, per=2):
    for i, name in enumerate(names):
        (folder / split / name).mkdir(parents=True)
        for j in range(per):
            (folder / split / name / f"{j}.png").write_bytes(coloured(i, 10 * j))


def test_labels_are_told_apart_by_the_names_of_the_training_split(tmp_path):
    _write_classes(tmp_path / "beasts", "train", ["ant", "bee", "cat", "dog"])
    _write_classes(tmp_path / "beasts", "test", ["bee", "dog"])
    task = _task(tmp_path / "beasts")
    assert task.labels.tolist() == [1, 1, 3, 3] and task.test.labels.tolist() == [0, 0, 1, 1]
    assert task.classes == 4 and any("2 classes of train/ are not in test/" in n for n in task.notes)


def test_a_class_that_no_training_image_has_is_refused(tmp_path):
    _write_classes(tmp_path / "beasts", "train", ["ant", "bee"])
    _write_classes(tmp_path / "beasts", "test", ["ant", "cow"])
    with pytest.raises(ValueError, match="beasts: 1 of its 2 classes are not in its training split: cow"):
        _task(tmp_path / "beasts")


def _scored(folder):
    task = _task(folder)
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(task.classes, 6))
    features = [
        F.normalize(torch.from_numpy(middles[labels] + rng.normal(size=(len(labels), 6))).float(), dim=1)
        for labels in (task.train.labels, task.labels)
    ]
    kept = [np.arange(len(part)) for part in features]
    return task, features, task.score(features, kept)


def test_figures_of_a_set(tmp_path):
    folder = with_training(tmp_path / "wds_colours", NAMES, [0, 1, 2] * 7, [0, 1, 2] * 10)
    task, (train, test), outcome = _scored(folder)
    found = {f.metric: f for f in outcome.figures}
    assert list(found) == ["linear_acc1", "knn20_acc1", "knn1_acc1"]
    probe, c = logistic.probe(train, task.train.labels, 3)
    assert found["linear_acc1"].value == np.mean(probe.predict(test) == task.labels)
    votes = neighbours.predict(train, task.train.labels, test, 3)
    for k in (1, 20):
        assert found[f"knn{k}_acc1"].value == np.mean(votes[k] == task.labels)
        assert found[f"knn{k}_acc1"].settings["k"] == k
    assert found["linear_acc1"].settings["c"] == c and found["linear_acc1"].settings["training_images"] == 30
    assert all(f.chance == 1 / 3 and f.n == 21 and f.low <= f.value <= f.high for f in outcome.figures)
    assert np.array_equal(outcome.arrays["knn20"], votes[20])


def test_images_that_are_left_out_take_their_labels_along(tmp_path):
    folder = with_training(tmp_path / "wds_colours", NAMES, [0, 1, 2] * 4, [0, 1, 2] * 5)
    task, (train, test), _ = _scored(folder)
    kept = [np.delete(np.arange(15), [0, 7]), np.delete(np.arange(12), [3])]
    outcome = task.score([train[kept[0]], test[kept[1]]], kept)
    votes = neighbours.predict(train[kept[0]], task.train.labels[kept[0]], test[kept[1]], 3)[1]
    assert np.array_equal(outcome.arrays["knn1"], votes)
    assert np.array_equal(outcome.arrays["labels"], task.labels[kept[1]])
    assert outcome.figures[-1].value == np.mean(votes == task.labels[kept[1]])


@pytest.fixture
def any_count(monkeypatch):
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)


def test_other_names_than_numbers_are_not_counted_with(tmp_path, any_count):
    folder = with_training(tmp_path / "wds_vtab-clevr_count_all", NAMES, [0, 1, 2], [0, 1, 2] * 3)
    assert "linear_mae" not in [f.metric for f in _scored(folder)[2].figures]


@pytest.mark.slow
def test_clevrs_counts_are_judged_by_how_far_they_are_off(tmp_path, any_count):
    names = ["three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    folder = with_training(tmp_path / "wds_vtab-clevr_count_all", names, [*range(8)] * 2, [*range(8)] * 5)
    task, _, outcome = _scored(folder)
    found = {f.metric: f for f in outcome.figures}
    missed = np.abs(outcome.arrays["linear"] - task.labels)
    assert task.key == COUNTING and found["linear_mae"].value == missed.mean()
    assert found["linear_mae"].chance == np.abs(task.labels - 3.5).mean()  # always saying the median
    assert "knn20_mae" not in found


def test_sets_whose_figure_is_a_mean_over_classes(tmp_path, any_count):
    folder = with_training(tmp_path / "wds_vtab-pets", NAMES, [0] * 6 + [1, 2], [0, 1, 2] * 5)
    task, _, outcome = _scored(folder)
    found = {f.metric: f for f in outcome.figures}
    for how in ("linear", "knn20", "knn1"):
        expected = mean_per_class_recall(task.labels, outcome.arrays[how])
        assert found[f"{how}_mean_per_class_recall"].value == expected


def test_one_training_image_a_class_gives_no_probe_and_says_so(tmp_path):
    folder = with_training(tmp_path / "wds_colours", NAMES, [0, 1, 2], [0, 1, 2])
    _, _, outcome = _scored(folder)
    assert [f.metric for f in outcome.figures] == ["knn20_acc1", "knn1_acc1"]
    assert outcome.notes[-1].startswith("no linear probe: no class has two training images")
    assert outcome.figures[0].settings["k"] == 3
