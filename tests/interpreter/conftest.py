"""Skips this folder where Triton does not interpret, which Triton decides once, when it is imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    reason = "needs a run of its own: TRITON_INTERPRET=1 python -m pytest tests/interpreter"
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))
