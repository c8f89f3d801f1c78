"""Human judgements of other kinds as comparisons: which of two images is nearer to a reference.

N judgements, M comparisons made of them.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from dataprep.triplets import Triplets
from pipeline.formats.judged.forms import Comparisons, Judged, OddOnes, Ratings, Sameness

_ELO = 400 / np.log(10)  # points by which the logarithm of the odds grows by 1


@singledispatch
def as_triplets(judged: Judged) -> Triplets:
    """The judgements as triplets, their votes as soft as the judgements are.

    Comparisons stay what they are.

    Odd ones out: with each of the three as the reference, of the other two the one that fewer people called
    odd is nearer.  The vote is Luce's choice: P(left odd) / (P(left odd) + P(right odd)).  Where all agree,
    the odd one makes no reference: nobody said which of the others it is nearer to.

    Ratings: all pairs of images with one reference.  The vote is the chance that a person rates right higher:
    by the normal distribution where the ratings have standard deviations (independent ones), by Elo's own
    formula for Elo scores, else 0 or 1, and 0.5 where they are equal.

    Sameness: all pairs of images with one reference.  The vote is the chance that right was taken for the
    reference, given that one of the two was and the other was not.  Pairs where that never happens are left
    out.
    """
    raise TypeError(f"{type(judged).__name__} is no form of judgements")


@as_triplets.register
def _(judged: Comparisons) -> Triplets:
    return _made(judged, judged.rows, judged.vote, judged.votes, _keys(judged))


@as_triplets.register
def _(judged: OddOnes) -> Triplets:
    parts = []
    for ref, left, right in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        said = judged.odd[:, left] + judged.odd[:, right]
        some = np.flatnonzero(said > 0)
        vote = judged.odd[some, left] / said[some]
        votes = np.round(judged.votes[some] * said[some]).astype(np.int32)
        rows = judged.rows[some][:, [ref, left, right]]
        parts.append((some * 3 + ref, rows, vote, votes))
    place, rows, vote, votes = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(place, kind="stable")
    place, rows, vote, votes = place[order], rows[order], vote[order], votes[order]
    swapped = _coins(place)  # else the side would often tell the answer
    rows[swapped] = rows[swapped][:, [0, 2, 1]]
    vote[swapped] = 1 - vote[swapped]
    letters = np.array([b"a", b"b", b"c"])[place % 3]
    key = np.strings.add(_keys(judged)[place // 3], letters)
    return _made(judged, rows, vote, votes, key)


@as_triplets.register
def _(judged: Ratings) -> Triplets:
    left, right = _pairs(judged.rows[:, 0])
    more = judged.score[right] - judged.score[left]
    if judged.elo:
        vote = 1 / (1 + np.exp(-more / _ELO))
    else:
        vote = _normal(more, np.hypot(judged.sd[left], judged.sd[right]))
    return _of_pairs(judged, left, right, vote, np.zeros(len(left), np.int32))


@as_triplets.register
def _(judged: Sameness) -> Triplets:
    left, right = _pairs(judged.rows[:, 0])
    only_left, only_right = (judged.same[i] * (1 - judged.same[j]) for i, j in ((left, right), (right, left)))
    some = np.flatnonzero(only_left + only_right > 0)
    left, right = left[some], right[some]
    vote = only_right[some] / (only_left + only_right)[some]
    return _of_pairs(judged, left, right, vote, np.minimum(judged.votes[left], judged.votes[right]))


def _made(judged: Judged, rows: np.ndarray, vote: np.ndarray, votes: np.ndarray, key: np.ndarray) -> Triplets:
    return Triplets(
        names=judged.images, rows=rows.astype(np.int32, copy=False), vote=vote, votes=votes, key=key
    )


def _of_pairs(
    judged: Judged, left: np.ndarray, right: np.ndarray, vote: np.ndarray, votes: np.ndarray
) -> Triplets:
    """Of the judgements `left` and `right` (M,), which have the reference in common."""
    ref, images = judged.rows[left, 0], judged.rows[:, 1]
    rows, keys = np.stack([ref, images[left], images[right]], 1), _keys(judged)
    key = np.strings.add(np.strings.add(keys[left], b","), keys[right])
    return _made(judged, rows, vote, votes, key)


def _keys(judged: Judged) -> np.ndarray:
    """(N,) bytes, no two alike: where each judgement stands, behind the part of the set that it belongs to.

    Where a set has several tables, whose rows are counted from their own beginnings, its place among all.
    """
    numbers = judged.number.astype(bytes)
    if np.any(judged.group != ""):
        numbers = np.strings.add(np.strings.add(np.strings.encode(judged.group, "utf-8"), b"/"), numbers)
    return numbers if len(np.unique(numbers)) == len(numbers) else np.arange(len(numbers)).astype(bytes)


def _pairs(reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,), (M,): all pairs of judgements with the same reference, the earlier one first."""
    order = np.argsort(reference, kind="stable")
    borders = np.flatnonzero(np.diff(reference[order])) + 1
    groups = np.split(order, borders)
    made = [np.triu_indices(len(group), 1) for group in groups]
    left = np.concatenate([group[i] for group, (i, _) in zip(groups, made)])
    right = np.concatenate([group[j] for group, (_, j) in zip(groups, made)])
    return left, right


def _normal(difference: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """(M,) Φ(difference / sd); a step where sd is 0 or unknown."""
    import torch  # the one error function that every room has

    step = np.sign(difference) / 2 + 0.5
    known = sd > 0
    z = np.divide(difference, sd, out=np.zeros_like(difference), where=known)
    return np.where(known, torch.special.ndtr(torch.from_numpy(z)).numpy(), step)


def _coins(number: np.ndarray) -> np.ndarray:
    """(M,) bool: a fair coin for each number, the same every time (splitmix64's finaliser)."""
    x = number.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) & np.uint64(1)).astype(np.bool_)
