"""The command line of the evaluation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from eval import run
from tests.kits.eval import MODEL, encoded, evaluate, pictures


def test_workers_are_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert run.Evaluate(checkpoint="x", data=Path("y")).workers == 1


def test_nobody_reading_is_no_error():
    """`… | head -1`: what is left to do is done."""
    program = (
        "from pipeline.base import console\n"
        "def main():\n"
        "    for i in range(20000):\n"
        "        console.say('x' * 100)\n"
        "    import sys; print('done', file=sys.stderr)\n"
        "raise SystemExit(console.command(main))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "done\n" and process.wait() == 0
    process.stderr.close()


def test_names_asked_for_without_data(capsys):
    arguments = ["--checkpoint", MODEL, "--triplets", "/", "--datasets", "x"]
    assert run.main(arguments) == 2
    assert "--data, which is not given" in capsys.readouterr().err


def test_notes_reach_the_results(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "mix" / name).mkdir(parents=True)
        (tmp_path / "mix" / name / "a.png").write_bytes(encoded(pictures(1)[0]))
    (tmp_path / "mix" / "cat" / "a.heic").write_text("x")
    data = evaluate(MODEL, tmp_path, tmp_path / "out")
    assert data["datasets"]["mix"]["notes"] == ["1 files not read: 1 .heic"]
    assert "acc5" not in data["datasets"]["mix"]["metrics"]  # two classes
    assert "note: mix: 1 files" in capsys.readouterr().out
