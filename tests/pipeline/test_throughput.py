"""The measuring command, small: faults, rounds and arithmetic exactly, parts for real; never speed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.augment import AUGMENTS
from pipeline.beton.fields import Beton
from pipeline.ffcv_loader import FFCVLoader
from pipeline.order import Order
from pipeline.throughput import command, dali, decoders, measuring, peers, racing, report, spdl
from pipeline.throughput.command import main
from pipeline.throughput.parts import LIMITS, PARTS, RATIOS
from pipeline.throughput.settings import Settings
from pipeline.throughput.synthetic import HEIGHT, WIDTH, photographs, write
from tests.kits.pipeline import apply_reference, draws_of, pairs_file, pil, triplets_file
from tests.kits.throughput import FAULTS, case_of, children, runs

pytestmark = pytest.mark.slow  # processes of their own


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "s.beton"
    write(path, photographs(3), 40)
    return path


# -- made-up files --------------------------------------------------------------------------


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


# -- the command ----------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "pipeline.throughput", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_the_command_ends_in_a_line_of_json(tmp_path):
    others = ["dali_cpu", "peer_open_clip", "peer_ffcv", "peer_dali_cpu"]
    asked = ["pack", "decode", "ffcv", "ffcv_crop", *others]
    done = run(
        "--synthetic", 60, "--parts", *asked, "--cold", "--seconds", 0.1, "--batch-size", 4, "--rounds", 1,
        "--workers", 1, 2, "--image-size", 32, "--simulate", 5000, "--plot", tmp_path / "p.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *text, last = done.stdout.splitlines()
    line = json.loads(last)
    rows = {(row["part"], row["workers"]): row for row in line["parts"]}
    assert set(rows) == {(name, n) for name in asked for n in (1, 2)} - {("pack", 2)}
    assert not any("failed" in row for row in rows.values()), rows
    cpu = [(ours, peer) for ours, peer in RATIOS if {ours, peer} <= set(asked)]
    found = [(r["ours"], r["peer"], r["workers"]) for r in line["ratios"]]
    assert found == [(*pair, n) for pair in cpu for n in (1, 2)]
    assert all(r["median"] > 0 and r["limit"] > 0 for r in line["ratios"])
    assert line["first_batch_s"] > 0 and line["first_batch_simulated_s"] > 0
    assert line["megapixels"] == pytest.approx(HEIGHT * WIDTH / 1e6)
    assert line["machine"]["cores"] > 0 and line["versions"]["torch"]
    for row in rows.values():
        assert row["memory_mb"] > 0 and row["disk_kb_per_image"] >= 0
        assert row["batch_ms_p99"] >= row["batch_ms"] > 0
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
        (["--synthetic", "5", "--workers", "1", "0"], "must be positive"),
        (["--synthetic", "5", "--rounds", "0"], "must be positive"),
        (["--synthetic", "5", "--gpu-batch", "0"], "must be positive"),
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
    size = ["--synthetic", "64", "--simulate", "200000", "--parts", "decode", "ffcv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.throughput", *size], env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        line = next(line for line in process.stderr if "round" in line)  # parts are running and frozen now
        measuring = children(process.pid)
        assert list(tmp_path.glob("*/large.beton")) and measuring, line
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (143 if number == signal.SIGTERM else 130)
    assert not list(tmp_path.glob("*/*.beton"))
    until = time.monotonic() + 30  # one that was just being started ends when it finds its parent gone
    while any(map(runs, measuring)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(runs, measuring))


# -- parts that fail ------------------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch):
    """The kit's parts, in this process and in those that measure."""
    for name, part in FAULTS.items():
        monkeypatch.setitem(PARTS, name, part)
    monkeypatch.setattr(racing, "COMMAND", (sys.executable, "-m", "tests.kits.throughput"))
    monkeypatch.chdir(Path(__file__).parents[2])


def said(capsys) -> tuple[list[str], dict[str, dict]]:
    """The lines before the JSON, and its rows by part."""
    *text, last = capsys.readouterr().out.splitlines()
    return text, {row["part"]: row for row in json.loads(last)["parts"]}


FEW = ["--synthetic", "40", "--batch-size", "4", "--seconds", "0.02", "--workers", "1", "--rounds", "2"]


def test_a_part_that_fails_is_a_row_and_the_others_go_on(faults, capsys, monkeypatch):
    monkeypatch.setattr(racing, "LIMIT", 15.0)
    assert main([*FEW, "--parts", *FAULTS, LIMITS[True]]) == 0
    text, rows = said(capsys)
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    assert set(rows) == {*FAULTS, LIMITS[True]} and set(failed) == set(rows) - {"steady", "busy"}
    assert failed["raises"] == "RuntimeError: the decoder gave up"
    assert failed["fails_later"] == "ValueError: no more"  # its first turn went well
    assert failed["crashes"].startswith("ended by SIGSEGV")
    assert failed["exits"] == "ended with exit code 3: what(): a message"
    assert failed["missing"].startswith("not installed (pip install -e '.[bench-peers]')")
    assert "no batches within 15 s" in failed["hangs"]
    assert failed[LIMITS[True]] == "needs a CUDA GPU"
    assert len(rows["steady"]["rounds"]["images_per_s"]) == 2
    assert any(line.startswith("not measured") and "crashes" in line for line in text)
    assert any(line.startswith("crashes ") and "failed: ended by SIGSEGV" in line for line in text)


def test_nothing_measured_is_no_success(faults, capsys):
    assert main([*FEW, "--parts", "raises"]) == 1
    _, rows = said(capsys)
    assert rows["raises"]["failed"]


def test_a_part_is_frozen_between_its_turns(faults, made_up):
    """Its threads neither take the others' cores nor work ahead."""
    process = racing.Process(case_of("busy", made_up))
    try:
        assert process.turn()["cpu_s"] > 0

        def spent() -> tuple[str, int]:
            fields = Path(f"/proc/{process._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return fields[0], int(fields[11]) + int(fields[12])

        time.sleep(0.1)  # until the signal has arrived
        state, before = spent()
        time.sleep(0.5)
        assert state == "T" and spent() == ("T", before)
        assert process.turn()["images"]
    finally:
        process.close()
    assert not Path(f"/proc/{process._process.pid}").exists()


# -- rounds, ratios, arithmetic -------------------------------------------------------------


@pytest.fixture
def drifting(monkeypatch):
    """Processes on a made-up machine, which grows slower and slower: their turns, in order."""
    order, machine = [], itertools.count()
    cost = {"ffcv": 1.0, "peer_open_clip": 4.0, "decode": 0.5}

    class Drifting:
        started = 0

        def __init__(self, case):
            self.case = case
            Drifting.started += 1

        def turn(self):
            order.append(self.case.part)
            seconds = cost[self.case.part] * 1.5 ** (next(machine) // len(cost))  # by the round
            return {"images": 8, "wall_s": 2 * seconds, "cpu_s": seconds, "batch_s": [seconds] * 2,
                    "first_batch_s": 1.0, "memory_mb": 1.0, "disk_bytes": 16_000}  # fmt: skip

        def close(self):
            pass

    monkeypatch.setattr(racing, "Process", Drifting)
    return Drifting, order


def test_ratios_are_paired_within_a_round(drifting):
    process, order = drifting
    cases = [case_of(name) for name in ("decode", "ffcv", "peer_open_clip")]
    rows = [report.row(c, r, 1e6) for c, r in zip(cases, racing.race(cases, 5))]
    rounds = [order[i : i + 3] for i in range(0, 15, 3)]
    assert process.started == 3 and all(sorted(r) == sorted(rounds[0]) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1  # each in an order of its own
    rates = rows[1]["rounds"]["images_per_cpu_s"]
    assert max(rates) > 4 * min(rates)  # what unpaired windows would compare
    (found,) = report.ratios(rows)
    assert (found["ours"], found["peer"], found["workers"]) == ("ffcv", "peer_open_clip", 1)
    assert found["median"] == pytest.approx(4) and found["range"] == pytest.approx([4, 4])
    assert found["limit"] == pytest.approx(8)  # if all but decoding cost nothing


def test_a_cold_part_is_started_anew_in_each_round(drifting):
    process, _ = drifting
    names = ("decode", "ffcv", "peer_open_clip")
    racing.race([case_of(name, cold=True) for name in names], 4)
    assert process.started == 12


def test_the_arithmetic_of_a_row():
    def turn(images, wall, cpu, batches):
        return {"images": images, "wall_s": wall, "cpu_s": cpu, "batch_s": batches, "first_batch_s": 2.0,
                "memory_mb": 10.0, "disk_bytes": 5000, "gpu_memory_mb": 7.0}  # fmt: skip

    turns = [turn(100, 1.0, 0.5, [0.2] * 5), turn(100, 2.0, 4.0, [0.3, 0.5]), turn(100, 4.0, 1.0, [0.1] * 3)]
    row = report.row(case_of("dali_gpu"), {"turns": turns}, 98_304)
    assert row["images_per_s"] == 50 and row["images_per_cpu_s"] == 100 and row["cores"] == 0.5
    assert row["megapixels_per_s"] == pytest.approx(50 * 0.098304)
    assert row["batch_ms"] == pytest.approx(200) and row["batch_ms_p99"] == pytest.approx(500)
    assert row["disk_kb_per_image"] == pytest.approx(0.05) and row["gpu_memory_mb"] == 7
    ascending = list(range(1, 1001))
    assert report.percentile(ascending, 99) == 990 == np.percentile(ascending, 99, method="inverted_cdf")
    for count in (1, 7, 99, 100, 101):
        some = sorted(random.Random(count).random() for _ in range(count))
        assert report.percentile(some, 99) == np.percentile(some, 99, method="inverted_cdf")


def test_gpu_settings_go_to_gpu_parts_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = Settings(synthetic=1, workers=(2, 6), batch_size=64, gpu_batch=256, gpu_workers=3)
    groups = list(command._groups(settings, list(PARTS), Path("f")))
    assert [{case.workers for case in group} for group in groups] == [{1, 2}, {6}, {3}]
    assert [{case.batch_size for case in group} for group in groups] == [{64}, {64}, {256}]
    for group, gpu in zip(groups, (False, False, True)):
        assert {PARTS[case.part].gpu for case in group} == {gpu}
    one = [case.part for case in groups[0] if case.workers == 1]  # no use for more: measured once
    assert one == ["read", "pack"] and not {case.part for case in groups[1]} & set(one)
    assert {f"gpu_decode_{share}" for share in (100, 90, 65, 0)} <= {case.part for case in groups[2]}


def test_a_gpu_is_at_most_one_batch_ahead_and_its_memory_the_parts_own(made_up, monkeypatch):
    order, free = [], iter(mib << 20 for mib in (1000, 600, 100))

    class Event:
        def __init__(self, blocking):
            self.number = len(order)

        def record(self):
            order.append(("launched", self.number))

        def synchronize(self):
            order.append(("there", self.number))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free), 0))
    monkeypatch.setitem(PARTS, "gpu", dataclasses.replace(FAULTS["steady"], gpu=True))
    turns = measuring.turns(case_of("gpu", made_up))
    assert [next(turns)["gpu_memory_mb"], next(turns)["gpu_memory_mb"]] == [400, 400]
    assert next(free) == 100 << 20  # others' by then: not asked for again
    assert [what for what, _ in order[:5]] == ["launched", "launched", "there", "launched", "there"]
    assert order[2] == ("there", order[0][1]) and order[4] == ("there", order[1][1])


@pytest.mark.parametrize("gpu", [False, True])
def test_what_a_machine_measures_by_default(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    chosen = set(command._chosen(()))
    assert all(PARTS[name].gpu <= gpu and not PARTS[name].named_only for name in chosen)
    for ours, peer in RATIOS:
        assert {ours, peer, LIMITS[PARTS[ours].gpu]} <= chosen or (PARTS[ours].gpu and not gpu)
    assert command._chosen(("all",)) == [name for name, part in PARTS.items() if gpu or not part.gpu]


# -- peers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pairs_file(tmp_path_factory.mktemp("peers") / "p.beton")


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # by torchvision
def test_decoders_give_the_pictures_of_the_file(pairs):
    """On the CPU, where the same code runs: whole pictures, as PIL decodes them, in the order asked for."""
    case = case_of("", batch_size=8)
    (asked,) = next(decoders.jpegs(pairs, 8))
    expected = [np.array(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")) for jpeg in asked]
    by_torchvision = next(decoders.torchvision(pairs, case, device="cpu"))
    (by_dali,) = next(decoders.dali(pairs, case, share=1.0, device="cpu"))
    for i, image in enumerate(expected):
        assert np.array_equal(by_torchvision[i].permute(1, 2, 0).expand(*image.shape), image)
        assert np.array_equal(np.array(by_dali[i]), image)


@pytest.mark.parametrize("whole", [False, True])
def test_dali_with_its_own_draws(pairs, whole):
    images = next(dali.random_crop(pairs, case_of("", image_size=16), whole=whole))
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32 and images.std() > 0.1


@pytest.mark.parametrize(
    "peer, package", [(peers.open_clip, "PIL"), (peers.albumentationsx, "albumentations")]
)
def test_data_loaders_of_others(pairs, peer, package):
    pytest.importorskip(package)
    with contextlib.closing(peer(pairs, case_of("", image_size=16))) as batches:
        images = next(batches)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32 and images.std() > 0.1


def test_what_spdl_is_asked_for(pairs):
    """One filter graph a sample: nothing that was not drawn, offsets as multiples of an alpha of 255."""
    index = np.arange(8)
    draws = draws_of(pairs, AUGMENTS["paper"], 1, 1, index)
    graphs = list(spdl.filter_graphs(draws, 16))
    for i, graph in enumerate(graphs):
        top, left, height, width = draws.box[i, 0]
        assert graph.startswith(f"crop={width}:{height}:{left}:{top},scale=16:16:flags=bicubic,")
        assert ("hflip" in graph, "gblur" in graph) == (draws.flip[i], draws.sigma[i] > 0)
        assert ("colorchannelmixer" in graph) == draws.coloured[i]
        if draws.coloured[i]:
            assert f":ga={draws.matrix[i, 0, 1, 3] / 255:.5f}:" in graph
    assert {"hflip", "gblur", "colorchannelmixer"} <= set(re.findall("[a-z]{5,}", " ".join(graphs)))


def test_spdl_does_the_recipe(pairs):
    """Beside PIL and torch with the same draws: it was within 0.7 levels, of images without subsampling."""
    pytest.importorskip("spdl.io")
    case = case_of("", image_size=64, batch_size=8)
    with contextlib.closing(spdl.spdl(pairs, case)) as batches:
        images = next(batches)
    index = np.random.default_rng(0).integers(0, len(pairs), 8)
    draws = draws_of(pairs, case.augment, 1, 1, index)
    a = case.augment
    mean, std = (torch.tensor(v)[:, None, None] for v in (a.mean, a.std))
    for row, image in enumerate(images):
        expected = apply_reference(pil(pairs, int(index[row])), draws, row, 0, 64)
        off = (255 * (image * std + mean) - expected).abs().mean()
        assert off < 2, (row, off)
