"""The runs that a report is about, gathered into arms.

An arm is one way of training (perceptual initialization, baseline, …) and holds one run a seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.alignment.results import ALIGNMENT, Alignment
from eval.results import RESULTS, Evaluation
from eval.sets import catalog


@dataclass(frozen=True)
class Run:
    """One training run and its evaluations, oldest checkpoint first; the last one is what tables show."""

    label: str
    folder: Path  # of the training run if it is there, else of the evaluation
    evaluations: list[Evaluation]

    @property
    def final(self) -> Evaluation:
        return self.evaluations[-1]

    @property
    def recipe(self) -> dict:
        """Empty for a model that is no run's."""
        return self.final.data.get("recipe") or {}

    @cached_property
    def log(self) -> list[dict]:
        """The lines of metrics.jsonl that have `samples`; empty when the run's folder is not here."""
        return read_log(self.folder)


def read_log(folder: Path) -> list[dict]:
    """A training run's metrics.jsonl; ValueError names a line that is not JSON."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path}, line {number}: not JSON") from None
    return [r for r in rows if "samples" in r or "step" in r]


def read_run(spec: str) -> Run:
    """`[LABEL=]FOLDER`: a training run that was evaluated, or an evaluation's folder.  Raises ValueError."""
    label, mark, rest = spec.partition("=")
    if not mark or Path(spec).is_dir():  # a folder's own name may have the mark in it
        label, rest = "", spec
    return run_in(Path(rest), label)


def run_in(folder: Path, label: str = "", texts: bool = True) -> Run:
    """What `read_run` reads, of a folder; texts: as for `Evaluation.read`."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    steps = [p for form in ("step-*", "eval/step-*") for p in sorted(folder.glob(form))]
    places = [p for p in steps if p.name.removeprefix("step-").isdecimal()] + [folder / "eval", folder]
    evaluations = [e for p in places if (e := _evaluation(p, texts)) is not None]
    if not evaluations:
        raise ValueError(
            f"{folder}: no {RESULTS} in it or in its eval/; python -m eval.run --checkpoint {folder}"
        )
    # The same checkpoint may have been evaluated twice: the later place wins.
    by_step = {e.data["checkpoint"].get("step", -1): e for e in evaluations}
    home = Path(evaluations[0].data["checkpoint"].get("run", folder))
    home = folder if (folder / "metrics.jsonl").is_file() or not home.is_dir() else home
    return Run(label or folder.name, home, [by_step[s] for s in sorted(by_step)])


def _evaluation(folder: Path, texts: bool) -> Evaluation | None:
    """The evaluation in a folder: without any set where only human similarity was evaluated."""
    if (folder / RESULTS).is_file():
        return Evaluation.read(folder, texts)
    if not (folder / ALIGNMENT).is_file():
        return None
    data = Alignment.read(folder).data
    about = {name: data[name] for name in ("checkpoint", "recipe", "settings", "versions")}
    return Evaluation(
        folder, {**about, "datasets": {}, "triplets": None, "missing": [entry.key for entry in catalog.PAPER]}
    )


@dataclass(frozen=True)
class Arm:
    """Runs of one label, by seed."""

    label: str
    runs: list[Run]

    @property
    def first(self) -> Evaluation:
        """The evaluation of the first seed: what its data, images and settings are taken from."""
        return self.runs[0].final

    def values(self, value: Callable[[Evaluation], float]) -> list[float]:
        return [value(run.final) for run in self.runs]


def arms(specs: Sequence[str]) -> list[Arm]:
    """Runs with the same label are seeds of one arm, by seed; arms in order of first appearance.

    Raises ValueError for one checkpoint given as two seeds.
    """
    by_label: dict[str, list[Run]] = {}
    for spec in specs:
        run = read_run(spec)
        for other in by_label.setdefault(run.label, []):
            weights = [r.final.data["checkpoint"].get("weights") for r in (run, other)]
            if weights[0] is not None and weights[0] == weights[1]:
                raise ValueError(
                    f"{other.final.folder} and {run.final.folder} are one checkpoint, not two seeds of "
                    f"{run.label}; name each once, or label them apart: LABEL=FOLDER"
                )
        by_label[run.label].append(run)
    return [
        Arm(label, sorted(runs, key=lambda run: run.recipe.get("seed", 0)))
        for label, runs in by_label.items()
    ]
