"""Fixtures of the dataprep tests."""

from __future__ import annotations

import pytest

from dataprep.sources import tables


@pytest.fixture
def small_shards(monkeypatch):
    """Five images a shard of a table, so that small tables have several."""
    monkeypatch.setattr(tables, "SHARD", 5)
