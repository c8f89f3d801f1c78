"""Whole runs: one that is killed and continued, the demo's first steps beside a CPU's, and the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from tests.gpu.sections.common import SCRATCH, TOY, out


def job(run_folder: Path, *arguments: str) -> list[str]:
    """One rank without a launcher in between, so that a signal reaches it."""
    return [sys.executable, "-m", "train.job", "--", *arguments, "--run", str(run_folder)]


def losses(run_folder: Path) -> list[float]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def built(data: Path) -> Path:
    """The demo's data, built there."""
    build = [sys.executable, "dataprep/build_ffcv.py", "demo", "--out", str(data)]
    subprocess.run(build, check=True, capture_output=True)
    return data


def against_cpu() -> dict:
    """The demo's first steps on this device and on the CPU: losses, and how far apart they are at most."""
    data, steps = built(SCRATCH / "demo-cpu"), "10" if TOY else "30"
    given = {"stage1": ("1", "triplets-train.beton"), "stage2": ("2", "pairs-train.beton")}
    rows: dict = {}
    for name, (stage, file) in given.items():
        both = []
        for device, environment in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
            run, flags = SCRATCH / f"{name}-{device}", ["--stage", stage, "--recipe", "demo"]
            flags += ["--data", str(data / file), "--steps", steps, "--warmup-steps", "5", "--log-every", "1"]
            done = subprocess.run(
                job(run, *flags), env=os.environ | environment, capture_output=True, text=True
            )
            if done.returncode:
                return {"failed": f"{name} on {device}: {done.stderr[-1500:]}", **rows}
            both.append(losses(run))
        apart = max(abs(a - b) / b for a, b in zip(*both, strict=True))
        rows[name] = {"gpu": both[0][::5], "cpu": both[1][::5], "apart": apart}
    return rows


def resume() -> dict:
    """Last losses of a run that was killed after a checkpoint and started again, and of one that was not."""
    data = built(SCRATCH / "demo")
    common = ["--stage", "2", "--recipe", "debug", "--data", str(data / "pairs-train.beton")]
    common += ["--steps", "200", "--save-every", "20", "--log-every", "10"]
    whole, killed = SCRATCH / "whole", SCRATCH / "killed"
    subprocess.run(job(whole, *common), check=True, capture_output=True)
    silent = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(job(killed, *common), start_new_session=True, **silent)
    while process.poll() is None and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    time.sleep(1)
    reached = len(losses(killed)) if (killed / "metrics.jsonl").exists() else 0
    done = subprocess.run(job(killed, *common), capture_output=True, text=True)
    a, b = losses(whole), losses(killed)
    row = {"rc": done.returncode, "lines_when_killed": reached, "whole": a[-3:], "killed": b[-3:]}
    return row | {"largest_difference": max(abs(x - y) for x, y in zip(a, b))}


def demo() -> dict:
    """The short demo on this device; its runs come back for a comparison with a CPU's."""
    runs = SCRATCH / "runs"
    command = [sys.executable, "-m", "eval.demo", "--short", "--data", str(SCRATCH / "demo-data")]
    done = subprocess.run([*command, "--out", str(runs)], capture_output=True, text=True)
    short = runs.with_name("runs-short")
    with tarfile.open(out() / "demo.tar.gz", "w:gz") as tar:
        for path in [*short.rglob("metrics.jsonl"), *short.rglob("summary.json"), *short.rglob("log.txt")]:
            tar.add(path, path.relative_to(short))
    row: dict = {"rc": done.returncode, "said": (done.stdout + done.stderr)[-1500:]}
    if (short / "summary.json").exists():
        row["summary"] = json.loads((short / "summary.json").read_text())
        row["losses"] = {stage: losses(short / stage) for stage in ("stage1", "pi", "baseline")}
    return row
