"""One model over the sets of human similarity: embed their images, score, write.

Reading the sets is `sets.py`'s, figures are `scores.py`'s, files are `results.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from eval import encode
from eval.alignment import categories, ceilings, judgements, probe, results, scores, sets
from eval.alignment.judgements import Judgements
from eval.alignment.records import EVERYTHING, MEAN, SHARE, Score, SetScores
from eval.alignment.results import Scored
from eval.alignment.scores import METRICS, Arrays
from eval.alignment.sets import Found, Known, Test
from eval.cache import Cache
from eval.metrics.perceptual import describe_votes
from eval.session import Session
from eval.sets.evalset import Images

read = sets.discover


def evaluate(now: Session, found: Found, cache: Cache, probes: bool = False) -> None:
    """Score a model and write its files (rank 0).  ValueError for an image that cannot be read.

    probes: also fit linear probes, where a set has something to fit them on.
    """
    started = time.perf_counter()
    now.begin(f"{len(found.tests)} sets of human similarity", found.notes)
    scored: list[Scored] = []
    for test in found.tests:
        for each in _scored(now, test, cache, probes):
            scored.append(each)
            now.say(_line(each.scores))
    for note in cache.notes:
        now.say(f"note: {note}")
    if now.ranks.rank:
        return
    about = now.about() | {"notes": list(found.notes)}
    results.write(now.out, scored, about)
    now.say(f"{now.out / results.ALIGNMENT} ({time.perf_counter() - started:.1f} s)")


def _embed(now: Session, images: Images, cache: Cache, what: str) -> Tensor:
    """(U, D) unit rows on the CPU."""
    crops = encode.crops_of(images, now.encoders.preprocess, cache)
    options = now.options
    features, unreadable = encode.image_features(
        crops, now.encoders, options.batch_size, options.workers, now.ranks
    )
    if unreadable:
        first = unreadable[min(unreadable)]
        raise ValueError(f"{first}; {len(unreadable)} of {what}'s {len(images)} images cannot be read")
    return features


def _scored(now: Session, test: Test, cache: Cache, probes: bool) -> Iterator[Scored]:
    """Nothing but on rank 0; all ranks embed."""
    key = test.known.key
    if test.asked is None:
        found = categories.score(test.folder, lambda images: _embed(now, images, cache, key).numpy())
        yield from [found] if now.ranks.rank == 0 else []
        return
    features = _embed(now, test.asked.images, cache, key)
    train = test.known.train(test.folder) if probes and test.known.train else None
    fitted_on = None if train is None else _embed(now, train.images, cache, f"{key}, training split")
    if now.ranks.rank:
        return
    yield score(test, test.asked, judgements.cosines(test.asked, features))
    if probes and test.known.train:
        yield _probed(test, features, train, fitted_on)


# -- figures ----------------------------------------------------------------------------------------


def score(test: Test, asked: Judgements, alike: np.ndarray, fitted: str = "") -> Scored:
    """A set's figures, or those of some of its judgements.

    alike (N, P): the model's cosines of `asked`.  fitted: as `SetScores.probe`.
    """
    arrays = judgements.outcomes(asked, alike)
    found = [made for metric in asked.metrics for made in _of_metric(test.known, asked, arrays, metric)]
    if not found:
        raise ValueError(f"{test.folder}: its answers prefer nothing, so no figure can be made of them")
    about = SetScores(
        key=test.known.key,
        title=test.known.title,
        scores=tuple(found),
        notes=asked.notes,
        probe=fitted,
        source=str(test.folder.resolve()),
        voters=describe_votes(asked.voters),
    )
    return Scored(scores=about, arrays=arrays, judgements=asked.digest())


def _of_metric(known: Known, asked: Judgements, arrays: Arrays, metric: str) -> list[Score]:
    """Of all judgements and of each group; where the figure is defined."""
    groups = scores.groups_of(arrays)
    whole = [] if metric == "rsa" and len(groups) > 1 else [EVERYTHING]  # matrices are never pooled
    wanted = [*([MEAN] if known.mean else []), *whole, *groups] if len(groups) > 1 else [EVERYTHING]
    top = ceilings.best(asked, arrays, metric)
    made = []
    for group in wanted:
        figure = scores.interval(arrays, metric, group)
        if not np.isfinite(figure.value):
            continue
        ceiling, source = (scores.value(top[0], metric, group), top[1]) if top else (None, "")
        if top is None and known.ceiling and metric == asked.metrics[0] and group == EVERYTHING:
            ceiling, source = known.ceiling
        made.append(
            Score(
                metric=metric,
                group=group,
                value=figure.value,
                low=figure.low,
                high=figure.high,
                chance=scores.chance(arrays, metric, group),
                ceiling=ceiling,
                ceiling_source=source,
                n=scores.counted(arrays, metric, group),
                unit=METRICS[metric].unit,
            )
        )
    return made


def _probed(test: Test, features: Tensor, train: Judgements | None, fitted_on: Tensor | None) -> Scored:
    """A probe fitted on the training split, or by folds of the images; judged by what it has not seen."""
    asked = test.asked
    assert asked is not None
    if train is not None and fitted_on is not None:
        fitted = probe.fit(fitted_on, train, np.arange(len(train.rows)))
        alike = judgements.cosines(asked, fitted(features))
        shared = len({*asked.names} & {*train.names})
        said = f"linear probe, fitted on {len(train.rows):,} judgements of the training split"
        note = f"{shared} of {len(asked.names)} images are in the training split too, in other judgements"
        return score(test, asked.noted(note), alike, said)
    rows, parts = [], []
    for fit_on, held_out in probe.folds(asked):
        if len(fit_on) and len(held_out):
            fitted = probe.fit(features, asked, fit_on)
            rows.append(held_out)
            parts.append(judgements.cosines(asked.part(held_out), fitted(features)))
    if not rows:
        raise ValueError(
            f"{test.folder}: too few judgements for a probe in {probe.FOLDS} folds of its images"
        )
    kept = asked.part(np.concatenate(rows))
    note = f"{len(asked.rows) - len(kept.rows):,} judgements over images of several folds left out"
    said = f"linear probe, fitted in {probe.FOLDS} folds of the images, judged by the images held out"
    return score(test, kept.noted(note), np.concatenate(parts), said)


def _line(found: SetScores) -> str:
    """The leading figure."""
    first = found.scores[0]
    title = METRICS[first.metric].title if first.metric in METRICS else first.metric
    ends = "" if first.low is None else f" [{_shown(first, first.low)}, {_shown(first, first.high)}]"
    group = f", {first.group}" if first.group else ""
    said = f" ({found.probe})" if found.probe else ""
    return f"{found.key}: {_shown(first, first.value)}{ends} {title}{group} of {first.n:,}{said}"


def _shown(first: Score, value: float | None) -> str:
    assert value is not None
    return f"{100 * value:.1f}" if first.unit == SHARE else f"{value:.3f}"
