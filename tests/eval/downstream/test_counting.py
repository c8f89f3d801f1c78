"""FSC-147's files: read as their authors have them, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from eval.downstream import counting, ridge
from tests.eval.downstream.conftest import write_fsc147


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return write_fsc147(tmp_path / "FSC147", monkeypatch)


def test_counts_are_the_numbers_of_points_in_the_order_of_the_split(folder):
    task = counting.read(folder)
    annotations = json.loads((folder / counting.ANNOTATIONS).read_text())
    splits = json.loads((folder / counting.SPLITS).read_text())
    for split, images, counts in zip(("train", "val", "test"), task.images, task.counts):
        assert [m.name for m in images.members] == splits[split]
        assert counts.tolist() == [len(annotations[name]["points"]) for name in splits[split]]


def test_the_published_splits_have_the_published_sizes():
    assert counting.COUNTS == {"train": 3659, "val": 1286, "test": 1190}


def test_another_folder_is_none_of_it(tmp_path):
    assert counting.read(tmp_path) is None


def test_errors_on_the_test_split_and_chance_from_the_training_split(folder):
    task = counting.read(folder)
    rng = np.random.default_rng(0)
    features = [torch.from_numpy(rng.normal(size=(len(c), 5))).float() for c in task.counts]
    found = task.score(features, [np.arange(len(c)) for c in task.counts])
    line, alpha = ridge.choose(ridge.fits(features[0], task.counts[0]), features[1], task.counts[1])
    error = line.predict(features[2]) - task.counts[2]
    mae, rmse = found.figures
    assert (mae.metric, rmse.metric) == ("ridge_mae", "ridge_rmse")
    assert mae.value == pytest.approx(np.abs(error).mean())
    assert rmse.value == pytest.approx((error**2).mean() ** 0.5)
    assert mae.chance == np.abs(task.counts[2] - np.median(task.counts[0])).mean()
    assert rmse.chance == pytest.approx(((task.counts[2] - task.counts[0].mean()) ** 2).mean() ** 0.5)
    assert mae.settings["alpha"] == alpha and mae.n == len(task.counts[2])


def _changed(folder, name, change):
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


SPLIT = counting.SPLITS
HOSTILE = [
    (SPLIT, lambda d: d | {"val": d["val"][:-1]}, "FSC_147.json, val: 5 images; FSC-147 has 6"),
    (SPLIT, lambda d: {k: v for k, v in d.items() if k != "test"}, "FSC_147.json, test: no list of images"),
    (SPLIT, lambda d: d | {"val": [1] * 6}, "FSC_147.json, val: no list of images"),
    (SPLIT, lambda d: d | {"val": d["train"][3:9]}, "val, image 1: 3.jpg is in train already"),
    (
        SPLIT,
        lambda d: d | {"val": ["../x.jpg", *d["val"][1:]]},
        "val, image 1: '../x.jpg' is no name of a file",
    ),
    (SPLIT, lambda d: d | {"test": [*d["test"][1:], "99.jpg"]}, "test, image 7: .*99.jpg is missing"),
    (SPLIT, lambda d: [], "FSC_147.json: a JSON object is expected"),
    (counting.ANNOTATIONS, lambda d: d | {"14.jpg": {}}, "384.json, 14.jpg: no list `points` of pairs"),
    (counting.ANNOTATIONS, lambda d: d | {"0.jpg": {"points": [[1]]}}, "384.json, 0.jpg: no list `points`"),
    (counting.ANNOTATIONS, lambda d: {}, "384.json, 0.jpg: no list `points` of pairs"),
]


@pytest.mark.parametrize("name, change, message", HOSTILE)
def test_what_is_wrong_is_named(folder, name, change, message):
    _changed(folder, name, change)
    with pytest.raises(ValueError, match=message):
        counting.read(folder)


@pytest.mark.parametrize(
    "text, message", [(b"{", "not JSON"), (b"\xff\xfe{\0", "not UTF-8"), (b"", "not JSON")]
)
def test_files_that_are_no_json_are_named(folder, text, message):
    (folder / SPLIT).write_bytes(text)
    with pytest.raises(ValueError, match=f"FSC_147.json: {message}"):
        counting.read(folder)
    (folder / SPLIT).unlink()
    with pytest.raises(ValueError, match="FSC_147.json: missing; FSC-147 is annotation_FSC147_384.json"):
        counting.read(folder)


def test_a_byte_order_mark_is_no_part_of_the_file(folder):
    path = folder / SPLIT
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert counting.read(folder).counts[2].shape == (7,)
