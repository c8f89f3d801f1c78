"""The paper's own numbers."""

from __future__ import annotations

import pytest

from eval.report import compare, paper
from eval.sets import catalog


def test_papers_table_is_whole():
    assert list(paper.TABLE)[:29] == [e.key for e in catalog.CLASSIFICATION]
    small = {e.key for e in catalog.CLASSIFICATION if e.classes < 5}
    assert {e.key for e in catalog.CLASSIFICATION if "acc5" not in paper.TABLE[e.key]} == small
    assert all(
        cells.delta is not None for e in catalog.CLASSIFICATION for cells in paper.TABLE[e.key].values()
    )
    retrieval = {e.key: paper.TABLE.get(e.key, {}) for e in catalog.CAPTIONS}
    assert sum(2 * len(cells) for cells in retrieval.values()) == 2  # of sixteen in Table 2


def test_every_cell_is_of_a_figure_that_the_report_has():
    """By key: another title or another arrow in a title changes nothing."""
    known = {measure.key for measure in (compare.TOP1, compare.TOP5, *compare.RECALLS)}
    assert {key for row in paper.TABLE.values() for key in row} <= known


def test_paper_against_itself():
    assert paper.wins() == paper.WINS
    assert paper.family_mean(catalog.OOD, "acc1") == pytest.approx(3.5)
    gaps = [c for c in paper.checks() if abs(c.gap) >= 0.05]
    assert [c.what for c in gaps] == ["ImageNet, mean Δ top-5"] and gaps[0].explained
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paper.TABLE["mnist"], "acc1", paper.Printed(pi=12.4, baseline=11.6, delta=1.8))
        assert any(
            "MNIST, Δ top-1: printed +1.8" in s and "cannot be why" in s for s in paper.disagreements()
        )
