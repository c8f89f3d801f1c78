"""Runs on a real SLURM: both stages over two nodes, and everything a cluster does to a run.

A run that was disturbed must end with the very weights of one that was not.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.kits import train as kit
from train import checkpoint

pytestmark = pytest.mark.slow  # processes and whole runs

RUNNING = ("RUNNING",)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return kit.pairs(folder / "pairs.beton"), kit.triplets(folder / "triplets.beton")


def submit(slurm, *args) -> list[str]:
    """The ids of the jobs that the launcher submitted."""
    code, said = kit.launch(*args, "--cluster", "slurm", env=slurm.environment)
    assert code == 0, said
    return re.findall(r"^job (\d+):", said, re.M)


def stage2(files, run, **flags) -> list:
    given = {"batch": 12, "steps": 40, "log-every": 1, **flags}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["--stage", 2, "--recipe", "debug", "--data", files[0], "--run", run, "--no-tensorboard", *words]


def wait_for_step(slurm, job: str, run, step: int, timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while kit.step_of(run) < step:
        assert slurm.job(job)["JobState"] not in ENDED, said_by(run)
        assert time.monotonic() < deadline, said_by(run)
        time.sleep(0.05)


def ranks(job: str) -> dict[int, int]:
    """The process of each rank of the job."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().split(b"\0")
            program, *flags = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        variables = dict(word.split(b"=", 1) for word in words if b"=" in word)
        mine = variables.get(b"SLURM_JOB_ID") == job.encode()
        if mine and b"python" in program and b"submitit.core._submit" in flags:  # srun says so too
            rank = int(variables[b"SLURM_PROCID"])
            found[rank] = min(int(process.name), found.get(rank, int(process.name)))  # not its children
    return found


def was_warned(process: int) -> bool:
    """Whether SIGUSR2 waits for a process that we stopped, or SLURM has let it go on to see it."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True  # saved and ended already
    sent = [int(mask, 16) for mask in re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", status, re.M)]
    return any(mask >> (signal.SIGUSR2 - 1) & 1 for mask in sent) or "State:\tT" not in status


@contextmanager
def held_until_warned(job: str, patience: float = 120):
    """Hold the job's ranks until what the block asks of SLURM has reached them as SIGUSR2.

    SLURM looks at time limits twice a minute only: a run that is not held may end before.
    """
    held = list(ranks(job).values())
    assert len(held) == 2, f"two ranks were expected: {held}"
    for process in held:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
        deadline = time.monotonic() + patience
        while not all(map(was_warned, held)):
            assert time.monotonic() < deadline, f"SLURM did not warn the ranks within {patience:.0f} s"
            time.sleep(0.1)
    finally:
        for process in held:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def said_by(run) -> str:
    """What the run's log and its ranks said, for a failing test."""
    return "\n".join(
        f"{p}: {p.read_text()[-1500:]}" for p in [*run.glob("log.txt"), *run.glob("jobs/*/*_log.*")]
    )


def assert_ended_like(undisturbed, run) -> None:
    kit.assert_same(kit.tensors(undisturbed), kit.tensors(run))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.fixture(scope="module")
def undisturbed(slurm, files, tmp_path_factory):
    """Two ranks on one node, long enough to be disturbed."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    (job,) = submit(slurm, *stage2(files, run, steps=LONG, ngpus=2))
    assert slurm.wait_job(job, *ENDED)["JobState"] == "COMPLETED", said_by(run)
    return run


LONG = 400  # steps: long enough to be disturbed


def test_both_stages_chained_over_two_nodes_of_six(slurm, files, tmp_path):
    pairs, triplets = files
    first, second = submit(
        slurm, "--stages", "1,2", "--recipe", "debug", f"--stage1.data={triplets}", f"--stage2.data={pairs}",
        "--run", tmp_path, "--nodes", 2, "--ngpus", 6, "--batch", 12, "--no-tensorboard",
    )  # fmt: skip
    waiting = slurm.job(second)
    assert waiting["Dependency"].startswith(f"afterok:{first}")
    assert waiting["NumTasks"] == "12"
    assert slurm.wait_job(second, *ENDED, timeout=400)["JobState"] == "COMPLETED", said_by(
        tmp_path / "stage1"
    )
    for stage in (1, 2):
        log = (tmp_path / f"stage{stage}" / "log.txt").read_text()
        assert "on 12 rank(s)" in log and "step 4/4" in log
    weights = [checkpoint.weights(tmp_path / f"stage{stage}") for stage in (1, 2)]
    assert weights[0].keys() == weights[1].keys()


def test_usr2_saves_and_continues(slurm, files, undisturbed, tmp_path):
    run = tmp_path / "run"
    (job,) = submit(slurm, *stage2(files, run, steps=LONG, ngpus=2))
    wait_for_step(slurm, job, run, 20)
    with held_until_warned(job):
        slurm.run("scancel", "--signal=USR2", job)
    assert slurm.wait_job(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", said_by(run)
    assert slurm.job(job)["Restarts"] == "1"
    assert "asked to make room after step" in (run / "log.txt").read_text()
    assert_ended_like(undisturbed, run)


def test_a_time_limit_saves_and_continues(slurm, files, undisturbed, tmp_path):
    run = tmp_path / "run"
    (job,) = submit(slurm, *stage2(files, run, steps=LONG, ngpus=2, signal_delay=600))
    wait_for_step(slurm, job, run, 20)
    # A limit that is nearer than the delay of the warning: SLURM warns as it would at its time.
    with held_until_warned(job):
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    deadline = time.monotonic() + 60
    while slurm.job(job)["Restarts"] == "0":
        assert time.monotonic() < deadline, said_by(run)
        time.sleep(0.2)
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
    assert slurm.wait_job(job, "COMPLETED", "FAILED", "TIMEOUT")["JobState"] == "COMPLETED", said_by(run)
    assert_ended_like(undisturbed, run)


def test_preemption_saves_and_continues(slurm, files, undisturbed, tmp_path):
    run = tmp_path / "run"
    (job,) = submit(slurm, *stage2(files, run, steps=LONG, ngpus=2, partition="scavenge"))
    wait_for_step(slurm, job, run, 20)
    with held_until_warned(job):
        said = slurm.run(
            "sbatch", "--parsable", "--nodes=2", "--exclusive", "--wrap=sleep 5", "--output=/dev/null"
        )
    assert slurm.wait_job(said.strip(), *ENDED)["JobState"] == "COMPLETED"
    assert slurm.wait_job(job, "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED", said_by(run)
    assert int(slurm.job(job)["Restarts"]) >= 1
    assert_ended_like(undisturbed, run)


def test_scancel_saves_and_ends(slurm, files, tmp_path):
    run = tmp_path / "run"
    (job,) = submit(slurm, *stage2(files, run, steps=100_000, ngpus=2))
    wait_for_step(slurm, job, run, 20)
    slurm.run("scancel", job)
    slurm.wait_job(job, "CANCELLED")
    deadline = time.monotonic() + 30
    while checkpoint.latest(run) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert checkpoint.check(checkpoint.latest(run)).step >= 20
    assert slurm.job(job)["Restarts"] == "0"


def test_a_killed_rank_ends_the_job(slurm, files, tmp_path):
    run = tmp_path / "run"
    (job,) = submit(slurm, *stage2(files, run, steps=100_000, ngpus=2))
    wait_for_step(slurm, job, run, 5)
    os.kill(ranks(job)[1], signal.SIGKILL)
    assert slurm.wait_job(job, *ENDED, timeout=60)["JobState"] in ("FAILED", "CANCELLED", "NODE_FAIL")


def test_the_first_failing_rank_is_named(slurm, files, tmp_path):
    run = tmp_path / "run"
    (job,) = submit(slurm, *stage2(files, run, steps=30, lr="1e30", ngpus=2))
    assert slurm.wait_job(job, *ENDED)["JobState"] == "FAILED"
    log = (run / "log.txt").read_text()
    assert re.search(r"rank \d: error: step .*the gradient is not finite", log), log
    assert "Traceback" not in log


def test_a_refused_partition_is_one_line(slurm, files, tmp_path):
    run = tmp_path / "run"
    args = [*stage2(files, run), "--cluster", "slurm", "--partition", "nowhere"]
    code, said = kit.launch(*args, env=slurm.environment)
    assert code == 2 and said.startswith("error: not submitted: ") and "partition" in said
    assert said.count("\n") == 1 and not run.exists()


def test_dry_run_submits_nothing(slurm, files, tmp_path):
    run = tmp_path / "run"
    before = slurm.run("squeue", "--noheader")
    args = [
        *stage2(files, run),
        "--cluster",
        "slurm",
        "--dry-run",
        "--mem",
        "10G",
        "--slurm-arg",
        "mail-type=END",
    ]
    code, said = kit.launch(*args, env=slurm.environment)
    assert code == 0, said
    assert "#SBATCH --mem=10G" in said and "#SBATCH --mail-type=END" in said
    for flag in ("partition", "account", "qos", "time", "wckey"):
        assert f"#SBATCH --{flag}" not in said
    assert "#SBATCH --gpus-per-node=6" in said and "#SBATCH --ntasks-per-node=6" in said  # what a node has
    assert slurm.run("squeue", "--noheader") == before and not run.exists()


@pytest.mark.parametrize("name", ("a b=0 'ü' \"q\"", "$HOME #1 `x` &;*"))
def test_an_odd_name_and_a_surrounding_allocation_change_nothing(name, slurm, files, tmp_path):
    run = tmp_path / name
    around = {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_MEM_PER_NODE": "100",
        "SLURM_MEM_PER_CPU": "10",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_NTASKS": "5",
        "SBATCH_PARTITION": "nowhere",
    }
    args = [*stage2(files, run, steps=2, ngpus=2), "--cluster", "slurm", "--slurm-arg", "job-name=mine"]
    code, said = kit.launch(*args, "--slurm-arg", "cpus-per-task=3", env={**slurm.environment, **around})
    assert code == 0, said
    (job,) = re.findall(r"^job (\d+):", said, re.M)
    seen = slurm.job(job)
    assert (seen["JobName"], seen["CPUs/Task"], seen["NumTasks"], seen["Partition"]) == (
        "mine",
        "3",
        "2",
        "main",
    )
    assert slurm.wait_job(job, *ENDED)["JobState"] == "COMPLETED", said_by(run)
    assert checkpoint.latest(run).name == "step-000002" and "on 2 rank(s)" in (run / "log.txt").read_text()
