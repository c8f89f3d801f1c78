"""What people judged of images, in the forms that all rooms take.

N judgements over U images.  `folder` and `images` (U paths relative to it) say which; whether the files exist
is not looked at.  `rows` count the images from 0.  `number` (N,) says where a judgement stands in its table:
the line of a text, counted from 1 with its header, or the row of an array, from 0.  `group` (N,) names the
part of the set that a judgement belongs to, "" where there are no parts.  Votes are kept as they are, never
rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """What all forms have."""

    folder: Path
    images: Sequence[str]
    rows: np.ndarray  # (N, 2) or (N, 3) int32
    number: np.ndarray  # (N,) int64
    group: np.ndarray  # (N,) of str
    notes: tuple[str, ...] = ()  # what was left out and why, for the user to read
    voters: str = "human"  # or where the answers come from, in words


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparisons(Judged):
    """2AFC: rows (N, 3) are reference, left, right.

    vote (N,) float64: the share that found right nearer.  votes (N,) int32: how many answered, 0 unknown.
    """

    vote: np.ndarray
    votes: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class OddOnes(Judged):
    """Odd-one-out: rows (N, 3).

    odd (N, 3) float64: the share that chose each of the three as the odd one, with sum 1.
    votes (N,) int32: how many answered, 0 unknown.
    """

    odd: np.ndarray
    votes: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Ratings(Judged):
    """Rated distortions: rows (N, 2) are the reference and the distorted image.

    score (N,) float64: larger is better, nearer to the reference.  sd (N,) float64: standard deviation over
    people, NaN where it is not given.  elo: the scores are Elo ratings (400 points: odds of 10 to 1).
    """

    score: np.ndarray
    sd: np.ndarray
    elo: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Sameness(Judged):
    """Just noticeable differences: rows (N, 2) are the reference and another image.

    same (N,) float64: the share that took them for the same.  votes (N,) int32: how many answered, 0 unknown.
    """

    same: np.ndarray
    votes: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Dissimilarities:
    """A matrix (U, U) float64 of how unlike people found the images; NaN where nobody said.

    name: of this part of the set (a category).  Symmetric; the diagonal does not count.
    """

    folder: Path
    images: Sequence[str]
    matrix: np.ndarray
    name: str
    notes: tuple[str, ...] = ()
