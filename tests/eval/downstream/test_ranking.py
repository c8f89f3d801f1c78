"""Average precision and chance levels against their definitions, word by word."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.downstream import ranking

KINDS = st.lists(st.sampled_from("rjn"), min_size=1, max_size=12)  # right, junk, neither, in ranked order


def _masks(kinds) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[k == "r" for k in kinds]]), np.array([[k == "j" for k in kinds]])


@given(KINDS)
def test_average_precision_is_the_mean_precision_at_right_answers(kinds):
    right, _ = _masks(kinds)
    precisions = [kinds[: i + 1].count("r") / (i + 1) for i, k in enumerate(kinds) if k == "r"]
    found = ranking.average_precision(right)[0]
    assert np.isnan(found) if not precisions else found == pytest.approx(np.mean(precisions))


@given(KINDS)
def test_revisited_precision_is_the_area_of_trapezoids_without_junk(kinds):
    """The authors' description: junk removed, trapezoids under precision over steps of recall."""
    kept = [k for k in kinds if k != "j"]
    area, steps = 0.0, kept.count("r")
    for place, kind in enumerate(kept):
        if kind == "r":
            before = kept[:place].count("r") / place if place else 1.0
            after = kept[: place + 1].count("r") / (place + 1)
            area += (before + after) / 2 / steps
    found = ranking.revisited_precision(*_masks(kinds))[0]
    assert np.isnan(found) if not steps else found == pytest.approx(area)


def test_first_right_answer():
    right = np.array([[False, True, True], [False] * 3, [True, False, False]])
    assert ranking.first(right).tolist() == [1, 3, 0]


def test_ranked_by_cosine_and_equals_in_order():
    gallery = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 1]]), dim=1)
    assert ranking.order(gallery[:1], gallery).tolist() == [[0, 2, 3, 1]]


@pytest.mark.parametrize("right, images", [(1, 1), (1, 4), (2, 5), (5, 5), (3, 6)])
def test_chance_is_the_mean_over_all_rankings(right, images):
    every = np.array(sorted(set(permutations([True] * right + [False] * (images - right)))))
    none = np.zeros_like(every)
    one, size = np.array([right]), np.array([images])
    assert ranking.chance_precision(one, size)[0] == pytest.approx(ranking.average_precision(every).mean())
    expected = ranking.revisited_precision(every, none).mean()
    assert ranking.chance_revisited(one, size)[0] == pytest.approx(expected)
    for k in range(1, images + 1):
        hits = (ranking.first(every) < k).mean()
        assert ranking.chance_recall(one, images, k)[0] == pytest.approx(hits)


@pytest.mark.parametrize("queries, gallery", [(5, 3), (1, 10), (2**13, 2**13)])
def test_chunks_cover_all_queries(queries, gallery):
    covered = [i for part in ranking.chunks(queries, gallery) for i in range(queries)[part]]
    assert covered == list(range(queries))
