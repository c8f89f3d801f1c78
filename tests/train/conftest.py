"""Small splits that the tests of the train room share; nothing writes to them."""

from __future__ import annotations

import pytest

from tests.kits import train as kit


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    return kit.pairs(tmp_path_factory.mktemp("data") / "pairs.beton")


@pytest.fixture(scope="session")
def triplets(tmp_path_factory):
    return kit.triplets(tmp_path_factory.mktemp("data") / "triplets.beton")
