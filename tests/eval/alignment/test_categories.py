"""Category odd-one-out on CIFAR-100: how triplets are drawn, and what a model that knows the classes gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval.alignment import categories, scores
from eval.sets import catalog, sources
from tests.kits.eval import encoded, pictures, write_webdataset

FINE = sorted(name for names in categories.SUPERCLASSES for name in names.split())
MULTI = {"aquariumfish", "sweetpepper", "mapletree", "pickuptruck", "lawnmower"}


@pytest.fixture
def any_count(monkeypatch):
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)


@pytest.fixture
def folder(tmp_path, any_count):
    """CIFAR-100 in the small, in clip-benchmark's form: constructed, two images a class."""
    images = [encoded(p) for p in pictures(4)]
    names = [name.capitalize().replace("fish", " fish") if name in MULTI else name for name in FINE]
    labels = [*range(100)] * 2
    return write_webdataset(tmp_path / "cifar100", [images[i % 4] for i in range(200)], labels, names)


def test_the_superclasses_are_cifars():
    assert len(FINE) == len(set(FINE)) == 100 and len(categories.SUPERCLASSES) == 20
    assert {len(names.split()) for names in categories.SUPERCLASSES} == {5}
    assert set(FINE) >= MULTI


@given(st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(0, 5))
def test_two_of_one_class_and_one_of_another(sizes, shuffle):
    labels = np.random.default_rng(shuffle).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows, odd = categories.draw(labels, 200)
    every = np.arange(200)
    same = np.array([[1, 2], [0, 2], [0, 1]])[odd]
    pair = rows[every[:, None], same]
    assert (labels[pair[:, 0]] == labels[pair[:, 1]]).all() and (pair[:, 0] != pair[:, 1]).all()
    assert (labels[rows[every, odd]] != labels[pair[:, 0]]).all()


def test_draws_are_uniform_and_the_same_every_time():
    labels = np.repeat(np.arange(4), [2, 3, 10, 50])
    rows, odd = categories.draw(labels, 60_000)
    again, _ = categories.draw(labels, 60_000)
    assert np.array_equal(rows, again)
    assert np.bincount(odd) / 60_000 == pytest.approx([1 / 3] * 3, abs=0.01)
    away = rows[np.arange(60_000), odd]
    assert np.bincount(labels[away]) / 60_000 == pytest.approx([1 / 4] * 4, abs=0.01)
    assert np.bincount(away)[15:] / 60_000 == pytest.approx([1 / 200] * 50, rel=0.25)  # each image of a class
    pairs = rows[odd == 2][:, :2]
    inside = pairs[labels[pairs[:, 0]] == 0]
    assert np.mean(inside[:, 0] == 0) == pytest.approx(
        0.5, abs=0.05
    )  # either of the class's two images first


def test_a_class_of_one_image():
    with pytest.raises(ValueError, match="class 1 has 1 images; two are needed"):
        categories.draw(np.array([0, 0, 1]))


def test_superclasses_are_found_by_name(folder):
    evalset = sources.read_folder(folder)
    found = categories.superclasses(evalset)
    for label, number in zip(evalset.labels.tolist(), found.tolist()):
        assert FINE[label] in categories.SUPERCLASSES[number].split()


def _one_hot(evalset) -> np.ndarray:
    return np.eye(20, dtype=np.float32)[categories.superclasses(evalset)]


def test_a_model_that_knows_the_superclasses_is_always_right(folder):
    evalset = sources.read_folder(folder)
    made = categories.score(folder, lambda images: _one_hot(evalset))
    (figure,) = made.scores.scores
    assert (figure.value, figure.chance, figure.n, made.scores.voters) == (1.0, 1 / 3, 5000, "constructed")
    assert made.scores.key == "cifar100" and "seed 0" in made.scores.notes[-1]


def test_a_model_that_sees_no_difference_is_at_chance(folder):
    made = categories.score(folder, lambda images: np.full((len(images), 4), 0.5, np.float32))
    assert made.scores.scores[0].value == pytest.approx(1 / 3)


def test_the_figure_is_unisims(folder):
    """The share of triplets whose odd one lies outside the most similar pair, by torch's own cosines."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(200, 8))).float()
    features += 2 * F.one_hot(torch.arange(200) % 8, 8)
    evalset = sources.read_folder(folder)
    rows, odd = categories.draw(categories.superclasses(evalset))
    a, b, c = (features[column] for column in torch.from_numpy(rows).T)
    alike = [F.cosine_similarity(x, y) for x, y in ((b, c), (a, c), (a, b))]
    expected = (torch.stack(alike, 1).argmax(1).numpy() == odd).mean()
    made = categories.score(folder, lambda images: F.normalize(features, dim=1).numpy())
    assert made.scores.scores[0].value == pytest.approx(expected, abs=1e-3)
    whole = scores.interval(made.arrays, "odd_one_out", "")
    assert whole.low < whole.value < whole.high


def test_other_sets_are_refused(tmp_path, any_count):
    images = [encoded(p) for p in pictures(4)]
    other = write_webdataset(tmp_path / "cifar100", images, [0, 0, 1, 1], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"cifar100: its classes are not CIFAR-100's \('cat'\)"):
        categories.score(other, lambda images: pytest.fail("encoded"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: no CIFAR-100 in it"):
        categories.score(tmp_path / "none", lambda images: pytest.fail("encoded"))
