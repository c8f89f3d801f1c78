"""The downstream tasks of one checkpoint: read the data, load the model, embed, score, write.

Every image is embedded by `eval.encode.image_features`, so what eval.run left in the cache is used.  With
several ranks all of them embed, and rank 0 scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from eval import encode, session
from eval.cache import Cache
from eval.downstream import records, tasks
from eval.downstream.options import Downstream
from eval.downstream.records import METRICS, SHARE, Outcome
from eval.downstream.tasks import Task
from eval.session import Session
from eval.sets.evalset import Images


def evaluate(options: Downstream) -> None:
    """Write downstream.json and downstream/ (rank 0).  Raises ValueError for bad input."""
    started = time.perf_counter()
    notes: list[str] = []
    cache = Cache(options.cache_beside(options.data))
    found = tasks.find(options.data, options.datasets, cache, notes.append)
    now = session.start(options, options.checkpoint, None)
    now.begin(
        f"{len(found)} downstream tasks", notes + [f"{t.key}: {note}" for t in found for note in t.notes]
    )
    embedded = [_embedded(task, now, options, cache) for task in found]
    for note in cache.notes:
        now.say(f"note: {note}")
    if now.ranks.rank:
        return
    outcomes = []
    for task, parts in zip(found, embedded):
        outcome = task.score(
            [features.to(now.encoders.device) for features, _ in parts], [k for _, k in parts]
        )
        outcomes.append(outcome)
        _tell(task, outcome, now)
    path = records.write(now.out, outcomes, now.about(max_unreadable=options.max_unreadable))
    now.say(f"{path} ({time.perf_counter() - started:.1f} s)")


def _embedded(task: Task, now: Session, options: Downstream, cache: Cache) -> list[tuple[Tensor, np.ndarray]]:
    """For each of the task's lists of images (features (n, D) of those kept, their numbers (n,))."""
    allowed = options.max_unreadable if task.may_lose else 0.0
    return [_of_images(images, task.key, allowed, now, options, cache) for images in task.images]


def _of_images(
    images: Images, key: str, allowed: float, now: Session, options: Downstream, cache: Cache
) -> tuple[Tensor, np.ndarray]:
    crops = encode.crops_of(images, now.encoders.preprocess, cache)
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
