"""The jobs of the other rooms on a real SLURM: an array that writes shards, one that evaluates."""

from __future__ import annotations

import pytest

from eval.results import Evaluation
from pipeline.beton.fields import Beton
from tests.kits import dataprep as dataprep_kit
from tests.kits import train as kit
from tests.kits.eval import encoded, pictures, write_webdataset

pytestmark = pytest.mark.slow  # processes and whole runs

AROUND = {"SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_MEM_PER_NODE": "100", "SLURM_MEM_PER_CPU": "10"}
AROUND |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "5", "SBATCH_PARTITION": "nowhere"}


def members(first: int, count: int):
    for i, image in enumerate(pictures(count), first):
        yield f"{i:03d}.png", encoded(image)
        yield f"{i:03d}.txt", b"picture %d" % i


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(3):
        dataprep_kit.write_tar(folder / f"{shard}.tar", list(members(shard * 4, 4)))
    return folder


def test_an_array_writes_the_shards(slurm, tars, tmp_path):
    out = tmp_path / "a b=0 'ü'" / "x.beton"
    args = ["pairs", "--source", tars, "--out", out, "--workers", 1, "--cluster", "slurm", "--shards", 2]
    args += ["--slurm-arg", "job-name=mine", "--slurm-arg", "cpus-per-task=2", "--timeout", 30]
    code, said = kit.launch(*args, module="dataprep.build_ffcv", env={**slurm.environment, **AROUND})
    assert code == 0 and "2 jobs submitted" in said, said
    assert dataprep_kit.keys(Beton(out)) == [f"{i:03d}" for i in range(12)]
    jobs = slurm.run("scontrol", "show", "job", "--oneliner").splitlines()
    mine = [job for job in jobs if "JobName=mine" in job and "ArrayTaskId=" in job]
    assert len(mine) == 2 and all("CPUs/Task=2" in job and "Partition=main" in job for job in mine)


def test_a_checkpoint_is_evaluated_in_a_job(slurm, tmp_path):
    run, root = tmp_path / "a b=0 'ü'", tmp_path / "root"
    kit.train(kit.debug(2, kit.pairs(tmp_path / "pairs.beton"), run, steps=2))
    images = [encoded(p) for p in pictures(6)]
    write_webdataset(root / "wds_emoji-names", images, list(range(6)), [f"thing {i}" for i in range(6)])
    args = ["--checkpoint", run, "--data", root, "--watch", 0, "--submit", "slurm", "--cpus-per-task", 2]
    args += ["--slurm-arg", "job-name=mine-too", "--timeout", 30, "--device", "cpu"]
    code, said = kit.launch(*args, module="eval.run", env={**slurm.environment, **AROUND})
    assert code == 0, said
    assert Evaluation.read(run / "eval" / "step-000002").samples == 32
    jobs = slurm.run("scontrol", "show", "job", "--oneliner").splitlines()
    (job,) = [job for job in jobs if "JobName=mine-too" in job]
    assert "CPUs/Task=2" in job and "TimeLimit=00:30:00" in job and "gpu:1" in job
