"""One evaluation from its options to its folder of results: read the data, load the model, score, write.

The parts are elsewhere: sets in `eval/sets/`, models in `eval/models.py`, figures in `eval/scoring.py`, files
in `eval/results.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from eval import distributed, models, results, scoring
from eval.assumptions import activation
from eval.cache import Cache
from eval.encode import Encoders
from eval.metrics import perceptual
from eval.metrics.perceptual import Triplets
from eval.models import Loaded
from eval.options import Evaluate
from eval.sets import catalog, sources
from eval.sets.evalset import EvalSet, shown
from eval.sets.prompts import NO_TEMPLATES
from pipeline.base import console, hardware

PACKAGES = ("torch", "open_clip_torch", "numpy", "pillow", "torchvision")  # that figures depend on


# -- the data -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Data:
    """The sets and triplets of the options, read once for any number of checkpoints."""

    options: Evaluate
    sets: list[EvalSet]
    triplets: Triplets | None
    notes: tuple[str, ...]
    started: float  # time.perf_counter() before anything was read


def read_data(options: Evaluate) -> Data:
    """Raises ValueError for data that are missing, damaged, or not what their name says."""
    started = time.perf_counter()
    if options.triplets is not None and not options.triplets.exists():
        raise ValueError(f"--triplets {options.triplets}: no such file or folder")
    notes: list[str] = []
    sets = _read_sets(options, notes.append)
    triplets = None if options.triplets is None else _read_triplets(options.triplets, options.triplet_splits)
    if triplets is not None:
        notes += [f"triplets: {note}" for note in triplets.notes]
    notes += [f"{s.entry.key}: {note}" for s in sets for note in s.notes]
    if general := [s.entry.key for s in sets if s.prompts and NO_TEMPLATES in s.prompts.profile]:
        notes.append(f"ImageNet's 80 templates, since no others are known, for {shown(general)}")
    return Data(options=options, sets=sets, triplets=triplets, notes=tuple(notes), started=started)


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
    device = _device(options.device)
    model = models.load(checkpoint, options.seed)
    out = _out_folder(model, out or options.out)
    ranks = distributed.start(device)
    say = console.say if ranks.rank == 0 else lambda line: None

    encoders = models.encoders_for(model, device, options.precision)
    cache = Cache(options.cache_folder)
    settings = scoring.Settings(
        batch_size=options.batch_size, workers=options.workers, max_unreadable=options.max_unreadable
    )
    name = f"{model.name} ({model.about['pretrained']})"
    say(f"{name}: {len(data.sets)} sets, {device}, {options.precision}")
    if "told_by" in model.about:  # a file beside the weights may be another's
        say(f"weights used as {model.about['told_by']} tells")
    for note in (*model.assumed, *data.notes):
        say(f"note: {note}")
    outcome = scoring.score(encoders, data.sets, data.triplets, cache, settings, ranks, say)
    for note in cache.notes:
        say(f"note: {note}")
    if ranks.rank:
        return
    outcome.seconds["all"] = time.perf_counter() - data.started
    contents = results.write(out, outcome, _about(model, encoders, options, ranks.world_size))
    if 0 < len(contents["missing"]) < len(catalog.PAPER):
        say(f"of the paper's sets not evaluated: {', '.join(contents['missing'])}")
    say(f"{out / results.RESULTS} ({outcome.seconds['all']:.1f} s)")


def evaluate_alone(options: Evaluate, checkpoint: str, out: Path) -> None:
    """Data and checkpoint in one call, for a job of its own."""
    evaluate(read_data(options), checkpoint, out)


def _device(name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if cuda:  # before anything is put there: this rank's card, not the first for all
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        device = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"--device {name}: PyTorch has none of that name here ({reason})") from None
    return device


def _out_folder(model: Loaded, out: Path | None) -> Path:
    """Where the results go.  ValueError where they could not be written once everything is computed."""
    usual = Path("eval-results") / "-".join(dict.fromkeys((model.name, model.about["pretrained"])))
    out = out or (model.run / "eval" if model.run else usual)
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {nearest} is no folder that can be written to")
    return out


def _about(model: Loaded, encoders: Encoders, options: Evaluate, world_size: int) -> dict:
    """What results.json says besides the figures."""
    return {
        "checkpoint": {
            **model.about,
            "weights": encoders.identity,
            "activation": activation(model.model),
            "assumed": model.assumed,
        },
        "recipe": model.recipe,
        "settings": {
            "device": str(encoders.device),
            "precision": options.precision,
            "prompts": options.prompts,
            "batch_size": options.batch_size,
            "ranks": world_size,
            "preprocess": encoders.preprocess.describe(),
        },
        "versions": hardware.versions(PACKAGES),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
