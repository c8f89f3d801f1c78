"""Profiles: what they say of measurements, and that a loader which disturbs the step is seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.beton.fields import Beton
from tests.kits import train as kit
from train import data, profiling
from train.device import clocks
from train.device.prefetch import Prefetcher
from train.distributed import World


@given(loader=st.floats(1e-4, 1), step=st.floats(1e-4, 1), more=st.floats(1, 3))
def test_every_measurement_has_a_verdict(loader, step, more):
    told = profiling.verdict(loader, step, max(loader, step) * more)
    if loader > 1.05 * step:
        assert "waits for data" in told
    elif more > 1.16:
        assert "disturb" in told
    elif more < 1.14:
        assert "waits for the step" in told


@pytest.mark.parametrize(
    "cost, headspace, device, engine, said",
    [
        (0.012, 0.034, "cuda", "ffcv", "the loader costs the step 1.2% (headspace 3.4%)"),
        (0.03, 0.03, "cuda", "ffcv", "the loader costs the step 3.0% (headspace 3.0%)"),
        (-0.004, 0.0, "cuda", "dali", "the loader costs the step -0.4% (headspace 0.0%)"),
        (
            0.041, 0.05, "cuda", "ffcv",
            "the loader costs the step 4.1% (headspace 5.0%), more than 3%: its threads hold up the one that "
            "launches kernels; try fewer --workers, or --engine dali",
        ),
        (
            0.041, 0.05, "cuda", "dali",
            "the loader costs the step 4.1% (headspace 5.0%), more than 3%: its threads hold up the one that "
            "launches kernels; try fewer --workers",
        ),
        (
            0.9, 0.5, "cpu", "ffcv",
            "the loader costs the step 90.0% (headspace 50.0%); on a CPU they share the cores, so this says "
            "nothing of a GPU",
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_a_neighbour(cost, headspace, device, engine, said):
    assert profiling.neighbour(cost, headspace, device, engine) == said


def test_rounds_pair_what_a_busy_machine_does_to_both():
    """A machine that becomes ten times slower for two rounds of five changes no cost."""
    alone, beside = [1.0, 1.0, 10.0, 10.0, 1.0], [1.2, 1.2, 12.0, 12.0, 1.2]
    assert clocks.cost(alone, beside) == pytest.approx(0.2)
    order = []
    sides = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    rows = clocks.in_rounds(sides, 6)
    assert [sorted(order[i : i + 3]) for i in range(0, 18, 3)] == [list("abc")] * 6
    assert len({tuple(order[i : i + 3]) for i in range(0, 18, 3)}) > 1  # not always the same one first
    assert sorted(n for row in rows.values() for n in row) == list(range(1, 19))


# -- neighbours -----------------------------------------------------------------------------


class Neighbour:
    """A loader whose batches take so long, in which it holds Python's lock as long as it can, or never."""

    def __init__(self, batch, seconds: float, holds: bool):
        self.batch, self.seconds, self.holds = batch, seconds, holds

    def __iter__(self) -> Iterator:
        while True:
            if self.holds:
                until = time.perf_counter() + self.seconds
                while time.perf_counter() < until:
                    pass
            else:
                time.sleep(self.seconds)
            yield self.batch


def operations(monkeypatch, holds: bool) -> dict[str, float]:
    monkeypatch.setattr(clocks, "EAGER_SECONDS", 0.2)
    batches = Neighbour([torch.zeros(1)], 0.05, holds)
    with Prefetcher(batches, lambda batch: batch, torch.device("cpu")) as prepared:
        found = clocks.Clocks(World(), prepared, lambda batch: None, 1)
        rows = clocks.in_rounds({"alone": found.eager, "beside": lambda: found.eager_beside(0.0)}, 3)
    return profiling._lock(rows["alone"], rows["beside"], images=16)


@pytest.mark.slow
def test_a_thread_that_holds_the_lock_is_seen(monkeypatch):
    """Python takes the lock from a busy thread only every 5 ms, while one operation takes microseconds.

    Only the lock's share is judged: it leaves out waiting for a core, so other tests beside do not count.
    """
    quiet, busy = operations(monkeypatch, holds=False), operations(monkeypatch, holds=True)
    assert quiet["lock"] < 0.2 and busy["lock"] > quiet["lock"] + 0.3
    assert 0 < quiet["lock_images_per_s"] <= 16 / 0.05 * 1.1


KEYS = {
    "compute", "engine", "workers", "headspace", "cost", "launch_ms", "launch_p95_ms", "launch_beside_ms",
    "launch_beside_p95_ms", "eager_us", "eager_cost", "lock", "lock_images_per_s", "loader_seconds",
    "step_seconds", "beside_seconds", "together_seconds", "loader_pairs_per_s", "step_pairs_per_s",
    "together_pairs_per_s", "verdict", "steps", "ranks", "device", "trace",
}  # fmt: skip


def profiled(split, run, monkeypatch) -> dict:
    monkeypatch.setattr(clocks, "EAGER_SECONDS", 0.1)
    run.mkdir()
    return profiling.profile(kit.debug(2, split, run), World(), 3)


@pytest.mark.slow
def test_a_profile_measures_and_trains_nothing(split, tmp_path, monkeypatch):
    run = tmp_path / "run"
    results = profiled(split, run, monkeypatch)
    assert json.loads((run / "profile.json").read_text()) == results and results.keys() == KEYS
    assert all(value > 0 for name, value in results.items() if name.endswith(("_seconds", "_ms", "_per_s")))
    assert results["launch_ms"] <= results["launch_p95_ms"] and results["headspace"] < 1
    assert json.loads((run / "profile" / "rank-0.json").read_text())["traceEvents"]
    assert not (run / "checkpoints").exists()
    log = (run / "log.txt").read_text()
    assert all(line in log for line in results["verdict"])
    assert "headspace" in log and "of a launching thread's time" in log


@pytest.mark.slow
def test_a_neighbour_shows_in_a_profile(split, tmp_path, monkeypatch):
    """It holds the lock all the time; `cost`, a ratio of times, is left to a machine with nothing beside."""
    with data.stream(kit.debug(2, split, tmp_path), Beton(split), World(), 16, 0) as loader:
        batch = next(iter(loader))

    @contextmanager
    def stream(*arguments):
        yield Neighbour(batch, 0.2, holds=True)

    monkeypatch.setattr(data, "stream", stream)
    results = profiled(split, tmp_path / "run", monkeypatch)
    assert results["headspace"] > 0.1 and results["lock"] > 0.1
    assert f"the loader costs the step {results['cost']:.1%}" in results["verdict"][1]
