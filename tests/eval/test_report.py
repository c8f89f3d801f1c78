"""The report: what it says, what it draws, and that it needs nothing from the network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from eval.ranks import Ranks

from eval import encode, results, suite
from eval.crops import Cache
from eval.metrics import perceptual, zeroshot
from eval.metrics.uncertainty import Interval
from eval.report import command as report
from eval.report import compare, conditions, page, paper
from eval.report.command import Report
from eval.sets import catalog, sources
from pipeline.base.console import command
from tests.kits.eval import encoded, encoders, pictures, write_webdataset

NAMES = [f"thing {i}" for i in range(8)]
COUNT = 24
ONE_WORKER = suite.Settings(workers=1)


@pytest.fixture(scope="module")
def small_catalog():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "check_counts", lambda *a: None)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, small_catalog):
    """Small sets under names of the paper's, from four families and retrieval, and triplets."""
    base = tmp_path_factory.mktemp("sets")
    images = [encoded(p) for p in pictures(COUNT)]
    for folder, classes in (
        ("imagenet1k", 8),
        ("imagenet-a", 8),
        ("vtab-dtd", 6),
        ("vtab-pcam", 2),
        ("cifar10", 8),
    ):
        write_webdataset(base / f"wds_{folder}", images, [i % classes for i in range(COUNT)], NAMES[:classes])
    write_webdataset(
        base / "wds_mscoco_captions", images, [[f"<b>{i}</b>", f"caption {i}"] for i in range(COUNT)]
    )
    return base


def _triplets(root) -> perceptual.Triplets:
    images = sources.read_webdataset(root / "wds_cifar10").images
    rows = np.array([(i, (i + 1) % COUNT, (i + 2) % COUNT) for i in range(COUNT)])
    split = np.array(["test", "val"] * (COUNT // 2))
    return perceptual.Triplets(root, images, rows, np.arange(COUNT) % 2.0, split, page.CONSTRUCTED)


def evaluated(root, folder, seed: int, noise: float = 1.0, steps=(100,), init: str | None = None):
    """A run folder with evaluations; less noise, better figures: images get their class's text vector."""
    sets = sources.discover(root)
    made = encoders()
    texts = encode.text_features([t for s in sets for t in suite._texts(s)], made, 64, Ranks())
    real = encode.image_features
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * seed + step)

        def fake(one, *rest, generator=generator, step=step):
            features, bad = real(one, *rest)
            shown = next((s for s in sets if s.images is one.images), None)
            if shown is not None:
                if shown.prompts:
                    known = encode.stacked(shown.prompts.texts(), texts)
                    vectors = zeroshot.classifier(known, len(shown.prompts.classes)).T[shown.labels]
                else:
                    vectors = encode.stacked([c[0] for c in shown.captions], texts)
                vectors = vectors - vectors.mean(0)  # what tells the classes apart
                level = noise * 100 / step * vectors.norm(dim=1).mean()
                shift = torch.nn.functional.normalize(torch.randn(vectors.shape, generator=generator), dim=-1)
                features = torch.nn.functional.normalize(vectors + level * shift, dim=-1)
            return features, bad

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode, "image_features", fake)
            outcome = suite.evaluate(
                made, sets, _triplets(root), Cache(None), suite.Settings(workers=1), Ranks()
            )
        recipe = {"model": "tiny", "seed": seed, "init": init, "optim": {"lr": 0.1}, "run": str(folder)}
        checkpoint = {"model": "tiny", "pretrained": "x", "source": "x", "step": step, "samples": 10 * step}
        about = {"checkpoint": checkpoint, "recipe": recipe, "settings": {"device": "cpu"}, "versions": {}}
        results.write(folder / "eval" / f"step-{step:06d}", outcome, about)
    rows = [
        {"step": s, "samples": 10 * s, "loss": 5 / (s + seed + 1), "val_loss": None} for s in range(1, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    made = {"pi": evaluated(root, base / "pi", 1, 1.0, (50, 100, 200), str(base / "stage1"))}
    made["baseline"] = evaluated(root, base / "baseline", 2, 6.0, (50, 100, 200))
    made["pi2"] = evaluated(root, base / "pi2", 3, 0.5)
    made["baseline2"] = evaluated(root, base / "baseline2", 4, 3.0)
    (base / "stage1").mkdir()
    rows = [{"step": s, "samples": s, "loss": 1 / s, "val_twoafc": 0.5 + s / 100} for s in (1, 2, 3)]
    (base / "stage1" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return made


class _Tags(HTMLParser):
    """Every element is closed where it should be, and what it refers to."""

    EMPTY = {"meta", "img", "br", "line", "path", "use", "rect", "circle", "stop"}

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def _page(*specs, tmp_path) -> tuple[str, list]:
    return report.build(Report(runs=tuple(str(s) for s in specs), out=tmp_path))


def test_the_whole_page(runs, tmp_path, capsys):
    arguments = [f"PI={runs['pi']}", f"Baseline={runs['baseline']}", "--out", str(tmp_path / "report")]
    assert command(lambda: report.main(arguments)) == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(text)
    assert tags.open == [] and len(tags.ids) == len(set(tags.ids))
    assert all(link.startswith(("data:", "#")) for link in tags.links)
    assert "url(http" not in text and "@import" not in text and "<script" not in text
    for words in (
        "PI is better than Baseline here", "one training run of each", page.CONSTRUCTED, "Nobody was asked",
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


def test_the_page_is_the_same_again(runs, tmp_path):
    first, _ = _page(runs["pi"], runs["baseline"], tmp_path=tmp_path)
    second, _ = _page(runs["pi"], runs["baseline"], tmp_path=tmp_path)
    clock = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert clock.sub("", first) == clock.sub("", second)


def test_it_says_so_when_pi_is_not_better(runs, tmp_path):
    worse, _ = _page(f"PI={runs['baseline']}", f"Baseline={runs['pi']}", tmp_path=tmp_path)
    assert "PI is worse than Baseline here" in worse
    same, _ = _page(f"PI={runs['pi']}", f"Baseline={runs['pi']}", tmp_path=tmp_path)
    assert "PI is not better than Baseline here: no difference" in same


def test_verdict_between():
    row = compare.Row("", "m", "m", "top-1", 3, 0.31, 0.3, Interval(0.01, -0.01, 0.03), None)
    found = compare.Comparison(compare.Arm("PI", []), compare.Arm("Baseline", []), primary=row)
    assert report.verdict(found) == (
        "PI is not shown to be better than Baseline here: +1.0 points of mean top-1 over 3 sets "
        "(31.0 against 30.0 %), 95 % interval −1.0 to +3.0, which includes 0."
    )


def test_seeds(runs, tmp_path):
    specs = [f"PI={runs['pi']}", f"PI={runs['pi2']}", f"Base={runs['baseline']}", f"Base={runs['baseline2']}"]
    text, _ = _page(*specs, tmp_path=tmp_path)
    assert "Over 2 paired seeds" in text and "cannot fall below 0.500" in text
    arms = compare.arms(specs)
    row = compare.compare(arms[0], arms[1]).rows[0]
    accuracy = [[r.final.datasets["imagenet1k"]["metrics"]["acc1"] for r in arm.runs] for arm in arms]
    assert row.a == pytest.approx(np.mean(accuracy[0])) and row.p is None
    assert row.delta.value == pytest.approx(np.mean(accuracy[0]) - np.mean(accuracy[1]))


def test_seeds_are_paired_by_seed_and_each_counts_once(runs, tmp_path):
    """However they are listed; a copy of a run, or the same folder again, is no second seed."""
    pairs = [[f"PI={runs[name]}" for name in order] for order in (("pi", "pi2"), ("pi2", "pi"))]
    first, second = (compare.arms(specs)[0].runs for specs in pairs)
    assert [r.folder for r in first] == [r.folder for r in second] == [runs["pi"], runs["pi2"]]
    copies = []
    for name in ("a", "b"):
        copies.append(shutil.copytree(runs["pi"] / "eval" / "step-000200", tmp_path / name))
        data = json.loads((copies[-1] / "results.json").read_text())
        data["checkpoint"]["weights"] = "one"
        (copies[-1] / "results.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="are one checkpoint, not two seeds of PI"):
        compare.arms([f"PI={folder}" for folder in copies])
    assert len(compare.arms([str(folder) for folder in copies])) == 2
    damaged = copies[0] / "predictions" / "cifar10.npz"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(ValueError, match="cifar10.npz: damaged .*; evaluate again"):
        compare.read_run(str(copies[0])).final.arrays("cifar10")


def test_one_run_and_three_arms(runs, tmp_path):
    alone, _ = _page(runs["baseline"], tmp_path=tmp_path)
    assert "<h1>Baseline</h1>" in alone and page.CONSTRUCTED in alone and 'verdict">' not in alone
    three, _ = _page(
        f"PI={runs['pi']}", f"PFT={runs['pi2']}", f"Baseline={runs['baseline']}", tmp_path=tmp_path
    )
    assert "<h2>PI against Baseline</h2>" in three and "<h2>PFT against Baseline</h2>" in three


def test_figures_follow_the_page_and_stand_alone(runs, tmp_path):
    _, drawn = _page(runs["pi"], runs["baseline"], tmp_path=tmp_path)
    inline = drawn[0].inline()
    assert "var(--arm0)" in inline and "#2563c9" not in inline and "DejaVu" not in inline
    svg, png = drawn[0].save(tmp_path)
    assert "#2563c9" in svg.read_text() and "var(" not in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_comparison_is_paired_and_corrected(runs):
    arms = compare.arms([f"PI={runs['pi']}", f"Baseline={runs['baseline']}"])
    found = compare.compare(*arms)
    tested = [r for r in found.rows if r.adjusted is not None]
    assert {r.measure for r in tested} == {"top-1", "I → T R@1", "T → I R@1"}
    assert all(r.adjusted >= r.p for r in tested)
    assert not [r for r in found.rows if r.key == "vtab/pcam" and r.measure == "top-5"]
    vtab = next(r for r in found.families if r.family == catalog.VTAB and r.measure == "top-1")
    sets = [r.delta.value for r in found.rows if r.family == catalog.VTAB and r.measure == "top-1"]
    assert vtab.samples == 2 and vtab.delta.value == pytest.approx(np.mean(sets))
    assert [r.name for r in found.triplets] == ["2AFC test", "2AFC val"]


def test_bad_runs_are_named(runs, tmp_path, capsys):
    def go(*specs):
        return command(lambda: report.main([*map(str, specs), "--out", str(tmp_path / "out")]))

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


def _changed(evaluation, change) -> None:
    file = evaluation / "results.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_results_of_another_version_are_named(runs, tmp_path):
    for number, change in enumerate(
        (
            lambda data: data.update(schema=0),
            lambda data: data.pop("checkpoint"),
            lambda data: data["datasets"]["cifar10"].pop("metrics"),
            lambda data: data["triplets"]["metrics"].pop("twoafc_soft"),
        )
    ):
        place = tmp_path / str(number)
        shutil.copytree(runs["pi2"] / "eval" / "step-000100", place)
        _changed(place, change)
        with pytest.raises(ValueError, match=r"results.json: of another version of this project"):
            compare.read_run(str(place))


def test_what_runs_do_not_share_is_said(runs, tmp_path, capsys):
    """Sets and settings of one run alone; every seed of an arm that stands alone; a folder with a = in it."""
    place = tmp_path / "lr=0.1"
    shutil.copytree(runs["pi2"] / "eval" / "step-000100", place)
    _changed(place, lambda data: (data["datasets"].pop("cifar10"), data["settings"].update(precision="amp")))
    text, _ = _page(place, runs["baseline2"], tmp_path=tmp_path)
    assert f"cifar10, which is not in {place}" in text and "lr=0.1 against" in text
    assert re.search("evaluated with precision.*?amp", text)
    assert command(lambda: report.main([str(place), str(runs["pi"]), "--out", str(tmp_path / "out")])) == 0
    assert "note: not compared: cifar10" in capsys.readouterr().out
    text, _ = _page(f"PI={runs['pi']}", f"PI={runs['pi2']}", tmp_path=tmp_path)
    uneven, _ = _page(f"PI={runs['pi']}", f"PI={runs['pi2']}", f"B={runs['baseline']}", tmp_path=tmp_path)
    assert "Training runs: 2 of PI and 1 of B, which cannot be paired by seed" in uneven
    row = re.search(r"<tr><td>CIFAR-10</td><td>top.1</td>(.*?)</tr>", text)[1]
    values = [
        compare.read_run(str(runs[n])).final.datasets["cifar10"]["metrics"]["acc1"] for n in ("pi", "pi2")
    ]
    assert re.findall(r"[\d.]+(?=</td>)", row) == [page.pct(v) for v in values]


def test_different_data_are_not_compared(runs, root, tmp_path):
    other = tmp_path / "sets"
    images = [encoded(p) for p in pictures(COUNT)]
    write_webdataset(other / "wds_cifar10", images, [(i + 1) % 8 for i in range(COUNT)], NAMES)
    moved = evaluated(other, tmp_path / "moved", 5)
    with pytest.raises(ValueError, match="cifar10: .* were evaluated on different data"):
        _page(runs["pi"], moved, tmp_path=tmp_path)


# -- the paper's own numbers ------------------------------------------------------------------------


def test_papers_table_is_whole():
    assert list(paper.TABLE1) == [e.key for e in catalog.CLASSIFICATION]
    small = {e.key for e in catalog.CLASSIFICATION if e.classes < 5}
    assert {k for k, row in paper.TABLE1.items() if row[3] is None} == small
    assert sum(cell is not None for pair in paper.TABLE2.values() for cell in pair) == 2


def test_paper_against_itself():
    assert paper.wins() == paper.STATED_WINS
    assert paper.family_mean(catalog.OOD, 0) == pytest.approx(3.5)
    gaps = [c for c in paper.checks() if abs(c.gap) >= 0.05]
    assert [c.what for c in gaps] == ["ImageNet, mean Δ top-5"] and gaps[0].explained
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paper.TABLE1, "mnist", (12.4, 11.6, 1.8, 55.1, 55.0, 0.1))
        assert any(
            "MNIST, Δ top-1: printed +1.8" in s and "cannot be why" in s for s in paper.disagreements()
        )


def _chosen(folder, votes, seed):
    """An evaluation of triplets alone, whose votes are these."""
    count = len(votes)
    dist = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    choices = perceptual.Choices(dist, np.array(votes), np.full(count, "test"))
    images = sources.FileImages([(folder / "x.png", 0, -1, "x.png")])
    triplets = perceptual.Triplets(
        folder, images, np.zeros((count, 3), np.int64), choices.vote, choices.split, "v"
    )
    arrays = {"rows": triplets.rows, **vars(choices)}
    result = suite.TripletResult(triplets, perceptual.metrics(choices), arrays)
    checkpoint = {"model": "tiny", "pretrained": "x", "source": "x", "activation": "QuickGELU"}
    checkpoint["assumed"] = ["assumed, since no file tells: <this>"]
    settings = {"preprocess": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    about = {"checkpoint": checkpoint, "recipe": None, "settings": settings, "versions": {}}
    results.write(folder / "eval", suite.Outcome([], result, {}, 0), about)
    return folder


@pytest.mark.parametrize("soft", [False, True])
def test_both_scores_called_2afc_are_shown_where_they_differ(tmp_path, soft):
    votes = [0, 0.2, 0.5, 0.8, 1.0] * 6 if soft else [0, 1.0] * 15
    a, b = (_chosen(tmp_path / name, votes, seed) for seed, name in enumerate("ab"))
    arms = compare.arms([f"A={a}", f"B={b}"])
    rows = compare.compare(*arms).triplets
    names = ["2AFC (majority)", "2AFC (share of people)"] if soft else ["2AFC"]
    assert [r.name for r in rows] == names
    for row, metric, n in zip(rows, ("twoafc", "twoafc_soft"), (24 if soft else 30, 30)):
        for arm, value in zip(arms, (row.a, row.b)):
            assert value == pytest.approx(arm.runs[0].final.data["triplets"]["metrics"][metric])
        assert row.samples == n and row.delta.value == pytest.approx(row.a - row.b)
        assert (row.p is None) == (metric == "twoafc_soft")  # McNemar's test is of hits and misses
    shown = report.single_table(arms[0])
    assert all(name in shown for name in names) and ("share of people" in shown) == soft
    text = conditions.settings(arms)
    assert "QuickGELU; mean 0.5, 0.5, 0.5; std 0.25" in text and "no file tells: &lt;this&gt;" in text


def test_runs_with_different_prompts_are_not_compared(root, tmp_path):
    a, b = (evaluated(root, tmp_path / name, seed) for seed, name in enumerate("ab"))
    path = b / "eval" / "step-000100" / results.RESULTS
    data = json.loads(path.read_text())
    data["datasets"]["cifar10"]["templates"] = ["another {c}"]
    path.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match="cifar10: .*different templates; evaluate both with the same --prompts"
    ):
        compare.compare(*compare.arms([f"A={a}", f"B={b}"]))
