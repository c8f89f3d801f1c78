"""Arrays of jobs through submitit's local executor, and the benchmark's simulated rows."""

from __future__ import annotations

import json
import os

import pytest

from dataprep.bench import command as bench
from dataprep.build import RunSettings, build
from dataprep.build_ffcv import main
from dataprep.cluster import ClusterSettings
from dataprep.shard import SampleSettings
from dataprep.sources import tables
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

pytestmark = pytest.mark.slow  # processes and whole runs


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SHARD", 4)
    return kit.write_csv(tmp_path / "in/captions.csv", kit.folder_of_images(tmp_path / "in", 22))


def test_an_array_of_jobs_writes_the_same_file(table, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    how = RunSettings(workers=1)
    here = build(open_pairs(table), tmp_path / "here.beton", SampleSettings(), how)
    cluster = ClusterSettings(cluster="local", shards=2)
    there = build(open_pairs(table), tmp_path / "there.beton", SampleSettings(), how, cluster.runner())
    assert here == there and (tmp_path / "here.beton").read_bytes() == (tmp_path / "there.beton").read_bytes()
    assert not (tmp_path / "there.beton.parts").exists()


def test_a_failing_job_is_one_line_and_the_build_goes_on(table, tmp_path, capsys):
    arguments = ["pairs", "--source", str(table), "--out", str(tmp_path / "out.beton"), "--workers", "1"]
    folder = tmp_path / "out.beton.parts" / "000003.beton"
    folder.mkdir(parents=True)  # a folder where a shard should go: that job fails, others do their work
    (tmp_path / "out.beton.parts" / "000000.json").write_text("{}")  # so that the parts are not swept
    plan = tmp_path / "out.beton.parts" / "plan"
    from dataprep.build import Job

    job = Job(open_pairs(table), tmp_path / "out.beton", SampleSettings(), RunSettings(workers=1))
    plan.write_text(job.fingerprint)
    (tmp_path / "out.beton.parts" / "000000.json").unlink()
    job.parts.mkdir(exist_ok=True)
    job.write(0, lambda n: None)
    assert main([*arguments, "--cluster", "local", "--shards", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: job ") and "the same command goes on" in error
    folder.rmdir()
    assert main(arguments) == 0
    assert len(Beton(tmp_path / "out.beton")) == 22


def test_slurm_parameters():
    settings = ClusterSettings(cluster="slurm", partition="cpu", slurm_arg=("qos=low", "cpus-per-task=3"))
    told = settings.slurm_parameters(workers=12)
    assert told["additional_parameters"] == {"partition": "cpu", "qos": "low", "cpus_per_task": "3"}
    assert told["srun_args"] == ["--cpus-per-task=3"] and told["time"] == 24 * 60
    for wrong in ("slurm_qos=low", "mem_gb=8", "array=0-3", "nodes=2"):
        with pytest.raises(ValueError, match=f"--slurm-arg {wrong}"):
            ClusterSettings(slurm_arg=(wrong,))


def test_many_simulated_rows(tmp_path, monkeypatch, capsys):
    """The full-size benchmark, small: every row arrives, in order, and memory is told."""
    monkeypatch.setattr(bench.Simulated, "each", 500, raising=False)
    out = tmp_path / "rows.beton"
    bench.Rows(rows=2_300, out=out, workers=1, keep=True).run()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["rows"] == 2_300 and told["peak_mb_parent"] > 0
    assert kit.keys(Beton(out)) == [f"{row:09d}" for row in range(2_300)]
    assert main(["verify", str(out), "--workers", "1"]) == 0


def test_speed_prints_one_line_of_json(tmp_path, capfd):
    kit.folder_of_images(tmp_path, 3)
    bench.Speed(photos=tmp_path / "images", images=20, rounds=1).run()
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"reencode_vs_ffcv", "passthrough_vs_ffcv", "tokenize_vs_open_clip"} <= set(told)
    assert all(value > 0 for value in told.values())
