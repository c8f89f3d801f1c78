"""Stage 1 with a batch that is larger than the samples it uses: the stream runs through epochs within it."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.beton.fields import Beton
from tests.kits import train as kit
from train import checkpoint, data, plan
from train.config import Data, Stage1
from train.distributed import World

USED, BATCH = 10, 32
ORDERS = {
    "random": {},
    "block": {"order": "block"},
    "lanes": {"order": "block", "lanes": 2},
    "four lanes": {"order": "block", "lanes": 4},
}


def recipe_of(triplets, run, **changes):
    defaults = dict(batch=BATCH, fraction=USED / 48, augment="paper", steps=4)
    return kit.debug(1, triplets, run, **(defaults | changes))


def epochs(recipe, count: int) -> list[np.ndarray]:
    """The plain reference: the samples of each epoch, asked for epoch by epoch."""
    order = data._order(recipe, 48)
    spans = (e * USED + np.arange(USED) for e in range(count))
    return [order.locate(recipe.seed, 48, t)[1] for t in spans]


def take(loader, count: int) -> dict[str, torch.Tensor]:
    """All tensors of the next batches, end to end."""
    with loader:
        batches = [batch for _, batch in zip(range(count), loader)]
    names = [field.name for field in fields(batches[0])]
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}


@pytest.mark.parametrize("order", ORDERS)
def test_batches_are_the_epochs_end_to_end(order, triplets, tmp_path):
    recipe = recipe_of(triplets, tmp_path, **ORDERS[order])
    visited = epochs(recipe, 13)
    assert len({tuple(epoch) for epoch in visited}) == 13
    members = set(visited[0])
    assert len(members) == USED and all(set(epoch) == members for epoch in visited)
    got = take(data.stream(recipe, Beton(triplets), World(), 16, 0), 4)["index"]
    assert got.tolist() == np.concatenate(visited)[: 4 * BATCH].tolist()


@pytest.mark.parametrize("engine", ["ffcv", pytest.param("dali", marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ORDERS)
def test_each_repetition_has_the_draws_of_its_epoch(order, engine, triplets, tmp_path):
    """The reference is a stream of single samples, none of which can see another epoch."""
    file = Beton(triplets)
    recipe = recipe_of(triplets, tmp_path, engine=engine, **ORDERS[order])
    whole = take(data.stream(recipe, file, World(), 16, 0), 2)
    single = recipe_of(triplets, tmp_path, engine=engine)
    loader = data._engine(single)
    alone = take(
        loader(
            file, batch_size=1, image_size=16, augment=data.augmentation(recipe), seed=recipe.seed,
            order=data._order(recipe, len(file)), dtype=torch.uint8,
        ),
        2 * BATCH,
    )  # fmt: skip
    kit.assert_same(whole, alone)
    first, again = (np.flatnonzero(whole["index"] == whole["index"][0])[:2]).tolist()
    assert first < USED <= again < BATCH and not whole["ref"][first].equal(whole["ref"][again])


@pytest.mark.parametrize("order", ORDERS)
def test_ranks_and_restarts_read_the_same_stream(order, triplets, tmp_path):
    file = Beton(triplets)
    recipe = recipe_of(triplets, tmp_path, **ORDERS[order])
    whole = take(data.stream(recipe, file, World(), 16, 0), 4)
    later = take(data.stream(recipe, file, World(), 16, BATCH), 3)
    kit.assert_same(later, {name: x[BATCH:] for name, x in whole.items()})
    ranks = [take(data.stream(recipe, file, World(rank=r, size=2), 16, 0), 4) for r in range(2)]
    for name, x in whole.items():
        shares = [y[name].unflatten(0, (4, BATCH // 2)) for y in ranks]
        assert torch.stack(shares, 1).flatten(0, 2).equal(x), name


@settings(max_examples=50, deadline=None)
@given(samples=st.integers(1, 400), batch=st.integers(1, 2000), epochs=st.floats(0.1, 40))
def test_steps_cover_the_epochs(samples, batch, epochs):
    recipe = Stage1(batch=batch, epochs=epochs, data=Data())
    steps = recipe.total_steps(samples)
    assert steps >= 1 and (steps - 1) * batch < epochs * samples <= steps * batch


@pytest.mark.slow
def test_a_run_counts_keeps_and_continues(triplets, tmp_path):
    changes = dict(epochs=16.0, steps=0, keep=1, keep_epochs=4)  # 160 samples: 5 batches
    whole = kit.train(recipe_of(triplets, tmp_path / "whole", **changes))
    assert whole.done and whole.steps == 5
    recipe = recipe_of(triplets, tmp_path / "parts", **changes)
    assert not kit.train(recipe, kit.Asked(2)).done
    assert kit.train(recipe).done
    kit.assert_same(kit.tensors(tmp_path / "whole"), kit.tensors(tmp_path / "parts"))
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == pytest.approx([3.2, 6.4, 9.6, 12.8, 16.0])
    # The first at or after 4, 8, 12 and 16 epochs; a step of three epochs never takes two of these.
    assert [p.name for p in checkpoint.folders(tmp_path / "whole")] == [
        "step-000005", "step-000004", "step-000003", "step-000002",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_plan_counts_the_steps_that_the_run_takes(triplets, tmp_path, capsys):
    length = f"--ngpus 1 --batch {BATCH} --fraction {USED / 48} --steps 0 --epochs 15".split()
    args = ["--stage", "1", "--recipe", "debug", "--data", str(triplets), *length]
    assert plan.main([*args, "--json", str(tmp_path / "plan.json")]) == 0
    figures = json.loads((tmp_path / "plan.json").read_text())["plan"]
    assert (figures["samples"], figures["steps"]) == (USED, math.ceil(15 * USED / BATCH))
    assert figures["hours"] / figures["hours_an_epoch"] == pytest.approx(5 * BATCH / USED)


@pytest.mark.slow
def test_a_pair_may_not_be_its_own_negative(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", batch=32, fraction=0.5)
    with pytest.raises(ValueError, match="--batch 32: larger than the 24 samples .* its own negative"):
        kit.train(recipe)
    assert kit.train(replace(recipe, batch=24, steps=1)).done
