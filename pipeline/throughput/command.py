"""`python -m pipeline.throughput FILE`: what each part of the loaders costs, beside their peers.

CPU-seconds include child processes, so a loader's figure does not depend on how busy the machine is.
The last line is one object of JSON.  Measures loaders, not training (`python -m kernels.bench` does).
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import tyro

from pipeline.base import console
from pipeline.beton.fields import Beton
from pipeline.order import Order
from pipeline.throughput import synthetic
from pipeline.throughput.measuring import first_batch, run_part
from pipeline.throughput.parts import PARTS
from pipeline.throughput.report import plot, ratios, table
from pipeline.throughput.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    description = __doc__.split("\n\n")[0]
    return console.command(lambda: run(tyro.cli(Settings, description=description, args=arguments)))


def run(settings: Settings) -> None:
    """Measure, print the table and the line of JSON."""
    # Made-up files are gigabytes: they must be removed before it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings.check()
    names = _chosen(settings.parts)
    with _files(settings) as (path, large):
        file = Beton(path)
        if file.kind != "pairs":
            raise ValueError(f"{path}: throughput measures files of pairs, this one has {file.kind}")
        results = {}
        for name in names:
            print(f"measuring {PARTS[name].title} …", file=sys.stderr, flush=True)
            results[name] = run_part(name, dataclasses.replace(settings, file=path))
        first_batch(path, settings)  # compiles where nothing did yet
        start_up = {"first_batch_s": first_batch(path, settings)}
        if large:
            start_up["first_batch_simulated_s"] = first_batch(large, settings)
        count = len(file)
    print(
        f"{settings.file or 'made-up photographs'}: {count:,} samples, {settings.augment} augmentation, "
        f"{settings.image_size} px, batches of {settings.batch_size}, {settings.workers} workers"
    )
    print(table(results))
    if "ffcv" in results:
        rate = results["ffcv"]["images_per_cpu_s"]
        print(f"how many of these cores a node of GPUs takes: python -m train.plan … --decode {rate:.0f}")
    if settings.plot:
        plot(results, settings.plot)
    print(json.dumps({"samples": count, "augment": settings.augment, "workers": settings.workers,
                      "ratios": ratios(results), **start_up, "parts": results}))  # fmt: skip


def _chosen(parts: Sequence[str]) -> list[str]:
    """The parts that were asked for (all if none were) and that this machine can run."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    gpu = torch.cuda.is_available()
    return [name for name in parts or PARTS if gpu or not PARTS[name].gpu]


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
