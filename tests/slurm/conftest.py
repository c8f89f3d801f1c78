"""One private SLURM for all the tests here, whichever pytest-xdist worker they run in."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kits import slurm as slurm_kit

JOB_VARIABLES = ("SLURM_", "SUBMITIT_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@contextmanager
def users(folder: Path):
    """The number of test processes that use the cluster, as a file under a lock; yields (read, write)."""
    count = folder / "users"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield (lambda: int(count.read_text()) if count.exists() else 0), (lambda n: count.write_text(str(n)))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A running cluster of two nodes; skips with the reason, or fails if REQUIRE_SLURM is set."""
    reason = slurm_kit.missing()
    if reason:
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "slurm"
    folder.mkdir(exist_ok=True)
    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.startswith(JOB_VARIABLES)]:
        patch.delenv(name)
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    cluster = slurm_kit.Slurm(folder / "root")
    with users(folder) as (read, write):
        if read() == 0:
            cluster.start()
        write(read() + 1)
    patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    yield cluster
    with users(folder) as (read, write):
        write(read() - 1)
        if read() == 0:
            cluster.stop()
    patch.undo()
