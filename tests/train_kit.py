"""Small splits of random pictures, and running a recipe on them, for the tests of the train room."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dataprep.writer import Jpeg, writing
from pipeline.fields import pairs_schema, triplets_schema

REPOSITORY = Path(__file__).parents[1]
START, END = 49406, 49407


def _picture(rng: np.random.Generator, side: int = 24) -> Jpeg:
    low = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(low).resize((side, side)).save(out, "JPEG", quality=90)
    return Jpeg(out.getvalue(), side, side)


def pairs(path: Path, samples: int = 48, seed: int = 0) -> Path:
    """A split of random pictures with captions of one to five tokens."""
    rng = np.random.default_rng(seed)
    with writing(path, pairs_schema(1), samples) as writer:
        for i in range(samples):
            caption = [START, *rng.integers(300, 400, rng.integers(1, 6)), END]
            tokens = np.zeros((1, 77), np.int32)
            tokens[0, : len(caption)] = caption
            writer.add({"image": _picture(rng), "tokens": tokens, "luma": 128.0, "key": b"p%d" % i})
    return path


def triplets(path: Path, samples: int = 48, seed: int = 0) -> Path:
    """A split of random pictures with random votes."""
    rng = np.random.default_rng(seed)
    with writing(path, triplets_schema(), samples) as writer:
        for i in range(samples):
            images = {name: _picture(rng) for name in ("ref", "left", "right")}
            row = {"vote": float(rng.integers(0, 2)), "votes": 7, "key": b"t%d" % i}
            writer.add({**images, **row, "luma": np.full(3, 128, np.float32)})
    return path


def command(*args: object, module: str = "train.launch") -> list[str]:
    return [sys.executable, "-m", module, *map(str, args)]


def start(*args: object, module: str = "train.launch", **kwargs) -> subprocess.Popen:
    """The launcher as a user starts it, from the repository's folder, in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    return subprocess.Popen(
        command(*args, module=module), cwd=REPOSITORY, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """(exit code, everything it said)."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def launch(*args: object, **kwargs) -> tuple[int, str]:
    return finish(start(*args, **kwargs))
