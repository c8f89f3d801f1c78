"""`python -m pipeline.throughput FILE`: what each part of the loaders costs, beside their peers.

Every part runs in a process of its own, is warmed up, and is then measured in some windows of
time of which the best counts: on a machine that others use, too, the least disturbed one.
CPU-seconds include child processes, so a loader's worth does not depend on how busy the machine is.
The last line is one object of JSON.  Measures loaders, not training (`python -m kernels.bench` does).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from pipeline.augment import AUGMENTS
from pipeline.base import console
from pipeline.base.measure import anonymous_memory, cpu_seconds, disk_bytes, forget
from pipeline.beton.fields import Beton
from pipeline.order import Order
from pipeline.throughput.parts import PARTS, RATIOS

_WARM_UP = 3  # batches
_WINDOWS = 3
_LEAST = 8  # batches in a window, so that those prefetched before and after it weigh little


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A .beton of pairs (dataprep/build_ffcv.py makes one); or none, with --synthetic."""
    synthetic: int = 0
    """Measure on a file of so many made-up photographs instead."""
    augment: str = "paper"
    """Preset of the parts with "full" augmentation."""
    image_size: int = 224
    batch_size: int = 128
    workers: int = 1
    """Threads or processes of each loader."""
    seconds: float = 4.0
    """Length of each of the three windows of a part."""
    parts: tuple[str, ...] = ()
    """Only these parts (all by default)."""
    cold: bool = False
    """Drop the file from memory before each part, so that it comes from the disk, and tell how much does."""
    simulate: int = 0
    """Also time the first batch of a sparse file of so many samples (15,000,000 need 2 GB of disk)."""
    plot: Path | None = None
    """A PNG of the rates."""

    def check(self) -> None:
        """ValueError for what cannot be measured (apart from construction: tyro would frame the line)."""
        if (self.file is None) == (not self.synthetic):
            raise ValueError("name a .beton file, or give --synthetic N for one of made-up photographs")
        if self.augment not in AUGMENTS:
            raise ValueError(f"augment {self.augment!r} is none of {', '.join(AUGMENTS)}")
        if min(self.image_size, self.batch_size, self.workers) < 1 or self.seconds <= 0:
            raise ValueError("image_size, batch_size, workers and seconds must be positive")
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")


# -- measuring ----------------------------------------------------------------------------------


def measure(name: str, settings: Settings) -> dict[str, float]:
    """One part in this process: best window's images/s and images/CPU-s, first batch, memory, disk."""
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
            "images_per_s": max(images / wall for images, wall, _ in windows),
            "images_per_cpu_s": max(images / max(cpu, 1e-9) for images, _, cpu in windows),
            "first_batch_s": first,
            "memory_mb": anonymous_memory() / 2**20,
            "disk_kb_per_image": (disk_bytes() - before) / 1000 / sum(images for images, _, _ in windows),
        }


def _window(iterator: Iterator, settings: Settings, gpu: bool) -> tuple[int, float, float]:
    """(images, wall seconds, CPU seconds) of one window."""
    wall, cpu, images = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - wall < settings.seconds or images < _LEAST * settings.batch_size:
        next(iterator)
        images += settings.batch_size
    if gpu:
        torch.cuda.synchronize()
    return images, time.perf_counter() - wall, cpu_seconds() - cpu


def run_part(name: str, settings: Settings) -> dict[str, float]:
    """`measure` in a new process, threads of numerical libraries held to one each."""
    given = json.dumps({"name": name, "settings": _plain(settings)})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "pipeline.throughput", "--measure", given],
                          capture_output=True, text=True, env=environment)  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"part {name} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _plain(settings: Settings) -> dict:
    plain = dataclasses.asdict(settings) | {"plot": None, "synthetic": 0, "parts": []}
    return plain | {"file": str(settings.file)}


def first_batch(file: Path, settings: Settings) -> float:
    """Seconds from the start of Python to the first batch of the FFCV engine, compiled code cached."""
    code = (
        "from pipeline.augment import AUGMENTS\nfrom pipeline.ffcv_loader import FFCVLoader\n"
        f"with FFCVLoader({str(file)!r}, batch_size={settings.batch_size}, seed=1,\n"
        f"                image_size={settings.image_size}, augment=AUGMENTS[{settings.augment!r}],\n"
        f"                workers={settings.workers}) as loader:\n"
        "    assert next(iter(loader)).valid.all()\n"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


@contextmanager
def _files(settings: Settings) -> Iterator[tuple[Path, Path | None]]:
    """(the file to measure on, the simulated large one or None); made-up ones are removed afterwards."""
    from pipeline.throughput import synthetic

    with tempfile.TemporaryDirectory() as folder:
        file, large = settings.file, None
        jpegs = synthetic.photographs(32) if settings.synthetic or settings.simulate else []
        if settings.synthetic:
            file = Path(folder) / "synthetic.beton"
            synthetic.write(file, jpegs, settings.synthetic)
        if settings.simulate:
            large = Path(folder) / "large.beton"
            begin = np.arange(min(8 * settings.batch_size, settings.simulate))
            filled = Order().locate(1, settings.simulate, begin)[1]
            synthetic.write(large, jpegs, settings.simulate, filled=filled)
        yield file, large


# -- reporting ----------------------------------------------------------------------------------


def table(results: dict[str, dict[str, float]]) -> str:
    columns = f"{'part':<36} {'images/s':>9} {'images/CPU-s':>13} {'CPU ms/image':>13} {'memory MB':>10}"
    lines = [f"{columns} {'disk KB/image':>14}"]
    for name, r in results.items():
        cost = 1000 / r["images_per_cpu_s"]
        lines.append(f"{PARTS[name].title:<36} {r['images_per_s']:>9.0f} {r['images_per_cpu_s']:>13.0f} "
                     f"{cost:>13.3f} {r['memory_mb']:>10.0f} {r['disk_kb_per_image']:>14.1f}")  # fmt: skip
    return "\n".join(lines)


def ratios(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours over the best peer, in images per CPU-second, where both were measured."""
    rate = {name: r["images_per_cpu_s"] for name, r in results.items()}
    return {
        name: rate[ours] / max(rate[p] for p in peers if p in rate)
        for name, (ours, peers) in RATIOS.items()
        if ours in rate and any(p in rate for p in peers)
    }


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = {n: r["images_per_cpu_s"] for n, r in results.items() if n not in ("read", "pack")}
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(bars) + 1.2))
    colours = ["#888888" if n.startswith("peer") else "#1f77b4" for n in bars]
    drawn = axes.barh([PARTS[n].title for n in bars], list(bars.values()), color=colours)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("images per CPU-second (grey: peers)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(settings: Settings) -> dict:
    """Measures, prints the table and the line of JSON, which it returns."""
    settings.check()
    gpu = torch.cuda.is_available()
    names = [n for n in settings.parts or PARTS if gpu or not PARTS[n].gpu]
    with _files(settings) as (path, large):
        file = Beton(path)
        if file.kind != "pairs":
            raise ValueError(f"{path}: throughput measures files of pairs, this one has {file.kind}")
        results = {}
        for name in names:
            print(f"measuring {PARTS[name].title} …", file=sys.stderr, flush=True)
            results[name] = run_part(name, dataclasses.replace(settings, file=path, synthetic=0))
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
    line = {"samples": count, "augment": settings.augment, "workers": settings.workers,
            "ratios": ratios(results), **start_up, "parts": results}  # fmt: skip
    print(json.dumps(line))
    return line


def cli() -> int:
    """The command line; returns the exit code."""
    return console.command(_measure_here if sys.argv[1:2] == ["--measure"] else _run)


def _measure_here() -> None:
    """As a child of `run_part`."""
    given = json.loads(sys.argv[2])
    given["settings"] |= {"file": Path(given["settings"]["file"]), "parts": ()}
    print(json.dumps(measure(given["name"], Settings(**given["settings"]))))


def _run() -> None:
    # Made-up files are gigabytes: to be removed before it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(tyro.cli(Settings, description=__doc__.split("\n\n")[0]))
