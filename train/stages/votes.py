"""Whose answers stage 1 learns (`--votes`): the file's own, these shuffled, or numbers from somebody else.

The controls of the paper's claim: with shuffled votes the share of each answer stays, and what it is an
answer to goes; votes of an untrained network are answers of something that has seen no person.

N triplets of the training file, whichever of them a run uses.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TypeVar

import numpy as np

from pipeline.beton.fields import Beton
from train.config import Recipe, Stage1

R = TypeVar("R", bound=Recipe)

EPOCH = 2**31  # which no run reaches: so the shuffle is the order of no epoch, and picks no subset


def named(recipe: R) -> R:
    """The recipe with the SHA-256 of its votes' file, if it has one.

    ValueError if the file cannot be read, or is not the one that the recipe names already.
    """
    if not isinstance(recipe, Stage1) or recipe.votes_file is None:
        return recipe
    try:
        with open(recipe.votes_file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"--votes {recipe.votes}: {error.strerror}") from None
    if recipe.votes_sha256 not in ("", digest):
        raise ValueError(
            f"--votes {recipe.votes}: has SHA-256 {digest}, but the run began with {recipe.votes_sha256}; "
            "put that file back, or choose another --run"
        )
    return replace(recipe, votes_sha256=digest)


def of(recipe: Stage1, file: Beton) -> np.ndarray | None:
    """(N,) float32, by sample number; None: each batch's own.

    ValueError unless a given file holds N numbers in [0, 1].
    """
    if recipe.votes == "human":
        return None
    if recipe.votes_file is not None:
        return _read(recipe, file)
    from pipeline.order import Order  # numba, which a command line that is only checked need not load

    samples = len(file)
    _, other = Order().locate(recipe.seed, samples, samples * EPOCH + np.arange(samples))
    return file.metadata["vote"].astype(np.float32)[other]


def _read(recipe: Stage1, file: Beton) -> np.ndarray:
    name = f"--votes {recipe.votes}"
    try:
        votes = np.load(recipe.votes, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{name}: not an array of numpy's ({error}); write it with numpy.save") from None
    expected = f"one number in [0, 1] for each of the {len(file)} triplets of {file.path} is expected"
    if not isinstance(votes, np.ndarray) or votes.dtype.kind not in "biuf" or votes.shape != (len(file),):
        has = f"{votes.dtype} {votes.shape}" if isinstance(votes, np.ndarray) else "several arrays"
        raise ValueError(f"{name}: holds {has}; {expected}")
    bad = np.flatnonzero(~((votes >= 0) & (votes <= 1)))  # nan, too
    if len(bad):
        raise ValueError(f"{name}: holds {votes[bad[0]]} at {bad[0]}; {expected}")
    return votes.astype(np.float32)


def told(recipe: Recipe) -> list[str]:
    """A line for the log, unless the votes are the file's own."""
    if not isinstance(recipe, Stage1) or recipe.votes == "human":
        return []
    what = f"{recipe.votes} (SHA-256 {recipe.votes_sha256})" if recipe.votes_file else "shuffled by the seed"
    return [f"votes: {what}"]
