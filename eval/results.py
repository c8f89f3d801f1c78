"""What an evaluation leaves on disk, and reading it back.

    OUT/results.json                   everything, the report's input
    OUT/predictions/KEY.npz            per-sample outcomes, the statistics' input
    OUT/clip_benchmark/*.json          one a set, for `clip_benchmark build`
    OUT/eval_results.jsonl             DataComp's, one line a set
    OUT/results.csv                    open_clip's wide form, one row

Written after everything is computed, each file to a temporary name first.  results.json is removed first
and written last: where it exists, the evaluation is whole.  `samples` of a checkpoint counts the training
samples seen, that of a set its images.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from eval.sets import catalog
from eval.sets.catalog import CLASSIFICATION_TASK, RETRIEVAL_TASK
from pipeline.base import files
from pipeline.base.files import replacing

if TYPE_CHECKING:  # it loads torch
    from eval.scoring import Outcome, SetResult

RESULTS, PREDICTIONS = "results.json", "predictions"
SCHEMA = 1
_NEEDED = ("name", "family", "task", "samples", "metrics", "near_chance", "source", "path", "predictions")


def _set_record(result: SetResult) -> dict:
    evalset, entry = result.evalset, result.evalset.entry
    record = {
        "name": entry.name,
        "family": entry.family,
        "task": entry.task,
        "near_chance": entry.near_chance,
        "samples": len(result.arrays["index"]),
        "main_metric": entry.main_metric,
        "metrics": result.metrics,
        "source": evalset.source,
        "path": str(evalset.path.resolve()),
        "predictions": f"{PREDICTIONS}/{entry.folder}.npz",
        "crops": result.crops,
        "seconds": round(result.seconds, 3),
    }
    if result.unreadable:
        record["unreadable"] = result.unreadable
    if evalset.notes:
        record["notes"] = list(evalset.notes)
    if evalset.prompts is not None:
        record["classes"] = len(evalset.prompts.classes)
        record["classnames"] = list(evalset.prompts.classes)
        record["templates"] = list(evalset.prompts.templates)
        record["prompts"] = evalset.prompts.profile
    else:
        record["captions"] = evalset.captions
    return record


def headline(outcome: Outcome) -> dict[str, float]:
    """The figures that the catalog names for summaries, of the sets that were evaluated."""
    out = {}
    for result in outcome.sets:
        for name, metric in result.evalset.entry.headline.items():
            if metric in result.metrics:
                out[name] = result.metrics[metric]
    if outcome.triplets is not None and "twoafc" in outcome.triplets.metrics:
        out["twoafc"] = outcome.triplets.metrics["twoafc"]
    return out


def _triplet_record(outcome: Outcome) -> dict | None:
    if outcome.triplets is None:
        return None
    result = outcome.triplets
    return {
        "path": str(result.triplets.path.resolve()),
        "votes": result.triplets.voters,
        "source": result.triplets.source,
        "notes": result.triplets.notes,
        "metrics": result.metrics,
        "predictions": f"{PREDICTIONS}/triplets.npz",
        "crops": result.crops,
    }


def _json(path: Path, value: object) -> None:
    files.write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz that appears whole."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # any name, not only allow_pickle


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote; ValueError for a damaged file."""
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error}); evaluate again") from None


# -- the field's own formats ------------------------------------------------------------------


def clip_benchmark_record(result: SetResult, model: str, pretrained: str) -> dict:
    """One set as `clip_benchmark eval` dumps it (acc5 absent where clip-benchmark writes NaN)."""
    names: tuple[str, ...] = ("acc1", "acc5", "mean_per_class_recall")
    if result.evalset.entry.task == RETRIEVAL_TASK:
        names = tuple(m for m in result.metrics if "recall@" in m)
    return {
        "dataset": f"wds/{result.evalset.entry.key}",
        "model": model,
        "pretrained": pretrained,
        "task": result.evalset.entry.task,
        "metrics": {n: result.metrics[n] for n in names if n in result.metrics},
        "language": "en",
    }


def datacomp_record(result: SetResult) -> dict:
    """One line of DataComp's eval_results.jsonl, with its names and its main metric."""
    metrics = dict(clip_benchmark_record(result, "", "")["metrics"])
    if result.evalset.entry.task == RETRIEVAL_TASK:
        recalls = [metrics["image_retrieval_recall@1"], metrics["text_retrieval_recall@1"]]
        metrics["mean_recall@1"] = sum(recalls) / 2
        metrics["main_metric"] = metrics["mean_recall@1"]
    else:
        metrics["main_metric"] = metrics[result.evalset.entry.main_metric]
    key, name = catalog.datacomp(result.evalset.entry)
    return {"key": key, "dataset": name, "metrics": metrics}


def wide_row(outcome: Outcome, model: str, pretrained: str) -> dict[str, str | float]:
    """open_clip's openclip_results.csv: name, pretrained, the mean, then DataComp's main metrics."""
    values, classified = {}, []
    for result in outcome.sets:
        record = datacomp_record(result)
        values[record["dataset"]] = main = record["metrics"]["main_metric"]
        if result.evalset.entry.task == CLASSIFICATION_TASK:
            classified.append(main)
    if classified:
        mean = sum(classified) / len(classified)
        values = {"Average perf. on the classification sets here": mean} | values
    return {"name": model, "pretrained": pretrained} | {k: round(v, 4) for k, v in values.items()}


def _csv_text(row: dict) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    return text.getvalue()


def write(out: Path, outcome: Outcome, about: dict) -> dict:
    """Write every file; returns the contents of results.json.

    about: `checkpoint` (with `model`, `pretrained`), `recipe`, `settings`, `versions`.
    """
    model, pretrained = about["checkpoint"]["model"], about["checkpoint"]["pretrained"]
    slug = pretrained.replace("/", "_")
    (out / RESULTS).unlink(missing_ok=True)  # first: it must not vouch for files that are being replaced
    for old in (*(out / "clip_benchmark").glob("*.json"), *(out / PREDICTIONS).glob("*.npz")):
        old.unlink()  # of an earlier evaluation of another selection
    for result in outcome.sets:
        write_arrays(out / PREDICTIONS / f"{result.evalset.entry.folder}.npz", result.arrays)
        record = clip_benchmark_record(result, model, pretrained)
        key = result.evalset.entry.key.replace("/", "_")
        _json(out / "clip_benchmark" / f"{key}_{slug}_{model}_en_{record['task']}.json", record)
    if outcome.triplets is not None:
        write_arrays(out / PREDICTIONS / "triplets.npz", outcome.triplets.arrays)
    lines = "".join(json.dumps(datacomp_record(r), ensure_ascii=False) + "\n" for r in outcome.sets)
    files.write(out / "eval_results.jsonl", lines)
    files.write(out / "results.csv", _csv_text(wide_row(outcome, model, pretrained)))
    datasets = {r.evalset.entry.key: _set_record(r) for r in outcome.sets}
    contents = {
        "schema": SCHEMA,
        **about,
        "headline": headline(outcome),
        "datasets": datasets,
        "triplets": _triplet_record(outcome),
        "missing": [entry.key for entry in catalog.PAPER if entry.key not in datasets],
        "seconds": {k: round(v, 3) for k, v in outcome.seconds.items()},
    }
    _json(out / RESULTS, contents)
    return contents


# -- reading back -------------------------------------------------------------------------------

_TEXTS = ("classnames", "templates", "captions")  # of a set's record; nearly all of a results.json


def _digest(text: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(text)


def _without_texts(raw: bytes) -> bytes:
    """What `_json` wrote, with a digest in place of every list of _TEXTS; another layout is left as it is.

    These lists end at the only line with three spaces and a bracket: a string holds no line break.
    """
    parts, done = [], 0
    while (colon := raw.find(b'": [\n    ', done)) >= 0:
        start, end = colon + 3, raw.find(b"\n   ]", colon) + 5
        name = raw[raw.rfind(b'"', 0, colon) + 1 : colon].decode()
        if end < start:
            break
        cut = name in _TEXTS
        parts += [
            raw[done:start],
            f'"{xxhash.xxh3_128_hexdigest(raw[start:end])}"'.encode() if cut else raw[start:end],
        ]
        done = end
    return b"".join([*parts, raw[done:]])


def _digested(record: dict) -> dict:
    """A set's record with digests in place of the lists that `_without_texts` did not know."""
    lists = {name: record[name] for name in _TEXTS if isinstance(record.get(name), list)}
    texts = {name: json.dumps([[[value]]], indent=1, ensure_ascii=False) for name, value in lists.items()}
    return record | {name: _digest(text[12:-9].encode()) for name, text in texts.items()}


def _check(data: dict) -> None:
    """KeyError or TypeError for a results.json that lacks what the report needs."""
    for name in ("settings", "versions", "missing"):
        data[name]
    data["checkpoint"]["model"]
    for record in data["datasets"].values():
        for name in _NEEDED:
            record[name]
    if data["triplets"]:
        for name in ("ceiling", "twoafc_soft"):
            data["triplets"]["metrics"][name]


@dataclass(frozen=True)
class Evaluation:
    """One results.json and what lies beside it."""

    folder: Path
    data: dict
    _arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path, texts: bool = True) -> Evaluation:
        """texts: keep class names, templates and captions; else a digest of each, which can be compared.

        Raises ValueError for a file that is not there, not whole, or of another version.
        """
        path = folder / RESULTS
        try:
            raw = path.read_bytes()
            data = json.loads(raw if texts else _without_texts(raw))
        except OSError:
            raise ValueError(f"{path}: not there; python -m eval.run --checkpoint … makes it") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not whole JSON ({error}); evaluate again") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"{path}: of another version of this project; evaluate again")
        try:
            _check(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: of another version of this project, or damaged (no {error}); evaluate again"
            ) from None
        if not texts:
            data["datasets"] = {key: _digested(record) for key, record in data["datasets"].items()}
        return cls(folder, data)

    @property
    def datasets(self) -> dict[str, dict]:
        return self.data["datasets"]

    @property
    def samples(self) -> int | None:
        """Training samples seen by the checkpoint, where the run tells."""
        return self.data["checkpoint"].get("samples")

    def record(self, key: str) -> dict:
        """What results.json holds of a set (or of `triplets`)."""
        return self.data["triplets"] if key == "triplets" else self.datasets[key]

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """Per-sample outcomes of a set (or of `triplets`)."""
        if key not in self._arrays:
            path = self.folder / self.record(key)["predictions"]
            if not path.is_file():
                raise ValueError(f"{path}: missing beside {RESULTS}; evaluate again")
            self._arrays[key] = read_arrays(path)
        return self._arrays[key]
