"""Runs that are killed, interrupted, or continued by another number of processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch

from tests.kits import train as kit
from train import checkpoint

pytestmark = pytest.mark.slow  # processes and whole runs


@pytest.fixture(scope="module")
def processes():
    return multiprocessing.get_context(kit.fork_server())


def run_job(recipe, rank: int, size: int, port: int) -> None:
    """One rank as torchrun would start it."""
    from train import job

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    job.run(recipe)


def start_ranks(processes, recipe, size: int) -> list:
    port = kit.free_port()
    ranks = [processes.Process(target=run_job, args=(recipe, rank, size, port)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    return ranks


def test_killed_at_twenty_random_steps(split, processes, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "whole", steps=120, save_every=3, augment="paper", threads=1)
    kit.train(recipe)
    recipe = replace(recipe, run=tmp_path / "killed")
    chance = random.Random(0)
    for _ in range(20):
        start = max((int(p.name[5:]) for p in checkpoint.folders(recipe.run)), default=0)
        victim = processes.Process(target=kit.train, args=(recipe,))
        victim.start()
        goal = start + chance.randint(1, 7)
        while kit.step_of(recipe.run) < goal or kit.step_of(recipe.run) > goal + 1000:
            assert victim.is_alive()
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    reached = kit.step_of(recipe.run)
    assert reached < 120, "the kills came too late to mean anything"
    assert kit.train(recipe).done
    kit.assert_same(kit.tensors(tmp_path / "whole"), kit.tensors(recipe.run))
    steps = [json.loads(line)["step"] for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 121))


def wait_for_step(run, step: int) -> None:
    deadline = time.monotonic() + 300
    while kit.step_of(run) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_rank_then_two_then_one(split, processes, tmp_path):
    # A large epsilon: else Adam blows the rounding of gradients that are zero up to whole steps.
    recipe = kit.debug(2, split, tmp_path / "one", steps=24, threads=1, augment="paper", eps=1e-2)
    kit.train(recipe)
    moved = replace(recipe, run=tmp_path / "moved")
    kit.train(moved, kit.Asked(8))
    ranks = start_ranks(processes, moved, 2)
    wait_for_step(moved.run, 12)
    os.kill(ranks[1].pid, signal.SIGINT)  # one rank hears it, both stop after the same step
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    assert "interrupted after step" in (moved.run / "log.txt").read_text()
    assert kit.train(moved).done
    left, right = kit.tensors(tmp_path / "one"), kit.tensors(moved.run)
    for name in left:
        if name.endswith(("exp_avg", "exp_avg_sq", "step")):
            continue
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_killed_rank_ends_the_others(split, processes, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", steps=100_000, threads=1, log_every=5)
    ranks = start_ranks(processes, recipe, 2)
    wait_for_step(recipe.run, 5)
    os.kill(ranks[1].pid, signal.SIGKILL)
    ranks[0].join(240)
    assert ranks[0].exitcode not in (0, None)


# -- the launcher, as a user starts it ------------------------------------------------------

LONG = ("--stage", "2", "--recipe", "debug", "--steps", "100000", "--log-every", "20", "--no-tensorboard")


@pytest.fixture
def start_long(split):
    """Starts the launcher on an endless run; whatever a failing test leaves of it is ended."""
    started = []

    def start(run, *args):
        # As in a terminal within an allocation: it must neither wait for SLURM nor obey it.
        env = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
        started.append(kit.start(*LONG, "--data", split, "--run", run, *args, env=env))
        return started[-1]

    yield start
    for launcher in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)


@pytest.mark.parametrize("cluster", ("local", "debug"))
def test_ctrl_c_saves_and_ends_with_130(cluster, start_long, tmp_path):
    run = tmp_path / "run"
    launcher = start_long(run, "--cluster", cluster)
    wait_for_step(run, 20)
    os.killpg(launcher.pid, signal.SIGINT)  # what a terminal does
    code, said = kit.finish(launcher, 240)
    assert "Caught signal" not in said
    assert code == 130, said
    assert (
        "interrupted after step" in said and "the same command continues" in said and "Traceback" not in said
    )
    state = checkpoint.check(checkpoint.latest(run))
    assert state.step == kit.step_of(run) and state.samples == 16 * state.step


def launch_two_ranks(split, run, *args: object) -> tuple[int, str]:
    recipe = ("--stage", 2, "--recipe", "debug", "--data", split, "--run", run)
    return kit.launch(*recipe, "--cluster", "local", "--ngpus", 2, *args)


def test_local_ranks_finish_and_report(split, tmp_path):
    run = tmp_path / "run"
    code, said = launch_two_ranks(split, run)
    assert code == 0, said
    assert "on 2 rank(s)" in said and "step 4/4" in said and "checkpoint step-000004" in said
    logs = [path.read_text() for path in (run / "jobs").glob("*/*.err")]
    assert len(logs) == 2 and not any("Warning" in text for text in (said, *logs)), (said, logs)
    code, said = launch_two_ranks(split, run)
    assert code == 0 and "complete (4 steps); nothing to do" in said


def test_the_first_failure_is_what_the_user_sees(split, tmp_path):
    code, said = launch_two_ranks(split, tmp_path / "run", "--lr", "1e30", "--steps", 30)
    assert code == 1, said
    assert "error: step" in said and "the gradient is not finite" in said and "Traceback" not in said


def test_torchrun_starts_the_same_job(split, tmp_path):
    run = tmp_path / "run"
    args = ["--nproc-per-node", "2", "--master-port", kit.free_port(), "-m", "train.job", "--"]
    args += ["--stage", "2", "--recipe", "debug", "--data", split, "--run", run]
    code, said = kit.launch(*args, module="torch.distributed.run")
    assert code == 0, said
    assert "on 2 rank(s)" in said and checkpoint.latest(run).name == "step-000004"
    assert "Warning" not in said, said
