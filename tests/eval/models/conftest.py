"""A small set and weights that tell nothing of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.kits.eval import MODEL, encoded, pictures, write_webdataset
from train.model import create


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("root")
    images = [encoded(p) for p in pictures(10)]
    write_webdataset(base / "wds_emoji-names", images, list(range(10)), [f"thing {i}" for i in range(10)])
    return base


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(3)
    return {k: v.contiguous() for k, v in create(MODEL).state_dict().items()}


@pytest.fixture
def weights(tmp_path, tensors) -> Path:
    """Weights that tell nothing, in a folder of their own."""
    (tmp_path / "w").mkdir()
    save_file(tensors, tmp_path / "w" / "q.safetensors")
    return tmp_path / "w" / "q.safetensors"
