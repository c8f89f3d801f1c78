"""Evaluated runs of whole studies, as files alone: no images, no model, figures as the test wants them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eval.results import PREDICTIONS, RESULTS, SCHEMA
from eval.sets import catalog
from eval.sets.catalog import CLASSIFICATION_TASK, Entry
from eval.study.findings.finished import ArmRuns

IMAGES, CAPTIONS, ANSWERS = 12, 2, 10  # of a retrieval set; of each image; answers kept
SETS = ("imagenet1k", "imagenet-a", "vtab/dtd", "vtab/pcam", "cifar10", "mscoco_captions")
_RECALLS = [f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)]

Level = Callable[[int, float], float]  # (seed, share of training) → top-1 of a set with no bonus


def run(
    folder: Path,
    seed: int,
    level: Level,
    sets: Sequence[str] = SETS,
    steps: Sequence[int] = (10, 20, 40, 80),
    texts: int = 1,
    triplets: bool = True,
    edit: Callable[[dict], object] = lambda data: None,
) -> Path:
    """A run's folder with an evaluation of each step.

    texts: how many times as many class names and captions as a small set has.  edit: of each results.json.
    """
    entries = [catalog.entry_for(key, (catalog.find(key) or Entry(key, key, "Other")).task) for key in sets]
    recipe = {"seed": seed, "model": "tiny", "optim": {"lr": 0.1}, "run": str(folder)}
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    for step in steps:
        base = level(seed, step / steps[-1])
        data = {
            "schema": SCHEMA,
            "checkpoint": {"model": "tiny", "source": "x", "step": step, "samples": 100 * step},
            "recipe": recipe,
            "settings": {"device": "cpu"},
            "versions": {},
            "headline": {},
            "datasets": {e.key: _record(e, base + 0.01 * i, texts) for i, e in enumerate(entries)},
            "triplets": _triplets(base) if triplets else None,
            "missing": [],
        }
        edit(data)
        place = folder / "eval" / f"step-{step:06d}"
        place.mkdir(parents=True)
        (place / RESULTS).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    for entry in entries:  # of the last one: what the page shows of single queries
        if entry.task != CLASSIFICATION_TASK:
            (place / PREDICTIONS).mkdir(exist_ok=True)
            np.savez(place / PREDICTIONS / f"{entry.folder}.npz", **_answers(seed, base))
    return folder


def _record(entry: Entry, value: float, texts: int) -> dict:
    record = {
        "name": entry.name, "family": entry.family, "task": entry.task, "near_chance": entry.near_chance,
        "samples": 100, "main_metric": entry.main_metric, "source": "made", "path": "/nowhere",
        "predictions": f"{PREDICTIONS}/{entry.folder}.npz", "crops": None,
    }  # fmt: skip
    if entry.task == CLASSIFICATION_TASK:
        metrics = {"acc1": value, "mean_per_class_recall": value - 0.01}
        metrics |= {"acc5": min(1.0, value + 0.2)} if (entry.classes or 10) >= 5 else {}
        names = {"classnames": [f"thing {i}" for i in range(3 * texts)], "templates": ["a {c}"] * 2}
        return record | {"metrics": metrics, "classes": 3 * texts, "prompts": "made", **names}
    metrics = {name: min(1.0, value + 0.02 * i) for i, name in enumerate(_RECALLS)}
    metrics |= {"text_retrieval_median_rank": 1 / value, "image_retrieval_median_rank": 1 / value}
    captions = [[f"caption {j} of {i}: ünd <b> ] [" for j in range(CAPTIONS)] for i in range(IMAGES * texts)]
    return record | {"metrics": metrics, "captions": captions}


def _triplets(value: float) -> dict:
    metrics = {"twoafc": value, "twoafc_soft": value, "ceiling": 1.0, "triplets": 50}
    return {"path": "/nowhere", "votes": "human", "source": "made", "notes": [], "metrics": metrics,
            "predictions": f"{PREDICTIONS}/triplets.npz", "crops": None}  # fmt: skip


def _answers(seed: int, value: float) -> dict[str, np.ndarray]:
    """Of IMAGES images with CAPTIONS captions: the right answer first in a share `value` of the queries."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(IMAGES), CAPTIONS)
    out = {"index": np.arange(IMAGES), "owner": owner}
    for way, queries, candidates in (("i2t", IMAGES, len(owner)), ("t2i", len(owner), IMAGES)):
        right = np.arange(IMAGES) * CAPTIONS if way == "i2t" else owner
        order = rng.permuted(np.tile(np.arange(candidates), (queries, 1)), axis=1)
        at = np.where(rng.random(queries) < value, 0, rng.integers(0, candidates, queries))
        rows, was = np.arange(queries), np.argmax(order == right[:, None], 1)
        order[rows, was], order[rows, at] = order[rows, at], right
        scores = np.sort(rng.random((queries, ANSWERS)), 1)[:, ::-1].astype(np.float32)
        first = {"first": np.minimum(at, ANSWERS), "rank": at}
        out |= {
            f"{way}_{name}": v for name, v in {"top": order[:, :ANSWERS], "scores": scores, **first}.items()
        }
    return out


def arm(root: Path, label: str, seeds: Sequence[int], level: Level, role: str = "", **plan) -> ArmRuns:
    """An arm with a run for each seed; plan: further fields of ArmRuns, and `made`: arguments of `run`."""
    made = plan.pop("made", {})
    place = root / f"{plan.get('group', '')}-{label}".replace(" ", "-")
    runs = [run(place / str(seed), seed, level, **made) for seed in seeds]
    return ArmRuns(label=label, runs=runs, role=role, **plan)


def steady(value: float, spread: float = 0.01, luck: int = 0) -> Level:
    """Rises with log(training) to `value`; seeds apart by `spread`, half shared by arms of other `luck`."""

    def level(seed: int, share: float) -> float:
        own = np.random.default_rng([seed, luck]).normal()
        shared = np.random.default_rng(seed).normal()
        return float(value + spread * (0.7 * shared + 0.7 * own) + 0.05 * np.log2(share))

    return level
