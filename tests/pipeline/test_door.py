"""`import pipeline`: what it offers, and that it is light."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import pipeline

HEAVY = {"torch", "numba", "numpy", "PIL", "ffcv", "nvidia", "ftfy", "tokenizers", "submitit", "tyro"}


@pytest.mark.parametrize("module", ["pipeline", "pipeline.base.console", "pipeline.base.files"])
def test_an_import_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_every_name_is_there_and_is_what_its_module_defines():
    assert set(pipeline.__all__) <= set(dir(pipeline))
    for name in pipeline.__all__:
        if name == "DALILoader":
            pytest.importorskip("nvidia.dali")
        value = getattr(pipeline, name)
        home = getattr(value, "__module__", "pipeline.augment")  # AUGMENTS is a plain dict
        assert home.startswith("pipeline.") and getattr(import_module(home), name) is value


def test_submodules_and_unknown_names():
    from pipeline import beton, order, text

    assert order.Order is pipeline.Order and text.tokenize and beton.__path__
    with pytest.raises(AttributeError, match="'pipeline' has no attribute 'Loader'"):
        _ = pipeline.Loader
