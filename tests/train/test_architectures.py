"""The paper's architectures take real steps of both stages on a CPU, at a batch of eight.

Each runs in a process of its own, so that its memory is given back.  ViT-L-14 takes minutes: it runs where
PI_LARGE is set.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
from dataclasses import replace

import pytest

from tests.kits import train as kit

pytestmark = pytest.mark.slow  # models of full size

MEMORY = 14e9  # bytes a process may use
BATCH, STEPS = 8, {"ViT-B-32": 2, "RN50": 2, "ViT-L-14": 1}


def take_steps(file, stage: int, name: str, answer) -> None:
    """Answers with [(loss, gradient norm), …] and the peak of memory in bytes."""
    from pipeline.beton.fields import Beton
    from train import data, loop, model
    from train.distributed import World
    from train.optim import Optimizer

    # Gradient caching (stage 2) and accumulation (stage 1) keep the activations within bounds.
    recipe = kit.debug(stage, file, file.parent, model=name, batch=BATCH, micro=4, lr=1e-4)
    clip = model.build(recipe).train()
    optimizer = Optimizer(clip, replace(recipe.optim, warmup_steps=0))
    stepping = loop.STAGES[stage](recipe, clip, World())
    steps = []
    with data.stream(recipe, Beton(file), World(), model.image_side(clip), 0) as loader:
        batches = iter(loader)
        for _ in range(STEPS[name]):
            values = loop.update(stepping, optimizer, stepping.prepare(next(batches)), 1e-4)
            steps.append(tuple(float(values[name]) for name in ("loss", "grad_norm", "skipped")))
    answer.put((steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        1: kit.triplets(folder / "triplets.beton", BATCH),
        2: kit.pairs(folder / "pairs.beton", BATCH),
    }


@pytest.mark.parametrize("stage", (1, 2))
@pytest.mark.parametrize("name", STEPS)
def test_an_architecture_takes_steps(name, stage, files):
    if name == "ViT-L-14" and not os.environ.get("PI_LARGE"):
        pytest.skip("takes minutes: set PI_LARGE=1")
    processes = multiprocessing.get_context(kit.fork_server())
    answer = processes.Queue()
    process = processes.Process(target=take_steps, args=(files[stage], stage, name, answer))
    process.start()
    steps, memory = answer.get(timeout=580)
    process.join(60)
    assert process.exitcode == 0 and memory < MEMORY
    assert len(steps) == STEPS[name]
    for loss, norm, skipped in steps:
        assert math.isfinite(loss) and loss >= 0 and 0 < norm < math.inf and skipped == 0
