"""What a laptop has and other machines lack: writable folders, locks, links, shared maps, limits, names."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import stat
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from dataprep import pool
from dataprep.build import RunSettings, build
from dataprep.shard import SampleSettings
from dataprep.sources.pairs import open_pairs
from pipeline.base import console, machine
from pipeline.beton import fields, ranges, writer
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit
from tests.kits import train as train_kit
from tests.kits.pipeline import pairs_file
from train import job

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def raising(number: int):
    def fail(*arguments, **named):
        raise OSError(number, os.strerror(number))

    return fail


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a Python of its own; None takes a variable away."""
    env = {k: v for k, v in (os.environ | environment).items() if v is not None}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


# -- folders that cannot be written -------------------------------------------------------------

USE = """
    from pipeline import philox
    from pipeline.base import compiled as c
    print(c.compiled.keywords["cache"], c.config.CACHE_DIR)
"""


@pytest.mark.slow
def test_compiled_code_is_kept_in_tmpdir_where_numba_finds_no_place(tmp_path):
    """The locators that are left stand for a read-only checkout and home: without ours, the import ends."""
    bare = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": None}
    alone = python("import numba; numba.njit(cache=True)(lambda: 0)", **bare)
    assert "no locator available" in alone.stderr
    ours = tmp_path / f"perceptual-initialization-{os.getuid()}"
    for _ in range(2):
        done = python(USE, **bare, TMPDIR=str(tmp_path))
        assert done.stdout.split() == ["True", str(ours / "numba")], done.stderr
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    ours.chmod(0o777)  # anybody might put code there
    assert python(USE, **bare, TMPDIR=str(tmp_path)).stdout.split()[0] == "False"


def test_a_private_folder_is_really_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = machine.private_folder()
    assert folder is not None and folder.is_dir() and machine.private_folder() == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert machine.private_folder() is None
    folder.unlink()
    monkeypatch.setattr(machine.os, "getuid", lambda: 4242)
    assert machine.private_folder() is None  # another's, under the name that would be ours
    monkeypatch.setattr(machine.tempfile, "gettempdir", raising(errno.ENOENT))
    assert machine.private_folder() is None


SETTLE = """
    import os
    from pipeline.base import machine
    machine.settle()
    print(dict(os.environ))
"""


@pytest.mark.parametrize("user", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_briefly_unless_the_user_says_otherwise(user):
    bare = {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None}
    found = eval(python(SETTLE, **(bare | user)).stdout)
    expected = {"GOMP_SPINCOUNT": None if user else "1000", "OMP_WAIT_POLICY": None} | user
    assert {k: found.get(k) for k in expected} == expected


@pytest.mark.parametrize("user", [None, "1"])
def test_a_gpu_has_more_queues_unless_the_user_says_otherwise(user):
    found = eval(python(SETTLE, CUDA_DEVICE_MAX_CONNECTIONS=user).stdout)
    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == (user or "32")


def test_a_user_without_name_and_home_has_both(tmp_path, monkeypatch):
    names = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"))
    nobody = "import pwd\ndef none(uid): raise KeyError(uid)\npwd.getpwuid = none\n" + textwrap.dedent(SETTLE)
    for home in (str(tmp_path / "gone"), None):
        done = python(nobody, **names, HOME=home, TMPDIR=str(tmp_path))
        found = eval(done.stdout)
        assert found["USER"] == f"uid-{os.getuid()}" and found["TRITON_CACHE_DIR"].startswith(str(tmp_path))
    monkeypatch.setenv("TRITON_HOME", "/mine")
    assert eval(python(SETTLE, HOME=str(tmp_path / "gone")).stdout).get("TRITON_CACHE_DIR") is None


# -- file systems that cannot do everything -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_build_goes_on_without_locks(tmp_path, monkeypatch, capsys, number):
    table = kit.write_csv(tmp_path / "c.csv", kit.folder_of_images(tmp_path, 3))
    monkeypatch.setattr(fcntl, "flock", raising(number))
    build(open_pairs(table), tmp_path / "x.beton", SampleSettings(), RunSettings(workers=1))
    assert len(Beton(tmp_path / "x.beton")) == 3
    assert "has no locks" in capsys.readouterr().out


def test_a_lock_is_held_by_one_and_waited_for(tmp_path, monkeypatch):
    first, note = machine.lock(tmp_path / "lock", "run")
    assert not note
    waited = []
    monkeypatch.setattr(machine.time, "sleep", waited.append)
    with pytest.raises(machine.Busy, match=f"{tmp_path}: another run is running"):
        machine.lock(tmp_path / "lock", "run")
    assert not waited
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: first.close())
    with machine.lock(tmp_path / "lock", "run", patience=9)[0], pytest.raises(machine.Busy):
        machine.lock(tmp_path / "lock", "run")
    monkeypatch.setattr(fcntl, "flock", raising(errno.ENOSYS))
    file, note = machine.lock(tmp_path / "lock", "run")
    file.close()
    assert "has no locks" in note and str(tmp_path) in note


@pytest.mark.parametrize("broken", ["copy_file_range", "copies nothing", "lseek", "fsync of folders"])
def test_joining_needs_reading_and_writing_only(tmp_path, monkeypatch, broken):
    parts = [pairs_file(tmp_path / f"{n}.beton", 7 + n).path for n in range(2)]
    writer.join(parts, tmp_path / "expected.beton")
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    if broken == "copies nothing":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    elif broken == "fsync of folders":
        monkeypatch.setattr(os, "fsync", fsync)
    else:
        monkeypatch.setattr(os, broken, raising(errno.EPERM if broken != "lseek" else errno.EINVAL))
    writer.join(parts, tmp_path / "got.beton")
    assert (tmp_path / "got.beton").read_bytes() == (tmp_path / "expected.beton").read_bytes()


def test_the_first_failure_is_told_without_hard_links(tmp_path, monkeypatch):
    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, raising(errno.EPERM))
    failure = tmp_path / "failure-0.json"
    for rank, words in ((1, "boom"), (0, "its echo")):
        job._report(failure, tmp_path, rank, ValueError(words))
    assert json.loads(failure.read_text()) == {"rank": 1, "code": 2, "text": "error: boom"}
    assert (tmp_path / "log.txt").read_text().count("boom") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["failure-0.json", "log.txt"]
    job._report(tmp_path / "gone" / "failure-0.json", tmp_path, 0, ValueError("boom"))


# -- a file that becomes shorter ----------------------------------------------------------------

CUT = """
    import os, sys
    import numpy as np
    from pipeline.augment import AUGMENTS
    path, engine, share = sys.argv[1], sys.argv[2], float(sys.argv[3])
    from pipeline.{engine}_loader import {name} as Loader
    size = os.path.getsize(path)
    loader = Loader(path, batch_size=16, image_size=32, augment=AUGMENTS["clip"], seed=0, workers=2)
    try:
        for number, batch in enumerate(loader):
            if number == 5:
                os.truncate(path, int(size * share))
            if number == 200:
                sys.exit("read on")
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
@pytest.mark.parametrize(("engine", "name"), [("ffcv", "FFCVLoader"), ("dali", "DALILoader")])
def test_a_file_cut_short_under_a_loader_is_told(tmp_path, engine, name, share):
    """And does not end the process by a signal (SIGBUS), as reading past the end of a map does."""
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    path = pairs_file(tmp_path / "p.beton", 60).path
    code = textwrap.dedent(CUT.format(engine=engine, name=name))
    command = [sys.executable, "-c", code, str(path), engine, str(share)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "p.beton: was cut short from" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ffcv", "dali"])
def test_no_loader_maps_the_file_into_memory(tmp_path, engine):
    """Where it is cut short, a look at a map of it ends the process; the test above sees it by chance."""
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    file = pairs_file(tmp_path / "p.beton", 40)
    loader = getattr(import_module(f"pipeline.{engine}_loader"), f"{engine.upper()}Loader")
    for _ in loader.one_pass(file, batch_size=16, image_size=32):
        assert str(file.path) not in Path("/proc/self/maps").read_text()


def test_each_reader_of_a_file_cut_short_tells(tmp_path):
    file, index = pairs_file(tmp_path / "p.beton", 9), np.arange(9)
    start, size = file.rows(index).spans("image")
    os.truncate(file.path, 5000)
    for read in (
        lambda: file.jpeg(3), lambda: file.rows(index).arrays("tokens"), lambda: file.text("key", 1),
        lambda: file.rows(index).sizes("image"), lambda: file.read(start, size),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"p.beton: was cut short from [\d,]+ to 5,000 bytes"):
            read()


def test_pictures_are_read_as_they_are_stored(tmp_path, monkeypatch):
    """In any order, some of them none, and when the system gives a part at a time or is interrupted."""
    file = pairs_file(tmp_path / "p.beton", 9)
    index = np.array([8, 0, 3, 3, 5])
    start, size = file.rows(index).spans("image")
    size[2] = 0
    data, at = file.read(start, size)
    for n, i in enumerate(index):
        assert data[at[n] : at[n] + size[n]].tobytes() == (b"" if n == 2 else file.jpeg(int(i)).tobytes())
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, out, at: real(file, [out[0][:100]], at))
    assert (file.read(start, size)[0] == data).all()  # a part at a time
    monkeypatch.setattr(fields, "_FEW", 0)
    assert (file.read(start, size)[0] == data).all()  # by compiled code
    monkeypatch.setattr(ranges, "pread_ranges", lambda *_: 0)
    assert (file.read(start, size)[0] == data).all()  # that was interrupted
    monkeypatch.setattr(os, "preadv", raising(errno.EIO))
    with pytest.raises(OSError, match="p.beton: Input/output error"):
        file.read(start, size)


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, pool._DATA_LIMIT),
        (resource.RLIM_INFINITY, 4 << 30, 4 << 30),
        (1 << 30, 4 << 30, 1 << 30),
        (8 << 30, 9 << 30, pool._DATA_LIMIT),
    ],
)
def test_workers_keep_within_the_limits_they_were_given(monkeypatch, soft, hard, expected):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    pool._limit_memory()
    assert asked == [(expected, hard)]
    monkeypatch.setattr(resource, "setrlimit", raising(errno.EPERM))
    pool._limit_memory()


@pytest.mark.slow
@pytest.mark.parametrize(("files", "alone"), [(64, False), (16, True)])
def test_a_build_under_hard_limits_loses_nothing(tmp_path, files, alone):
    """`ulimit -d` and `ulimit -n` of a login node; with too few files for two processes, one does it."""
    for shard in range(2):
        members = [
            (f"{n}.{e}", kit.jpeg(n) if e == "jpg" else b"a cat") for n in range(4) for e in ("jpg", "txt")
        ]
        (tmp_path / "in").mkdir(exist_ok=True)
        kit.write_tar(tmp_path / f"in/{shard}.tar", members)
    command = f"ulimit -d 4194304; ulimit -n {files}; exec {sys.executable} dataprep/build_ffcv.py "
    command += f"pairs --workers 2 --source {tmp_path}/in --out {tmp_path}/x.beton"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(Beton(tmp_path / "x.beton")) == 8
    assert ("one does it all" in done.stderr) == alone


# -- names and compilers ------------------------------------------------------------------------


@pytest.mark.parametrize("nodes, given, expected", [(1, None, "lo"), (1, "eth1", "eth1"), (2, None, None)])
@pytest.mark.parametrize("room", ["train", "eval"])
def test_ranks_of_one_machine_do_not_ask_for_its_name(monkeypatch, room, nodes, given, expected):
    """gloo would resolve it; with `unshare --uts` and a name that nobody knows, two local ranks train."""
    import torch
    import torch.distributed as dist

    from eval import distributed as eval_distributed
    from train import distributed

    world = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4 // nodes}
    for name, value in (world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", given or "")  # so that it is put back afterwards
    if given is None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    seen = []

    def stop(*arguments, **named):
        seen.append(os.environ.get("GLOO_SOCKET_IFNAME"))
        raise InterruptedError

    monkeypatch.setattr(dist, "init_process_group", stop)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InterruptedError):
        if room == "eval":
            eval_distributed.start(torch.device("cpu"))
        else:
            with distributed.join(1):
                pass
    assert seen == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("gpu, variable", [(False, "CXX"), (True, "CC")])
def test_compiling_without_a_compiler_is_refused_in_a_line(tmp_path, monkeypatch, gpu, variable):
    import torch

    from train import model

    recipe = train_kit.debug(2, tmp_path / "x.beton", tmp_path / "run", compile="yes")
    clip = model.create("debug-ViT")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv(variable, sys.executable)
    model.Towers(clip, recipe)
    monkeypatch.setenv(variable, "/nonexistent/compiler")
    with pytest.raises(ValueError, match=f"--compile: /nonexistent/compiler is not found.*{variable}"):
        model.Towers(clip, recipe)
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="--compile: .*(g\\+\\+|gcc or clang) is not found"):
        model.Towers(clip, recipe)


@pytest.mark.parametrize(("compiler", "said"), [(None, "finds no C compiler.*CC"), ("false", "python3-dev")])
def test_a_gpu_without_a_compiler_is_a_line(tmp_path, monkeypatch, compiler, said):
    """Triton's own errors, as its first kernel on a GPU would raise them."""
    build = pytest.importorskip("triton.runtime.build")
    build._find_compiler.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        monkeypatch.setenv("CC", compiler)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises((RuntimeError, subprocess.CalledProcessError)) as raised:
        build._build("x", str(tmp_path / "x.c"), str(tmp_path), [], [], [], [])
    build._find_compiler.cache_clear()
    line = console.describe(raised.value)
    assert re.match(f"error: .*{said}", line) and "\n" not in line and console.exit_code(raised.value) == 2
