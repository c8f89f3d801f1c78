"""Figures against scipy, the authors' formulas and brute force; intervals against what they must hold."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.alignment import ceilings, judgements, scores
from eval.alignment.records import EVERYTHING, MEAN
from tests.eval.alignment import kit

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3)), min_size=3, max_size=25)


def _weighted(rows):
    model, people, weights = np.array(rows, float).T
    weights[0] = max(weights[0], 1)
    return model, people, weights[None], np.repeat(np.arange(len(rows)), weights.astype(int))


@given(pairs)
def test_spearman_is_scipys_also_of_what_is_drawn_several_times(rows):
    model, people, weights, drawn = _weighted(rows)
    ours = scores.spearman(model, people, weights)[0]
    if np.ptp(model[drawn]) and np.ptp(people[drawn]):
        assert ours == pytest.approx(stats.spearmanr(model[drawn], people[drawn]).statistic, abs=1e-12)
    else:
        assert np.isnan(ours)


@given(pairs)
def test_kendall_counts_pairs(rows):
    """τ-b by its definition: concordant less discordant pairs over the geometric mean of untied ones."""
    model, people, weights, drawn = _weighted(rows)
    a, b = model[drawn], people[drawn]
    signs = [
        (np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in itertools.combinations(range(len(a)), 2)
    ]
    agree = sum(x * y for x, y in signs)
    size = np.sqrt(float(sum(abs(x) for x, _ in signs)) * float(sum(abs(y) for _, y in signs)))
    ours = scores.kendall(model, people, weights)[0]
    assert ours == pytest.approx(agree / size, abs=1e-12) if size else np.isnan(ours)


def _their_jnd_score(ds: np.ndarray, sames: np.ndarray) -> float:
    """What lpips/trainer.py (`score_jnd_dataset`) and lpips/__init__.py (`voc_ap`) say, step by step."""
    hits, steps = 0.0, []
    for number, i in enumerate(np.argsort(ds, kind="stable"), 1):
        hits += sames[i]
        steps.append((hits / sames.sum(), hits / number))
    area, recall_before = 0.0, 0.0
    for number, (recall, _) in enumerate(steps):
        area += (recall - recall_before) * max(precision for _, precision in steps[number:])
        recall_before = recall
    return area


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_average_precision_is_lpips_score(seed, count):
    rng = np.random.default_rng(seed)
    ds, sames = rng.permutation(count) / 7, rng.integers(0, 4, count) / 3
    sames[0] = 1 / 3
    ours = scores.precision(-ds, sames, np.ones((1, count)))[0]
    assert ours == pytest.approx(_their_jnd_score(ds, sames))


def test_average_precision_of_ties_does_not_depend_on_the_files_order():
    model, people = np.array([3.0, 2, 2, 2, 1]), np.array([1.0, 0, 1, 0, 0])
    values = {
        round(float(scores.precision(model[list(order)], people[list(order)], np.ones((1, 5)))[0]), 12)
        for order in itertools.permutations(range(5))
    }
    assert values == {0.75}  # half of the recall at precision 1, half where 2 of 4 are hits


def test_average_precision_of_weights_is_that_of_repeated_pairs():
    rng = np.random.default_rng(0)
    model, people, weights = rng.integers(0, 5, 12), rng.random(12), rng.integers(0, 4, (3, 12))
    ours = scores.precision(model, people, weights)
    for row, value in zip(weights, ours):
        drawn = np.repeat(np.arange(12), row)
        assert value == pytest.approx(
            scores.precision(model[drawn], people[drawn], np.ones((1, len(drawn))))[0]
        )
    assert np.isnan(scores.precision(model, np.zeros(12), np.ones((1, 12)))[0])


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3, *[st.integers(0, 4)] * 3), min_size=1, max_size=20))
def test_odd_ones_by_brute_force(rows):
    alike = np.array([row[:3] for row in rows], np.float32)
    odd = np.array([row[3:] for row in rows], float) + [0, 0, 1e-9]
    odd = (odd + 1) / (odd + 1).sum(1, keepdims=True)
    found = judgements.odd_credit(alike, odd)
    for i, (pair01, pair02, pair12) in enumerate(alike.tolist()):
        outside = {0: pair12, 1: pair02, 2: pair01}  # the pair that is left when an image is taken away
        picks = [k for k in outside if outside[k] == max(outside.values())]
        assert found["odd_one_out_soft"][i] == pytest.approx(np.mean([odd[i, k] for k in picks]))
        most = [k for k in range(3) if odd[i, k] == odd[i].max()]
        if len(most) > 1:
            assert np.isnan(found["odd_one_out"][i])
        else:
            assert found["odd_one_out"][i] == pytest.approx((most[0] in picks) / len(picks))


def test_2afc_is_lpips_and_dreamsims_score():
    """(d0 < d1)(1 − gt) + (d1 < d0) gt + (d1 = d0)/2: lpips/trainer.py, evaluation/score.py of dreamsim."""
    rng = np.random.default_rng(0)
    alike, gt = rng.integers(0, 4, (500, 2)).astype(np.float32) / 4, rng.integers(0, 6, 500) / 5
    asked = _twoafc(gt)
    d0, d1 = 1 - alike.T
    theirs = np.mean((d0 < d1) * (1 - gt) + (d1 < d0) * gt + (d1 == d0) * 0.5)
    found = judgements.outcomes(asked, alike)
    assert scores.value(found, "twoafc_soft", EVERYTHING) == pytest.approx(theirs)
    assert scores.counted(found, "twoafc_soft", EVERYTHING) == 500


def _twoafc(vote: np.ndarray):
    rows = np.arange(3 * len(vote)).reshape(-1, 3)
    made = kit.odd(rows, np.eye(3)[np.zeros(len(vote), int)], rows.size)
    return replace(
        made, kind=judgements.TWOAFC, answers=vote, metrics=judgements._majority_and_soft("twoafc", vote)
    )


# -- groups and intervals ---------------------------------------------------------------------------


def test_groups_their_mean_and_what_does_not_count():
    credit = np.array([1, 0, 1, 1, np.nan, 0])
    arrays = kit.arrays(twoafc=credit, group=np.array(list("aaabbb")))
    assert scores.groups_of(arrays) == ["a", "b"]
    assert scores.value(arrays, "twoafc", EVERYTHING) == pytest.approx(3 / 5)
    assert scores.value(arrays, "twoafc", "a") == pytest.approx(2 / 3)
    assert scores.value(arrays, "twoafc", "b") == pytest.approx(1 / 2)
    assert scores.value(arrays, "twoafc", MEAN) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert [scores.counted(arrays, "twoafc", g) for g in (EVERYTHING, "b", MEAN)] == [5, 2, 5]


def test_the_interval_of_a_mean_is_the_binomials():
    hits = np.random.default_rng(0).random(2000) < 0.7
    found = scores.interval(kit.arrays(twoafc=hits.astype(float)), "twoafc", EVERYTHING)
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert found.ends == pytest.approx((hits.mean() - half, hits.mean() + half), abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["twoafc", "srcc", "krcc", "ap"])
def test_judgements_of_one_reference_are_drawn_together(metric):
    """Ten times the same judgements are no more sure than one."""
    rng = np.random.default_rng(1)
    model, people = rng.normal(size=60), rng.random(60)
    once = {"twoafc": (people > 0.4).astype(float)} if metric == "twoafc" else {
        "model": model + 2 * people, "people": people
    }  # fmt: skip
    ten = {name: np.repeat(column, 10) for name, column in once.items()}
    apart = scores.interval(kit.arrays(**once, clusters=np.arange(60)), metric, EVERYTHING)
    together = scores.interval(kit.arrays(**ten, clusters=np.repeat(np.arange(60), 10)), metric, EVERYTHING)
    alone = scores.interval(kit.arrays(**ten), metric, EVERYTHING)
    widths = [found.ends[1] - found.ends[0] for found in (apart, together, alone)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15) and widths[2] < 0.5 * widths[1]


def test_one_reference_tells_nothing_of_others():
    arrays = kit.arrays(model=np.arange(9.0), people=np.arange(9.0), clusters=np.zeros(9))
    found = scores.interval(arrays, "srcc", EVERYTHING)
    assert found.value == pytest.approx(1) and found.ends is None
    two = kit.arrays(twoafc=np.ones(4), group=np.array(list("aabb")), clusters=np.array([0, 0, 1, 1]))
    assert scores.interval(two, "twoafc", MEAN).ends is None


def test_three_right_of_three_do_not_make_all_certain():
    for credit in (0.0, 1.0):
        assert scores.interval(kit.arrays(twoafc=np.full(3, credit)), "twoafc", EVERYTHING).ends is None
    low, high = scores.interval(kit.arrays(twoafc=np.array([1.0, 1, 0])), "twoafc", EVERYTHING).ends
    assert (low, high) == (0, 1)


@pytest.mark.slow
def test_a_matrix_is_resampled_by_images():
    """A pair is drawn as often as both its images: against drawing images one by one."""
    rng = np.random.default_rng(2)
    first, second = np.triu_indices(14, 1)
    truth = rng.normal(size=(14, 3))
    far = np.linalg.norm(truth[first] - truth[second], axis=1)
    model = far + rng.normal(size=len(far))
    arrays = kit.arrays(model=model, people=far, clusters=np.stack([first, second], 1))
    found = scores.resampled([arrays], "rsa", EVERYTHING, np.random.default_rng(0))[:, 0]
    table = np.full((14, 14), -1)
    table[first, second] = table[second, first] = np.arange(len(first))
    expected = []
    for _ in range(600):
        drawn = rng.integers(0, 14, 14)
        chosen = [table[i, j] for i, j in itertools.combinations(drawn, 2) if i != j]
        expected.append(stats.spearmanr(model[chosen], far[chosen]).statistic)
    assert np.quantile(found, [0.05, 0.5, 0.95]) == pytest.approx(
        np.quantile(expected, [0.05, 0.5, 0.95]), abs=0.05
    )


@pytest.mark.parametrize("metric", ["twoafc", "srcc"])
def test_a_difference_is_paired(metric):
    rng = np.random.default_rng(3)
    people = rng.random(300)
    base = people + rng.normal(size=300)
    columns = [{"model": base, "people": people}, {"model": base + 0.01 * people, "people": people}]
    if metric == "twoafc":
        hits = (base > 0.3).astype(float)
        columns = [{"twoafc": hits}, {"twoafc": np.where(np.arange(300) < 3, 1 - hits, hits)}]
    a, b = (kit.arrays(**each) for each in columns)
    found = scores.difference([a], [b], metric, EVERYTHING)
    alone = scores.interval(a, metric, EVERYTHING)
    assert found.value == pytest.approx(
        scores.value(a, metric, EVERYTHING) - scores.value(b, metric, EVERYTHING)
    )
    assert found.ends[1] - found.ends[0] < 0.3 * (alone.ends[1] - alone.ends[0])
    assert scores.difference([a], [a], metric, EVERYTHING).ends == (0, 0)
    three = scores.difference([a, b], [a], metric, EVERYTHING)
    assert three.value == pytest.approx(-found.value / 2)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held = np.random.default_rng(4), 0
    for seed in range(100):
        x = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80)
        found = scores.interval(kit.arrays(model=x[:, 0], people=x[:, 1]), "srcc", EVERYTHING, seed)
        held += found.ends[0] <= 6 / np.pi * np.arcsin(0.3) <= found.ends[1]  # ρ of normal variables
    assert 86 <= held <= 100


# -- ceilings ---------------------------------------------------------------------------------------


def test_no_model_gets_past_the_ceiling_of_soft_votes():
    """Against every model that there is: all picks of six triplets."""
    odd = np.random.default_rng(5).dirichlet([1, 1, 1], 6)
    asked = kit.odd(np.tile([0, 1, 2], (6, 1)), odd, 3)
    reached = []
    for picks in itertools.product(range(3), repeat=6):
        alike = np.eye(3, dtype=np.float32)[[2 - pick for pick in picks]]
        found = judgements.outcomes(asked, alike)
        reached.append(scores.value(found, "odd_one_out_soft", EVERYTHING))
    top, source = ceilings.best(asked, found, "odd_one_out_soft")
    assert scores.value(top, "odd_one_out_soft", EVERYTHING) == pytest.approx(max(reached))
    assert "majority of these votes" in source and ceilings.best(asked, found, "odd_one_out") is None


def test_the_ceiling_of_average_precision_is_reached_by_the_answers_themselves():
    people = np.random.default_rng(6).integers(0, 4, 40) / 3
    arrays = kit.arrays(model=np.arange(40.0), people=people)
    asked = replace(
        kit.odd(np.zeros((40, 3)), np.eye(3)[np.zeros(40, int)], 3), kind=judgements.PAIRS, answers=people
    )
    top, _ = ceilings.best(asked, arrays, "ap")
    reached = scores.value(top, "ap", EVERYTHING)
    assert reached == pytest.approx(_their_jnd_score(-people, people), abs=0.03)
    assert reached > scores.value(arrays, "ap", EVERYTHING)


def test_the_ceiling_of_repeated_triplets(monkeypatch):
    """One person against most of the others, however the three stand; rare triplets do not count."""
    monkeypatch.setattr(ceilings, "LEAST", 2)
    rng = np.random.default_rng(7)
    trios = [(0, 1, 2), (3, 1, 4), (2, 0, 4)]
    answers = [[0] * 9 + [1, 1, 2], [1] * 6 + [3] * 6, [4] * 5]  # which image was odd; the last has too few
    rows, odd = [], []
    for trio, chosen in zip(trios, answers):
        for image in chosen:
            shown = rng.permutation(trio)
            rows.append(shown)
            odd.append(np.eye(3)[shown.tolist().index(image)])
    asked = kit.odd(np.array(rows), np.array(odd), 5)
    found = judgements.outcomes(asked, rng.random((len(rows), 3)).astype(np.float32))
    top, source = ceilings.best(asked, found, "odd_one_out")
    # of 12: nine agree with the others, three do not; of six and six, five others say so and six do not
    assert scores.value(top, "odd_one_out", EVERYTHING) == pytest.approx((9 + 0) / 24)
    assert "2 triplets that 10 or more saw" in source
    monkeypatch.setattr(ceilings, "LEAST", 3)
    assert ceilings.best(asked, found, "odd_one_out") is None


# -- size ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_millions_of_answers_take_seconds():
    rng = np.random.default_rng(8)
    rows = rng.integers(0, 1854, (1_000_000, 3))
    asked = kit.odd(rows, np.broadcast_to(np.eye(3)[2], rows.shape), 1854)
    alike = rng.random((len(rows), 3)).astype(np.float32)
    begun = time.process_time()
    found = judgements.outcomes(asked, alike)
    figure = scores.interval(found, "odd_one_out", EVERYTHING)
    assert ceilings.best(asked, found, "odd_one_out") is None
    assert time.process_time() - begun < 20  # takes 2
    assert figure.value == pytest.approx(1 / 3, abs=0.002) and figure.ends[1] - figure.ends[0] < 0.003
