"""The most agreement that the answers themselves allow, where they tell."""

from __future__ import annotations

import numpy as np

from eval.alignment.judgements import ODD, TWOAFC, Judgements
from eval.alignment.scores import Arrays

REPEATS, LEAST = 10, 100  # answers a triplet needs, and how many such triplets, to tell what people agree on


def best(asked: Judgements, arrays: Arrays, metric: str) -> tuple[Arrays, str] | None:
    """(outcomes of a model that answers as well as it can, why it is the best, in words).

    `scores.value` of these is the ceiling.  None where nothing tells: of majorities 1 can be reached.
    """
    if metric == "twoafc_soft" or metric == "odd_one_out_soft":
        most = np.maximum(asked.answers, 1 - asked.answers) if asked.kind == TWOAFC else asked.answers.max(1)
        return arrays | {metric: most}, "always answering with the majority of these votes"
    if metric == "ap":
        return arrays | {
            "model": asked.answers
        }, "pairs in the order of the share that took them for the same"
    if metric == "odd_one_out" and asked.kind == ODD and asked.metrics == ("odd_one_out",):
        return _repeated(asked, arrays)
    return None


def _repeated(asked: Judgements, arrays: Arrays) -> tuple[Arrays, str] | None:
    """From triplets that many people saw: how often one answers as most of the others do.

    Most of the others, not of all: an answer always agrees with itself.
    """
    count, order = len(asked.images), np.argsort(asked.rows, 1)
    first, second, third = np.take_along_axis(asked.rows, order, 1).T
    _, triplet, asked_of = np.unique(
        (first * count + second) * count + third, return_inverse=True, return_counts=True
    )
    odd = np.take_along_axis(asked.answers, order, 1).argmax(1)
    often = asked_of >= REPEATS
    if often.sum() < LEAST:
        return None
    answered = np.stack([np.bincount(triplet, odd == k, len(asked_of)) for k in range(3)], 1)  # (triplets, 3)
    agreement = np.empty(answered.shape)
    for k in range(3):
        others = answered - np.eye(3)[k]
        most = others == others.max(1, keepdims=True)
        agreement[:, k] = most[:, k] / most.sum(1)
    credit = np.where(often[triplet], agreement[triplet, odd], np.nan)
    source = (
        f"each answer against most of the others, of {int(often.sum())} triplets that {REPEATS} or more saw"
    )
    return arrays | {"odd_one_out": credit}, source
