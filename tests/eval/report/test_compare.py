"""Arms, seeds and comparisons: paired, corrected, and refused where data differ."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from eval import results
from eval.report import command as report
from eval.report import compare, summary
from eval.report.command import Report
from eval.report.runs import arms, read_run
from eval.sets import catalog
from tests.kits.eval import encoded, pictures, write_webdataset
from tests.kits.eval_runs import COUNT, NAMES, change, evaluated, page, voted


@pytest.mark.slow
def test_seeds(runs, tmp_path):
    specs = [f"PI={runs['pi']}", f"PI={runs['pi2']}", f"Base={runs['baseline']}", f"Base={runs['baseline2']}"]
    text, _ = page(*specs, tmp_path=tmp_path)
    assert "Over 2 paired seeds" in text and "cannot fall below 0.500" in text
    both = arms(specs)
    row = compare.compare(*both).rows[0]
    accuracy = [[r.final.datasets["imagenet1k"]["metrics"]["acc1"] for r in arm.runs] for arm in both]
    assert row.a == pytest.approx(np.mean(accuracy[0])) and row.p is None
    assert row.delta.value == pytest.approx(np.mean(accuracy[0]) - np.mean(accuracy[1]))


@pytest.mark.slow
def test_seeds_are_paired_by_seed_and_each_counts_once(runs, tmp_path):
    """However they are listed; a copy of a run, or the same folder again, is no second seed."""
    pairs = [[f"PI={runs[name]}" for name in order] for order in (("pi", "pi2"), ("pi2", "pi"))]
    first, second = (arms(specs)[0].runs for specs in pairs)
    assert [r.folder for r in first] == [r.folder for r in second] == [runs["pi"], runs["pi2"]]
    copies = []
    for name in ("a", "b"):
        copies.append(shutil.copytree(runs["pi"] / "eval" / "step-000200", tmp_path / name))
        data = json.loads((copies[-1] / "results.json").read_text())
        data["checkpoint"]["weights"] = "one"
        (copies[-1] / "results.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="are one checkpoint, not two seeds of PI"):
        arms([f"PI={folder}" for folder in copies])
    assert len(arms([str(folder) for folder in copies])) == 2
    damaged = copies[0] / "predictions" / "cifar10.npz"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(ValueError, match="cifar10.npz: damaged .*; evaluate again"):
        read_run(str(copies[0])).final.arrays("cifar10")


@pytest.mark.slow
def test_comparison_is_paired_and_corrected(runs):
    both = arms([f"PI={runs['pi']}", f"Baseline={runs['baseline']}"])
    found = compare.compare(*both)
    tested = [r for r in found.rows if r.adjusted is not None]
    assert {r.measure.title for r in tested} == {"top-1", "I → T R@1", "T → I R@1"}
    assert all(r.adjusted >= r.p for r in tested)
    assert not [r for r in found.rows if r.key == "vtab/pcam" and r.measure is compare.TOP5]
    vtab = next(r for r in found.families if r.name == catalog.VTAB and r.measure is compare.TOP1)
    sets = [r.delta.value for r in found.rows if r.family == catalog.VTAB and r.measure is compare.TOP1]
    assert vtab.sets == 2 and vtab.delta.value == pytest.approx(np.mean(sets))
    assert [r.name for r in found.triplets] == ["2AFC test", "2AFC val"]


def test_results_of_another_version_are_named(runs, tmp_path):
    for number, edit in enumerate(
        (
            lambda data: data.update(schema=0),
            lambda data: data.pop("checkpoint"),
            lambda data: data["datasets"]["cifar10"].pop("metrics"),
            lambda data: data["triplets"]["metrics"].pop("twoafc_soft"),
        )
    ):
        place = tmp_path / str(number)
        shutil.copytree(runs["pi2"] / "eval" / "step-000100", place)
        change(place, edit)
        with pytest.raises(ValueError, match=r"results.json: of another version of this project"):
            read_run(str(place))


@pytest.mark.slow
def test_different_data_are_not_compared(runs, root, tmp_path):
    other = tmp_path / "sets"
    images = [encoded(p) for p in pictures(COUNT)]
    write_webdataset(other / "wds_cifar10", images, [(i + 1) % 8 for i in range(COUNT)], NAMES)
    moved = evaluated(other, tmp_path / "moved", 5)
    with pytest.raises(ValueError, match="cifar10: .* were evaluated on different data"):
        page(runs["pi"], moved, tmp_path=tmp_path)


@pytest.mark.parametrize("soft", [False, True])
def test_both_scores_called_2afc_are_shown_where_they_differ(tmp_path, soft):
    votes = [0, 0.2, 0.5, 0.8, 1.0] * 6 if soft else [0, 1.0] * 15
    a, b = (voted(tmp_path / name, votes, seed) for seed, name in enumerate("ab"))
    both = arms([f"A={a}", f"B={b}"])
    rows = compare.compare(*both).triplets
    names = ["2AFC (majority)", "2AFC (share of people)"] if soft else ["2AFC"]
    assert [r.name for r in rows] == names
    for row, metric, n in zip(rows, ("twoafc", "twoafc_soft"), (24 if soft else 30, 30)):
        for arm, value in zip(both, (row.a, row.b)):
            assert value == pytest.approx(arm.runs[0].final.data["triplets"]["metrics"][metric])
        assert row.samples == n and row.delta.value == pytest.approx(row.a - row.b)
        assert (row.p is None) == (metric == "twoafc_soft")  # McNemar's test is of hits and misses
    single, _ = report.build(Report(runs=(f"A={a}",), out=tmp_path))
    assert all(name in single for name in names)
    assert [row.name for row in summary.single_rows(both[0])] == names
    text, _ = report.build(Report(runs=(f"A={a}", f"B={b}"), out=tmp_path))
    assert "QuickGELU; mean 0.5, 0.5, 0.5; std 0.25" in text and "no file tells: &lt;this&gt;" in text


@pytest.mark.slow
def test_runs_with_different_prompts_are_not_compared(root, tmp_path):
    a, b = (evaluated(root, tmp_path / name, seed) for seed, name in enumerate("ab"))
    path = b / "eval" / "step-000100" / results.RESULTS
    data = json.loads(path.read_text())
    data["datasets"]["cifar10"]["templates"] = ["another {c}"]
    path.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match="cifar10: .*different templates; evaluate both with the same --prompts"
    ):
        compare.compare(*arms([f"A={a}", f"B={b}"]))
