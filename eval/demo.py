"""`make demo`: the whole job on the embedded data, by the very commands a user would type.

    python -m eval.demo                       build, stage 1, stage 2, baseline, evaluation, report
    python -m eval.demo --nights ~/nights     stage 1 on a user's own NIGHTS folder
    python -m eval.demo --short               a few steps of everything, to see that all of it works here

Each step is a command of this project in a process of its own, printed before it runs.  Each reuses or
continues what is there, so an interrupted demo goes on where it was.  The driver adds one file,
`summary.json` (seconds of every step, headline figures of both runs), and the closing table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.results import RESULTS
from eval.sets import catalog
from pipeline.base import console, files

HEADLINES = (*(name for entry in catalog.DEMONSTRATION for name in entry.headline), "twoafc")
RUNS = {"pi": "PI", "baseline": "Baseline"}  # folder → label in the report


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Compare a perceptually initialised CLIP with a randomly initialised one on the embedded drawings."""

    out: Path = Path("runs/demo")
    """Folder of the runs, the summary and the report (--short adds -short to its name)."""
    data: Path = Path("data/demo")
    """Folder of the built data."""
    nights: Path | None = None
    """A NIGHTS folder (with data.csv) to use in stage 1 instead of the embedded, constructed triplets."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "demo-RN"
    """demo-RN, demo-ViT, or any open_clip model name."""
    engine: Literal["auto", "ffcv", "dali"] = "ffcv"
    """Which loader decodes and augments (auto: python -m train.launch says how it is chosen)."""
    seed: int = 0
    """Of everything: weights, order, draws."""
    short: bool = False
    """A few steps only: shows that everything works here; its figures mean nothing."""


def steps(demo: Demo, out: Path) -> dict[str, list[str]]:
    """Step name → command, in order."""
    launch = ["-m", "train.launch", "--recipe", "demo", "--cluster", "local", "--model", demo.model]
    launch += ["--engine", demo.engine, "--seed", str(demo.seed)]
    if demo.short:
        launch += ["--steps", "4", "--warmup-steps", "1"]
    triplets, commands = demo.data, {"build": ["dataprep/build_ffcv.py", "demo", "--out", str(demo.data)]}
    if demo.nights:
        triplets = demo.data / "nights"
        commands["build nights"] = [
            "dataprep/build_ffcv.py", "nights", "--source", str(demo.nights), "--out", str(triplets),
            "--splits", "train", "test",
        ]  # fmt: skip
    pairs = ["--stage", "2", "--data", str(demo.data / "pairs-train.beton")]
    test = triplets / "triplets-test.beton"
    commands |= {
        "stage1": [*launch, "--stage", "1", "--data", str(triplets / "triplets-train.beton"),
                   "--run", str(out / "stage1")],
        "pi": [*launch, *pairs, "--init", str(out / "stage1"), "--run", str(out / "pi")],
        "baseline": [*launch, *pairs, "--run", str(out / "baseline")],
    }  # fmt: skip
    for run in RUNS:
        commands[f"eval {run}"] = [
            "-m", "eval.run", "--checkpoint", str(out / run), "--data", str(demo.data / "eval"),
            "--triplets", str(test),
        ]  # fmt: skip
    labelled = [f"{label}={out / run}" for run, label in RUNS.items()]
    commands["report"] = ["-m", "eval.report", *labelled, "--out", str(out / "report")]
    return commands


def run_step(name: str, command: list[str]) -> float:
    """Run one command in this Python; its wall-clock seconds.  If it fails, the demo ends with its code."""
    print(f"\n── {name}: python {' '.join(command)}", flush=True)
    started = time.perf_counter()
    code = subprocess.call([sys.executable, *command])
    if code:
        if code != 130:
            print(f"error: the step '{name}' ended with exit code {code}", file=sys.stderr)
        raise SystemExit(code if code > 0 else 1)
    return time.perf_counter() - started


def write_summary(out: Path, seconds: dict[str, float], headlines: dict[str, dict]) -> None:
    """`summary.json`, whole or not at all."""
    missing = [f"{run}: {k}" for run, h in headlines.items() for k in HEADLINES if k not in h]
    assert not missing, f"the evaluation left out {missing}"
    runs = {run: {k: h[k] for k in HEADLINES} for run, h in headlines.items()}
    seconds = {k: round(v, 1) for k, v in seconds.items()}
    files.write(out / "summary.json", json.dumps({"seconds": seconds, "runs": runs}, indent=1))


def print_table(runs: dict[str, dict]) -> None:
    print(f"\n{'held-out drawings, fractions':28}{'PI':>8}{'baseline':>10}{'Δ':>8}")
    for key in HEADLINES:
        pi, baseline = runs["pi"][key], runs["baseline"][key]
        print(f"{key:28}{pi:8.3f}{baseline:10.3f}{pi - baseline:+8.3f}")


def run(demo: Demo) -> None:
    """Run every step; ValueError for a --nights folder without a table."""
    if demo.nights and not (demo.nights / "data.csv").is_file():
        raise ValueError(f"--nights {demo.nights}: no data.csv there; expected NIGHTS' own layout")
    out = demo.out.with_name(demo.out.name + "-short") if demo.short else demo.out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    seconds = {name: run_step(name, command) for name, command in steps(demo, out).items()}
    headlines = {
        folder: json.loads((out / folder / "eval" / RESULTS).read_text())["headline"] for folder in RUNS
    }
    write_summary(out, seconds, headlines)
    print_table(headlines)
    print("twoafc: constructed triplets, no human vote" if not demo.nights else "twoafc: human votes")
    if demo.short:
        print("(--short: a few training steps only; these figures show that it runs, nothing else)")
    print(f"\n{time.perf_counter() - started:.0f} s in all; the report: {out / 'report' / 'index.html'}")


def main(arguments: list[str] | None = None) -> int:
    return console.command(lambda: run(tyro.cli(Demo, prog="python -m eval.demo", args=arguments)))


if __name__ == "__main__":
    sys.exit(main())
