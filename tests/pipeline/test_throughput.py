"""The measuring command end to end, small; made-up files; no assertion about speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.augment import AUGMENTS
from pipeline.beton.fields import Beton
from pipeline.ffcv_loader import FFCVLoader
from pipeline.order import Order
from pipeline.throughput.command import main
from pipeline.throughput.parts import RATIOS
from pipeline.throughput.synthetic import photographs, write
from tests.kits.pipeline import triplets_file

pytestmark = pytest.mark.slow  # processes of their own


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "s.beton"
    write(path, photographs(3), 40)
    return path


def test_made_up_files_are_whole(made_up):
    file = Beton(made_up)
    assert len(file) == 40 and file.kind == "pairs" and file.text("key", 7) == f"{7:016d}"
    batches = list(FFCVLoader.one_pass(file, batch_size=16, image_size=32))
    assert all(b.valid.all() for b in batches)
    images = torch.cat([b.images for b in batches])
    assert torch.equal(images[0], images[3]) and not torch.equal(images[0], images[1])


def test_a_large_sparse_file_opens_and_streams(tmp_path):
    samples, path = 300_000, tmp_path / "large.beton"
    for kind in ("random", "block"):
        order = Order(kind=kind)
        _, begin = order.locate(1, samples, np.arange(64))
        write(path, photographs(2), samples, filled=begin)
        assert path.stat().st_size > 10 * path.stat().st_blocks * 512
        options = dict(batch_size=16, image_size=32, augment=AUGMENTS["clip"], seed=1, order=order)
        with FFCVLoader(path, **options) as stream:
            batch = next(iter(stream))
        assert batch.valid.all() and torch.equal(batch.index, torch.from_numpy(begin[:16]))


def run(*arguments):
    command = [sys.executable, "-m", "pipeline.throughput", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_ends_in_a_line_of_json(tmp_path):
    parts = ["pack", *{name for ours, peers in RATIOS.values() for name in (ours, *peers)}]
    done = run(
        "--synthetic", 60, "--parts", *parts, "--cold", "--seconds", 0.1, "--batch-size", 4,
        "--image-size", 32, "--simulate", 5000, "--plot", tmp_path / "p.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *text, last = done.stdout.splitlines()
    line = json.loads(last)
    assert set(line["parts"]) == set(parts)
    assert set(line["ratios"]) == {"ffcv_vs_open_clip", "ffcv_vs_dali_cpu", "ffcv_vs_stock_ffcv"}
    assert all(ratio > 0 for ratio in line["ratios"].values())
    assert line["first_batch_s"] > 0 and line["first_batch_simulated_s"] > 0
    assert all(p["memory_mb"] > 0 and p["disk_kb_per_image"] >= 0 for p in line["parts"].values())
    assert any("FFCV engine, full" in row for row in text) and any("--decode" in row for row in text)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name a .beton file"),
        (["none.beton"], "no such file"),
        (["t.beton"], "has triplets"),
        (["--synthetic", "5", "--parts", "decoding"], "no part decoding"),
        (["--synthetic", "5", "--augment", "strong"], "augment 'strong' is none of"),
        (["--synthetic", "5", "--workers", "0"], "must be positive"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    triplets_file(tmp_path / "t.beton", 3)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_made_up_files_are_removed_when_it_is_stopped(tmp_path, number):
    command = [sys.executable, "-m", "pipeline.throughput", "--synthetic", "64", "--simulate", "200000"]
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    line = next(line for line in process.stderr if "measuring" in line)  # the files are there now
    assert list(tmp_path.glob("*/large.beton")), line
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 130)
    assert not list(tmp_path.glob("*/*.beton"))
