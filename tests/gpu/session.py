#!/usr/bin/env python3
"""What a card says of this project, in one call: `python tests/gpu/session.py [--toy] [--out DIR] [SECTION …]`.

Each section is a process of its own with a time limit, so that a crash or a hang costs one section. A line of
JSON a section goes to DIR/card.jsonl as it ends, a table is printed last. First of all everything that only
compiles runs side by side (the `warm` sections), so that the timed ones find their kernels in the caches.
`--toy` runs all of it at toy size, also on a CPU, to see that the script itself works: its figures mean nothing.

    python tests/gpu/session.py --toy                 # before a card is there
    CARD_SECONDS=430 python tests/gpu/session.py      # on the card
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = Path(os.environ.get("CARD_SCRATCH", "/tmp/card"))

# Section → its limit in seconds, in the order of what is worth most if the time ends.
WARM = {
    "tests_kernels": 170, "warm_step_compiled": 170, "warm_step_sdpa": 170, "warm_step_halves": 170,
    "warm_peer_open_clip_compiled": 170, "warm_peer_main_step": 170, "warm_loader": 120,
}  # fmt: skip
TIMED = {
    "limits": 60, "step_compiled": 110, "step_sdpa": 90, "step_eager": 60, "dali_whole": 50, "dali_engine": 60,
    "infonce": 60, "attention": 60, "loader_ffcv": 40, "together_ffcv": 60, "jpeg_torchvision": 40,
    "tests_dali": 100, "peer_open_clip": 45, "peer_open_clip_compiled": 90, "peer_main_step": 100,
    "step_halves": 100, "triplet": 40, "dali_roi": 40, "nccl_one_rank": 50, "resume": 90, "demo": 120,
    "step_none": 90, "limits_again": 30,
}  # fmt: skip


def run_section(name: str, arguments: argparse.Namespace, limit: float) -> dict:
    """The section's result, or how it failed, with its seconds."""
    command = [sys.executable, __file__, "--one", name, "--out", str(arguments.out)]
    started = time.time()
    try:
        done = subprocess.run(
            [*command, *(["--toy"] if arguments.toy else [])],
            capture_output=True, text=True, timeout=limit * (5 if arguments.toy else 1), cwd=ROOT,
            env=environment(name),
        )  # fmt: skip
        said = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        ended = {"failed": f"ended with {done.returncode}: {done.stderr[-1500:]}"}
        result = json.loads(said[-1][7:]) if said else ended
        (SCRATCH / f"{name}.err").write_text(done.stderr[-100_000:])
    except subprocess.TimeoutExpired:
        result = {"failed": f"no answer in {limit:.0f} s"}
    row = {"section": name, "seconds": round(time.time() - started, 1), **result}
    with open(arguments.out / "card.jsonl", "a") as file:
        file.write(json.dumps(row, default=str) + "\n")
    print(f"{name}: {row['seconds']:.0f} s{' FAILED' if 'failed' in row else ''}", flush=True)
    return row


def environment(name: str) -> dict[str, str]:
    """Shared caches; the kernels' compilers side by side do not take all cores each."""
    return os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(SCRATCH / "inductor"),
        "TRITON_CACHE_DIR": str(SCRATCH / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "3" if name.startswith("warm_") else "8",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def head(arguments: argparse.Namespace) -> dict:
    """Card, versions and commit."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {}
    for name in ("torch", "triton", "torchvision", "open_clip_torch", "nvidia-dali-cuda130", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    smi = "nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader"
    said = subprocess.run(smi.split(), capture_output=True, text=True) if torch.cuda.is_available() else None
    return {
        "section": "head",
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "smi": said.stdout.strip() if said else "",
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "versions": versions,
        "commit": os.environ.get("COMMIT", "unknown"),
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
    SCRATCH.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    unknown = set(arguments.sections) - WARM.keys() - TIMED.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(WARM | TIMED)}")
    if arguments.one:
        return one(arguments.one, arguments.toy)
    deadline = time.time() + float(os.environ.get("CARD_SECONDS", 460))
    row = head(arguments)
    with open(arguments.out / "card.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    wanted = arguments.sections or [*WARM, *TIMED]
    warm = [name for name in wanted if name in WARM]
    with ThreadPoolExecutor(max(1, len(warm))) as pool:
        rows = list(pool.map(lambda name: run_section(name, arguments, WARM[name]), warm))
    for name in (name for name in wanted if name in TIMED):
        left = deadline - time.time()
        if left < 12:
            rows.append({"section": name, "seconds": 0, "failed": "skipped, no time left"})
        else:
            rows.append(run_section(name, arguments, min(TIMED[name], left)))
    for row in rows:
        print(f"== {json.dumps(row, default=str)[:900]}", flush=True)
    return int(any("failed" in row for row in rows))


def one(name: str, toy: bool) -> int:
    """Run a section here and say its result as a line."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    try:
        import session_sections as sections

        sections.TOY, sections.SCRATCH = toy, SCRATCH
        result = sections.run(name)
    except Exception:
        result = {"failed": traceback.format_exc()[-3000:]}
    print("RESULT " + json.dumps(result, default=str))
    return int("failed" in result)


if __name__ == "__main__":
    sys.exit(main())
