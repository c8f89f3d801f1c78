"""That the launcher counts the GPUs that torch will see, and that a local run trains on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.kits import train as kit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

COUNT = "from train.cluster import gpus; import torch; print(gpus.here(), torch.cuda.device_count())"


def environment(visible: str | None) -> dict[str, str]:
    env = {n: v for n, v in os.environ.items() if n != "CUDA_VISIBLE_DEVICES"}
    return env if visible is None else env | {"CUDA_VISIBLE_DEVICES": visible}


@pytest.mark.parametrize("visible", (None, "", "-1", "0", "0,99", "99", "UUID"))
def test_the_launcher_counts_what_torch_sees(visible):
    if visible == "UUID":
        visible = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    command, env = [sys.executable, "-c", COUNT], environment(visible)
    said = subprocess.run(command, env=env, cwd=kit.REPOSITORY, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    ours, torchs = said.stdout.split()
    assert ours == torchs


def test_a_local_run_trains_on_the_gpu_and_only_if_it_may(tmp_path):
    split = kit.pairs(tmp_path / "pairs.beton")
    for name, visible, device in (("gpu", "0", "on 1 rank(s), cuda:0"), ("cpu", "", "on 1 rank(s), cpu")):
        args = ["--stage", 2, "--recipe", "debug", "--data", split, "--run", tmp_path / name]
        args += ["--cluster", "local", "--no-tensorboard"]
        code, said = kit.launch(*args, env={"CUDA_VISIBLE_DEVICES": visible})
        assert code == 0 and device in said, said
        assert ("training on the CPU" in said) == (name == "cpu")
