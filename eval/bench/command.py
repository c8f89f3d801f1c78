"""Time against clip-benchmark 1.6.2: the same webdataset folders, the same weights, the same threads.

    python -m eval.bench --data data/demo/eval --model demo-RN --model-configs train/model_configs

Whole commands are timed, process start included, fp32 on both sides.  Sets that are not in clip-benchmark's
form are first written in it, for both.  Cold: an empty cache.  Warm: the same command again, as for a new
statistic; clip-benchmark keeps nothing, so it has no warm time.  Both sides must give the same figures, else
the times mean nothing (`different_figures` is then not empty).  CPU seconds stand beside wall seconds, since
other work on the machine stretches only the latter.  The floor of the cold run is decoding every image and
passing images and texts once through the model (`floor_s`, measured inside it); the rest is start-up.  Ends
in a line of JSON.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval import oracle
from eval.results import Evaluation
from eval.sets import prompts, sources
from eval.sets.catalog import CLASSIFICATION_TASK, RETRIEVAL_TASK
from eval.sets.evalset import EvalSet
from pipeline.base import console, files
from pipeline.base.measure import stopwatch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time this evaluation against clip-benchmark's on the same folders and weights."""

    data: Path
    """Folder of evaluation sets, in any form `eval.run` reads."""
    model: str
    """An open_clip model name; its weights are random."""
    model_configs: Path | None = None
    """Folder of further open_clip model configurations, where the model is one of them."""
    batch_size: int = 64
    """Images a forward pass, on both sides (clip-benchmark's default)."""
    threads: int = 1
    """OMP threads, on both sides."""
    out: Path | None = None
    """Also write the JSON here."""


def _weights(options: Bench, folder: Path) -> Path:
    """One set of random weights for both sides."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    if options.model_configs:
        open_clip.add_model_config(options.model_configs)
    torch.manual_seed(0)
    model = open_clip.create_model(options.model, pretrained_text=False)
    path = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def export(evalset: EvalSet, folder: Path) -> None:
    """Write a set as clip-benchmark's webdataset folder, images losslessly as PNG."""
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for i in range(len(evalset.images)):
            image = io.BytesIO()
            evalset.images[i].save(image, "png", compress_level=1)
            for ending, data in (("png", image.getvalue()), _target(evalset, i)):
                member = tarfile.TarInfo(f"{i:07d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("1")
    if evalset.prompts is None:
        (folder / "dataset_type.txt").write_text("retrieval")
    else:
        (folder / prompts.CLASSNAMES_FILE).write_text("\n".join(evalset.prompts.classes) + "\n")
        (folder / prompts.TEMPLATES_FILE).write_text("\n".join(evalset.prompts.templates) + "\n")


def _target(evalset: EvalSet, i: int) -> tuple[str, bytes]:
    """(ending, contents) of the member that has image i's label or captions."""
    if evalset.prompts is not None:
        return "cls", str(evalset.labels[i]).encode()
    return "txt", "\n".join(evalset.captions[i]).encode()


def _in_their_form(root: Path, folder: Path) -> Path:
    """A folder of wds_KEY folders: links to those that are, exports of the others."""
    folder.mkdir()
    for evalset in sources.discover(root):
        place = folder / f"wds_{evalset.entry.folder}"
        if evalset.source == "webdataset":
            place.symlink_to(evalset.path.resolve(), target_is_directory=True)
        else:
            export(evalset, place)
    return folder


def _ours(options: Bench, root: Path, weights: Path, cache: Path, out: Path) -> Evaluation:
    command = [
        sys.executable, "-m", "eval.run", "--checkpoint", f"{options.model},{weights}", "--data", str(root),
        "--cache", str(cache), "--out", str(out), "--batch-size", str(options.batch_size), "--workers", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ValueError(f"eval.run failed: {done.stderr.strip()[-500:]}")
    return Evaluation.read(out)


def _theirs(options: Bench, root: Path, weights: Path, sets: dict[str, dict], out: Path) -> dict:
    """clip-benchmark's metrics by set; sets: those of our results."""
    metrics: dict[str, dict[str, float]] = {}
    for task in (CLASSIFICATION_TASK, RETRIEVAL_TASK):
        if names := [key for key, record in sets.items() if record["task"] == task]:
            metrics |= oracle.evaluate(
                root, names, options.model, weights, out, task, options.batch_size, options.model_configs,
                options.threads,
            )  # fmt: skip
    return metrics


def _differences(ours: Evaluation, theirs: dict) -> list[str]:
    out = []
    for key, expected in theirs.items():
        metrics = ours.datasets[key]["metrics"]
        out += [
            f"{key} {name}: {metrics.get(name)} and {value}"
            for name, value in expected.items()
            if value == value and metrics.get(name) != value
        ]
    return out


def run(options: Bench) -> dict:
    """Seconds and ratios.  Raises ValueError where clip-benchmark is not installed or a side fails."""
    if not oracle.installed():
        raise ValueError("clip-benchmark is not installed: python -m eval.oracle installs it")
    if options.model_configs and not options.model_configs.is_dir():
        raise ValueError(f"--model-configs {options.model_configs}: no such folder")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        weights, root = _weights(options, scratch), _in_their_form(options.data, scratch / "sets")
        with stopwatch() as cold:
            first = _ours(options, root, weights, scratch / "cache", scratch / "cold")
        with stopwatch() as warm:
            again = _ours(options, root, weights, scratch / "cache", scratch / "warm")
        with stopwatch() as theirs:
            metrics = _theirs(options, root, weights, again.datasets, scratch / "theirs")
    floor = sum(s for name, s in first.data["seconds"].items() if name != "all")
    ours = {"cold": cold, "warm": warm}
    sides = {"clip_benchmark": theirs} | ours
    return {
        "model": options.model,
        "sets": {k: r["samples"] for k, r in again.datasets.items()},
        "threads": options.threads,
        **{f"{name}_s": round(spent.wall, 2) for name, spent in sides.items()},
        "floor_s": round(floor, 2),
        **{f"{name}_cpu_s": round(spent.cpu, 2) for name, spent in sides.items()},
        **{f"{name}_vs_clip_benchmark": round(s.wall / theirs.wall, 4) for name, s in ours.items()},
        **{f"{name}_vs_clip_benchmark_cpu": round(s.cpu / theirs.cpu, 4) for name, s in ours.items()},
        "different_figures": _differences(again, metrics),
    }


def _run(options: Bench) -> None:
    line = json.dumps(run(options))
    if options.out:
        files.write(options.out, line + "\n")
    print(line)


def main(arguments: list[str] | None = None) -> int:
    return console.command(lambda: _run(tyro.cli(Bench, prog="python -m eval.bench", args=arguments)))
