"""What people were asked and what they answered, in the one form that all tests are scored in.

N judgements over U images.  From the forms of `pipeline/formats/judged/forms.py`; images that no judgement
is about are left out, so they are never decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from eval.alignment import similarities
from eval.alignment.scores import Arrays
from eval.metrics.perceptual import Choices, Triplets
from eval.sets.evalset import FileImages, Member, PreparedImages
from pipeline.formats.judged.forms import Comparisons, Dissimilarities, OddOnes, Ratings, Sameness

TWOAFC, ODD, PAIRS = "2afc", "odd", "pairs"  # kinds
PAIRS_OF = {TWOAFC: ((0, 1), (0, 2)), ODD: ((0, 1), (0, 2), (1, 2)), PAIRS: ((0, 1),)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Judgements:
    """rows (N, 2 or 3) int64 into `images`.

    answers: of TWOAFC (N,), the share that found right (the third image) nearer to the first one; of ODD
    (N, 3), the share that chose each; of PAIRS (N,), larger where more alike.  metrics: names in
    `scores.METRICS`, the leading one first.  group (N,) int16 into `groups`; clusters: as in `scores.py`.
    number (N,): where each stands in its table.  names: of the images, relative to the set.
    """

    kind: str
    metrics: tuple[str, ...]
    images: FileImages
    names: tuple[str, ...]
    rows: np.ndarray
    answers: np.ndarray
    group: np.ndarray
    groups: np.ndarray
    clusters: np.ndarray
    number: np.ndarray
    notes: tuple[str, ...] = ()
    voters: str = "human"

    def digest(self) -> str:
        """Equal where the same was asked and answered, wherever the set lies."""
        digest = xxhash.xxh3_128("\0".join(self.names).encode(errors="surrogateescape"))
        for array in (self.rows, self.answers, self.group):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def part(self, rows: np.ndarray) -> Judgements:
        """Some of the judgements, over the same images."""
        kept = {
            name: getattr(self, name)[rows] for name in ("rows", "answers", "group", "clusters", "number")
        }
        return replace(self, **kept)

    def noted(self, note: str) -> Judgements:
        """With one more note."""
        return replace(self, notes=(*self.notes, note))


# -- from the forms -----------------------------------------------------------------------------------


def _used(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the images that `rows` are about, (N, k) int64 rows into those)."""
    seen = np.zeros(count, bool)
    seen[rows] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[rows]


def _grouped(names: np.ndarray) -> dict[str, Any]:
    groups, group = np.unique(np.asarray(names, str), return_inverse=True)
    return {"groups": groups, "group": group.astype(np.int16)}


def _files(folder: Path, names: Sequence[str]) -> FileImages:
    """ValueError for a file that is not there, before any is decoded."""
    paths = [folder / name for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{missing[0]}: missing; {len(missing)} of {len(paths)} images of {folder} are")
    return PreparedImages([Member.whole(path, name) for path, name in zip(paths, names)])


def _majority_and_soft(name: str, answers: np.ndarray) -> tuple[str, ...]:
    """The second one only where it differs: where people did not all answer alike."""
    return (name,) if np.isin(answers, (0, 1)).all() else (name, f"{name}_soft")


def _name(member: Member) -> str:
    """Within a .beton, with the file's name: another file has samples of the same numbers."""
    return member.name if member.size < 0 else f"{member.path.name}, {member.name}"


def of_triplets(triplets: Triplets) -> Judgements:
    """What `eval.metrics.perceptual.read` reads; its splits are the groups."""
    return Judgements(
        kind=TWOAFC,
        metrics=_majority_and_soft("twoafc", triplets.vote),
        images=triplets.images,
        names=tuple(_name(member) for member in triplets.images.members),
        rows=triplets.rows,
        answers=triplets.vote,
        clusters=triplets.rows[:, :1].astype(np.int32),
        number=np.arange(len(triplets.rows)),
        notes=triplets.notes,
        voters=triplets.voters,
        **_grouped(triplets.split),
    )


def of_judged(judged: Comparisons | OddOnes | Ratings | Sameness) -> Judgements:
    """ValueError for a set without a judgement, or one of whose images is missing."""
    if not len(judged.rows):
        raise ValueError(f"{judged.folder}: no judgement in it")
    used, rows = _used(judged.rows, len(judged.images))
    names = tuple(judged.images[i] for i in used.tolist())
    clusters = rows[:, :1].astype(np.int32)
    if isinstance(judged, Comparisons):
        kind, answers = TWOAFC, judged.vote
        metrics = _majority_and_soft("twoafc", answers)
    elif isinstance(judged, OddOnes):
        kind, answers, clusters = ODD, judged.odd, np.empty((len(rows), 0), np.int32)
        metrics = _majority_and_soft("odd_one_out", answers)
    elif isinstance(judged, Ratings):
        kind, answers, metrics = PAIRS, judged.score, ("srcc", "krcc")
    else:
        kind, answers, metrics = PAIRS, judged.same, ("ap",)
    return Judgements(
        kind=kind,
        metrics=metrics,
        images=_files(judged.folder, names),
        names=names,
        rows=rows,
        answers=answers,
        clusters=clusters,
        number=judged.number,
        notes=judged.notes,
        voters=judged.voters,
        **_grouped(judged.group),
    )


def of_matrices(matrices: Sequence[Dissimilarities]) -> Judgements:
    """Pairs above the diagonals, each matrix a group; pairs that nobody judged are left out and noted."""
    rows, answers, groups = [], [], []
    members: list[Member] = []
    names: list[str] = []
    notes = [note for matrix in matrices for note in matrix.notes]
    for each in matrices:
        pairs = np.stack(np.triu_indices(len(each.images), 1), 1)
        unlike = each.matrix[pairs[:, 0], pairs[:, 1]]
        known = ~np.isnan(unlike)
        if not known.all():
            notes.append(f"{each.name}: {int((~known).sum())} of {len(known)} pairs have no judgement")
        rows.append(pairs[known] + len(names))
        answers.append(-unlike[known])
        groups += [each.name] * int(known.sum())
        members += _files(each.folder, each.images).members
        names += [f"{each.name}/{name}" for name in each.images]
    every = np.concatenate(rows)
    return Judgements(
        kind=PAIRS,
        metrics=("rsa",),
        images=PreparedImages(members),
        names=tuple(names),
        rows=every.astype(np.int64),
        answers=np.concatenate(answers),
        clusters=every.astype(np.int32),
        number=np.arange(len(every)),
        notes=tuple(notes),
        **_grouped(np.array(groups)),
    )


# -- what a model answers -------------------------------------------------------------------------


def cosines(asked: Judgements, features: Tensor, rows: np.ndarray | None = None) -> np.ndarray:
    """(N, P) float32 of each judgement's pairs.

    features (U, D), unit rows.  rows: those of the judgements that are wanted; all if not given.
    """
    wanted = asked.rows if rows is None else asked.rows[rows]
    return similarities.of_pairs(features, wanted, PAIRS_OF[asked.kind])


def outcomes(asked: Judgements, alike: np.ndarray) -> Arrays:
    """The arrays that `scores.py` takes, with `number`; alike: the model's cosines of all judgements."""
    arrays = {name: getattr(asked, name) for name in ("group", "groups", "clusters", "number")}
    if asked.kind == TWOAFC:
        choices = Choices(1 - alike, asked.answers, asked.group)
        credit = {"twoafc": choices.credit(), "twoafc_soft": choices.soft_credit()}
    elif asked.kind == ODD:
        credit = odd_credit(alike, asked.answers)
    else:
        credit = {"model": alike[:, 0], "people": asked.answers}
    wanted = ("model", "people") if asked.kind == PAIRS else asked.metrics
    return arrays | {name: credit[name] for name in wanted}


def odd_credit(alike: np.ndarray, odd: np.ndarray) -> Arrays:
    """(N,) credits of the odd ones that a model picks: the image outside the most similar pair.

    alike (N, 3): cosines of images 0 and 1, 0 and 2, 1 and 2.  odd (N, 3): shares of people.  Pairs that are
    equally similar share the pick.  odd_one_out: agreement with the majority, NaN without one.
    odd_one_out_soft: the share of people who are agreed with.  LukasMut/gLocal (`get_predictions` in
    utils/evaluation/helpers.py) counts three equal pairs as wrong and takes the first of two, and
    ssundaram21/dreamsim (evaluation/score.py) takes every tie for right; elsewhere all three agree.
    """
    picked = (alike == alike.max(1, keepdims=True))[:, ::-1].astype(np.float64)
    picked /= picked.sum(1, keepdims=True)
    most = odd == odd.max(1, keepdims=True)
    majority = np.where(most.sum(1) == 1, (picked * most).sum(1), np.nan)
    return {"odd_one_out": majority, "odd_one_out_soft": (picked * odd).sum(1)}
