#!/usr/bin/env python3
"""What a card says of this project: `python tests/gpu/session.py [--toy] [--out DIR] [SECTION …]`.

Each section is a process of its own with a time limit, so that a crash or a hang costs one section. Sections
start side by side, since most of their time is imports and compilation. A timed section waits until every
check has ended and runs alone. Each section adds a line of JSON to DIR/card.jsonl; all are printed last. With
`--toy` everything runs at toy size, also on a CPU, to see that the kit works; its figures mean nothing.

    python tests/gpu/session.py --toy                 # before a card is there
    CARD_SECONDS=430 python tests/gpu/session.py      # on the card

Needs, beside torch and triton, what the sections import; the session itself needs the standard library alone.

OPEN_CLIP_MAIN names the folder of open_clip's next version (its `src`), CARD_PYTEST more arguments for the
tests ("-k contrastive"), COMMIT what is measured where there is no git.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.base import hardware, machine  # noqa: E402 (ours, by its path)

SCRATCH = Path(os.environ.get("CARD_SCRATCH", "/tmp/card"))
TOGETHER = 8  # processes at a time

# Not timed: they start first, and what is timed waits for them.
CHECKS = (
    *("tests_kernels", "tests_training", "tests_dali", "tests_launching"),
    *("resume", "against_cpu", "photographs"),
)
# Timed, the most valuable first in case the time runs out.
TIMED = (
    *("limits", "tests_alone", "step_auto", "step_gelu", "step_gelu_expandable", "step_compiled"),
    *("step_none", "step_sdpa", "step_eager", "step_halves", "step_max"),
    *("dali_engine", "together_dali", "together_dali_apart", "together_ffcv"),
    *("peer_main_step", "peer_open_clip_compiled", "peer_open_clip"),
    *("step_stage1", "step_rn50", "step_vit_l_14"),
    *("infonce", "attention", "triplet", "tune", "dali_whole", "loader_ffcv", "jpeg_torchvision", "dali_roi"),
    *("compile_cache", "limits_again", "demo"),
)


class Turns:
    """One timed section at a time, once no check runs; of those that wait, the first in `TIMED`."""

    def __init__(self, checks: int):
        self.checks, self.running = checks, False
        self.waiting: list[str] = []
        self.changed = threading.Condition()

    def check_ended(self) -> None:
        with self.changed:
            self.checks -= 1
            self.changed.notify_all()

    def acquire(self, name: str) -> None:
        with self.changed:
            self.waiting.append(name)
            self.changed.wait_for(
                lambda: not (self.checks or self.running) and min(self.waiting, key=TIMED.index) == name
            )
            self.waiting.remove(name)
            self.running = True

    def release(self) -> None:
        with self.changed:
            self.running = False
            self.changed.notify_all()


def run_section(name: str, arguments: argparse.Namespace, deadline: float, turns: Turns) -> dict:
    """The section's result, or how it failed, with its seconds."""
    command = [sys.executable, __file__, "--one", name, "--out", str(arguments.out)]
    command += ["--toy"] if arguments.toy else []
    started, has_turn, result, said = time.time(), False, None, ""
    with open(SCRATCH / f"{name}.err", "w+") as errors:
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        process = subprocess.Popen(command, **pipes, cwd=ROOT, env=environment(arguments.out))
        limit = threading.Timer(max(0.0, deadline - time.time()), process.kill)
        limit.start()
        for line in process.stdout:
            if line == "READY\n":
                turns.acquire(name)
                has_turn = True
                with contextlib.suppress(BrokenPipeError):  # its time was up while it waited
                    process.stdin.write("GO\n")
                    process.stdin.flush()
            elif line.startswith("RESULT "):
                result = json.loads(line[7:])
            else:
                said += line
        code = process.wait()
        limit.cancel()
        errors.seek(0)
        result = result or {"failed": f"ended with {code}: {errors.read()[-1500:]}", "said": said[-5000:]}
    if has_turn:
        turns.release()
    if name in CHECKS:
        turns.check_ended()
    row = {"section": name, "seconds": round(time.time() - started, 1), **result}
    with open(arguments.out / "card.jsonl", "a") as file:
        file.write(json.dumps(row, default=str) + "\n")
    print(f"{name}: {row['seconds']:.0f} s{' FAILED' if 'failed' in row else ''}", flush=True)
    return row


def environment(out: Path) -> dict[str, str]:
    """For a section: compilers that run side by side must not take all cores each."""
    return os.environ | {
        "OUT": str(out),
        **({"PI_TOY": "1"} if "--toy" in sys.argv else {}),
        "TORCHINDUCTOR_COMPILE_THREADS": os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", "3"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def head(arguments: argparse.Namespace) -> dict:
    """Card, versions and commit."""
    import torch

    packages = ("torch", "triton", "torchvision", "open_clip_torch", "nvidia-dali-cuda130", "numpy")
    versions = hardware.versions(packages)
    query = "nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader"
    cuda = torch.cuda.is_available()
    return {
        "section": "head",
        "card": torch.cuda.get_device_name() if cuda else "none",
        "smi": subprocess.run(query.split(), capture_output=True, text=True).stdout.strip() if cuda else "",
        "cores": len(os.sched_getaffinity(0)),
        "python": versions.pop("python"),
        "commit": os.environ.get("COMMIT") or versions.pop("git"),
        "versions": versions,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "toy": arguments.toy,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sections", nargs="*", help="all if none is named")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", SCRATCH / "out")))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    unknown = set(arguments.sections) - {*CHECKS, *TIMED}
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join((*CHECKS, *TIMED))}")
    if arguments.one:
        return run_here(arguments.one)
    machine.settle()  # sections share the cores
    deadline = time.time() + float(os.environ.get("CARD_SECONDS", 460))
    row = head(arguments)
    with open(arguments.out / "card.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    names = [name for name in (*CHECKS, *TIMED) if name in (arguments.sections or (*CHECKS, *TIMED))]
    if "peer_main_step" in names and "OPEN_CLIP_MAIN" not in os.environ:
        print("peer_main_step: left out, OPEN_CLIP_MAIN is not set", flush=True)
        names.remove("peer_main_step")
    turns = Turns(sum(name in CHECKS for name in names))
    with ThreadPoolExecutor(TOGETHER) as pool:
        rows = list(pool.map(lambda name: run_section(name, arguments, deadline, turns), names))
    for row in rows:
        print(f"== {json.dumps(row, default=str)[:900]}", flush=True)
    return int(any("failed" in row for row in rows))


def run_here(name: str) -> int:
    """Run a section in this process, and print its result as a line."""
    if name.endswith("_expandable"):  # of the allocator's segments; torch reads it when it is imported
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    try:
        from tests.gpu.sections import card, common, kernels, loaders, runs, steps, tune

        sections = {k: v for m in (card, kernels, loaders, runs, steps, tune) for k, v in vars(m).items()}
        if name not in CHECKS and not name.startswith(("step_", "together_", "peer_", "tune")):
            common.await_turn()  # the others wait themselves, once they have compiled
        result = sections[name]()
    except Exception:
        result = {"failed": traceback.format_exc()[-3000:]}
    print("RESULT " + json.dumps(result, default=str))
    return int("failed" in result)


if __name__ == "__main__":
    sys.exit(main())
