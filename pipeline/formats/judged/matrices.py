"""Matrices of how alike people found images, as LukasMut/gLocal keeps them: Peterson's, and of arrangements.

Layouts and formulas: data/{peterson,multi_arrangement,free_arrangement}.py of that repository; the data were
not at hand.  Images are in the order of their names, as there.

Not here: MATLAB files of version 7.3, and pickles, which are never opened.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.formats.judged import mat
from pipeline.formats.judged.forms import Dissimilarities

_HIGHEST = 10.0  # Peterson's people rated similarity from 0 to 10
_UNEVEN = 1e-6  # halves of a matrix further apart than this are worth a note
_SETS = ("set1", "set2")


def peterson(folder: Path) -> list[Dissimilarities]:
    """Peterson, Abbott and Griffiths: 10 less the similarity, for each CATEGORY/{images,sim_judgments}.

    The similarities are the one array whose name has "sim" in it, of the one .mat whose name has it, too.
    Raises ValueError that names the file: none or several of them, a size other than the number of images,
    values outside 0 to 10, or a category that has only a pickle (fruits).
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    categories = [path for path in inside if (path / "images").is_dir() or (path / "sim_judgments").is_dir()]
    if not categories:
        raise ValueError(f"{folder}: no CATEGORY/images with CATEGORY/sim_judgments in it")
    return [_category(folder, path) for path in categories]


def multi_arrangement(folder: Path) -> list[Dissimilarities]:
    """What FOLDER/sim_judgements holds: dissimilarities averaged over people.

    - judgments_general.mat, `judgments` (people, U, U), with images/*.jpg;
    - BEHAVIOR.mat, BEHAVIOR.set1 and .set2, `pairwisedistances` (people, U (U - 1) / 2) in the order of the
      upper triangle's rows, with images/set1/*.jpg and images/set2/*.jpg.
    Where a person gave no value (NaN), the average is over the others.
    Raises ValueError that names the file and the array.
    """
    judged = folder / "sim_judgements"
    general, behavior = judged / "judgments_general.mat", judged / "BEHAVIOR.mat"
    if general.is_file() == behavior.is_file():
        have = "both" if general.is_file() else "neither"
        raise ValueError(f"{judged}: {have} of {general.name} and {behavior.name} in it; one is expected")
    return [_general(folder, general)] if general.is_file() else [_free(folder, behavior, n) for n in _SETS]


def _category(folder: Path, category: Path) -> Dissimilarities:
    path = _similarities(category / "sim_judgments")
    name, similarity = _array(path, "sim")
    images = _images(folder, category / "images", ("jpg", "png"))
    matrix, notes = _square(path, name, similarity, len(images), _HIGHEST)
    return Dissimilarities(
        folder=folder, images=images, matrix=_HIGHEST - matrix, name=category.name, notes=notes
    )


def _general(folder: Path, path: Path) -> Dissimilarities:
    images = _images(folder, folder / "images", ("jpg",))
    name, people = _array(path, "judgments", exactly=True)
    if people.ndim != 3:
        raise ValueError(f"{path}: {name} is {people.shape}; (people, images, images) is expected")
    matrix, notes = _square(path, name, _mean(people), len(images), np.inf)
    return Dissimilarities(folder=folder, images=images, matrix=matrix, name="multi-arrangement", notes=notes)


def _free(folder: Path, path: Path, part: str) -> Dissimilarities:
    images, name = _images(folder, folder / "images" / part, ("jpg",)), f"BEHAVIOR.{part}.pairwisedistances"
    people: mat.Value = mat.read(path)
    for field in name.split("."):
        people = people.get(field) if isinstance(people, dict) else None
    if not isinstance(people, np.ndarray) or people.ndim != 2:
        raise ValueError(f"{path}: no array {name} (people, pairs) of real numbers in it")
    pairs = len(images) * (len(images) - 1) // 2
    if people.shape[1] != pairs:
        raise ValueError(f"{path}: {name} has {people.shape[1]} pairs; {len(images)} images have {pairs}")
    matrix = np.zeros((len(images), len(images)))
    matrix[np.triu_indices(len(images), 1)] = _mean(people)
    matrix += matrix.T
    _check_range(path, name, matrix, np.inf)
    note = (
        "images are taken in the order of their names, as gLocal does, whose code reads the order in "
        "stimulus_category_labels.txt without using it; that it is the distances' order is not verified"
    )
    return Dissimilarities(folder=folder, images=images, matrix=matrix, name=part, notes=(note,))


def _mean(people: np.ndarray) -> np.ndarray:
    """The average over people, the first axis, of those who gave a value; NaN where nobody did."""
    given = ~np.isnan(people)
    count = given.sum(axis=0)
    return np.where(count > 0, np.where(given, people, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _similarities(judged: Path) -> Path:
    files = sorted(judged.iterdir()) if judged.is_dir() else []
    named = [path for path in files if "sim" in path.name.lower() and path.suffix == ".mat"]
    if len(named) == 1:
        return named[0]
    pickles = [path.name for path in files if path.suffix in (".pickle", ".pkl")]
    if not named and pickles:
        raise ValueError(
            f"{judged}: it holds only {pickles[0]}; a pickle may run code, so none is opened; if you trust "
            "it, write each pair's mean rating, (U, U), beside it: scipy.io.savemat('sim.mat', {'sim': mean})"
        )
    raise ValueError(f"{judged}: one .mat with sim in its name is expected, it has {len(named)}")


def _images(folder: Path, images: Path, endings: tuple[str, ...]) -> tuple[str, ...]:
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder of images")
    named = (path for path in images.iterdir() if path.name.endswith(endings) and path.name[0] != ".")
    found = tuple(path.relative_to(folder).as_posix() for path in sorted(named))
    if not found:
        raise ValueError(f"{images}: no {' or '.join(endings)} in it")
    return found


def _array(path: Path, name: str, exactly: bool = False) -> tuple[str, np.ndarray]:
    """The one array of numbers called `name`, or else with `name` in its name."""
    held = mat.read(path)
    keys = [key for key in held if (key == name if exactly else name in key.lower())]
    if len(keys) != 1:
        what = f"array {name}" if exactly else f"one array with {name} in its name"
        raise ValueError(f"{path}: {what} is expected; it has {', '.join(held) or 'none'}")
    value = held[keys[0]]
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{path}: {keys[0]} is no array of real numbers")
    return keys[0], value


def _square(
    path: Path, name: str, matrix: np.ndarray, count: int, high: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The matrix (count, count), of values from 0 to `high`, made symmetric, and a note if it was not."""
    if matrix.shape != (count, count):
        raise ValueError(f"{path}: {name} is {matrix.shape}; the {count} images make ({count}, {count})")
    _check_range(path, name, matrix, high)
    half = np.triu_indices(count, 1)
    uneven = np.nanmax(np.abs(matrix[half] - matrix.T[half]), initial=0.0)
    note = f"{path.name}: {name} is not symmetric (halves up to {uneven:.3g} apart); both are averaged"
    return _mean(np.stack([matrix, matrix.T])), ((note,) if uneven > _UNEVEN else ())


def _check_range(path: Path, name: str, matrix: np.ndarray, high: float) -> None:
    off = ~np.eye(len(matrix), dtype=bool)
    wrong = off & ((matrix < 0) | (matrix > high) | np.isinf(matrix))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        message = f"from 0 to {high:g} is expected" if np.isfinite(high) else "0 or more is expected"
        raise ValueError(f"{path}: {name}[{row}, {column}] is {matrix[row, column]:g}; {message}")
    if np.isnan(matrix[off]).all():
        raise ValueError(f"{path}: {name} holds no value")
