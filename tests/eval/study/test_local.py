"""A study's jobs on one machine: order, failures, interruptions, kills, and what is shown of them.

Jobs here are small scripts that make what a real job makes; test_study.py runs real ones.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from eval.study import code, local
from eval.study.code import Code
from eval.study.graph import Graph, Job
from eval.study.local import Local, Slot, slots
from eval.study.state import Folder, View, is_done, progress
from eval.study.studies import Arm, Study, Training

pytestmark = pytest.mark.slow  # processes

HERE = Code(Path(__file__).parents[3], "a-commit", "")
STUDY = Study(name="s", description="", arms=(Arm(label="a", chain=(Training(stage=2),)),))
SLOTS = [Slot({}, frozenset(os.sched_getaffinity(0)))] * 2


def table(out: Path, name: str, script: str = "", after: tuple[str, ...] = ()) -> Job:
    """A job that writes its name to a table of votes, after `script`; it says when it began and ended."""
    path = out / "votes" / f"{name}.npy"
    text = (
        "import os, sys, time, pathlib\n"
        f"path = pathlib.Path({str(path)!r}); events = pathlib.Path({str(out / 'events')!r})\n"
        "path.parent.mkdir(exist_ok=True)\n"
        f"open(events, 'a').write('begin {name}\\n')\n"
        f"{script}\n"
        f"open(events, 'a').write('end {name}\\n')\n"
        f"path.write_text({name!r})\n"
    )
    return Job(name=name, kind="votes", arguments=("-c", text), after=after, votes=path)


def graph(out: Path, *jobs: Job) -> Graph:
    out.mkdir(exist_ok=True)
    return Graph(study=STUDY, out=out, jobs={job.name: job for job in jobs})


def events(out: Path) -> list[str]:
    return (out / "events").read_text().splitlines() if (out / "events").exists() else []


def run(made: Graph, places=SLOTS) -> str:
    return Local(made, places, HERE).run(list(made.jobs))


def standing(made: Graph) -> dict[str, str]:
    view = View(made)
    return {name: view.standing(job) for name, job in made.jobs.items()}


def test_jobs_run_after_what_they_need_and_only_once(tmp_path):
    made = graph(
        tmp_path,
        table(tmp_path, "a"),
        table(tmp_path, "b", after=("a",)),
        table(tmp_path, "c", after=("a", "b")),
    )
    assert set(standing(made).values()) == {"planned"}
    run(made)
    assert events(tmp_path) == [f"{what} {name}" for name in "abc" for what in ("begin", "end")]
    assert set(standing(made).values()) == {"done"}
    kept = Folder.of(made, made.jobs["b"]).read("done")
    assert kept["command"] == list(made.jobs["b"].arguments) and kept["commit"] == "a-commit"
    run(made)
    assert len(events(tmp_path)) == 6


def test_at_most_as_many_at_once_as_there_are_places(tmp_path):
    made = graph(tmp_path, *(table(tmp_path, f"{i}", "time.sleep(0.3)") for i in range(6)))
    run(made)
    at_once, most = 0, 0
    for event in events(tmp_path):
        at_once += 1 if event.startswith("begin") else -1
        most = max(most, at_once)
    assert most == 2


def test_a_failure_is_named_stops_no_other_and_is_tried_again(tmp_path, capsys):
    broken = table(tmp_path, "broken", "if not os.path.exists('x'): sys.exit('error: no x here')")
    made = graph(
        tmp_path,
        broken,
        table(tmp_path, "needs", after=("broken",)),
        table(tmp_path, "other", "time.sleep(.5)"),
    )
    said = run(made)
    assert re.search("^failed: broken: error: no x here .*log.txt.; jobs that need them: 1; ", said), said
    assert standing(made) == {"broken": "failed", "needs": "planned", "other": "done"}
    assert Folder.of(made, broken).read("failed")["code"] == 1
    mended = replace(broken, arguments=("-c", broken.arguments[1].replace("if not os", "if False and os")))
    run(replace(made, jobs=made.jobs | {"broken": mended}))
    assert set(standing(made).values()) == {"done"}
    assert sum(e == "begin other" for e in events(tmp_path)) == 1


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what runs in the background
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.eval.study.test_local import SLOTS, graph, run, table
out = Path(sys.argv[2])
jobs = [table(out, f"{i}", "time.sleep(0.4)", after=(f"{i - 2}",) if i > 1 else ()) for i in range(8)]
from pipeline.base import console
sys.exit(console.command(lambda: int(bool(run(graph(out, *jobs))))))
"""


def driver(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, str(HERE.folder), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_command_loses_nothing_and_does_nothing_twice_at_a_time(tmp_path):
    """Its jobs go on without it; the next command waits for them instead of starting them beside."""
    chance = random.Random(0)
    for _ in range(6):
        process = driver(tmp_path)
        time.sleep(chance.uniform(0.5, 1.5))
        process.kill()
        process.communicate()
    process = driver(tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    open_jobs = set()
    for event in events(tmp_path):
        what, name = event.split()
        if what == "begin":
            assert name not in open_jobs, event  # never two of one job
            open_jobs.add(name)
        else:
            open_jobs.discard(name)
    assert not open_jobs and sorted(p.stem for p in (tmp_path / "votes").iterdir()) == list("01234567")


def test_ctrl_c_reaches_the_jobs_and_the_same_command_goes_on(tmp_path):
    slow = "signal = __import__('signal'); signal.signal(2, lambda *a: sys.exit(130)); time.sleep(30)"
    made = graph(tmp_path, table(tmp_path, "a", slow))
    text = DRIVER.replace('"time.sleep(0.4)"', repr(slow))
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(HERE.folder), str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    while len(events(tmp_path)) < 2:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.rstrip().endswith("interrupted"), said
    made = graph(tmp_path, table(tmp_path, "0"), table(tmp_path, "5"))
    assert standing(made) == {"0": "interrupted", "5": "planned"}
    run(made)
    assert set(standing(made).values()) == {"done"}


def test_a_job_that_runs_elsewhere_is_seen(tmp_path):
    made = graph(tmp_path, table(tmp_path, "a"))
    lock = Folder.of(made, made.jobs["a"]).lock()
    assert standing(made) == {"a": "running"} and Folder.of(made, made.jobs["a"]).lock() is None
    lock.close()
    assert standing(made) == {"a": "interrupted"}


def test_places_share_the_machine(monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(local.gpus, "here", lambda: 0)
    assert [place.cores for place in slots(None, 1)] == [frozenset({core}) for core in cores]
    assert len(slots(5, 1)) == 5 and all(place.cores for place in slots(5, 1))
    monkeypatch.setattr(local.gpus, "here", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2,1,0")
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in slots(None, 2)] == ["3,2", "1,0"]
    with pytest.raises(ValueError, match="--at-once 3: 4 GPUs here, 2 a job"):
        slots(3, 2)


def test_an_evaluation_with_other_data_is_refused(tmp_path):
    """Rather than taking the figures of other sets for this study's."""
    job = Job(name="e", kind="evaluate", arguments=("-m", "eval.run", "--data", "new"), run=tmp_path / "r")
    made = graph(tmp_path, job)
    Folder.of(made, job).write("done", command=["-m", "eval.run", "--data", "old"])
    with pytest.raises(ValueError, match="evaluated before by `python -m eval.run --data old`"):
        is_done(made, job)


def test_progress_of_a_training(tmp_path):
    from eval.study.graph import build

    study = Study(
        name="s", description="", arms=(Arm(label="a", chain=(Training(stage=2, recipe="debug"),)),)
    )
    (job,) = build(study, 1, tmp_path).trainings
    job = replace(job, recipe=replace(job.recipe, steps=100))
    assert progress(job) is None
    job.run.mkdir(parents=True)
    rows = [{"step": s, "samples": s, "seconds": 5.0} for s in (10, 20)] + [{"step": 20, "val_loss": 1.0}]
    (job.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3')
    assert str(progress(job)) == "step 20 of 100, 0:00:40 left"


def test_the_copied_code_is_what_jobs_import(tmp_path):
    """Whatever folder they start in, and with their own modules beside."""
    pinned = code.pin(tmp_path)
    assert pinned.folder.is_relative_to(tmp_path) and not list(tmp_path.rglob("*.tmp"))
    assert code.pin(tmp_path) == pinned
    (tmp_path / "here" / "eval").mkdir(parents=True)
    (tmp_path / "here" / "eval" / "__init__.py").write_text("raise ImportError('the wrong one')")
    show = (
        "import eval.study.graph, pipeline.base.hardware as h; print(eval.study.graph.__file__, h.commit())"
    )
    done = subprocess.run(
        [sys.executable, "-c", show], env=os.environ | pinned.environment, cwd=tmp_path / "here",
        capture_output=True, text=True,
    )  # fmt: skip
    file = pinned.folder / "eval" / "study" / "graph.py"
    assert done.stdout.split() == [str(file), pinned.commit], done.stderr
    assert pinned.arguments(["dataprep/build_ffcv.py", "x"])[0].startswith(str(pinned.folder))
