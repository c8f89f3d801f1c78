"""Evaluated runs that the tests of the report share."""

from __future__ import annotations

import json

import pytest

from eval.sets import catalog
from tests.kits import eval_runs as kit


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    """Small sets under names of the paper's; counts are not checked while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "check_counts", lambda *a: None)
        yield kit.paper_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="package")
def runs(root, tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    made = {"pi": kit.evaluated(root, base / "pi", 1, 1.0, (50, 100, 200), str(base / "stage1"))}
    made["baseline"] = kit.evaluated(root, base / "baseline", 2, 6.0, (50, 100, 200))
    made["pi2"] = kit.evaluated(root, base / "pi2", 3, 0.5)
    made["baseline2"] = kit.evaluated(root, base / "baseline2", 4, 3.0)
    (base / "stage1").mkdir()
    rows = [{"step": s, "samples": s, "loss": 1 / s, "val_twoafc": 0.5 + s / 100} for s in (1, 2, 3)]
    (base / "stage1" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return made
