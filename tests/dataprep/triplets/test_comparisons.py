"""Judgements of each form as comparisons, against the formulas written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dataprep.sources.comparisons import as_triplets
from dataprep.triplets import Triplets
from pipeline.formats.judged.forms import Comparisons, OddOnes, Ratings, Sameness

NAMES = tuple(f"{i}.png" for i in range(6))


def common(rows) -> dict:
    rows = np.array(rows, np.int32)
    number = np.arange(2, 2 + len(rows))
    return dict(folder=Path("in"), images=NAMES, rows=rows, number=number, group=np.full(len(rows), ""))


def said(triplets: Triplets) -> set:
    """(key, ref, {image: share that chose it}, votes) of each, whatever the sides."""
    out = set()
    for (ref, left, right), vote, votes, key in zip(
        triplets.rows.tolist(), triplets.vote.tolist(), triplets.votes.tolist(), triplets.key.tolist()
    ):
        out.add((key.decode(), ref, frozenset({(left, round(1 - vote, 9)), (right, round(vote, 9))}), votes))
    return out


def test_comparisons_stay_what_they_are():
    vote, votes = np.array([0.25, 1.0]), np.array([4, 0], np.int32)
    made = as_triplets(Comparisons(**common([[0, 1, 2], [3, 3, 1]]), vote=vote, votes=votes))
    assert made.rows.tolist() == [[0, 1, 2], [3, 3, 1]] and made.names == NAMES
    assert made.vote is vote and made.votes is votes and made.key.tolist() == [b"2", b"3"]


def test_one_answer_makes_two_comparisons():
    odd = np.array([[0, 0, 1], [1, 0, 0]], float)
    made = as_triplets(OddOnes(**common([[0, 1, 2], [3, 4, 5]]), odd=odd, votes=np.array([1, 1], np.int32)))
    assert said(made) == {
        ("2a", 0, frozenset({(1, 1.0), (2, 0.0)}), 1),
        ("2b", 1, frozenset({(0, 1.0), (2, 0.0)}), 1),
        ("3b", 4, frozenset({(5, 1.0), (3, 0.0)}), 1),
        ("3c", 5, frozenset({(4, 1.0), (3, 0.0)}), 1),
    }


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=20))
def test_soft_answers_follow_luces_choice(counts):
    counts = [row for row in counts if sum(row)] or [(1, 0, 0)]
    asked = np.array([sum(row) for row in counts], np.int32)
    odd = np.array(counts) / asked[:, None]
    made = as_triplets(OddOnes(**common([[0, 1, 2]] * len(counts)), odd=odd, votes=asked))
    expected = set()
    for row, number in zip(counts, range(2, 99)):
        for ref, letter in enumerate("abc"):
            left, right = (i for i in range(3) if i != ref)
            if both := row[left] + row[right]:
                vote = row[left] / both  # as often as left was called odd, right was the nearer one
                share = frozenset({(left, round(1 - vote, 9)), (right, round(vote, 9))})
                expected.add((f"{number}{letter}", ref, share, both))
    assert said(made) == expected


def test_sides_do_not_tell_the_answer():
    odd = np.tile([0.0, 0.0, 1.0], (5000, 1))
    judged = OddOnes(**common([[0, 1, 2]] * 5000), odd=odd, votes=np.ones(5000, np.int32))
    vote = as_triplets(judged).vote
    assert abs(vote.mean() - 0.5) < 0.025  # five standard deviations of 10,000 fair coins
    assert (as_triplets(judged).vote == vote).all()


@given(
    arrays(float, 7, elements=st.floats(0, 100)),
    arrays(float, 7, elements=st.one_of(st.floats(0.1, 30), st.just(np.nan))),
)
def test_ratings_by_the_normal_distribution(score, sd):
    rows = [[0, 1], [0, 2], [0, 3], [0, 4], [5, 1], [5, 2], [5, 3]]
    made = as_triplets(Ratings(**common(rows), score=score, sd=sd))
    pairs = [*combinations(range(4), 2), *combinations(range(4, 7), 2)]
    assert made.rows.tolist() == [[rows[i][0], rows[i][1], rows[j][1]] for i, j in pairs]
    for (i, j), vote in zip(pairs, made.vote):
        spread = np.hypot(sd[i], sd[j])
        if np.isnan(spread):
            assert vote == np.sign(score[j] - score[i]) / 2 + 0.5
        else:
            assert vote == pytest.approx(NormalDist(0, spread).cdf(score[j] - score[i]), abs=1e-9)


def test_elo_scores_by_elos_formula():
    made = as_triplets(
        Ratings(**common([[0, 1], [0, 2]]), score=np.array([1400.0, 1800]), sd=np.full(2, np.nan), elo=True)
    )
    assert made.vote == pytest.approx([1 / (1 + 10 ** ((1400 - 1800) / 400))]) and made.votes.tolist() == [0]


def test_sameness_given_that_one_was_taken_for_the_reference():
    same, votes = np.array([0.2, 0.9, 0.0, 0.0]), np.array([5, 4, 3, 3], np.int32)
    made = as_triplets(Sameness(**common([[0, 1], [0, 2], [3, 1], [3, 2]]), same=same, votes=votes))
    assert made.rows.tolist() == [[0, 1, 2]]  # of the other pair neither was ever taken for the reference
    assert made.vote == pytest.approx([0.9 * 0.8 / (0.9 * 0.8 + 0.2 * 0.1)]) and made.votes.tolist() == [4]


def test_keys_name_one_judgement_each():
    rows, vote, votes = [[0, 1, 2]] * 4, np.full(4, 0.5), np.ones(4, np.int32)
    judged = Comparisons(**common(rows), vote=vote, votes=votes)
    parts = replace(judged, group=np.array(["a", "a", "é", "é"]), number=np.array([2, 3, 2, 3]))
    assert [key.decode() for key in as_triplets(parts).key] == ["a/2", "a/3", "é/2", "é/3"]
    tables = replace(judged, number=np.array([2, 3, 2, 3]))
    assert as_triplets(tables).key.tolist() == [b"0", b"1", b"2", b"3"]
