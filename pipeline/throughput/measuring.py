"""Runs one part of `throughput` in a process of its own and measures it.

A part is warmed up and then measured in some windows of time, of which the best counts: on a machine that
others use too, it is the least disturbed one.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from pipeline.augment import AUGMENTS
from pipeline.base import console
from pipeline.base.measure import Spent, anonymous_memory, disk_bytes, forget, stopwatch
from pipeline.beton.fields import Beton
from pipeline.throughput.parts import PARTS
from pipeline.throughput.settings import Settings

_WARM_UP = 3  # batches
_WINDOWS = 3
_LEAST = 8  # batches in a window, so that those prefetched before and after it weigh little


def run_part(name: str, settings: Settings) -> dict[str, float]:
    """`measure_part` in a new process, threads of numerical libraries held to one each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "pipeline.throughput.measuring"], capture_output=True,
                          input=pickle.dumps((name, settings)), env=environment)  # fmt: skip
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"part {name} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_part(name: str, settings: Settings) -> dict[str, float]:
    """One part in this process: best window's images/s and images/CPU-s, first batch, memory, disk."""
    assert settings.file is not None  # `run` sets it
    if settings.cold:
        forget(settings.file)
    start, part, file = time.perf_counter(), PARTS[name], Beton(settings.file)
    iterator = part.make(file, settings, AUGMENTS[settings.augment])
    with closing(iterator):
        next(iterator)
        first = time.perf_counter() - start
        for _ in range(_WARM_UP):
            next(iterator)
        before = disk_bytes()
        windows = [_window(iterator, settings, part.gpu) for _ in range(_WINDOWS)]
        return {
            "images_per_s": max(images / spent.wall for images, spent in windows),
            "images_per_cpu_s": max(images / max(spent.cpu, 1e-9) for images, spent in windows),
            "first_batch_s": first,
            "memory_mb": anonymous_memory() / 2**20,
            "disk_kb_per_image": (disk_bytes() - before) / 1000 / sum(images for images, _ in windows),
        }


def _window(iterator: Iterator, settings: Settings, gpu: bool) -> tuple[int, Spent]:
    """(images, what they took) of one window."""
    images, start = 0, time.perf_counter()
    with stopwatch() as spent:
        while time.perf_counter() - start < settings.seconds or images < _LEAST * settings.batch_size:
            next(iterator)
            images += settings.batch_size
        if gpu:
            torch.cuda.synchronize()
    return images, spent


def first_batch(file: Path, settings: Settings) -> float:
    """Seconds from the start of Python to the first batch of the FFCV engine, compiled code cached."""
    code = (
        "from pipeline.augment import AUGMENTS\nfrom pipeline.ffcv_loader import FFCVLoader\n"
        f"with FFCVLoader({str(file)!r}, batch_size={settings.batch_size}, seed=1,\n"
        f"                image_size={settings.image_size}, augment=AUGMENTS[{settings.augment!r}],\n"
        f"                workers={settings.workers}) as loader:\n"
        "    assert next(iter(loader)).valid.all()\n"
    )
    with stopwatch() as spent:
        subprocess.run([sys.executable, "-c", code], check=True)
    return spent.wall


if __name__ == "__main__":
    sys.exit(console.command(lambda: print(json.dumps(measure_part(*pickle.load(sys.stdin.buffer))))))
