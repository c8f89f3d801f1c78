"""Measures one part of `throughput` in this process, turn by turn; `racing` starts it and asks for turns."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch

from pipeline.base.measure import anonymous_memory, disk_bytes, forget, stopwatch
from pipeline.beton.fields import Beton
from pipeline.throughput.parts import PARTS
from pipeline.throughput.settings import Case

# What installs a package that is no part of this project's own needs.
_INSTALL = {
    "albumentations": "pip install -e '.[bench-agpl]'",
    "spdl": "pip install -e '.[bench-peers]'",
    "torchcodec": "pip install 'torchcodec>=0.16', the version made for this torch",
    "nvidia": "pip install -e '.[dali]'",
}


def turns(case: Case) -> Iterator[dict[str, Any]]:
    """Start the part and warm it up; then the figures of a turn for each `next`.

    images, wall_s, cpu_s: of the turn, children's CPU time included.  batch_s: seconds of each batch.
    first_batch_s: from the start to the first batch.  memory_mb: without children and mapped files.
    gpu_memory_mb: what the GPU's free memory shrank by until the end of the first turn.
    """
    if case.cold:
        forget(case.file)
    part = PARTS[case.part]
    gpu_memory: dict[str, float] = {}
    free = torch.cuda.mem_get_info()[0] if part.gpu else 0
    start = time.perf_counter()
    with closing(part.make(Beton(case.file), case)) as made:
        next(made)
        first = {"first_batch_s": time.perf_counter() - start}
        batches = _one_ahead(made) if part.gpu else made
        for _ in range(_fewest(case)):
            next(batches)
        while True:
            figures = _turn(batches, case)
            if part.gpu and not gpu_memory:
                gpu_memory = {"gpu_memory_mb": (free - torch.cuda.mem_get_info()[0]) / 2**20}
            yield first | figures | gpu_memory


def _fewest(case: Case) -> int:
    """Batches of a warm-up and of the shortest turn: all that a DataLoader's workers prepare ahead."""
    return max(3, 2 * case.workers)


def _one_ahead(batches: Iterator) -> Iterator:
    """Batches of a GPU, each handed out when the one before is there: a launch alone is no batch."""
    before = None
    for batch in batches:
        event = torch.cuda.Event(blocking=True)
        event.record()
        if before is not None:
            before.synchronize()
        before = event
        yield batch


def _turn(batches: Iterator, case: Case) -> dict[str, Any]:
    """The figures of one turn.

    Nothing is left out at its ends: the process is frozen between turns, so what was prepared ahead before
    a turn is as much as is prepared ahead after it.
    """
    seconds: list[float] = []
    disk = disk_bytes()
    with stopwatch() as spent:
        start = end = time.perf_counter()
        while end - start < case.seconds or len(seconds) < _fewest(case):
            next(batches)
            seconds.append((now := time.perf_counter()) - end)
            end = now
    return {
        "images": len(seconds) * case.batch_size,
        "wall_s": spent.wall,
        "cpu_s": spent.cpu,
        "batch_s": seconds,
        "memory_mb": anonymous_memory() / 2**20,
        "disk_bytes": disk_bytes() - disk,
    }


def failure(error: BaseException) -> str:
    """An error in a line of words, with what to install where that is what it lacks."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    package = (getattr(error, "name", None) or "").split(".")[0] if isinstance(error, ImportError) else ""
    return f"not installed ({_INSTALL[package]}): {text}" if package in _INSTALL else text


def main() -> None:
    """Serve: a pickled Case comes in, a turn's JSON goes out; one more for each further line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    try:
        for figures in turns(pickle.load(sys.stdin.buffer)):
            print(json.dumps(figures), file=replies, flush=True)
            if not sys.stdin.buffer.readline():
                return
    except Exception as error:
        print(json.dumps({"failed": failure(error)}), file=replies, flush=True)


def first_batch(case: Case) -> float:
    """Seconds from the start of Python to the first batch of the FFCV engine, compiled code cached."""
    code = (
        "import pickle, sys\nfrom pipeline.ffcv_loader import FFCVLoader\n"
        "case = pickle.load(sys.stdin.buffer)\n"
        "with FFCVLoader(case.file, batch_size=case.batch_size, seed=1, image_size=case.image_size,\n"
        "                augment=case.augment, workers=case.workers) as loader:\n"
        "    assert next(iter(loader)).valid.all()\n"
    )
    with stopwatch() as spent:
        subprocess.run([sys.executable, "-c", code], input=pickle.dumps(case), check=True)
    return spent.wall


if __name__ == "__main__":
    main()
