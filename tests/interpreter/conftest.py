"""Triton decides at import whether it interprets: these tests have a run of their own."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        reason = "needs a run of its own: TRITON_INTERPRET=1 python -m pytest tests/interpreter"
        for item in items:
            if "interpreter" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))
