"""What surrounds a run: GPUs that are there or not, allocations, foreign files in its folder, odd values."""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import watch
from pipeline.base import console, machine
from tests.kits import train as kit
from train import architectures, checkpoint, job, launch, loop, recipes, splits
from train.cluster import gpus
from train.config import Compute, Data, Optim, Stage1, Stage2
from train.metrics import Metrics

# -- GPUs -----------------------------------------------------------------------------------


class Driver:
    """Stands for libcuda."""

    def __init__(self, count: int, failed: int = 0):
        self.count, self.failed = count, failed

    def cuInit(self, flags: int) -> int:
        return self.failed

    def cuDeviceGetCount(self, answer) -> int:
        answer._obj.value = self.count
        return 0


def drive(monkeypatch, driver: Driver | None) -> None:
    def load(name):
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize("driver, count", [(None, 0), (Driver(3), 3), (Driver(3, 100), 0), (Driver(0), 0)])
def test_the_driver_is_asked_for_gpus(driver, count, monkeypatch):
    drive(monkeypatch, driver)
    assert gpus.here() == count


@pytest.mark.parametrize("name", ("paper", "strong", "demo", "debug"))
@pytest.mark.parametrize("visible", (None, "", "-1", "0", "MIG-aa,MIG-bb"))
def test_nobody_trains_on_the_cpu_unasked(name, visible, monkeypatch):
    drive(monkeypatch, None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    recipe = recipes.STAGE2[name]
    if name in recipes.SMALL or visible in ("", "-1"):
        line = gpus.on_cpu(recipe)
        assert line.startswith("note: no GPU found") and "training on the CPU" in line
        assert visible is None or f"CUDA_VISIBLE_DEVICES={visible}" in line
    else:
        with pytest.raises(ValueError, match=f"--recipe {name}: no GPU found.*CUDA_VISIBLE_DEVICES="):
            gpus.on_cpu(recipe)


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch):
    drive(monkeypatch, Driver(2))
    with pytest.raises(ValueError, match=r"the driver shows 2 GPU\(s\), but this torch cannot use them"):
        gpus.on_cpu(recipes.STAGE2["debug"])


def test_a_driver_without_a_gpu_is_told(tmp_path, monkeypatch):
    """A container that was started without its GPUs, a driver that does not answer."""
    drive(monkeypatch, Driver(1, failed=100))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "MARKS", (f"{tmp_path}/nvidia[0-9c]*",))
    assert gpus.on_cpu(recipes.STAGE2["debug"]) == "note: no GPU found: training on the CPU"
    (tmp_path / "nvidiactl").touch()
    assert f"though {tmp_path}/nvidiactl is there" in gpus.on_cpu(recipes.STAGE2["debug"])


def test_a_big_recipe_without_a_gpu_is_refused_before_anything_is_written(
    split, tmp_path, monkeypatch, capsys
):
    drive(monkeypatch, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    args = ["--stage", "2", "--recipe", "strong", "--batch", "16", "--warmup-steps", "1"]
    args += ["--data", str(split), "--run", str(tmp_path / "run")]
    args += ["--model", "debug-ViT", "--cluster", "local"]
    assert launch.main(args) == 2
    assert "error: --recipe strong: no GPU found (CUDA_VISIBLE_DEVICES=0)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert launch.main([*args, "--dry-run"]) == 0 and "note: no GPU found" in capsys.readouterr().out


@pytest.mark.slow
def test_local_ranks_keep_the_users_gpus_and_are_of_no_allocation(split, tmp_path):
    """The allocation's rank 0 of 4 would make both ranks write one file, and wait for SLURM at the end."""
    env = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    env |= {"SLURM_RESTART_COUNT": "3", "CUDA_VISIBLE_DEVICES": "MIG-aa,MIG-bb"}
    run = tmp_path / "a b=0 'ü' \"q\" $HOME"
    args = ["--stage", 2, "--recipe", "debug", "--data", split, "--run", run, "--cluster", "local"]
    code, said = kit.launch(*args, "--ngpus", 2, "--lr", "1e30", "--steps", 30, env=env)
    assert code == 1, said
    assert "note: no GPU found (CUDA_VISIBLE_DEVICES=MIG-aa,MIG-bb): training on the CPU" in said
    assert len(re.findall(r"rank \d: error: step", said)) == 1, said
    assert "Traceback" not in said and "FileNotFound" not in said
    assert [p.name for p in (run / "jobs").glob("*/failure*")] == ["failure-0.json"]


@pytest.mark.slow
def test_two_runs_do_not_train_into_one_folder(split, tmp_path):
    """The second ends in one line; the first and its log go on as if it had not been."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.txt").write_text("of the first\n")
    args = ["--stage", 2, "--recipe", "debug", "--data", split, "--run", run, "--cluster", "local"]
    first, _ = machine.lock(run / "lock", "run")
    with first:
        code, said = kit.launch(*args, "--ngpus", 2)
    assert code == 2 and said.splitlines()[-1].startswith(f"error: {run}: another run is running"), said
    assert said.count("another run") == 1 and "Traceback" not in said, said
    assert (run / "log.txt").read_text() == "of the first\n"
    assert {path.name for path in run.iterdir()} == {"lock", "log.txt", "jobs"}
    code, said = kit.launch(*args)
    assert code == 0 and len(list((run / "jobs").iterdir())) == 2, said


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(11, "try again")])
def test_a_limit_of_threads_is_a_line(split, tmp_path, monkeypatch, capsys, error):
    def fail(thread):
        raise error

    args = ["--stage", "2", "--recipe", "debug", "--data", str(split), "--run", str(tmp_path / "run")]
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert launch.main([*args, "--cluster", "debug"]) == 2
    said = capsys.readouterr().err
    assert "error: no more threads or processes may be started here (ulimit -u" in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "error, code, line",
    [
        (RuntimeError("g++ died"), 130, "interrupted; the same command continues"),
        (OSError("No space left on device"), 2, "error: No space left on device"),
    ],
)
def test_what_a_request_to_stop_breaks_is_no_failure(split, tmp_path, monkeypatch, capsys, error, code, line):
    """scancel and timeout send it to a compiler of the first step too, whose end is an error of the step."""

    def fail(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        raise error

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    monkeypatch.setattr(loop, "update", fail)
    recipe = kit.debug(2, split, tmp_path / "run")
    assert console.command(lambda: job.run(recipe), job.INTERRUPTED) == code
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)


@pytest.mark.parametrize("held", ["{", "[]", "null"])
def test_a_damaged_recipe_is_named(split, tmp_path, capsys, held):
    (tmp_path / "recipe.json").write_text(held)
    args = ["--stage", "2", "--recipe", "debug", "--data", str(split), "--run", str(tmp_path)]
    assert launch.main([*args, "--cluster", "debug"]) == 2
    assert f"error: {tmp_path / 'recipe.json'}: damaged: " in capsys.readouterr().err


@pytest.mark.parametrize("cluster", ("local", "slurm"))
def test_a_run_folder_that_is_a_pattern_is_refused(cluster, split, tmp_path, capsys):
    args = ["--stage", "2", "--recipe", "debug", "--data", str(split), "--run", str(tmp_path / "a %3")]
    for more in ([], ["--dry-run"]):
        assert launch.main([*args, "--cluster", cluster, *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --run ") and "'%'" in said and said.count("\n") == 1
    assert not list(tmp_path.glob("a*"))


@pytest.mark.slow
def test_debug_is_one_process_whatever_torchrun_left(split, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    args = ["--stage", "2", "--recipe", "debug", "--data", str(split), "--run", str(tmp_path / "run")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.main([*args, "--cluster", "debug"]) == 0
    assert "on 1 rank(s)" in (tmp_path / "run" / "log.txt").read_text()
    assert os.environ["WORLD_SIZE"] == "4"


# -- captions and models --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, said",
    [
        ("ViT-B-16-SigLIP", "wants the tokenizer of timm/ViT-B-16-SigLIP"),
        ("ViT-H-14-CLIPA", "wants the tokenizer of bert-base-uncased"),
        ("ViT-H-14-worldwide", "wants the tokenizer of facebook/xlm-v-base"),
        ("roberta-ViT-B-32", "wants the tokenizer of roberta-base"),
        ("coca_ViT-B-32", "only text towers with a causal mask"),
        ("MobileCLIP-S1", "only text towers with a causal mask"),
        ("NARROW", "a vocabulary of 1000"),
        ("SHORT", "48 of 48 captions"),
    ],
)
@pytest.mark.parametrize("more", ([], ["--dry-run"]))
def test_a_model_that_cannot_read_the_captions_is_refused(
    model, said, more, split, tmp_path, capsys, monkeypatch
):
    file, configs = tmp_path / "pairs.beton", tmp_path / "configs"
    shutil.copy(split, file)
    lengths = [0] * 20 + [48] + [0] * 57
    file.with_suffix(".json").write_text(json.dumps({"captions": {"lengths": lengths}}))
    shutil.copytree(architectures.CONFIGS, configs)
    described = json.loads((configs / "debug-ViT.json").read_text())
    for name, change in (("NARROW", {"vocab_size": 1000}), ("SHORT", {"context_length": 19})):
        odd = described | {"text_cfg": described["text_cfg"] | change}
        (configs / f"{name}.json").write_text(json.dumps(odd))
    monkeypatch.setattr(architectures, "CONFIGS", configs)
    args = ["--stage", "2", "--recipe", "debug", "--data", str(file), "--run", str(tmp_path / "run")]
    assert launch.main([*args, "--cluster", "local", "--model", model, *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and f"--model {model}" in told and said in told
    assert told.count("\n") == 1 and not (tmp_path / "run").exists()


def test_few_long_captions_are_told_and_a_missing_file_does_not_hide_the_model(split, tmp_path, capsys):
    file = splits.open_split(split, recipes.STAGE2["debug"])
    file.info = {"captions": {"lengths": [0] * 7 + [995] + [0] * 69 + [5]}}
    assert architectures.check_lengths("M", 76, file).startswith("note: 5 of 1,000 captions of ")
    assert architectures.check_lengths("M", 77, file) is None
    args = ["--stage", "2", "--recipe", "debug", "--data", str(tmp_path / "none.beton"), "--dry-run"]
    assert launch.main([*args, "--cluster", "local", "--model", "ViT-B-16-SigLIP"]) == 2
    assert "tokenizer" in capsys.readouterr().err


# -- folders --------------------------------------------------------------------------------

FOREIGN = ("step-000004.bak", "step-000004 (copy)", "step-4", "step-", "step-٠٠٠٠٠٤", "step--00004",
           ".step-000004.Ab3xQz", "step-0000004", "step-000004~", "last")  # fmt: skip


@pytest.mark.slow
def test_foreign_names_are_passed_over(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", steps=8, save_every=2, keep=1)
    kit.train(recipe, kit.Asked(4))
    folder = recipe.run / "checkpoints"
    for name in FOREIGN:
        shutil.copytree(folder / "step-000004", folder / name)
    (folder / "step-000005").write_text("no folder")
    assert [p.name for p in checkpoint.folders(recipe.run)] == ["step-000004"]
    assert checkpoint.find(recipe.run).name == "step-000004"
    assert [p.name for p in watch.pending(recipe.run)] == ["step-000004"]
    assert kit.train(recipe).done
    assert [p.name for p in checkpoint.folders(recipe.run)] == ["step-000008"]
    assert {p.name for p in folder.iterdir()} == {*FOREIGN, "step-000005", "step-000008"}
    assert watch.has_ended(recipe.run)


@given(steps=st.sets(st.integers(0, 10**9), min_size=1, max_size=6))
def test_checkpoints_are_in_the_order_of_their_steps(steps, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    for step in sorted(steps, key=str):
        folder = run / "checkpoints" / checkpoint.folder_name(step)
        folder.mkdir(parents=True)
        state = {"step": step, "steps": max(steps)}
        (folder / "state.json").write_text(json.dumps(state))
    names = [checkpoint.folder_name(step) for step in sorted(steps)]
    assert [p.name for p in watch.pending(run)] == names
    assert [p.name for p in checkpoint.folders(run)] == names[::-1]
    assert watch.has_ended(run) == (max(steps) > 0)


# -- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize(
    "build",
    [
        lambda x: Optim(lr=x),
        lambda x: Optim(weight_decay=x),
        lambda x: Optim(eps=x),
        lambda x: Optim(clip=x),
        lambda x: Optim(betas=(0.9, x)),
        lambda x: Data(fraction=x),
        lambda x: Data(crop_scale=(0.1, x)),
        lambda x: Stage1(margin=x),
        lambda x: Stage2(epochs=x),
        lambda x: Stage2(scale_max=x),
        lambda x: Stage2(scale_init=x),
    ],
)
def test_recipes_are_of_numbers(build, value):
    with pytest.raises(ValueError, match="--.*: must be finite"):
        build(value)
    assert Compute()


def test_no_nan_in_a_runs_json(tmp_path):
    metrics = Metrics(tmp_path, 0, tensorboard=False)
    metrics.write({"step": 1, "loss": math.nan, "val_2afc": math.inf, "lr": 0.1})
    metrics.close()

    def refuse(word):
        raise AssertionError(word)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "lr": 0.1}


@pytest.mark.parametrize("saved", (0, 3))
def test_a_killed_run_leaves_no_point_twice(saved, tmp_path):
    """It wrote five steps, and its newest checkpoint is `saved`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Metrics(tmp_path, 0, tensorboard=True)
    for step in range(1, 6):
        first.write({"step": step, "loss": 1.0})
    first.events.flush()
    second = Metrics(tmp_path, saved, tensorboard=True)
    for step in range(saved + 1, 9):
        second.write({"step": step, "loss": 2.0})
    second.close()
    first.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    wanted = [(step, 1.0 if step <= saved else 2.0) for step in range(1, 9)]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == wanted
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == wanted


# -- ranks ------------------------------------------------------------------------------------


def train_rank(recipe, rank: int, size: int, port: int, after: int) -> None:
    """One rank, until `after` more steps are done."""
    from train import distributed, loop

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with distributed.join(1) as world:
        loop.train(recipe, world, kit.Asked(after))


@pytest.mark.slow
def test_resuming_at_an_epochs_end_on_other_numbers_of_ranks(split, tmp_path):
    """48 samples, 16 a step: each stop falls on the end of an epoch."""
    processes = multiprocessing.get_context(kit.fork_server())
    recipe = kit.debug(2, split, tmp_path / "one", steps=9, threads=1, augment="paper", eps=1e-2)
    kit.train(recipe)
    moved = replace(recipe, run=tmp_path / "moved")
    for size in (1, 2, 4):
        port = kit.free_port()
        ranks = [
            processes.Process(target=train_rank, args=(moved, rank, size, port, 3)) for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(240)
            assert rank.exitcode == 0
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (recipe.run, moved.run)
    ]
    for one, other in zip(*rows, strict=True):
        assert (one["step"], one["samples"], one["epoch"]) == (
            other["step"],
            other["samples"],
            other["epoch"],
        )
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    state = checkpoint.check(checkpoint.latest(moved.run))
    assert (state.step, state.samples) == (9, 144)
