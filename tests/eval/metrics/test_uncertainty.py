"""Coverage and error rates by simulation, and scipy's and plain formulas where there are some."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eval.metrics import uncertainty
from eval.metrics.uncertainty import Interval, Outcomes


def _within(count: int, total: int, expected: float, slack: float = 0.0) -> bool:
    """A count is what a binomial with this probability gives, at a level of 1 in 10,000."""
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], total, expected)
    return low - slack * total <= count <= high + slack * total


def _covers(interval: Interval, x: float) -> bool:
    return interval.low <= x <= interval.high


def _paired(a, b, groups=None, resamples: int = uncertainty.RESAMPLES, seed: int = 0) -> Interval:
    """Of one set."""
    return uncertainty.mean_of_sets([Outcomes(a, b, groups)], resamples, seed)


# -- paired bootstrap -----------------------------------------------------------------------


def test_bootstrap_is_a_bootstrap():
    """The counted form draws from the same distribution as resampling images one by one."""
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.4
    found = _paired(a, b, resamples=20_000)
    d = a.astype(float) - b
    plain = d[rng.integers(200, size=(20_000, 200))].mean(1)
    assert found.value == pytest.approx(d.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.006)


@pytest.mark.slow
def test_bootstrap_coverage():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(400):
        both = rng.random(300)
        a, b = both + 0.1 * rng.normal(size=300) < 0.45, both + 0.1 * rng.normal(size=300) < 0.4
        interval = _paired(a, b, resamples=800, seed=seed)
        covered += _covers(interval, 0.05)
    assert _within(covered, 400, 0.95, slack=0.01)


def _clustered(rng: np.random.Generator, clusters: int = 60, size: int = 5, difference: float = 0.0):
    groups = np.repeat(np.arange(clusters), size)
    shared = rng.normal(scale=0.3, size=clusters)[groups]
    a = rng.random(len(groups)) < 0.5 + difference + shared
    b = rng.random(len(groups)) < 0.5 - shared
    return a, b, groups


@pytest.mark.slow
def test_clusters_widen_the_interval_to_the_right_coverage():
    rng = np.random.default_rng(2)
    covered = {True: 0, False: 0}
    for seed in range(300):
        a, b, groups = _clustered(rng)
        for clustered in covered:
            interval = _paired(a, b, groups if clustered else None, 600, seed)
            covered[clustered] += _covers(interval, 0.0)
    assert _within(covered[True], 300, 0.94, slack=0.01)
    assert covered[False] < 0.85 * 300  # ignoring the clusters is wrong, and that shows


def test_uneven_clusters():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    a, b = rng.random(len(groups)) < 0.6, rng.random(len(groups)) < 0.5
    found = _paired(a, b, groups)
    assert found.value == pytest.approx((a.astype(float) - b).mean()) and found.low < found.value < found.high


# -- McNemar -----------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial():
    a = np.array([1] * 9 + [0] * 2 + [1] * 5, bool)
    b = np.array([0] * 9 + [1] * 2 + [1] * 5, bool)
    assert uncertainty.mcnemar(a, b) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert uncertainty.mcnemar(a, a) == 1.0
    # groups of one image each: the asymptotic form of the same test
    one_each = uncertainty.mcnemar(a, b, np.arange(len(a)))
    assert one_each == pytest.approx(stats.chi2.sf((9 - 2) ** 2 / 11, 1))


@pytest.mark.slow
def test_false_alarms_of_mcnemar():
    rng = np.random.default_rng(4)
    plain = clustered = ignored = 0
    for _ in range(500):
        p = rng.random(150)
        plain += uncertainty.mcnemar(rng.random(150) < p, rng.random(150) < p) <= 0.05
        a, b, groups = _clustered(rng)
        clustered += uncertainty.mcnemar(a, b, groups) <= 0.05
        ignored += uncertainty.mcnemar(a, b) <= 0.05
    assert plain <= stats.binom.ppf(1 - 1e-4, 500, 0.05)  # exact: never above its level
    assert _within(clustered, 500, 0.05, slack=0.01)
    assert ignored > 0.12 * 500


# -- several sets --------------------------------------------------------------------------------


def test_mean_of_sets_over_the_same_pictures():
    """Two copies of one set are no more evidence than one; two different sets are."""
    rng = np.random.default_rng(5)
    a, b = rng.random(400) < 0.6, rng.random(400) < 0.5
    c, d = rng.random(400) < 0.6, rng.random(400) < 0.5
    one = _paired(a, b)
    twice = uncertainty.mean_of_sets([Outcomes(a, b, images="x"), Outcomes(a, b, images="x")])
    two = uncertainty.mean_of_sets([Outcomes(a, b, images="x"), Outcomes(c, d, images="y")])

    def width(interval):
        return interval.high - interval.low

    assert width(twice) == pytest.approx(width(one), rel=0.08)
    assert width(two) == pytest.approx(width(one) / math.sqrt(2), rel=0.12)


@pytest.mark.slow
def test_mean_of_sets_coverage():
    rng = np.random.default_rng(6)
    covered = 0
    for seed in range(250):
        sets = [Outcomes(rng.random(n) < 0.5, rng.random(n) < 0.45) for n in (80, 200, 120)]
        covered += _covers(uncertainty.mean_of_sets(sets, 600, seed), 0.05)
    assert _within(covered, 250, 0.945, slack=0.01)


def test_holm():
    p = [0.01, 0.04, 0.03, 0.005]
    assert uncertainty.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(7)
    errors = sum((uncertainty.holm(rng.random(29)) <= 0.05).any() for _ in range(1000))
    assert _within(errors, 1000, 0.05)


# -- scaling --------------------------------------------------------------------------------------------


def test_slope():
    x = [1e7, 3e7, 1e8, 3e8]
    y = np.array([[0.01 * (v / 1e7) ** 0.37 for v in x], [0.1, 0.15, 0.16, 0.4], [0, 0.1, 0.2, 0.4]])
    polyfit = [np.polyfit(np.log10(x[k:]), np.log10(row[k:]), 1)[0] for k, row in zip((0, 0, 1), y)]
    assert uncertainty.slopes(x, y) == pytest.approx(polyfit) and polyfit[0] == pytest.approx(0.37)
    assert np.isnan(uncertainty.slopes([1e7], [0.1])) and np.isnan(uncertainty.slopes([1e7, 1e7], [0.1, 0.2]))


def test_scaling_interval_covers_over_seeds():
    """Points of a run share its luck; the interval over seeds still covers the true exponent."""
    rng = np.random.default_rng(10)
    x = np.array([1e7, 3e7, 1e8, 3e8])
    covered = 0
    for seed in range(120):
        luck = rng.normal(0.4, 0.05, (10, 1, 1))
        walk = np.cumsum(rng.normal(0, 0.01, (10, 1, 4)), 2)  # serially correlated
        curves = 0.02 * (x / 1e7) ** luck * np.exp(walk)
        covered += _covers(uncertainty.scaling(x, curves, 300, seed), 0.4)
    assert _within(covered, 120, 0.92, slack=0.02)
    assert uncertainty.scaling(x, curves[:1]).low is None


def test_scaling_interval_is_a_bootstrap_over_seeds_and_sets():
    """The weighted form draws from the same distribution as drawing seeds and sets one by one."""
    rng = np.random.default_rng(11)
    x = np.geomspace(1e6, 1e8, 5)
    curves = 0.02 * (x / 1e6) ** rng.normal(0.4, 0.05, (6, 4, 1)) * np.exp(rng.normal(0, 0.05, (6, 4, 5)))
    found = uncertainty.scaling(x, curves, 4000)
    seeds, sets = rng.integers(6, size=(4000, 6, 1)), rng.integers(4, size=(4000, 1, 4))
    plain = uncertainty.slopes(x, curves[seeds, sets].mean(2)).mean(1)
    width = np.ptp(np.quantile(plain, [0.025, 0.975]))
    assert [found.low, found.high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.06 * width)
    curves[0] = 0  # a seed without a slope: it spoils only the draws that it is in
    assert np.isfinite(uncertainty.scaling(x, curves, 400).low)
