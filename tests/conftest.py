"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.base import machine

# A deadline would be a timed assertion: it fails on a busy machine.
settings.register_profile("project", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=10)  # make quick
settings.load_profile("project")

# Before torch is imported: test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
machine.settle()

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What mostly waits (for SLURM) and what takes long first, so that no process is left alone with it.
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.get_closest_marker("slow") is None))


@pytest.fixture(autouse=True, scope="module")
def garbage_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module leaves none to the next.

    Finalizers of numba's functions may raise. To print where, pytest parses source; if that happens
    in the middle of another parse (tyro's), CPython 3.11.7 ends with a SystemError.
    """
    yield
    if request.config.option.markexpr != "not slow":  # fast tests compile no such functions
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Development data that is too big, or not free, to be part of the project."""
    folder = Path(os.environ.get("PI_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"development data not here: {folder} (set PI_DATA to its folder)")
    return folder
