"""Nearest neighbours, logistic and ridge regression against other ways to compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval.downstream import logistic, neighbours, ridge


def _clouds(count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Unit rows around a centre for each class, all of them away from the origin."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, width))
    rows = 3 + centres[labels] + 0.7 * rng.normal(size=(count, width))
    return F.normalize(torch.from_numpy(rows).float(), dim=1), labels


# -- nearest neighbours -----------------------------------------------------------------------------


def _vote(train: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int) -> int:
    cosines = train @ query
    tally: dict[int, float] = {}
    for i in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
        tally[int(labels[i])] = tally.get(int(labels[i]), 0) + math.exp(cosines[i] / 0.07)
    return max(sorted(tally), key=lambda c: tally[c])


@pytest.mark.parametrize("held", [2**26, 40])
def test_neighbours_vote_with_the_exponential_of_their_cosine(monkeypatch, held):
    monkeypatch.setattr(neighbours, "_HELD", held)  # a query at a time
    train, labels = _clouds(60, 6, 5)
    test, _ = _clouds(33, 6, 5, seed=1)
    found = neighbours.predict(train, labels, test, 5)
    for k in (1, 20):
        expected = [_vote(train.numpy().astype(float), labels, q.astype(float), k) for q in test.numpy()]
        assert found[k].tolist() == expected
    assert (found[1] != found[20]).any()


def test_of_fewer_images_than_neighbours_all_vote():
    train, labels = _clouds(7, 4, 3)
    test, _ = _clouds(9, 4, 3, seed=1)
    found = neighbours.predict(train, labels, test, 3)
    assert found[20].tolist() == neighbours.predict(train, labels, test, 3, ks=(7,))[7].tolist()


# -- logistic regression ----------------------------------------------------------------------------


def _reference(features: torch.Tensor, labels: np.ndarray, classes: int, c: float):
    """C · Σ loss + ½ ‖W‖² by torch's own L-BFGS and automatic differentiation."""
    x, y = features.double(), torch.from_numpy(labels)
    weights = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    intercepts = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, intercepts], max_iter=5000, max_eval=20000, history_size=50, tolerance_grad=1e-10,
        tolerance_change=1e-14, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weights + intercepts, y, reduction="sum") + weights.square().sum() / (
            2 * c
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), intercepts.detach()


@pytest.mark.parametrize("c", [0.01, 1, 100])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_probe_is_the_optimum_that_another_optimiser_finds(monkeypatch, c, classes):
    monkeypatch.setattr(logistic, "_ROWS", 17)  # summed in several parts
    features, labels = _clouds(90, 8, classes)
    found = logistic.Turned(features, labels, classes).fit(c)
    weights, intercepts = _reference(features, labels, classes, c)
    assert found.converged
    torch.testing.assert_close(found.weights, weights, atol=2e-3, rtol=2e-3)
    ours, theirs = (
        features.double() @ w + b for w, b in ((found.weights, found.intercepts), (weights, intercepts))
    )
    torch.testing.assert_close(ours.softmax(1), theirs.softmax(1), atol=1e-3, rtol=0)


def test_more_axes_than_images_and_an_axis_without_spread():
    features, labels = _clouds(12, 30, 3)
    features[:, 4] = 0.25
    found = logistic.Turned(features, labels, 3).fit(1.0)
    assert torch.isfinite(found.weights).all() and found.weights[4].abs().max() < 1e-6
    assert (found.predict(features) == labels).all()


def test_the_search_ends_at_an_eighth_of_a_decade_around_the_peak():
    tried = []

    def score(exponent: float) -> float:
        tried.append(exponent)
        return -abs(exponent - 1.3)

    assert logistic.search(score) == 1.25
    assert sorted(tried)[0] == -6 and sorted(tried)[-1] == 6
    assert len(tried) == len(set(tried)) == 7 + 2 * 4  # as CLIP's paper counts: fewer than the 96 of the grid


@pytest.mark.parametrize("peak, best", [(9, 6), (-9, -6)])
def test_the_search_stays_in_its_range(peak, best):
    assert logistic.search(lambda e: -abs(e - peak)) == best


def test_of_equals_the_strongest_penalty_is_taken():
    assert logistic.search(lambda e: 0.5) == -6


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_a_fifth_of_each_class_is_held_out(labels):
    labels = np.array(labels)
    out = logistic.held_out(labels)
    for c in np.unique(labels):
        size = int((labels == c).sum())
        assert out[labels == c].sum() == (0 if size < 2 else max(size // 5, 1))
    assert (out == logistic.held_out(labels)).all()


def test_c_is_chosen_on_the_held_out_part_alone(monkeypatch):
    features, labels = _clouds(60, 6, 3)
    labels[1:30:3] = 0  # wrong ones: the strongest penalty only knows the most frequent class
    out = logistic.held_out(labels)
    fitted = []
    fit = logistic.Turned.fit
    monkeypatch.setattr(
        logistic.Turned, "fit", lambda self, c: fitted.append((len(self.turned), c)) or fit(self, c)
    )
    found, c = logistic.probe(features, labels, 3)
    assert {n for n, _ in fitted[:-1]} == {int((~out).sum())} and fitted[-1] == (60, c)
    tried = [c for _, c in fitted[:-1]]
    some = logistic.Turned(features[torch.from_numpy(~out)], labels[~out], 3)
    right = [(fit(some, c).predict(features[torch.from_numpy(out)]) == labels[out]).mean() for c in tried]
    assert c == min(each for each, share in zip(tried, right) if share == max(right))
    assert c > min(tried)
    again, _ = logistic.probe(features, labels, 3)
    assert torch.equal(found.weights, again.weights)


# -- ridge regression -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [40, 7])  # more and fewer images than axes
def test_ridge_solves_the_normal_equations(count):
    features, _ = _clouds(count, 10, 4)
    values = np.random.default_rng(3).normal(size=count) * 20 + 50
    x = np.c_[features.double().numpy(), np.ones(count)]
    for alpha, line in list(zip(ridge.ALPHAS, ridge.fits(features, values)))[12::8]:
        penalty = np.diag([alpha] * 10 + [0])  # the intercept is free
        solved = np.linalg.solve(x.T @ x + penalty, x.T @ values)
        np.testing.assert_allclose(line.predict(features), x @ solved, rtol=1e-5)


def test_alpha_is_the_one_with_the_least_error_on_other_images():
    features, _ = _clouds(50, 10, 4)
    values = np.random.default_rng(3).normal(size=50)  # noise: the strongest penalty is best on other images
    others, targets = _clouds(50, 10, 4, seed=5)[0], np.random.default_rng(4).normal(size=50)
    lines = ridge.fits(features, values)
    line, alpha = ridge.choose(lines, others, targets)
    errors = [np.abs(each.predict(others) - targets).mean() for each in lines]
    assert alpha == ridge.ALPHAS[int(np.argmin(errors))] and line is lines[int(np.argmin(errors))]
    assert ridge.choose([line] * len(lines), others, targets)[1] == ridge.ALPHAS[-1]
