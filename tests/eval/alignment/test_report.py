"""Human similarity in the report of arms and in that of a study."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from eval.alignment import results, scores
from eval.alignment.records import CORRELATION, EVERYTHING, SHARE, Score, SetScores
from eval.alignment.results import ALIGNMENT, Alignment, Scored
from eval.metrics import seeds
from eval.report import alignment
from eval.report.runs import Arm, read_run
from eval.results import RESULTS
from eval.study.findings import report as study
from tests.eval.alignment import kit
from tests.kits import eval_study
from tests.kits.eval_runs import change, page, voted
from tests.kits.html import whole

N = 80


def human(folder, seed: int, level: float, weights: str = "", probe: bool = False, judgements: str = "same"):
    """Constructed figures of three sets: a mean, a correlation, and one that keeps no outcomes."""
    rng, people = np.random.default_rng(seed), np.random.default_rng(99).random(N)
    hits = kit.arrays(
        odd_one_out=(rng.random(N) < level).astype(float), group=np.array(list("ab") * (N // 2))
    )
    rated = kit.arrays(
        model=(level * people + (1 - level) * rng.random(N)).astype(np.float32), people=people,
        clusters=np.arange(N) // 4,
    )  # fmt: skip
    scored = [
        _scored("things", "THINGS", "odd_one_out", ("", "a", "b"), hits, judgements),
        _scored("tid2013", "TID2013", "srcc", ("",), rated, judgements),
    ]
    own = replace(scored[0].scores.scores[0], metric="own", ceiling=None)
    scored.append(
        Scored(
            scores=SetScores(key="own", title="<Own>", scores=(own,), voters="labels"),
            arrays=None,
            judgements=judgements,
        )
    )
    if probe:
        fitted = replace(scored[0].scores, probe="linear probe, fitted on 9 judgements")
        scored.append(Scored(scores=fitted, arrays=hits, judgements=judgements))
    about = {
        "checkpoint": {"model": "tiny", "source": "x", "pretrained": "x", "weights": weights or str(folder)}
    }
    about |= {"recipe": {"seed": seed}, "settings": {}, "versions": {}, "notes": []}
    results.write(folder, scored, about)
    return folder


def _scored(key, title, metric, groups, arrays, judgements) -> Scored:
    made = []
    for group in groups:
        found = scores.interval(arrays, metric, group)
        share = metric == "odd_one_out"
        made.append(
            Score(
                metric=metric,
                group=group,
                value=found.value,
                low=found.low,
                high=found.high,
                chance=1 / 3 if share else 0.0,
                ceiling=0.6722 if share and not group else None,
                ceiling_source="<somewhere>" if share and not group else "",
                n=N,
                unit=SHARE if share else CORRELATION,
            )  # fmt: skip
        )
    about = SetScores(key=key, title=title, scores=tuple(made), notes=("2 rows left out",))
    return Scored(scores=about, arrays=arrays, judgements=judgements)


def arm(label: str, *folders) -> Arm:
    return Arm(label, [read_run(f"{label}={folder}") for folder in folders])


@pytest.fixture
def pair(tmp_path):
    return human(tmp_path / "a", 1, 0.8), human(tmp_path / "b", 2, 0.5)


# -- two arms -----------------------------------------------------------------------------------------


def test_differences_are_paired_by_judgements(pair):
    things, tid, own = alignment.compare(arm("A", pair[0]), arm("B", pair[1]))
    arrays = [Alignment.read(folder).arrays(Alignment.read(folder).sets[0]) for folder in pair]
    first = things.rows[0]
    assert (first.name, first.n, first.ceiling, first.measure.title) == ("all", N, 0.6722, "odd one out")
    hits = [each["odd_one_out"].mean() for each in arrays]
    assert (first.a, first.b) == pytest.approx(hits) and first.delta.value == pytest.approx(hits[0] - hits[1])
    expected = scores.difference([arrays[0]], [arrays[1]], "odd_one_out", EVERYTHING)
    assert first.delta == expected and first.sure and first.seeds is None
    assert [row.name for row in things.rows] == ["all", "a", "b"]
    assert tid.rows[0].measure.title == "SRCC" and tid.rows[0].delta.ends is not None
    assert own.rows[0].delta.ends is None and own.rows[0].delta.value == pytest.approx(first.delta.value)


def test_paired_seeds_are_told(tmp_path):
    folders = {label: [human(tmp_path / f"{label}{s}", s, level) for s in (1, 2, 3)]
               for label, level in (("A", 0.8), ("B", 0.5))}  # fmt: skip
    things, *_ = alignment.compare(arm("A", *folders["A"]), arm("B", *folders["B"]))
    values = [[Alignment.read(f).sets[0].scores[0].value for f in folders[label]] for label in "AB"]
    assert things.rows[0].a == pytest.approx(np.mean(values[0]))
    assert things.rows[0].seeds == seeds.paired(*(np.array([v]) for v in values))[0]
    text, _ = page(*(f"{label}={f}" for label in "AB" for f in folders[label]), tmp_path=tmp_path)
    whole(text)
    assert "3 seeds: " in text and "p 0.25" in text


@pytest.mark.slow
def test_the_page(pair, tmp_path):
    """Also of runs of which nothing else was evaluated."""
    text, charts = page(f"A={pair[0]}", f"B={pair[1]}", tmp_path=tmp_path)
    whole(text)
    assert "Human similarity" in text and "share no classification set" in text and "<h2>Results" not in text
    assert "ceiling: &lt;somewhere&gt;" in text and "&lt;Own&gt;" in text and "2 rows left out" in text
    (chart,) = [c for c in charts if c.name == "human-similarity"]
    assert "THINGS, odd one out: A " in chart.alt and "TID2013, SRCC: A " in chart.alt
    rows = re.findall(r"<tr><td>all <span class=\"sub\">80</span></td>.*?</tr>", text, re.S)
    value = alignment.compare(arm("A", pair[0]), arm("B", pair[1]))[0].rows[0]
    assert len(rows) == 3 and f"<strong>{100 * value.a:.1f}</strong>" in rows[0] and "67.2" in rows[0]
    assert "33.3" in rows[0] and f"+{100 * value.delta.value:.1f}" in rows[0]


@pytest.mark.slow
def test_one_arm_alone_shows_every_seed(tmp_path):
    folders = [human(tmp_path / str(seed), seed, 0.7, probe=True) for seed in (1, 2)]
    text, charts = page(*(f"A={f}" for f in folders), tmp_path=tmp_path)
    whole(text)
    for folder in folders:
        score = Alignment.read(folder).sets[0].scores[0]
        assert f"{100 * score.value:.1f}<br>" in text
        assert f"{100 * score.low:.1f} to {100 * score.high:.1f}" in text
    assert "linear probe, fitted on 9 judgements" in text and len(charts) == 1
    assert "THINGS, odd one out, probe" in charts[0].alt


def test_a_run_without_it_is_told_and_has_no_section(tmp_path):
    a, b = voted(tmp_path / "a", [0, 1, 1, 0], 1), voted(tmp_path / "b", [0, 1, 1, 0], 2)
    text, charts = page(f"A={a}", f"B={b}", tmp_path=tmp_path)
    assert "Human similarity" not in text
    human(a / "eval", 1, 0.8)
    text, charts = page(f"A={a}", f"B={b}", tmp_path=tmp_path)
    assert "<h2>Human similarity" not in text and not [c for c in charts if c.name == "human-similarity"]
    assert f"human similarity, things, which is not in {b / 'eval'}" in text
    human(b / "eval", 2, 0.5)
    text, _ = page(f"A={a}", f"B={b}", tmp_path=tmp_path)
    assert "<h2>Human similarity" in text and "2AFC" in text


def test_other_judgements_are_not_compared(tmp_path):
    a, b = human(tmp_path / "a", 1, 0.8), human(tmp_path / "b", 2, 0.5, judgements="other")
    with pytest.raises(ValueError, match="things: .*/a and .*/b were evaluated on different judgements"):
        alignment.compare(arm("A", a), arm("B", b))


def test_figures_of_another_checkpoint_are_refused(tmp_path):
    """alignment.json stays when a later checkpoint is evaluated into the same folder."""
    run = voted(tmp_path / "a", [0, 1], 1)
    change(run / "eval", lambda data: data["checkpoint"].update(weights="later"))
    human(run / "eval", 1, 0.8, weights="earlier")
    with pytest.raises(ValueError, match=r"alignment\.json: of another checkpoint than results\.json"):
        page(f"A={run}", tmp_path=tmp_path)
    human(run / "eval", 1, 0.8, weights="later")
    assert "Human similarity" in page(f"A={run}", tmp_path=tmp_path)[0]


# -- a study ------------------------------------------------------------------------------------------


@pytest.fixture
def arms(tmp_path):
    level = eval_study.steady
    made = [
        eval_study.arm(tmp_path, "PI", range(3), level(0.33), "subject"),
        eval_study.arm(tmp_path, "Baseline", range(3), level(0.30), "baseline"),
        eval_study.arm(tmp_path, "Other", range(2), level(0.30), "control"),
    ]
    for each, value in zip(made[:2], (0.8, 0.5)):
        for seed, run in enumerate(each.runs):
            human(run / "eval" / "step-000080", seed, value)
    return made


def read(out) -> tuple[str, dict]:
    return (out / "index.html").read_text(), json.loads((out / "study.json").read_text())["groups"][0]


@pytest.mark.slow
def test_in_a_study_it_is_paired_by_seed(arms, tmp_path):
    study.write("s", "", arms, tmp_path / "report")
    text, data = read(tmp_path / "report")
    whole(text)
    (found,) = data["human_similarity"]
    assert (found["arm"], found["against"], found["seeds"]) == ("PI", "Baseline", [0, 1, 2])
    figure = found["figures"]["human:things/odd_one_out@all"]
    values = [[Alignment.read(run / "eval" / "step-000080").sets[0].scores[0].value for run in each.runs]
              for each in arms[:2]]  # fmt: skip
    assert (figure["arm"], figure["against"]) == (values[0], values[1])
    over = seeds.paired(*(np.array([v]) for v in values))[0]
    assert figure["difference"]["value"] == over.mean.value and figure["difference"]["p"] == over.p
    assert {*found["figures"]} == {f"human:{k}" for k in (
        "things/odd_one_out@all", "things/odd_one_out@a", "things/odd_one_out@b", "tid2013/srcc@all",
        "own/own@all")}  # fmt: skip
    assert "PI minus Baseline: every figure" in text and "Other minus Baseline: every figure" not in text


@pytest.mark.slow
def test_a_study_without_it_has_no_section(arms, tmp_path):
    for each in arms:
        for run in each.runs:
            (run / "eval" / "step-000080" / ALIGNMENT).unlink(missing_ok=True)
            assert (run / "eval" / "step-000080" / RESULTS).is_file()
    study.write("s", "", arms, tmp_path / "report")
    text, data = read(tmp_path / "report")
    assert "Human similarity" not in text and data["human_similarity"] == []
