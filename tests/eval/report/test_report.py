"""The report: what it says, what it draws, and that it needs nothing from the network."""

from __future__ import annotations

import re
import shutil

import pytest

from eval.metrics.uncertainty import Interval
from eval.report import command as report
from eval.report import compare, summary
from eval.report.command import Report
from eval.report.render import pct
from eval.report.runs import Arm, read_run
from tests.kits.eval_runs import change, page, voted
from tests.kits.html import Tags, whole

CONSTRUCTED = "constructed, no human vote"


@pytest.mark.slow
def test_the_whole_page(runs, tmp_path, capsys):
    arguments = [f"PI={runs['pi']}", f"Baseline={runs['baseline']}", "--out", str(tmp_path / "report")]
    assert report.main(arguments) == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert whole(text)
    for words in (
        "PI is better than Baseline here", "one training run of each", CONSTRUCTED, "Nobody was asked",
        "the same concept against a neighbouring one",
        "Families", "Scaling", "β", "Near chance, where a slope means nothing: PCAM",
        "Learning curves", "Stage 1", "Beside the paper", "39.0",
        "ImageNet, mean Δ top-5: printed +5.8", "&lt;b&gt;", "near chance", "init", "Settings the runs share",
        "Of the paper", "2AFC val", "right answer at rank",
    ):  # fmt: skip
        assert words in text, words
    assert "<b>0</b>" not in text  # a caption is text, never markup
    names = {p.name for p in (tmp_path / "report" / "figures").iterdir()}
    families = {f"families-top-1-PI-Baseline.{kind}" for kind in ("svg", "png")}
    answers = {
        f"answers-mscoco_captions-{way}-PI-Baseline.{kind}"
        for way in ("i2t", "t2i")
        for kind in ("svg", "png")
    }
    assert families | answers | {"curve-loss.svg", "stage1-val_twoafc.png"} <= names
    assert len([n for n in names if n.startswith("scaling-")]) == 2 * (4 + 4 + 4)


@pytest.mark.slow
def test_the_page_is_the_same_again(runs, tmp_path):
    first, _ = page(runs["pi"], runs["baseline"], tmp_path=tmp_path)
    second, _ = page(runs["pi"], runs["baseline"], tmp_path=tmp_path)
    clock = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert clock.sub("", first) == clock.sub("", second)


@pytest.mark.slow
def test_it_says_so_when_pi_is_not_better(runs, tmp_path):
    worse, _ = page(f"PI={runs['baseline']}", f"Baseline={runs['pi']}", tmp_path=tmp_path)
    assert "PI is worse than Baseline here" in worse
    same, _ = page(f"PI={runs['pi']}", f"Baseline={runs['pi']}", tmp_path=tmp_path)
    assert "PI is not better than Baseline here: no difference" in same


def test_verdict_between():
    interval = Interval(0.01, -0.01, 0.03)
    row = compare.FamilyRow(name="m", measure=compare.TOP1, sets=3, a=0.31, b=0.3, delta=interval)
    arms_ = {"a": Arm("PI", []), "b": Arm("Baseline", [])}
    comparison = compare.Comparison(**arms_, rows=[], families=[], primary=row, triplets=[])
    assert summary.verdict(comparison) == (
        "PI is not shown to be better than Baseline here: +1.0 points of mean top-1 over 3 sets "
        "(31.0 against 30.0 %), 95 % interval −1.0 to +3.0, which includes 0."
    )


@pytest.mark.slow
def test_one_run_and_three_arms(runs, tmp_path):
    alone, _ = page(runs["baseline"], tmp_path=tmp_path)
    assert "<h1>baseline</h1>" in alone and CONSTRUCTED in alone and 'verdict">' not in alone
    three, _ = page(
        f"PI={runs['pi']}", f"PFT={runs['pi2']}", f"Baseline={runs['baseline']}", tmp_path=tmp_path
    )
    assert "<h2>PI against Baseline</h2>" in three and "<h2>PFT against Baseline</h2>" in three


@pytest.mark.slow
def test_figures_follow_the_page_and_stand_alone(runs, tmp_path):
    _, drawn = page(runs["pi"], runs["baseline"], tmp_path=tmp_path)
    inline = drawn[0].inline()
    assert "var(--arm0)" in inline and "#2563c9" not in inline and "DejaVu" not in inline
    svg, png = drawn[0].save(tmp_path)
    assert "#2563c9" in svg.read_text() and "var(" not in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_bad_runs_are_named(runs, tmp_path, capsys):
    def go(*specs):
        return report.main([*map(str, specs), "--out", str(tmp_path / "out")])

    assert go(tmp_path / "nowhere") == 2
    (tmp_path / "empty").mkdir()
    assert go(tmp_path / "empty") == 2
    half = tmp_path / "half"
    half.mkdir()
    (half / "results.json").write_text('{"schema": 1, "da')
    assert go(half) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith("error: ") for line in said)
    assert "python -m eval.run --checkpoint" in said[1] and "not whole JSON" in said[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_runs_do_not_share_is_said(runs, tmp_path, capsys):
    """Sets and settings of one run alone; every seed of an arm that stands alone; a folder with a = in it."""
    place = tmp_path / "lr=0.1"
    shutil.copytree(runs["pi2"] / "eval" / "step-000100", place)
    change(place, lambda data: (data["datasets"].pop("cifar10"), data["settings"].update(precision="amp")))
    text, _ = page(place, runs["baseline2"], tmp_path=tmp_path)
    assert f"cifar10, which is not in {place}" in text and "lr=0.1 against" in text
    assert re.search("evaluated with precision.*?amp", text)
    assert report.main([str(place), str(runs["pi"]), "--out", str(tmp_path / "out")]) == 0
    assert "note: not compared: cifar10" in capsys.readouterr().out
    text, _ = page(f"PI={runs['pi']}", f"PI={runs['pi2']}", tmp_path=tmp_path)
    uneven, _ = page(f"PI={runs['pi']}", f"PI={runs['pi2']}", f"B={runs['baseline']}", tmp_path=tmp_path)
    assert "Training runs: 2 of PI and 1 of B, which cannot be paired by seed" in uneven
    row = re.search(r"<tr><td>CIFAR-10</td><td>top.1</td>(.*?)</tr>", text)[1]
    values = [read_run(str(runs[n])).final.datasets["cifar10"]["metrics"]["acc1"] for n in ("pi", "pi2")]
    assert re.findall(r"[\d.]+(?=</td>)", row) == [pct(v) for v in values]


@pytest.mark.slow
def test_names_are_text_wherever_they_stand(runs, tmp_path):
    """Labels and the heading, in tables, charts and attributes."""
    name = 'A"><script>x</script>'
    text, _ = report.build(
        Report(runs=(f"{name}={runs['pi']}", f"B={runs['baseline']}"), out=tmp_path, title="<i>")
    )
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "<script" not in text and "<h1>&lt;i&gt;</h1>" in text


@pytest.mark.parametrize("told", ["constructed", "constructed, no human vote"])
def test_constructed_votes_are_never_called_human(tmp_path, told):
    """As the key, and as the sentence that older files have in its place."""
    folders = [voted(tmp_path / name, [0, 1.0] * 15, seed, told) for seed, name in enumerate("ab")]
    text, _ = page(*folders, tmp_path=tmp_path)
    assert CONSTRUCTED in text and "Nobody was asked" in text and "people chose" not in text
