"""A whole study of tiny runs: `python -m eval.study` from planning to the page, killed on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kits import train as kit
from tests.kits.eval import encoded, pictures, write_webdataset

pytestmark = pytest.mark.slow  # processes and whole runs

MINE = """
from pathlib import Path
from eval.study.studies import UNTRAINED, Arm, Study, Training

HERE = Path(__file__).parent
first = Training(stage=1, recipe="debug", flags={"data": str(HERE / "triplets.beton"), "steps": "12"})
second = Training(
    stage=2, recipe="debug",
    flags={"data": str(HERE / "pairs.beton"), "steps": "24", "save-every": "6", "keep": "9"},
)
STUDY = Study(
    name="mine", description="Tiny runs", seeds=1, data=HERE / "sets", triplets=HERE / "triplets.beton",
    evaluation={"device": "cpu"},
    arms=(
        Arm(label="Baseline", chain=(second,), role="baseline"),
        Arm(label="PI", chain=(first, second), role="subject"),
        Arm(label="Nobody's votes", chain=(first.with_flags(votes=UNTRAINED), second), role="control"),
    ),
)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The file of a study, with its data beside."""
    folder = tmp_path_factory.mktemp("study")
    kit.pairs(folder / "pairs.beton")
    kit.triplets(folder / "triplets.beton")
    images, names = [encoded(p) for p in pictures(12)], [f"thing {i}" for i in range(6)]
    write_webdataset(folder / "sets" / "wds_emoji-names", images, [i % 6 for i in range(12)], names)
    (folder / "mine.py").write_text(MINE)
    return folder / "mine.py"


def command(action: str, study: Path, out: Path, *more: object) -> list[str]:
    return kit.command(action, study, "--out", out, *more, module="eval.study")


def said(action: str, study: Path, out: Path, *more: object) -> tuple[int, str]:
    return kit.launch(action, study, "--out", out, *more, module="eval.study")


def figures(out: Path) -> dict:
    """What each run came to, and the page's figures but for where files lie."""
    runs = sorted((out / "runs").iterdir())
    results = {
        str(path.relative_to(out)): json.loads(path.read_text())["headline"]
        for run in runs
        for path in sorted(run.glob("eval/*/results.json"))
    }
    votes = {
        json.loads((run / "recipe.json").read_text()).get("votes") for run in runs if "stage1" in run.name
    }
    assert votes == {"human", *map(str, (out / "votes").glob("*.npy"))}  # as each arm says
    weights = {run.name: {n: t.numpy().tobytes() for n, t in kit.tensors(run).items()} for run in runs}
    page = json.loads((out / "mine" / "study.json").read_text())
    return {
        "results": results,
        "weights": weights,
        "arms": [arm["label"] for arm in page["groups"][0]["arms"]],
    }


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    code, text = said("run", study, out, "--cluster", "local")
    assert code == 0, text
    return out


def test_a_study_from_its_plan_to_its_page(study, undisturbed):
    code, text = said("plan", study, undisturbed)
    assert code == 0 and "5 different, 5 done" in text and "evaluate      3, 3 done" in text, text
    code, text = said("status", study, undisturbed)
    assert code == 0 and text.rstrip().endswith("mine: 9 jobs: 9 done"), text
    found = figures(undisturbed)
    assert len(found["results"]) == 3 * 4  # each kept checkpoint of each evaluated run
    assert sorted(found["arms"]) == ["Baseline", "Nobody's votes", "PI"]
    assert (undisturbed / "mine" / "index.html").read_text().startswith("<!doctype html>")
    code, text = said("run", study, undisturbed, "--cluster", "local")
    assert code == 0 and "9 of 9 jobs are done" in text, text


def processes(out: Path) -> list[int]:
    """Of this study, whoever started them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if str(out).encode() in words:
                found.append(int(folder.name))
    return found


def test_killed_at_random_moments_it_ends_with_the_same_figures(study, undisturbed, tmp_path):
    """The command alone, or all its processes at once, as a machine that loses power."""
    chance = random.Random(1)
    for attempt in range(6):
        process = subprocess.Popen(
            command("run", study, tmp_path, "--cluster", "local"), cwd=kit.REPOSITORY,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(2, 9))
        process.kill()
        process.wait()
        for number in processes(tmp_path) if attempt % 2 else ():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
    code, text = said("run", study, tmp_path, "--cluster", "local")
    assert code == 0, text
    assert figures(tmp_path) == figures(undisturbed)


def test_a_study_grows(study, undisturbed):
    """Two seeds more train their own runs and no other."""
    before = {run.name: run.stat().st_mtime for run in (undisturbed / "runs").iterdir()}
    code, text = said("plan", study, undisturbed, "--seeds", 3)
    assert code == 0 and "15 different, 5 done" in text, text
    assert before == {run.name: run.stat().st_mtime for run in (undisturbed / "runs").iterdir()}


def test_a_study_is_moved_with_its_data_and_without_its_weights(study, undisturbed, tmp_path):
    """From a cluster to a desk, say: nothing is trained anew, and the page is the same."""
    there = tmp_path / study.parent.name / study.name
    shutil.copytree(study.parent, there.parent)
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(undisturbed, tmp_path / undisturbed.name, ignore=weights)
    page = tmp_path / undisturbed.name / "mine" / "study.json"
    page.unlink()
    code, text = said("status", there, tmp_path / undisturbed.name)
    assert code == 0 and text.rstrip().endswith("mine: 9 jobs: 9 done"), text
    code, text = said("report", there, tmp_path / undisturbed.name)
    assert code == 0 and page.read_text() == (undisturbed / "mine" / "study.json").read_text(), text
    # Other data than those it was evaluated on are still told apart.
    (there.parent / "sets").rename(there.parent / "others")
    there.write_text(MINE.replace('"sets"', '"others"'))
    code, text = said("status", there, tmp_path / undisturbed.name)
    assert code == 2 and "not as this study does" in text, text


def test_mistakes_are_one_line(study, tmp_path):
    for words, message in (
        (["run", "paper", "--cluster", "local"], "--data"),
        (["plan", "papers"], "there are paper"),
        (["plan", study, "--set", "epochs"], "FIELD=VALUE"),
        (["plan", study, "--set", "nonsense=1"], "nonsense"),
        (["plan", study, "--seeds", 0], "--seeds 0"),
        (["report", study], "finished"),
        (["run", study, "--cluster", "debug"], "--cluster debug"),
        (["fly", study], "fly"),
    ):
        code, text = kit.launch(*words, "--out", tmp_path / "out", module="eval.study")
        assert code == 2 and text.strip().count("\n") == 0 and message in text, (words, text)
