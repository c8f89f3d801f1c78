"""Statistics over seeds: scipy's, published tables, plain formulas and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.metrics import seeds
from eval.metrics.uncertainty import Interval

DIFFERENCES = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=9)


def _covers(interval: Interval, x: float) -> bool:
    return interval.low <= x <= interval.high


# -- sign-flip test ---------------------------------------------------------------------------------


def test_smallest_p():
    assert seeds.smallest_p(3) == 0.25 and seeds.smallest_p(6) == 0.03125
    for k in range(1, 9):
        assert seeds.sign_flip(np.arange(1.0, k + 1)) == seeds.smallest_p(k)


@given(DIFFERENCES)
def test_sign_flip_is_scipys_permutation_test(d):
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert seeds.sign_flip(d) == pytest.approx(theirs.pvalue)


def test_sign_flip_of_many_seeds_is_drawn():
    rng = np.random.default_rng(8)
    d = rng.normal(0.3, 1, (3, 20))
    for row, p in zip(d, seeds.sign_flip(d)):
        theirs = stats.permutation_test(
            (row,), np.mean, permutation_type="samples", n_resamples=50_000, rng=rng
        )
        assert p == pytest.approx(theirs.pvalue, abs=0.01)  # 4 standard errors of 65,536 and 50,000 draws
    assert seeds.sign_flip(np.full(40, 0.1)) == 1 / 65_537  # none of the draws is as far: never 0


def test_many_figures_at_once_are_each_alone():
    rng = np.random.default_rng(1)
    d = rng.normal(size=(70, 7))  # more than are computed at a time
    assert list(seeds.sign_flip(d)) == [seeds.sign_flip(row) for row in d]
    alone = [seeds.bca(row[None])[0] for row in d]
    assert [i.ends for i in seeds.bca(d)] == [pytest.approx(i.ends, abs=1e-12) for i in alone]


@pytest.mark.slow
def test_sign_flip_keeps_its_level():
    rng = np.random.default_rng(9)
    alarms = int((seeds.sign_flip(rng.normal(size=(5000, 7))) <= 0.05).sum())
    assert alarms <= stats.binom.ppf(1 - 1e-4, 5000, 0.05)


# -- BCa --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 6, 12, 30])
def test_bca_is_scipys(k):
    """Other draws, so equal to a few hundredths of the interval's width; skewed, so that BCa's part shows."""
    rng = np.random.default_rng(k)
    d = rng.exponential(size=(4, k))
    for row, found in zip(d, seeds.bca(d, 40_000)):
        theirs = stats.bootstrap((row,), np.mean, n_resamples=40_000, rng=rng).confidence_interval
        assert found.value == pytest.approx(row.mean())
        # with three values the bootstrap has ten different means, and an end may fall on either of two
        slack = (0.4 if k == 3 else 0.05) * (theirs.high - theirs.low)
        assert [found.low, found.high] == pytest.approx(list(theirs), abs=slack)


@given(DIFFERENCES, st.floats(0.01, 100), st.floats(-3, 3))
def test_bca_moves_and_stretches_with_its_values(d, scale, shift):
    d = np.array(d)
    one, other = (seeds.bca(x[None], 500)[0] for x in (d, scale * d + shift))
    assert (one.ends is None) == (len(d) < 3 or np.ptp(d) == 0)
    if one.ends and other.ends and np.ptp(d) > 1e-3:
        assert one.low <= one.value <= one.high or np.ptp(d) == 0
        expected = [scale * x + shift for x in (one.value, *one.ends)]
        assert [other.value, *other.ends] == pytest.approx(expected, abs=1e-6 * (scale + 1))


def _bca_coverage(k: int) -> float:
    d = np.random.default_rng(k).normal(0.3, 1, (600, k))
    return float(np.mean([_covers(interval, 0.3) for interval in seeds.bca(d, 2000)]))


@pytest.mark.slow
def test_bca_covers_with_enough_seeds_and_not_with_three():
    assert 0.88 <= _bca_coverage(20) <= 0.97
    assert _bca_coverage(3) < 0.88  # what the docstring warns of
    assert seeds.bca(np.array([[0.1, 0.2]]))[0].low is None


# -- pairs --------------------------------------------------------------------------------------------


def test_seeds_that_lack_a_figure_do_not_count_for_it():
    nan = np.nan
    a = np.array([[0.3, 0.5, 0.4], [0.3, nan, 0.4], [nan, nan, nan], [0.1, 0.1, 0.1]])
    b = np.array([[0.2, 0.3, 0.35], [0.2, 0.3, nan], [0.2, 0.3, 0.35], [0.1, 0.1, 0.1]])
    whole, one, none, same = seeds.paired(a, b)
    assert (whole.count, whole.least_p, whole.p) == (3, 0.25, 0.25)
    assert whole.mean == seeds.bca(a[:1] - b[:1])[0] and whole.sd.value == pytest.approx(
        np.std(a[0] - b[0], ddof=1)
    )
    assert (one.count, one.mean.ends, one.p) == (1, None, 1.0) and one.mean.value == pytest.approx(0.1)
    assert np.isnan(one.sd.value)
    assert none.count == 0 and np.isnan(none.mean.value) and none.p == 1
    assert (same.mean.value, same.mean.ends, same.p, same.sd.value) == (0, None, 1.0, 0)


def test_one_models_own_figures():
    values = np.array([0.3, np.nan, 0.32, 0.35])
    found = seeds.over(values)
    assert found.count == 3 and found.mean == seeds.bca(values[None, [0, 2, 3]])[0]


# -- spread -------------------------------------------------------------------------------------------


def test_spread_is_the_chi_square_interval():
    values = np.array([[1.0, 2.0, 4.0, np.nan], [3.0, np.nan, np.nan, np.nan], [2.0, 2.0, 2.0, 2.0]])
    three, alone, same = seeds.spread(values)
    variance = np.var([1, 2, 4], ddof=1)
    low, high = (np.sqrt(2 * variance / stats.chi2.isf(q, 2)) for q in (0.025, 0.975))
    assert [three.value, three.low, three.high] == pytest.approx([np.sqrt(variance), low, high])
    assert np.isnan(alone.value) and alone.ends is None and same == Interval(0, 0, 0)


@pytest.mark.slow
def test_spread_covers():
    values = np.random.default_rng(3).normal(0, 2, (4000, 6))
    covered = sum(_covers(interval, 2) for interval in seeds.spread(values))
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], 4000, 0.95)
    assert low <= covered <= high


def test_correlation_is_scipys():
    a, b = np.random.default_rng(4).normal(size=(2, 9)) + np.linspace(0, 2, 9)
    theirs = stats.pearsonr(a, b)
    ends = theirs.confidence_interval(0.95)
    found = seeds.correlation([*a, np.nan], [*b, 1.0])
    assert [found.value, found.low, found.high] == pytest.approx([theirs.statistic, *ends])
    assert seeds.correlation([1, 2, 3], [1, 2, 4]).ends is None  # Fisher's interval takes four
    assert np.isnan(seeds.correlation([1, 2, 3, 4], [5, 5, 5, 5]).value)
    assert np.isnan(seeds.correlation([1, 2], [1, 2]).value)
    assert seeds.correlation([1, 2, 3, 4], [2, 4, 6, 8]) == Interval(pytest.approx(1), None, None)


# -- how many seeds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "of_pairs", "printed"),
    # G*Power 3.1's numbers for two-sided t tests at 5 % and power 80 % (two groups: each, as in Cohen 1988)
    [(0.5, True, 34), (0.8, True, 15), (1.0, True, 10), (0.2, True, 199),
     (0.5, False, 64), (0.8, False, 26), (1.0, False, 17), (0.2, False, 394)],
)  # fmt: skip
def test_needed_is_what_tables_print(effect, of_pairs, printed):
    assert seeds.power(printed, effect, of_pairs) >= 0.8 > seeds.power(printed - 1, effect, of_pairs)
    assert seeds.needed(1.0, effect, of_pairs) == printed


def test_needed_is_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    for effect in (0.3, 0.6, 0.9):
        for of_pairs, theirs in ((True, power.TTestPower()), (False, power.TTestIndPower())):
            exact = theirs.solve_power(effect, alpha=0.05, power=0.8)
            assert seeds.needed(2.0, 2.0 * effect, of_pairs) == int(np.ceil(exact))


@given(st.floats(1e-3, 1e3), st.floats(0.1, 4), st.booleans())
def test_needed_is_the_fewest(sd, effect, of_pairs):
    count = seeds.needed(sd, effect * sd, of_pairs)
    if of_pairs and count < 10:
        return  # the next test's
    assert seeds.power(count, effect, of_pairs) >= seeds.POWER
    assert count == (10 if of_pairs else 4) or seeds.power(count - 1, effect, of_pairs) < seeds.POWER


@given(st.floats(0.05, 4), st.floats(1, 3))
def test_a_larger_difference_needs_no_more_seeds(effect, times):
    assert seeds.needed(1.0, effect * times) <= seeds.needed(1.0, effect)


def test_needed_without_an_answer():
    assert seeds.needed(float("nan"), 0.01) is None
    assert seeds.needed(1.0, 0.0) is None and seeds.needed(1.0, 1e-5) is None
    assert seeds.needed(0.0, 0.01) == 6 and seeds.needed(0.0, 0.01, of_pairs=False) == 4


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, 7, 8, 9, 10, 12, 16])
def test_needed_is_the_sign_flip_tests_own(count):
    """The least effect for which it names so many seeds: the very test, simulated, has 80 % power for it."""
    effects = np.linspace(0.6, 2, 1401)
    least = next(effect for effect in effects if (seeds.needed(1.0, effect) or 0) <= count)
    draws = 8000 if count < 12 else 1500
    p = seeds.sign_flip(np.random.default_rng(count).normal(least, 1, (draws, count)))
    # four standard errors of the simulation, and two points for Student's t in place of the test itself
    slack = 4 * np.sqrt(0.8 * 0.2 / draws) + (0.02 if count >= 10 else 0)
    assert (p <= 0.05).mean() == pytest.approx(0.8, abs=slack)


# -- with values that are only known to be large -------------------------------------------------


def test_median_and_its_interval():
    found = seeds.median([5, 1, 3, 2, 4, np.inf])
    assert found == Interval(3.5, 1, np.inf)
    assert seeds.median([1, 2, 3, 4, 5]).ends is None  # five cannot have 95 %
    assert seeds.median([1, np.inf, np.inf]).value == np.inf and seeds.median([1, np.inf]).value == np.inf
    # Conover 1999, table A3: 12 values, the 3rd and the 10th
    assert seeds.median(np.arange(1, 13)) == Interval(6.5, 3, 10)


@pytest.mark.slow
def test_median_covers_whatever_the_distribution():
    rng = np.random.default_rng(7)
    for k in (6, 11, 20):
        covered = sum(_covers(seeds.median(np.exp(2 * rng.normal(size=k))), 1) for _ in range(1500))
        assert covered >= stats.binom.ppf(1e-4, 1500, 0.95)


def test_sign_test_is_the_binomial():
    d = [-1, -2, -0.5, 0, np.inf, -3]
    assert seeds.sign_test(d) == pytest.approx(stats.binomtest(1, 5).pvalue)
    assert seeds.sign_test([0, 0]) == 1
