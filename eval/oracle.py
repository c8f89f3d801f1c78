"""clip-benchmark 1.6.2, the field's reference: the oracle of the parity tests and the benchmark's peer.

It raises TypeError with numpy ≥ 2.4, which this project uses.  So it is installed without dependencies, with
an older numpy, into a folder that only subprocesses see; they use this environment's torch and open_clip.
Nothing that evaluates imports it.

    python -m eval.oracle        install it (about 140 MB), once
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from pipeline.base import console

VERSION = "1.6.2"
PACKAGES = (
    f"clip-benchmark=={VERSION}", "webdataset", "braceexpand", "numpy<2.4", "scikit-learn", "joblib",
    "threadpoolctl", "narwhals", "requests", "urllib3", "idna", "certifi", "charset-normalizer",
)  # fmt: skip

# Its command line, with model configurations of a folder added.  Captioning, which is not used, would
# import a 100 MB package of Java scorers.
_COMMAND = """
import sys, types, open_clip
sys.modules["clip_benchmark.metrics.captioning"] = types.ModuleType("captioning")
if sys.argv[1]:
    open_clip.add_model_config(sys.argv[1])
sys.argv = ["clip_benchmark", *sys.argv[2:]]
from clip_benchmark.cli import main
main()
"""


def folder() -> Path:
    """PI_ORACLE, or a folder inside this virtual environment."""
    return Path(os.environ.get("PI_ORACLE") or Path(sys.prefix) / "share" / f"clip-benchmark-{VERSION}")


def installed() -> bool:
    return (folder() / "complete").is_file()


def install() -> Path:
    """Install clip-benchmark unless it is there; OSError with pip's last line when that fails."""
    if installed():
        return folder()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder())]
    done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"clip-benchmark {VERSION} could not be installed into {folder()}: {last}")
    (folder() / "complete").write_text(VERSION)
    return folder()


def run(arguments: Sequence[str], model_configs: Path | None = None, threads: int = 1) -> None:
    """Run its command line in a process of its own; raises RuntimeError with the end of its output."""
    environment = {**os.environ, "PYTHONPATH": str(folder()), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _COMMAND, str(model_configs or ""), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"clip_benchmark {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


def evaluate(
    root: Path,
    keys: Sequence[str],
    model: str,
    weights: Path,
    out: Path,
    task: str,
    batch_size: int = 64,
    model_configs: Path | None = None,
    threads: int = 1,
) -> dict[str, dict[str, float]]:
    """{key: metrics} of the webdataset folders ROOT/wds_KEY, in fp32, by `clip_benchmark eval`."""
    out.mkdir(parents=True, exist_ok=True)
    run(
        ["eval", "--model", model, "--pretrained", str(weights), "--task", task, "--no_amp",
         "--dataset", *(f"wds/{k}" for k in keys), "--dataset_root", f"{root}/wds_{{dataset_cleaned}}",
         "--batch_size", str(batch_size), "--num_workers", "1", "--recall_k", "1", "5", "10",
         "--output", f"{out}/{{dataset}}_{{task}}.json"],
        model_configs, threads,
    )  # fmt: skip
    files = {k: out / f"{k.replace('/', '_')}_{task}.json" for k in keys}
    return {k: json.loads(f.read_text())["metrics"] for k, f in files.items()}


def main(arguments: list[str] | None = None) -> int:
    return console.command(lambda: print(tyro.cli(install, prog="python -m eval.oracle", args=arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
