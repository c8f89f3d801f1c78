"""What is computed of a study's runs: pairs by seed, spread, learning speed, doses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import seeds
from eval.metrics.uncertainty import holm
from eval.report.compare import TOP1
from eval.study.findings import dose, finished, paired, speed, words
from eval.study.findings.finished import ArmRuns
from tests.kits import eval_study as kit
from tests.kits.eval_runs import change

SEEDS = range(7)


def _two(root, level: kit.Level, roles=("subject", "baseline"), count: int = 3, **made) -> paired.Pair:
    """Arms A and B of the same figures."""
    arms = [kit.arm(root, n, range(count), level, role, made=made) for n, role in zip("AB", roles)]
    return paired.against_baseline(_group(*arms))[0]


def _group(*arms: ArmRuns) -> finished.Group:
    (group,) = finished.groups(arms)
    return group


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Seven seeds of five arms, one seed of two of them missing; a difference of 0, +2 and −3 points."""
    root = tmp_path_factory.mktemp("study")
    return _group(
        kit.arm(root, "shuffled", SEEDS, kit.steady(0.30, luck=2), "control"),
        kit.arm(root, "Baseline", [0, 1, 2, 3, 4, 5, 7], kit.steady(0.30, 0.002), "baseline", missing=1),
        kit.arm(root, "PI", SEEDS, kit.steady(0.32, 0.002, luck=1), "subject"),
        kit.arm(root, "worse", SEEDS, kit.steady(0.27, 0.002, luck=3)),
        ArmRuns(label="later", runs=[], role="control", missing=7),
    )


def _value(root, label: str, seed: int, key: str, metric: str) -> float:
    """Straight from the file."""
    runs = {arm.label: arm.runs for arm in root.arms}
    return runs[label][seed].final.datasets[key]["metrics"][metric]


def test_arms_in_order_and_what_is_not_finished(study):
    assert [arm.label for arm in study.arms] == ["PI", "Baseline", "shuffled", "worse", "later"]
    assert study.baseline.label == "Baseline" and [arm.label for arm in study.judged] == ["PI"]
    assert words.unfinished(study) == ["Baseline: 1 seed not finished", "later: no finished run"]


def test_pairs_are_of_the_seeds_that_both_have(study):
    pairs = {pair.a.label: pair for pair in paired.against_baseline(study)}
    assert list(pairs) == ["PI", "shuffled", "worse"]
    pair = pairs["PI"]
    assert pair.seeds == [0, 1, 2, 3, 4, 5] and pair.only == {"PI": [6], "Baseline": [7]}
    assert "seed 6, not finished by Baseline; seed 7, not finished by PI" in words.not_counted(pair)
    for figure in pair.figures:
        if figure.quantity.kind != paired.SET:
            continue
        key, metric = figure.quantity.sets[0], figure.quantity.measure.key
        d = [
            _value(study, "PI", s, key, metric) - _value(study, "Baseline", s, key, metric)
            for s in pair.seeds
        ]
        assert figure.a - figure.b == pytest.approx(d)
        assert figure.row.delta == seeds.bca(np.array([figure.a - figure.b]))[0]
        assert figure.row.p == pytest.approx(seeds.sign_flip(d)) and figure.row.seeds.count == 6


def test_families_are_means_of_their_sets_and_the_primary_of_all(study):
    pair = paired.against_baseline(study)[0]
    mean = pair.leading
    assert mean.quantity.kind == paired.MEAN and len(mean.quantity.sets) == 5  # retrieval is none of them
    by_key = {figure.quantity.key: figure for figure in pair.figures}
    tops = [by_key[f"{key}/acc1"].a for key in mean.quantity.sets]
    assert mean.a == pytest.approx(np.mean(tops, 0))
    vtab = by_key["family:VTAB/acc1"]
    assert vtab.a == pytest.approx((by_key["vtab/dtd/acc1"].a + by_key["vtab/pcam/acc1"].a) / 2)
    assert by_key["family:VTAB/acc5"].quantity.sets == ("vtab/dtd",)  # two classes have no top-5
    assert "triplets/twoafc" in by_key and "mscoco_captions/text_retrieval_recall@5" in by_key


def test_holm_is_over_each_sets_first_figures(study):
    for pair in paired.against_baseline(study):
        rows = pair.comparison.rows
        tested = [row for row in rows if row.adjusted is not None]
        assert {(row.key, row.measure.key) for row in tested} == {
            *((key, "acc1") for key in kit.SETS[:-1]),
            *(("mscoco_captions", f"{way}_retrieval_recall@1") for way in ("text", "image")),
        }
        assert [row.adjusted for row in tested] == pytest.approx(holm([row.p for row in tested]))


def test_what_a_control_lacks(study):
    (pair,) = paired.against_controls(study)
    assert (pair.a.label, pair.b.label, pair.seeds) == ("PI", "shuffled", list(SEEDS))
    assert words.human_part(pair).startswith("PI minus shuffled: ")


def test_verdicts_are_plain_both_ways(study):
    by_arm = {pair.a.label: words.verdict(pair) for pair in paired.against_baseline(study)}
    assert by_arm["PI"].startswith("PI is better than Baseline: +1.99 points of mean top-1 over 5 sets")
    assert by_arm["worse"].startswith("worse is worse than Baseline: −")
    assert by_arm["shuffled"].startswith("shuffled is not shown to be better than Baseline: ")
    for text in by_arm.values():
        assert "over 6 paired seeds, 95 % interval (BCa)" in text and "(too narrow with so few seeds)" in text
    assert by_arm["PI"].endswith("sign-flip p = 0.031, the least that 6 seeds can give.")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "A and B have finished no seed in common, so nothing can be said of them yet."),
        (1, "A against B: +5.00 points of mean top-1 over 5 sets (40.0 against 35.0 %), in one seed, "
            "which says nothing about chance in training; there is no interval."),
        (2, "is not shown to be better than B: +5.00 points of mean top-1 over 5 sets (40.0 against 35.0 %), "
            "over 2 paired seeds, sign-flip p = 0.50, which with 2 seeds cannot fall below 0.50"),
        (4, "sign-flip p = 0.12, which with 4 seeds cannot fall below 0.12, so it could show no difference"),
    ],
)  # fmt: skip
def test_few_seeds_say_so(tmp_path, count, said):
    level = {"A": lambda seed, share: 0.38, "B": lambda seed, share: 0.33}
    group = _group(
        kit.arm(tmp_path, "A", range(count or 1), level["A"], "subject"),
        kit.arm(tmp_path, "B", range(count) or [9], level["B"], "baseline"),
    )
    (pair,) = paired.against_baseline(group)
    assert said in words.verdict(pair) and (pair.leading is None) == (count == 0)


def test_no_difference_at_all(tmp_path):
    said = words.verdict(_two(tmp_path, lambda seed, share: 0.3))
    assert said == "A is not better than B: no difference in mean top-1 over 5 sets over 3 paired seeds."


# -- what lacks something -------------------------------------------------------------------------


def test_a_figure_that_is_nan_does_not_count(tmp_path):
    group = _group(
        kit.arm(tmp_path, "A", range(4), kit.steady(0.3, luck=1), "subject"),
        kit.arm(tmp_path, "B", range(4), kit.steady(0.3), "baseline"),
    )

    def spoil(data):
        data["datasets"]["cifar10"]["metrics"]["acc1"] = float("nan")
        del data["datasets"]["vtab/dtd"]["metrics"]["acc5"]

    change(group.arms[0].runs[2].final.folder, spoil)
    group = _group(*(arm.plan for arm in group.arms))
    (pair,) = paired.against_baseline(group)
    counts = {figure.quantity.key: figure.seeds.count for figure in pair.figures}
    assert counts["cifar10/acc1"] == counts["mean:Mean of the sets/acc1"] == 3
    assert counts["vtab/dtd/acc5"] == counts["family:VTAB/acc5"] == 3 and counts["imagenet1k/acc1"] == 4
    assert all(math.isfinite(figure.row.delta.value) for figure in pair.figures)
    found = paired.spreads(group.arms[0])
    assert found["cifar10", "acc1"].seeds == 3 and found["imagenet1k", "acc1"].seeds == 4


def test_arms_that_share_no_set(tmp_path):
    made = {"triplets": False}
    group = _group(
        kit.arm(tmp_path, "A", range(3), kit.steady(0.3), "subject", made=made | {"sets": ["cifar10"]}),
        kit.arm(tmp_path, "B", range(3), kit.steady(0.3), "baseline", made=made | {"sets": ["vtab/dtd"]}),
    )
    (pair,) = paired.against_baseline(group)
    assert pair.leading is None and speed.speed(pair) is None
    assert words.verdict(pair) == "A and B share no evaluated set, so they cannot be compared."


def test_triplets_alone_lead_where_there_is_no_set(tmp_path):
    made = {"sets": [], "steps": [10]}
    group = _group(
        *(
            kit.arm(tmp_path, n, range(3), kit.steady(0.3), r, made=made)
            for n, r in (("A", "subject"), ("B", "baseline"))
        )
    )
    (pair,) = paired.against_baseline(group)
    assert pair.leading.quantity.kind == paired.TRIPLETS and "no difference in 2AFC" in words.verdict(pair)


def _says(message: str, *arms: ArmRuns):
    with pytest.raises(ValueError, match=message) as caught:
        finished.groups(arms)
    assert "\n" not in str(caught.value)


def test_mistakes_are_named(tmp_path):
    a = kit.arm(tmp_path, "A", [0, 1], kit.steady(0.3), "baseline")
    _says("no run of the study is finished", ArmRuns(label="A", runs=[], missing=3))
    _says("the study has two arms called A", a, a)
    _says("the study has 2 baselines: A, B", a, ArmRuns(label="B", runs=[], role="baseline"))
    _says("both have seed 0", ArmRuns(label="A", runs=[a.runs[0], a.runs[0]]))
    with pytest.raises(ValueError, match="arm C: unknown role subjet"):
        ArmRuns(label="C", runs=[], role="subjet")
    with pytest.raises(ValueError, match="arm C: its dose is 0; a curve needs doses above 0"):
        ArmRuns(label="C", runs=[], dose=0)
    other = kit.arm(tmp_path, "B", [0], kit.steady(0.3), made={"texts": 2})
    _says("imagenet1k: .* were evaluated with different classnames", a, other)
    fewer = kit.arm(
        tmp_path,
        "D",
        [0],
        kit.steady(0.3),
        made={"edit": lambda data: data["triplets"]["metrics"].update(triplets=9)},
    )
    _says("triplets: .* were evaluated on different triplets", a, fewer)
    change(a.runs[1] / "eval" / "step-000080", lambda data: data["recipe"].pop("seed"))
    assert list(finished.groups([a])[0].arms[0].runs) == [0, 1]  # recipe.json tells
    (a.runs[1] / "recipe.json").write_text("{}")
    _says("no seed in its evaluation or its recipe.json", a)


def test_texts_are_compared_however_they_were_written(tmp_path):
    """A results.json of another layout holds the same data; one caption more is another set."""
    a = kit.arm(tmp_path, "A", [0, 1], kit.steady(0.3))
    change(a.runs[1] / "eval" / "step-000080", lambda data: None)  # on one line
    assert len(finished.groups([a])[0].arms[0].runs) == 2
    change(
        a.runs[1] / "eval" / "step-000080",
        lambda data: data["datasets"]["mscoco_captions"]["captions"][3].append("]"),
    )
    _says("mscoco_captions: .* different captions", a)


def test_runs_of_unequal_length_are_said(tmp_path):
    group = _group(
        kit.arm(tmp_path, "A", [0], kit.steady(0.3)),
        kit.arm(tmp_path, "B", [0], kit.steady(0.3), made={"steps": (10, 20)}),
    )
    (line,) = finished.uneven(group)
    assert "8,000 samples: A; 2,000 samples: B" in line


# -- spread -----------------------------------------------------------------------------------------


def test_spread_of_every_metric(study):
    pi = study.arms[0]
    found = paired.spreads(pi)
    records = [run.final.datasets for run in pi.runs.values()]
    for key, record in records[0].items():
        for metric in record["metrics"]:
            values = [r[key]["metrics"][metric] for r in records]
            assert found[key, metric].sd.value == pytest.approx(np.std(values, ddof=1))
    assert ("family:VTAB", "acc1") in found and ("triplets", "twoafc") in found
    assert ("triplets", "ceiling") not in found  # of the data


def test_predicted_seeds_are_of_the_deviation_found(study):
    figure = paired.against_baseline(study)[0].leading
    needs = paired.needs(figure)
    assert [n.difference for n in needs] == [*paired.POINTS, *paired.POINTS]
    sd = np.std(figure.a - figure.b, ddof=1)
    pooled = np.sqrt((np.var(figure.a, ddof=1) + np.var(figure.b, ddof=1)) / 2)
    for need in needs:
        assert need.sd.value == pytest.approx(sd if need.of_pairs else pooled)
        assert need.count == seeds.needed(need.sd.value, need.difference, need.of_pairs)
        assert need.range[0] <= need.count <= need.range[1]


# -- learning speed -------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 0.99), min_size=2, max_size=8),
    st.floats(0, 1),
)
def test_reach_is_where_the_curve_first_is(figure, target):
    """Against numpy's interpolation on a fine grid of log(samples)."""
    samples = 1000 * 2.0 ** np.arange(len(figure))
    found = speed.reach(samples, figure, target)
    grid = np.linspace(0, len(figure) - 1, (len(figure) - 1) * 4096 + 1)  # the points of the curve are on it
    at = np.flatnonzero(np.interp(grid, np.arange(len(figure)), figure) >= target)
    if max(figure) < target:
        assert found == np.inf
    else:
        assert found == pytest.approx(1000 * 2 ** grid[at[0]], rel=1 / 4096)  # a step of the grid


def test_reach_without_a_curve():
    assert math.isnan(speed.reach([1], [0.5], 0.1)) and math.isnan(speed.reach([1, 2], [0.1, 0.2], math.nan))
    assert speed.reach([1, 2, 4], [0.1, math.nan, 0.3], 0.2) == pytest.approx(2)
    assert speed.reach([100, 200], [0.5, 0.6], 0.4) == 100


def test_speed_counts_what_is_censored(tmp_path):
    """Twice as fast in four seeds, past the target at once in one, never there in two."""

    def fast(seed: int, share: float) -> float:
        value = 0.3 + 0.05 * np.log2(2 * share)
        return 0.9 if seed == 4 else value - 0.2 if seed > 4 else value

    group = _group(
        kit.arm(tmp_path, "PI", range(7), fast, "subject"),
        kit.arm(tmp_path, "B", range(7), lambda seed, share: 0.3 + 0.05 * np.log2(share), "baseline"),
    )
    found = speed.speed(paired.against_baseline(group)[0])
    assert found.needed == pytest.approx([4000] * 4 + [1000] + [np.inf] * 2)
    assert found.baseline == pytest.approx([8000] * 7) and (found.never, found.at_once) == (2, 1)
    assert found.ratio.value == pytest.approx(0.5) and found.ratio.ends == (pytest.approx(0.125), np.inf)
    assert found.p == seeds.sign_test([-1] * 5 + [1] * 2)
    assert words.reached(found) == "2 of 7 never reached it; 1 past it at the first checkpoint"
    assert words.samples(found.median) == ("4,000", "1,000 to not reached")
    assert words.times(seeds.median([np.inf] * 6)) == ("not reached", "")


def test_the_baselines_own_need_is_read_off_by_the_same_rule(tmp_path):
    """A curve that passes its final figure on the way has reached it there."""
    hump = {0.125: 0.1, 0.25: 0.3, 0.5: 0.25, 1.0: 0.2}
    group = _group(
        *(
            kit.arm(tmp_path, n, range(3), lambda seed, share: hump[share], r)
            for n, r in (("A", "subject"), ("B", "baseline"))
        )
    )
    found = speed.speed(paired.against_baseline(group)[0])
    assert found.baseline == pytest.approx([1000 * 2**0.5] * 3) and found.ratio.value == 1


def test_runs_without_curves_have_no_speed(tmp_path):
    made = {"steps": (10,)}
    group = _group(
        *(
            kit.arm(tmp_path, n, range(3), kit.steady(0.3), r, made=made)
            for n, r in (("A", ""), ("B", "baseline"))
        )
    )
    assert speed.speed(paired.against_baseline(group)[0]) is None


# -- dose–response --------------------------------------------------------------------------------


def test_doses(tmp_path):
    """Three points a tenfold in one series, with noise; the whole share is on both curves."""

    def level(x: float):
        return lambda seed, share: 0.3 + 0.03 * np.log10(x) + 0.002 * ((seed * 7 + round(100 * x)) % 5)

    shares = (0.01, 0.1)
    arms = [
        kit.arm(tmp_path, f"{x} {s}", range(6), level(x), "dose", dose=x, series=s)
        for s in ("compute", "epochs")
        for x in shares
    ]
    group = _group(
        kit.arm(tmp_path, "B", range(6), level(0.01), "baseline"),
        kit.arm(tmp_path, "PI", range(5), level(1), "subject", dose=1.0),
        *arms,
    )
    curves = dose.curves(group, paired.against_baseline(group))
    assert [c.series for c in curves if c.quantity.kind == paired.MEAN] == ["compute", "epochs"]
    curve = curves[0]
    assert [(d.x, d.arm.label) for d in curve.doses] == [
        (0.01, "0.01 compute"),
        (0.1, "0.1 compute"),
        (1.0, "PI"),
    ]
    assert curve.seeds == [0, 1, 2, 3, 4] and curve.trend.count == 5  # those that have every dose
    y = np.array([d.values[:5] for d in curve.doses])
    assert curve.slopes == pytest.approx(np.polyfit([-2, -1, 0], y, 1)[0])
    assert curve.trend.mean == seeds.bca(curve.slopes[None])[0]
    assert curve.doses[0].against.seeds.mean.value == pytest.approx(0) and curve.baseline is not None
    assert all(c.quantity.measure is TOP1 for c in curves)
    assert "points of mean top-1 over 5 sets per tenfold of triplets (compute)" in words.trend(curve)


def test_one_dose_has_no_trend(tmp_path):
    group = _group(kit.arm(tmp_path, "1 %", range(3), kit.steady(0.3), "dose", dose=0.01))
    curve = dose.curves(group, [])[0]
    assert curve.trend is None and curve.baseline is None and curve.doses[0].against is None
    assert "it takes two doses" in words.trend(curve)
    assert dose.curves(_group(kit.arm(tmp_path, "PI", [0], kit.steady(0.3), "subject", dose=1.0)), []) == []
