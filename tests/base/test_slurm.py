"""What SLURM is told: one meaning of the flags in dataprep, train and eval, and no ear for what surrounds."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.cluster import ClusterSettings
from eval.options import Where
from eval.watch import submitted
from pipeline.base import slurm
from tests.kits import train as kit
from train import launch, recipes
from train.cluster import scheduler
from train.cluster.scheduler import Launch

ROOMS = {
    "dataprep": (ClusterSettings, lambda flags: flags.slurm_parameters(4)),
    "train": (
        Launch,
        lambda flags: scheduler.slurm_parameters(flags, 2, recipes.STAGE2["debug"], None),
    ),
    "eval": (Where, lambda flags: flags.slurm_parameters("run")),
}


def batch_flags(parameters: dict) -> Counter:
    """The (flag, value) pairs of the batch file that submitit makes of `parameters`."""
    from submitit.slurm.slurm import _make_sbatch_string

    text = _make_sbatch_string(command="x", folder="/jobs/%j", **parameters)
    flags = Counter()
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line)[1:]
            flags[tuple(word.removeprefix("--").partition("=")[::2])] += 1
    return flags


@pytest.fixture(autouse=True)
def nodes_with_two_gpus(tmp_path, monkeypatch):
    fake(tmp_path, "sinfo", "echo 'gpu:a100:1(S:0,1),gpu:v100:1'; echo '(null)'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    slurm._say_once.cache_clear()


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


keys = st.sampled_from(
    ["account", "constraint", "cpus-per-task", "dependency", "gpus", "gpus-per-node", "gres", "hint",
     "job-name", "mail-type", "mem", "mem-per-cpu", "partition", "qos", "requeue", "no-requeue", "time",
     "wckey", "x11"]
)  # fmt: skip
values = st.text("abz059:,= '\"%#\\é", min_size=1, max_size=8).map(str.strip).filter(bool)


@pytest.mark.parametrize("room", ROOMS)
@given(given_flags=st.dictionaries(keys, values, max_size=5), named=st.booleans())
def test_a_flag_of_the_users_replaces_ours_and_stands_once(room, given_flags, named):
    kind, parameters = ROOMS[room]
    pairs = tuple(f"{key}={value}" for key, value in given_flags.items())
    own = {"partition": "here", "cpus_per_task": 7} if named else {}
    told = batch_flags(parameters(kind(slurm_arg=pairs, **own)))
    names = Counter(name for name, _ in told.elements())
    assert set(names.values()) == {1}, names
    for item in given_flags.items():
        assert item in told
    for group in slurm.ALTERNATIVES:
        asked = [k for k in group if k in given_flags]
        if asked and asked != ["gres"]:
            extra = [k for k in group if k in names and k not in given_flags]
            assert not extra or (extra == ["cpus-per-task"] and named), (asked, extra)


@pytest.mark.parametrize("room", ROOMS)
def test_flags_without_a_value_and_the_cores_of_srun(room):
    kind, parameters = ROOMS[room]
    flags = kind(slurm_arg=("exclusive", "cpus-per-task=9"), cpus_per_task=3)
    told = parameters(flags)
    assert told["srun_args"][-1] == "--cpus-per-task=9"
    assert sum("cpus-per-task" in arg for arg in told["srun_args"]) == 1
    assert batch_flags(told)["exclusive", ""] == 1


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(
    "pair", ["nodes=2", "ntasks-per-node=4", "array=0-3", "parsable", "signal=USR1@9", "slurm_qos=low", "=1",
             "mail-type=END\n#SBATCH --qos=x", "--qos=x", "Qos=x"]
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(room, pair):
    with pytest.raises(ValueError, match=re.escape(f"--slurm-arg {pair}")):
        ROOMS[room][0](slurm_arg=(pair,))


def test_every_slurm_arg_of_a_command_line_counts():
    args = ["--stage", "2", "--recipe", "debug", "--slurm-arg", "mail-type=END", "--slurm-arg", "hint=memory"]
    (command,) = launch.parse(args)
    assert command.launch.slurm_arg == ("mail-type=END", "hint=memory")


def test_a_dependency_of_the_users_does_not_undo_the_chains():
    flags = Launch(slurm_arg=("dependency=afterok:5",))
    told = batch_flags(scheduler.slurm_parameters(flags, 1, recipes.STAGE2["debug"], "77"))
    assert told["dependency", "afterok:77,afterok:5"] == 1 and told["kill-on-invalid-dep", "yes"] == 1


def test_the_time_limit_is_the_users_or_none():
    debug = recipes.STAGE2["debug"]
    for flags, said in (
        (Launch(), []),
        (Launch(timeout=9), ["9"]),
        (Launch(slurm_arg=("time=1-0",)), ["1-0"]),
    ):
        text = scheduler.preview(flags, 1, kit_recipe(debug), None)
        assert re.findall(r"#SBATCH --time=(.*)", text) == said


def kit_recipe(recipe):
    from dataclasses import replace

    return replace(recipe, run=Path("runs/x"))


# -- GPUs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gres, count",
    [
        ("(null)", 0),
        ("", 0),
        ("gpu:4", 4),
        ("gpu", 1),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:a100:2(S:0,2),gpu:v100:2(S:1)", 4),
        ("gpu:4(IDX:0-1,3-4),shard:0", 4),
        ("gpu:nvidia_a100-sxm4-40gb:8(S:0-7),mps:a100:800(S:0-7)", 8),
        ("gpu:1g.5gb:7", 7),
        ("gpu:a100_3g.20gb:2(S:0),gpu:a100_2g.10gb:3(S:0)", 5),
        ("gpu:no_consume:4", 4),
        ("gpu:tesla:no_consume:2,bandwidth:lustre:no_consume:4G", 2),
        ("mps:400,shard:16,craynetwork:4", 0),
        ("gpu:h100:4,shard:h100:64,tmpfs:10G", 4),
    ],
)
def test_gpus_in_slurms_words(gres, count):
    assert slurm.count_gpus(gres) == count


def test_the_most_of_any_node_and_asking_for_fewer(tmp_path):
    assert slurm.gpus_of_nodes(Launch()) == 2
    fake(tmp_path, "sinfo", 'echo "$@" > "$(dirname "$0")/asked"; echo gpu:3')
    assert slurm.gpus_of_nodes(Launch(partition="a", slurm_arg=("partition=b",))) == 3
    assert (tmp_path / "asked").read_text().split()[-2:] == ["--partition", "b"]
    for pair, one, two in (
        ("gres=gpu:a100:2", 2, 2), ("gres=tmpfs:10G", None, None), ("gpus-per-node=v100:4", 4, 4),
        ("gpus-per-node=volta:3,kepler:5", 8, 8), ("gpus=v100:4", 4, None),
    ):  # fmt: skip
        assert [Launch(nodes=n, slurm_arg=(pair,)).gpus for n in (1, 2)] == [one, two]
    debug = kit_recipe(recipes.STAGE2["debug"])
    ranks = launch._ranks(launch.Command(recipe=debug, launch=Launch(slurm_arg=("gres=gpu:2",))), "slurm")
    assert ranks == 2
    with pytest.raises(ValueError, match="--ngpus 4: --slurm-arg asks for 2 GPUs"):
        launch._ranks(
            launch.Command(recipe=debug, launch=Launch(ngpus=4, slurm_arg=("gres=gpu:2",))), "slurm"
        )


def test_gpus_are_asked_for_where_a_recipe_needs_them_and_nodes_are_unknown(tmp_path, monkeypatch):
    assert batch_flags(ROOMS["eval"][1](Where()))["gpus-per-node", "1"] == 1
    assert "gpus_per_node" not in ROOMS["eval"][1](Where(ngpus=0))
    fake(tmp_path, "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    for _ in range(2):
        for name, wanted in (("debug", False), ("paper", True)):
            told = scheduler.slurm_parameters(Launch(), 6, recipes.STAGE2[name], None)
            assert ("gpus_per_node" in told) == wanted
        (tmp_path / "sinfo").unlink(missing_ok=True)
        monkeypatch.setenv("PATH", str(tmp_path))


# -- the surroundings -------------------------------------------------------------------------

SURROUNDINGS = {
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_MEM_PER_NODE": "100",
    "SLURM_MEM_PER_CPU": "10",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_JOB_ID": "7",
    "SBATCH_PARTITION": "elsewhere",
    "SRUN_CPUS_PER_TASK": "1",
}


def dump(folder: Path, refused: bool = False) -> None:
    """An sbatch that notes its environment and the batch file."""
    end = "echo 'sbatch: error: invalid partition' >&2; exit 1" if refused else "echo Submitted batch job 41"
    fake(folder, "sbatch", f'env > "{folder}/env"; cp "$1" "{folder}/batch"; {end}')
    fake(folder, "srun", "exit 1")


def told_to_sbatch(folder: Path) -> dict:
    return dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines() if "=" in line)


@pytest.mark.slow
def test_sbatch_hears_nothing_of_a_surrounding_allocation(tmp_path):
    dump(tmp_path)
    split = kit.pairs(tmp_path / "pairs.beton")
    args = ["--stage", 2, "--recipe", "debug", "--data", split, "--run", tmp_path / "run"]
    env = {**SURROUNDINGS, "SLURM_CONF": "/etc/mine.conf"}
    code, said = kit.launch(*args, "--cluster", "slurm", env=env)
    assert code == 0, said
    assert "note: SBATCH_PARTITION had no effect" in said and "job 41:" in said
    heard = {name for name in told_to_sbatch(tmp_path) if name.startswith(("SLURM", "SBATCH", "SRUN"))}
    assert heard == {"SLURM_CONF"}


def test_an_sbatch_that_fails_in_silence_is_told():
    with pytest.raises(ValueError, match="not submitted: sbatch failed"), slurm.submitting():
        raise RuntimeError("")


@pytest.mark.parametrize("refused", (False, True))
def test_eval_submits_like_the_others(refused, tmp_path, monkeypatch, capsys):
    dump(tmp_path, refused)
    for name, value in (SURROUNDINGS | {"SLURM_CONF": "/etc/mine.conf"}).items():
        monkeypatch.setenv(name, value)
    where = Where(account="me", partition="gpu", timeout=90, slurm_arg=("cpus-per-task=3",))
    evaluate = submitted("slurm", tmp_path / "run", print, None, where)
    if refused:
        with pytest.raises(ValueError, match="not submitted: sbatch: error: invalid partition"):
            evaluate("step-000001", tmp_path / "out")
        return
    from submitit.slurm.slurm import SlurmJob

    monkeypatch.setattr(SlurmJob, "result", lambda self: None)
    evaluate("step-000001", tmp_path / "out")
    batch = (tmp_path / "batch").read_text()
    for flag in ("account=me", "partition=gpu", "time=90", "cpus-per-task=3", "gpus-per-node=1"):
        assert batch.count(f"#SBATCH --{flag}\n") == 1
    assert batch.count("cpus-per-task") == 2  # and srun's
    heard = {name for name in told_to_sbatch(tmp_path) if name.startswith(("SLURM", "SBATCH", "SRUN"))}
    assert heard == {"SLURM_CONF"}
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_flags_of_slurm_without_slurm_are_refused(tmp_path):
    from eval.run import Evaluate

    with pytest.raises(ValueError, match="only with --submit slurm"):
        Evaluate(checkpoint="x", data=tmp_path, watch=1.0, submit="local", where=Where(partition="gpu"))
    with pytest.raises(ValueError, match="--ngpus 4"):
        Where(ngpus=4)


@pytest.mark.parametrize("name", ("a%j", "100%", "back\\slash", "new\nline"))
def test_a_folder_that_is_a_pattern_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="--run .* for a pattern"):
        slurm.check_path(tmp_path / name, "--run")
    slurm.check_path(tmp_path / "a b=0 'ü' \"x\" $HOME `x` #1", "--run")
