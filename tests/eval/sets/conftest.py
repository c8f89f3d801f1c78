"""Images and a folder that the tests of reading sets share."""

from __future__ import annotations

import pytest

from eval.sets import catalog
from tests.kits.eval import CLASSES, encoded, pictures, write_webdataset


@pytest.fixture(scope="session")
def picture() -> bytes:
    return encoded(pictures(1)[0], "jpeg")


@pytest.fixture
def images() -> list[bytes]:
    return [encoded(p) for p in pictures(12)]


@pytest.fixture
def folder(tmp_path, images):
    return write_webdataset(tmp_path / "wds_beasts", images, [i % 4 for i in range(12)], CLASSES, shards=3)


@pytest.fixture
def any_count(monkeypatch):
    """Sets of the catalog may be small; what names say is still checked."""
    monkeypatch.setattr(catalog, "check_counts", lambda *_: None)
