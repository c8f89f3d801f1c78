"""Small splits of random images, and running a recipe on them, for the tests of the train room."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.beton.fields import pairs_schema, triplets_schema
from pipeline.beton.writer import Jpeg, writing
from train import recipes

REPOSITORY = Path(__file__).parents[2]
START, END = 49406, 49407


def _picture(rng: np.random.Generator, side: int = 24) -> Jpeg:
    low = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(low).resize((side, side)).save(out, "JPEG", quality=90)
    return Jpeg(out.getvalue(), side, side)


def pairs(path: Path, samples: int = 48, seed: int = 0) -> Path:
    """A split of random images with captions of one to five tokens."""
    rng = np.random.default_rng(seed)
    with writing(path, pairs_schema(1), samples) as writer:
        for i in range(samples):
            caption = [START, *rng.integers(300, 400, rng.integers(1, 6)), END]
            tokens = np.zeros((1, 77), np.int32)
            tokens[0, : len(caption)] = caption
            writer.add({"image": _picture(rng), "tokens": tokens, "luma": 128.0, "key": b"p%d" % i})
    return path


def triplets(path: Path, samples: int = 48, seed: int = 0) -> Path:
    """A split of random images with random votes."""
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


def finish(process: subprocess.Popen, timeout: float = 500) -> tuple[int, str]:
    """(exit code, its whole output)."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def launch(*args: object, **kwargs) -> tuple[int, str]:
    return finish(start(*args, **kwargs))


def fork_server() -> str:
    """The start method for processes that find torch, open_clip and the train room imported already."""
    multiprocessing.set_forkserver_preload(["open_clip", "train.loop", "tests.kits.train"])
    return "forkserver"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Asked:
    """Stands for `train.cluster.signals.Stop`: asks for `what` once `after` steps were taken."""

    def __init__(self, after: int = 1 << 60, what: int = 1):
        self.left, self.what = after, what

    @property
    def asked(self) -> int:
        self.left -= 1
        return self.what if self.left <= 0 else 0


def train(recipe, stop: Asked | None = None):
    """Run a recipe in this process, alone; its `Outcome`."""
    import torch

    from train import loop
    from train.distributed import World

    # Another test may have left more: sums split over other threads round otherwise.
    torch.set_num_threads(1)
    return loop.train(recipe, World(), stop or Asked())


def debug(stage: int, data: Path, run: Path, **changes):
    """The debug recipe of a stage; changes reach the groups they belong to (lr=…, save_every=…)."""
    recipe = recipes.RECIPES[stage]["debug"]
    groups = {}
    for group in ("data", "optim", "compute", "saving"):
        names = {f.name for f in fields(getattr(recipe, group))}
        own = {k: changes.pop(k) for k in list(changes) if k in names}
        groups[group] = replace(getattr(recipe, group), **own)
    groups["data"] = replace(groups["data"], data=data)
    groups["saving"] = replace(groups["saving"], tensorboard=False)
    return replace(recipe, run=run, **groups, **changes)


def step_of(run: Path) -> int:
    """The last step in a run's metrics, as far as they can be read; 0 if there is none."""
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def tensors(run: Path) -> dict:
    """Weights and optimizer state of a run's newest checkpoint."""
    from train import checkpoint

    folder = checkpoint.find(run)
    return checkpoint.weights(folder) | checkpoint.moments(folder)


def assert_same(left: dict, right: dict) -> None:
    """Bit-equality of two sets of tensors; names the first difference."""
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].equal(right[name]), name
