"""Builds that are killed, interrupted, short of disk, or begun again with something changed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataprep import build as build_module
from dataprep import shard
from dataprep.build import BadSource, Job, RunSettings, build
from dataprep.build_ffcv import main
from dataprep.convert import ImageSettings
from dataprep.shard import SampleSettings
from dataprep.sources import tables
from dataprep.sources.columns import Choice
from dataprep.sources.nights import Nights
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import Beton, pairs_schema
from tests.kits import dataprep as kit

ROOT = Path(__file__).parents[2]


def slow_build(folder: Path, out: Path, *more: str) -> list[str]:
    """A command whose shards take a while: long enough to be killed in the middle."""
    code = (
        "import sys; from dataprep.sources import tables; tables.SHARD = 4\n"
        "from dataprep.build_ffcv import main; sys.exit(main(sys.argv[1:]))"
    )
    return [
        sys.executable,
        "-c",
        code,
        "pairs",
        "--source",
        str(folder),
        "--out",
        str(out),
        "--size",
        "none",
        *more,
    ]


def big_table(folder: Path, count: int) -> Path:
    """Images that are slow to convert."""
    rows = [(f"{n:03d}.jpg", kit.caption(n)) for n in range(count)]
    folder.mkdir()
    for n, (name, _) in enumerate(rows):
        (folder / name).write_bytes(kit.jpeg(n, 1500, 1600))
    return kit.write_csv(folder / "captions.csv", rows)


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_builds_go_on_and_end_in_the_same_file(tmp_path):
    table = big_table(tmp_path / "in", 24)
    out = tmp_path / "out.beton"
    command = slow_build(table, out, "--workers", "2", "--no-passthrough")
    parts = tmp_path / "out.beton.parts"
    finished = 0
    for _ in range(2):  # killed twice, each time after some progress
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda f=finished, p=process: len(list(parts.glob("*.json"))) > f or p.poll() is not None)
        process.kill()
        process.wait()
        wait_for(lambda: not alive_in(parts))
        finished = len(list(parts.glob("*.json")))
        assert not out.exists() or process.returncode == 0
    times = {p: p.stat().st_mtime_ns for p in parts.glob("*.json")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(times)} of 6 shards are finished" in done.stdout
    fresh = slow_build(table, tmp_path / "fresh.beton", "--workers", "1", "--no-passthrough")
    assert subprocess.run(fresh, cwd=ROOT, capture_output=True).returncode == 0
    assert out.read_bytes() == (tmp_path / "fresh.beton").read_bytes()
    assert not parts.exists()


def alive_in(folder: Path) -> bool:
    """Whether some process still has a file open in the folder of parts."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(folder) in os.readlink(link):
                return True
        except OSError:
            continue
    return False


def test_a_build_of_one_shard_killed_before_its_last_step_goes_on(tmp_path, monkeypatch):
    source = open_pairs(kit.captions_table(tmp_path / "in", 3))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Job, "_info", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    assert build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)["samples"] == 3


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_with_exit_code_130(tmp_path):
    table = big_table(tmp_path / "in", 24)
    command = slow_build(table, tmp_path / "out.beton", "--workers", "2", "--no-passthrough")
    # A shell starts background jobs with SIGINT ignored, which children inherit; a terminal does not.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(lambda: list((tmp_path / "out.beton.parts").glob("*.json")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "Traceback" not in error and "the same command goes on" in error
    assert not alive_in(tmp_path / "out.beton.parts") and not (tmp_path / "out.beton").exists()


@pytest.mark.slow
def test_a_killed_worker_ends_the_build_with_one_line(tmp_path):
    table = big_table(tmp_path / "in", 24)
    command = slow_build(table, tmp_path / "out.beton", "--workers", "2", "--no-passthrough")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list((tmp_path / "out.beton.parts").glob("*.json")) or process.poll() is not None)
    children = [c for c in children_of(process.pid) if "spawn_main" in command_of(c)]
    os.kill(children[0], signal.SIGKILL)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 2 and "killed by signal 9" in error and "Traceback" not in error


def children_of(parent: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def command_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(tmp_path, small_shards, capsys):
    """A file may not grow past a limit: write fails as on a full disk (EFBIG instead of ENOSPC)."""
    arguments = [
        "pairs",
        "--source",
        str(kit.captions_table(tmp_path / "in", 12)),
        "--out",
        str(tmp_path / "out.beton"),
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_400_000, hard))
    try:
        assert main([*arguments, "--workers", "1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    error = capsys.readouterr().err
    assert "File too large" in error and "Traceback" not in error
    assert not (tmp_path / "out.beton").exists() and not list(tmp_path.rglob(".*.tmp"))
    assert main([*arguments, "--workers", "1"]) == 0
    assert len(Beton(tmp_path / "out.beton")) == 12


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_really_full_disk(tmp_path, small_shards, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        table = kit.captions_table(tmp_path / "in", 200)
        arguments = ["pairs", "--source", str(table), "--out", str(disk / "out.beton"), "--workers", "1"]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "KB are free" in error and not list(disk.iterdir())  # seen before it began
        assert main([*arguments, "--no-disk-check"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: [Errno 28] No space left on device: '{disk}/out.beton")
        assert not list(disk.rglob(".*.tmp"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_parts_of_another_build_are_not_mixed_in(tmp_path, small_shards, monkeypatch):
    source = open_pairs(kit.captions_table(tmp_path / "in", 12))
    out = tmp_path / "out.beton"
    job = Job(source, out, SampleSettings(), kit.ONE)
    with job.lock():
        job.write(0, lambda n: None)
    other = SampleSettings(images=ImageSettings(size=32))
    with pytest.raises(ValueError, match="begun with other settings"):
        build(source, out, other, kit.ONE)
    build(source, out, other, RunSettings(workers=1, restart=True))
    assert min(Beton(out).rows(np.arange(12)).sizes("image").min(-1)) == 32


def test_looking_at_finished_shards_changes_nothing(tmp_path, small_shards):
    """However often it is done: each shard is counted once."""
    source = open_pairs(kit.captions_table(tmp_path / "in", 12))
    job = Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    with job.lock():
        for number in (0, 2):
            job.write(number, lambda n: None)
        for _ in range(2):
            assert job.is_finished(0) and not job.is_finished(1)
            assert job.resume() == [1] and job.total.samples == 7


def test_only_a_source_that_must_be_mended_loses_its_shards(tmp_path, small_shards, capsys):
    """By the build; the check itself deletes nothing."""
    folder = kit.nights_folder(tmp_path / "in", 8)
    (folder / "ref/000/001.png").write_bytes(b"no image")
    source = Nights(folder, "train")
    job = Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    with job.lock(), pytest.raises(BadSource, match=r"ref/000/001\.png: not an image"):
        try:
            job.finished(0, job.write(0, lambda n: None))
        finally:
            assert job.is_finished(0)
    assert job.parts.is_dir()
    with pytest.raises(BadSource, match=r"ref/000/001\.png: not an image"):
        build(source, job.out, SampleSettings(), kit.ONE)
    assert not job.parts.exists()


def test_two_builds_of_one_file_do_not_meet(tmp_path, small_shards):
    source = open_pairs(kit.captions_table(tmp_path / "in", 12))
    with Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE).lock():
        with pytest.raises(ValueError, match="another build"):
            build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)


def test_a_changed_source_or_setting_is_built_again(tmp_path, capsys):
    table = kit.captions_table(tmp_path / "in", 4)
    out = tmp_path / "out.beton"
    build(open_pairs(table), out, SampleSettings(), kit.ONE)
    build(open_pairs(table), out, SampleSettings(), kit.ONE)
    assert "up to date" in capsys.readouterr().out
    tables.index.cache_clear()
    with open(table, "a") as file:
        file.write("images/000.jpg,once more\n")
    build(open_pairs(table), out, SampleSettings(), kit.ONE)
    assert len(Beton(out)) == 5
    build(open_pairs(table, choice=Choice(image="filepath")), out, SampleSettings(), kit.ONE)
    assert "up to date" not in capsys.readouterr().out


def test_a_finished_file_of_an_older_version_is_kept(tmp_path, capsys, monkeypatch):
    """It has no checksums, which is said; its unfinished shards are not mixed with newer ones."""
    source, out = open_pairs(kit.captions_table(tmp_path / "in", 4)), tmp_path / "out.beton"
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "FORMAT", 2)
        patch.setattr(shard, "pairs_schema", lambda captions: pairs_schema(captions, checksums=False))
        build(source, out, SampleSettings(), kit.ONE)
        job = Job(source, tmp_path / "other.beton", SampleSettings(), kit.ONE)
        with job.lock():
            job.write(0, lambda n: None)
    before = out.read_bytes()
    capsys.readouterr()
    build(source, out, SampleSettings(), kit.ONE)
    told = capsys.readouterr().out
    assert "up to date, 4 samples" in told and "without checksums of its images, which --restart adds" in told
    assert out.read_bytes() == before
    build(source, out, SampleSettings(), RunSettings(workers=1, restart=True))
    assert Beton(out).checksummed
    build(source, out, SampleSettings(), kit.ONE)
    assert "checksums" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings, another state of the source or another version"):
        build(source, tmp_path / "other.beton", SampleSettings(), kit.ONE)
