"""One evaluation from its options to its folder of results: read the data, load the model, score, write.

The parts are elsewhere: sets in `eval/sets/`, the model in `eval/session.py`, figures in `eval/scoring.py`,
files in `eval/results.py`, tests of human similarity in `eval/alignment/`, tasks for frozen features in
`eval/downstream/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval import results, scoring, session
from eval.alignment import evaluate as alignment
from eval.cache import Cache
from eval.downstream import evaluate as downstream
from eval.metrics import perceptual
from eval.metrics.perceptual import Triplets
from eval.options import Evaluate
from eval.sets import catalog, sources
from eval.sets.evalset import EvalSet, shown
from eval.sets.prompts import NO_TEMPLATES

# -- the data -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Data:
    """The sets and triplets of the options, read once for any number of checkpoints."""

    options: Evaluate
    sets: list[EvalSet]
    triplets: Triplets | None
    alignment: alignment.Found | None
    downstream: downstream.Found | None
    notes: tuple[str, ...]
    started: float  # time.perf_counter() before anything was read


def read_data(options: Evaluate) -> Data:
    """Raises ValueError for data that are missing, damaged, or not what their name says."""
    started = time.perf_counter()
    if options.triplets is not None and not options.triplets.exists():
        raise ValueError(f"--triplets {options.triplets}: no such file or folder")
    notes: list[str] = []
    human = None if options.alignment is None else alignment.read(options.alignment)
    tasks = None
    if options.downstream is not None:
        kept = Cache(options.cache_beside(options.downstream))
        tasks = downstream.read(options.downstream, (), kept, options.max_unreadable)
    sets = _read_sets(options, notes.append)
    triplets = None if options.triplets is None else _read_triplets(options.triplets, options.triplet_splits)
    if triplets is not None:
        notes += [f"triplets: {note}" for note in triplets.notes]
    notes += [f"{s.entry.key}: {note}" for s in sets for note in s.notes]
    if general := [s.entry.key for s in sets if s.prompts and NO_TEMPLATES in s.prompts.profile]:
        notes.append(f"ImageNet's 80 templates, since no others are known, for {shown(general)}")
    return Data(
        options=options, sets=sets, triplets=triplets, alignment=human, downstream=tasks, notes=tuple(notes),
        started=started,
    )  # fmt: skip


def _read_sets(options: Evaluate, note: Callable[[str], None]) -> list[EvalSet]:
    wanted = catalog.select(options.datasets, options.families)
    if options.data is None:
        if wanted is not None:
            raise ValueError(
                "--datasets and --families choose among the sets under --data, which is not given"
            )
        return []
    profile = None if options.prompts == "auto" else options.prompts
    sets = sources.discover(options.data, wanted, profile, Cache(options.cache_folder), note)
    catalog.check_found(options.datasets, options.families, [s.entry for s in sets], options.data)
    return sets


def _read_triplets(path: Path, splits: tuple[str, ...]) -> Triplets:
    triplets = perceptual.read(path, splits)
    absent = [split for split in splits if split not in triplets.split]
    if absent and splits != perceptual.SPLITS:
        here = ", ".join(sorted({*triplets.split.tolist()}))
        raise ValueError(f"--triplet-splits {absent[0]}: {path} has no such split, but {here}")
    return triplets


# -- one checkpoint -----------------------------------------------------------------------------


def evaluate(data: Data, checkpoint: str, out: Path | None) -> None:
    """Evaluate one checkpoint and write its folder of results (rank 0).  Raises ValueError for bad input."""
    options = data.options
    now = session.start(options, checkpoint, out)
    cache = Cache(options.cache_folder)
    settings = scoring.Settings(
        batch_size=options.batch_size, workers=options.workers, max_unreadable=options.max_unreadable
    )
    now.begin(f"{len(data.sets)} sets", data.notes)
    outcome = scoring.score(now.encoders, data.sets, data.triplets, cache, settings, now.ranks, now.say)
    for note in cache.notes:
        now.say(f"note: {note}")
    if data.alignment is not None:
        assert options.alignment is not None
        alignment.evaluate(now, data.alignment, Cache(options.cache_beside(options.alignment)))
    if data.downstream is not None:
        downstream.evaluate(now, data.downstream)
    if now.ranks.rank:
        return
    outcome.seconds["all"] = time.perf_counter() - data.started
    contents = results.write(now.out, outcome, now.about(prompts=options.prompts))  # last: it vouches for all
    if 0 < len(contents["missing"]) < len(catalog.PAPER):
        now.say(f"of the paper's sets not evaluated: {', '.join(contents['missing'])}")
    now.say(f"{now.out / results.RESULTS} ({outcome.seconds['all']:.1f} s)")


def evaluate_alone(options: Evaluate, checkpoint: str, out: Path) -> None:
    """Data and checkpoint in one call, for a job of its own."""
    evaluate(read_data(options), checkpoint, out)
