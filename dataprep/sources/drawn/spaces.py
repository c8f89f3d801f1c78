"""Dissimilarities of images: from the rows of an embedding by a metric, or from a matrix.

Neither is expanded: an embedding never becomes a matrix, and a matrix in a file stays there, mapped.

N images, D dimensions of the embedding, P pairs, K others a pair is made with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from dataprep.sources.drawn.numbers import read_numbers

Metric = Literal["cosine", "euclidean", "dot", "correlation"]
METRICS: tuple[str, ...] = get_args(Metric)

_BLOCK = 1 << 19  # numbers of the embedding that are looked at in one go: they stay in the core's cache
_TILE = 1 << 11  # rows and columns of a matrix that are looked at in one go
_NEAR = 1e-5  # of the largest number nearby: float32 written by others differs by less


class Space(Protocol):
    """N images with a dissimilarity between any two, the same both ways; NaN where there is none."""

    @property
    def size(self) -> int:
        """N."""

    def gaps(self) -> tuple[np.ndarray, str]:
        """(N,) bool: images without a dissimilarity to any other; and what is not finite, in words."""

    def distances(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """(P, K) float64: dissimilarities of the images i (P,) to the others j (P, K)."""


# -- embeddings -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows prepared for a metric.

    cosine: 1 − x·y of unit rows.  correlation: the same of rows less their means.  euclidean: |x − y|.
    dot: −x·y, which is what SPoSE compares.
    """

    rows: np.ndarray  # (N, D) float64
    metric: str

    @property
    def size(self) -> int:
        return len(self.rows)

    def gaps(self) -> tuple[np.ndarray, str]:
        faulty = ~np.isfinite(self.rows).all(1)
        what = {"cosine": ", or all are 0", "correlation": ", or all are the same"}.get(self.metric, "")
        line = f"row {int(np.argmax(faulty))} (from 0): a number is not finite{what}"
        return faulty, line if faulty.any() else ""

    def distances(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        out = np.empty(j.shape)
        step = max(1, _BLOCK // (self.rows.shape[1] * (1 + j.shape[1])))
        for start in range(0, len(i), step):
            part = slice(start, start + step)
            x, y = self.rows[i[part]], self.rows[j[part]]  # (p, D), (p, K, D)
            if self.metric == "euclidean":
                y -= x[:, None]
                out[part] = np.sqrt(np.einsum("pkd,pkd->pk", y, y))
            else:
                out[part] = -np.einsum("pd,pkd->pk", x, y)
        return out if self.metric in ("euclidean", "dot") else out + 1


@cache
def open_embedding(path: Path, metric: Metric) -> Embedding:
    """The embedding in a file, (N, D).  Raises ValueError if it is something else."""
    array = read_numbers(path)
    if array.ndim != 2:
        raise ValueError(f"{path}: shape {array.shape}, an embedding has a row an image: (N, D)")
    if array.shape[0] == array.shape[1] > 2 and np.array_equal(array, array.T):
        raise ValueError(f"{path}: symmetric, so a matrix and no embedding: build_ffcv.py matrix reads it")
    rows = np.array(array, np.float64, order="C")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if metric == "correlation":
            constant = np.ptp(rows, axis=1) == 0
            rows -= rows.mean(1, keepdims=True)
            rows[constant] = 0  # their mean has an error of rounding, which is no direction
        if metric in ("cosine", "correlation"):
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            rows /= np.where((length > 0) & (length < np.inf), length, np.nan)
    return Embedding(rows, metric)


# -- matrices -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Matrix:
    """A square matrix, or its upper triangle as one row (scipy's condensed form)."""

    values: np.ndarray  # (N, N), or (N (N − 1) / 2,)
    size: int
    sign: int  # −1: large means alike

    def gaps(self) -> tuple[np.ndarray, str]:
        faulty, count, first = np.ones(self.size, bool), 0, [0, 0]
        for i, j, tile, above in self._tiles():
            known = np.isfinite(tile) & above
            faulty[i] &= ~known.any(1)
            faulty[j] &= ~known.any(0)
            unknown = above & ~known
            if not count and unknown.any():
                first = (np.argwhere(unknown)[0] + (i.start, j.start)).tolist()
            count += int(unknown.sum())
        return faulty, f"{count:,} pairs of images are not finite, the first {first}" if count else ""

    def distances(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        low, high = np.minimum(i[:, None], j).astype(np.int64), np.maximum(i[:, None], j).astype(np.int64)
        taken = self.values[low, high] if self.values.ndim == 2 else self.values[self._at(low, high)]
        return self.sign * taken.astype(np.float64)

    def _tiles(self) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
        """(rows, columns, their numbers, which of them lie above the diagonal) of the upper triangle."""
        for i in _slices(self.size):
            for j in _slices(self.size, i.start):
                rows, columns = np.ogrid[i, j]
                if self.values.ndim == 2:
                    tile = self.values[i, j]
                else:
                    tile = self.values[np.where(rows < columns, self._at(rows, columns), 0)]
                yield i, j, tile, rows < columns

    def _at(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Where a condensed matrix has its pairs i < j."""
        return i * (2 * self.size - i - 1) // 2 + j - i - 1


def _slices(size: int, start: int = 0) -> list[slice]:
    return [slice(at, min(at + _TILE, size)) for at in range(start, size, _TILE)]


@cache
def open_matrix(path: Path, similarity: bool) -> Matrix:
    """The matrix in a file; its symmetry and diagonal are not looked at (`check_matrix`)."""
    values = read_numbers(path)
    sign = -1 if similarity else 1
    if values.ndim == 2 and 1 in values.shape and values.size > 1:
        values = values.ravel()
    if values.ndim == 1:
        size = round((1 + (1 + 8 * len(values)) ** 0.5) / 2)
        if size * (size - 1) // 2 != len(values):
            raise ValueError(f"{path}: {len(values)} numbers, which are N (N − 1) / 2 for no N")
        return Matrix(values, size, sign)
    if values.ndim != 2:
        raise ValueError(
            f"{path}: shape {values.shape}, one matrix is expected: average (np.mean(…, 0)), or choose one"
        )
    if values.shape[0] != values.shape[1]:
        raise ValueError(
            f"{path}: {values.shape[0]} × {values.shape[1]}, a matrix is N × N; "
            "build_ffcv.py embedding reads a row of features an image"
        )
    return Matrix(values, len(values), sign)


@cache
def check_matrix(path: Path, similarity: bool) -> str:
    """A note on what was overlooked, mostly empty.

    Raises ValueError for a matrix that is not symmetric, for a dissimilarity whose diagonal is not 0, and for
    a similarity whose diagonal is not the largest of its row.
    """
    values, name = open_matrix(path, similarity).values, "similarity" if similarity else "dissimilarity"
    if values.ndim == 1:
        return ""
    diagonal = values.diagonal().astype(np.float64)
    largest, magnitude = np.full(len(values), -np.inf), 0.0
    for i in _slices(len(values)):
        for j in _slices(len(values), i.start):
            tile, mirrored = (np.array(values[s], np.float64) for s in ((i, j), (j, i)))
            magnitude = max(magnitude, _check_symmetry(tile, mirrored.T, (i.start, j.start), path))
            largest[i] = np.fmax(largest[i], np.fmax.reduce(tile, 1))
            largest[j] = np.fmax(largest[j], np.fmax.reduce(tile, 0))
    wrong = diagonal < largest - _NEAR * magnitude if similarity else np.abs(diagonal) > _NEAR * magnitude
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = f"the largest of its row, {largest[row]:g}" if similarity else "0"
        other = "" if similarity else "if large means alike, say --similarity; "
        raise ValueError(
            f"{path}: the diagonal of a {name} is {expected}, but [{row}, {row}] is {diagonal[row]:g}; "
            f"{other}a diagonal of NaN is not looked at"
        )
    unknown = int((~np.isfinite(diagonal)).sum())
    return f"{unknown:,} numbers of the diagonal are not finite, and are not needed" if unknown else ""


def _check_symmetry(tile: np.ndarray, mirrored: np.ndarray, origin: tuple[int, int], path: Path) -> float:
    """The largest magnitude of the tile; ValueError if it is not what lies across the diagonal."""
    magnitude = float(np.max(np.abs(tile), initial=0, where=np.isfinite(tile)))
    with np.errstate(invalid="ignore"):  # of two infinite ones
        other = np.abs(tile - mirrored) > _NEAR * magnitude
    other |= np.isnan(tile) != np.isnan(mirrored)
    if other.any():
        row, column = np.argwhere(other)[0].tolist()
        at, back = (origin[0] + row, origin[1] + column), (origin[1] + column, origin[0] + row)
        raise ValueError(
            f"{path}: not symmetric, {list(at)} is {tile[row, column]:g} and {list(back)} is "
            f"{mirrored[row, column]:g}; (m + m.T) / 2 is, if that is what you mean"
        )
    return magnitude
