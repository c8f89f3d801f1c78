"""`python -m pipeline.throughput FILE`: what each part of the loaders costs, beside their peers.

CPU-seconds include child processes, so a loader's figure does not depend on how busy the machine is.
A part that fails is a row that says why.  The last line is one object of JSON.  Measures loaders, not
training (`python -m train.bench` does).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from pipeline.augment import AUGMENTS
from pipeline.base import console, hardware
from pipeline.beton.fields import Beton
from pipeline.order import Order
from pipeline.throughput import report, synthetic
from pipeline.throughput.measuring import first_batch
from pipeline.throughput.parts import PARTS
from pipeline.throughput.racing import race
from pipeline.throughput.settings import Case, Settings

_PACKAGES = (
    "torch", "torchvision", "numpy", "ffcv", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "pillow",
    "simplejpeg", "opencv-python", "albumentationsx", "spdl-io", "torchcodec",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    description = __doc__.split("\n\n")[0]
    return console.command(lambda: run(tyro.cli(Settings, description=description, args=arguments)))


def run(settings: Settings) -> None:
    """Measure; print the tables and the line of JSON.  Failed if nothing could be measured."""
    # Made-up files are gigabytes: they must be removed before it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = measure(settings)
    rows = found["parts"]
    print(
        f"{settings.file or 'made-up photographs'}: {found['samples']:,} samples of "
        f"{found['megapixels']:.3f} megapixels, {settings.augment} augmentation, {settings.image_size} px"
    )
    print(report.table(rows))
    for line in report.ratio_lines(found["ratios"]):
        print(line)
    for row in rows:
        if row["part"] == "ffcv" and "failed" not in row and row["workers"] == min(settings.worker_counts()):
            rate = row["images_per_cpu_s"]
            print(f"how many of these cores a node of GPUs takes: python -m train.plan … --decode {rate:.0f}")
    if settings.plot:
        report.plot(rows, settings.plot)
    failed = list(dict.fromkeys(row["part"] for row in rows if "failed" in row))
    if failed:
        print(f"not measured, the rows say why: {', '.join(failed)}")
    print(json.dumps(found))
    if all("failed" in row for row in rows):
        raise console.Failed("none of these parts could be measured")


def measure(settings: Settings) -> dict[str, Any]:
    """The object of JSON: rows ("parts"), ratios, seconds to the first batch, machine and versions.

    A part that fails is a row with "failed".  Raises ValueError for what cannot be measured at all.
    """
    settings.check()
    names = _chosen(settings.parts)
    with _files(settings) as (path, large):
        file = Beton(path)
        if file.kind != "pairs":
            raise ValueError(f"{path}: throughput measures files of pairs, this one has {file.kind}")
        pixels = _mean_pixels(file)
        rows = []
        for cases in _groups(settings, names, path):
            print(f"measuring {', '.join(case.part for case in cases)} …", file=sys.stderr, flush=True)
            rows += [report.row(c, r, pixels) for c, r in zip(cases, race(cases, settings.rounds))]
        rows += [report.row(case, {"failed": "needs a CUDA GPU"}, pixels) for case in _idle(settings, names)]
        files = {"first_batch_s": path} | ({"first_batch_simulated_s": large} if large else {})
        started = _first_batches(settings, files) if "ffcv" in names else {}
        count = len(file)
    return {
        "samples": count, "megapixels": pixels / 1e6, "augment": settings.augment,
        "image_size": settings.image_size, "rounds": settings.rounds, "turn_s": settings.seconds,
        "ratios": report.ratios(rows), **started, "machine": _machine(),
        "versions": hardware.versions(_PACKAGES), "parts": rows,
    }  # fmt: skip


def _chosen(parts: Sequence[str]) -> list[str]:
    """The parts that were asked for; by default those that are there for it and that this machine can run."""
    gpu = torch.cuda.is_available()
    possible = [name for name, part in PARTS.items() if gpu or not part.gpu]
    if parts == ("all",):
        return possible
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}, or all")
    return list(dict.fromkeys(parts)) or [name for name in possible if not PARTS[name].named_only]


def _groups(settings: Settings, names: Sequence[str], file: Path) -> Iterator[list[Case]]:
    """The cases that take turns: those of one number of workers, and those of the GPU."""
    cpu = [name for name in names if not PARTS[name].gpu]
    counts = settings.worker_counts()
    for workers in counts:
        chosen = [name for name in cpu if PARTS[name].threads or workers == counts[0]]
        if chosen:
            yield [_case(settings, name, file, workers) for name in chosen]
    gpu = [name for name in names if PARTS[name].gpu]
    if gpu and torch.cuda.is_available():
        yield [_case(settings, name, file, settings.gpu_workers) for name in gpu]


def _idle(settings: Settings, names: Sequence[str]) -> list[Case]:
    """The parts that need a GPU, where there is none."""
    if torch.cuda.is_available():
        return []
    return [_case(settings, n, Path(), settings.gpu_workers) for n in names if PARTS[n].gpu]


def _case(settings: Settings, name: str, file: Path, workers: int) -> Case:
    """A part as it is measured: with the batch of its device, and one worker if it has no use for more."""
    return Case(
        part=name, file=file, workers=workers if PARTS[name].threads else 1,
        batch_size=settings.gpu_batch if PARTS[name].gpu else settings.batch_size,
        image_size=settings.image_size, augment=AUGMENTS[settings.augment], seconds=settings.seconds,
        cold=settings.cold,
    )  # fmt: skip


def _mean_pixels(file: Beton) -> float:
    """Pixels of an image on average, over at most 100,000 samples spread over the file."""
    some = np.unique(np.linspace(0, len(file) - 1, min(len(file), 100_000)).astype(np.int64))
    return float(file.rows(some).sizes("image").prod(1).mean())


def _first_batches(settings: Settings, files: dict[str, Path]) -> dict[str, Any]:
    """name → seconds to the FFCV engine's first batch from that file, or why there is none."""
    found: dict[str, Any] = {}
    for name, file in files.items():
        try:
            found[name] = first_batch(_case(settings, "ffcv", file, settings.worker_counts()[0]))
        except (OSError, subprocess.CalledProcessError) as error:
            found[f"{name}_failed"] = str(error)
    return found


def _machine() -> dict[str, Any]:
    """Name and usable cores of the processor, and the GPU's name if there is one."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in about if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu[0] if cpu else "unknown", "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


@contextmanager
def _files(settings: Settings) -> Iterator[tuple[Path, Path | None]]:
    """(the file to measure on, the simulated large one or None); made-up ones are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        file, large = settings.file or Path(folder) / "synthetic.beton", None
        jpegs = synthetic.photographs(32) if settings.synthetic or settings.simulate else []
        if settings.synthetic:
            synthetic.write(file, jpegs, settings.synthetic)
        if settings.simulate:
            large = Path(folder) / "large.beton"
            begin = np.arange(min(8 * settings.batch_size, settings.simulate))
            filled = Order().locate(1, settings.simulate, begin)[1]
            synthetic.write(large, jpegs, settings.simulate, filled=filled)
        yield file, large
