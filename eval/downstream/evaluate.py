"""The downstream tasks of one checkpoint: read the data, load the model, embed, score, write.

Every image is embedded by `eval.encode.image_features`, so what eval.run left in the cache is used.  With
several ranks all of them embed, and rank 0 scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eval import encode
from eval.cache import Cache
from eval.downstream import records, tasks
from eval.downstream.records import METRICS, SHARE, Outcome
from eval.downstream.tasks import Task
from eval.session import Session
from eval.sets.evalset import Images


@dataclass(frozen=True, kw_only=True)
class Found:
    """The tasks below a folder, read once for any number of models."""

    tasks: list[Task]
    notes: tuple[str, ...]
    cache: Cache
    max_unreadable: float


def read(root: Path, datasets: Sequence[str], cache: Cache, max_unreadable: float) -> Found:
    """Raises ValueError as `tasks.find` does.  max_unreadable: share of a classification set's images."""
    notes: list[str] = []
    found = tasks.find(root, datasets, cache, notes.append)
    notes += [f"{task.key}: {note}" for task in found for note in task.notes]
    return Found(tasks=found, notes=tuple(notes), cache=cache, max_unreadable=max_unreadable)


def evaluate(now: Session, found: Found) -> None:
    """Write downstream.json and downstream/ (rank 0).  Raises ValueError for images that cannot be read."""
    started = time.perf_counter()
    now.begin(f"{len(found.tasks)} downstream tasks", found.notes)
    embedded = [_embedded(task, now, found) for task in found.tasks]
    for note in found.cache.notes:
        now.say(f"note: {note}")
    if now.ranks.rank:
        return
    outcomes = []
    for task, parts in zip(found.tasks, embedded):
        outcome = task.score(
            [features.to(now.encoders.device) for features, _ in parts], [k for _, k in parts]
        )
        outcomes.append(outcome)
        _tell(task, outcome, now)
    path = records.write(now.out, outcomes, now.about(max_unreadable=found.max_unreadable))
    now.say(f"{path} ({time.perf_counter() - started:.1f} s)")


def _embedded(task: Task, now: Session, found: Found) -> list[tuple[Tensor, np.ndarray]]:
    """For each of the task's lists of images (features (n, D) of those kept, their numbers (n,))."""
    allowed = found.max_unreadable if task.may_lose else 0.0
    return [_of_images(images, task.key, allowed, now, found.cache) for images in task.images]


def _of_images(
    images: Images, key: str, allowed: float, now: Session, cache: Cache
) -> tuple[Tensor, np.ndarray]:
    crops, options = encode.crops_of(images, now.encoders.preprocess, cache), now.options
    features, unreadable = encode.image_features(
        crops, now.encoders, options.batch_size, options.workers, now.ranks
    )
    kept = np.setdiff1d(np.arange(len(images)), list(unreadable))
    if not unreadable:
        return features, kept
    count = f"{len(unreadable)} of {key}'s {len(images)} images of one split cannot be read"
    if len(unreadable) > allowed * len(images):
        raise ValueError(
            f"{unreadable[min(unreadable)]}; {count} (--max-unreadable SHARE leaves out such images of "
            "classification sets)"
        )
    now.say(f"note: {count} and are left out, first {unreadable[min(unreadable)]}")
    return features[kept], kept


def _tell(task: Task, outcome: Outcome, now: Session) -> None:
    """Notes that scoring added, and a line of figures."""
    for note in outcome.notes:
        if note not in task.notes:
            now.say(f"note: {task.key}: {note}")
    now.say(f"{task.key}: {_line(outcome.figures)} ({outcome.figures[0].n} tested)")


def _line(figures: Sequence[records.Figure]) -> str:
    shown = []
    for figure in figures:
        title, unit = METRICS[figure.metric]
        shown.append(f"{title} {100 * figure.value:.2f}" if unit == SHARE else f"{title} {figure.value:.2f}")
    return ", ".join(shown)
