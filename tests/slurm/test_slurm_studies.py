"""A study on a real SLURM: arrays that wait for each other, a failure, a job put in the queue again."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.eval.study.test_study import figures, said, study  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow  # processes and whole runs

WHERE = ["--cluster", "slurm", "--ngpus", 1, "--cpus-per-task", 1, "--at-once", 3, "--timeout", 30]


def settled(slurm, study: Path, out: Path) -> str:  # noqa: F811
    """What `status` says once nothing of the study is in the queue."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if not slurm.run(
            "squeue", "--noheader", "--name=study-train,study-evaluate,study-votes,study-report"
        ):
            return said("status", study, out)[1]
        time.sleep(1)
    raise TimeoutError(slurm.run("squeue", "--array"))


def requeue_one(slurm) -> None:
    """Put a training that runs in the queue again, as SLURM does with those of a node that dies."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        running = slurm.run(
            "squeue", "--array", "--noheader", "--states=R", "--name=study-train", "--format=%i"
        )
        if running:
            slurm.run("scontrol", "requeue", running.split()[0], check=False)
            return
        time.sleep(0.2)
    raise TimeoutError("no training came to run")


def test_arrays_a_failure_and_a_second_try(slurm, study, tmp_path):  # noqa: F811
    """What fails is named and stops only what needs it; the same command does the rest."""
    out = tmp_path / "a b 'ü'"
    out.mkdir()
    (out / "votes").write_text("in the way of the folder")
    code, text = said("run", study, out, *WHERE)
    assert code == 0 and "9 jobs submitted" not in text and "10 jobs submitted" in text, text
    assert re.search(r"array \d+: 1 × train, after \d+", text) and "× report, after" in text
    requeue_one(slurm)
    text = settled(slurm, study, out)
    lines = [line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("failed")]
    assert [name.split("-")[0] for name in lines] == ["votes", "stage1", "stage2", "evaluate"], text
    assert "did not end well" in text and text.rstrip().endswith("9 jobs: 5 done, 4 failed"), text
    arms = json.loads((out / "mine" / "study.json").read_text())["groups"][0]["arms"]
    assert {arm["label"]: arm["missing"] for arm in arms} == {"PI": 0, "Baseline": 0, "Nobody's votes": 1}

    (out / "votes").unlink()
    code, text = said("run", study, out, *WHERE)
    assert code == 0 and "5 jobs submitted; of the others 5 done" in text, text
    assert settled(slurm, study, out).rstrip().endswith("9 jobs: 9 done")
    figures(out)  # looks at whose votes were learned
    code, text = said("run", study, out, *WHERE)
    assert "1 jobs submitted" in text  # the report
    settled(slurm, study, out)
