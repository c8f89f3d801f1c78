"""alignment.json: what is written is read back, and what is damaged is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.alignment import records, results
from eval.alignment.records import CORRELATION, SHARE, Score, SetScores
from eval.alignment.results import ALIGNMENT, Alignment, Scored
from tests.eval.alignment import kit

ABOUT = {"checkpoint": {"weights": "w"}, "recipe": None, "settings": {}, "versions": {}, "notes": ["ö"]}
FIGURE = {
    "metric": "twoafc", "group": "", "value": 0.5, "low": 0.25, "high": 0.75, "chance": 0.5, "ceiling": None,
    "ceiling_source": "", "n": 4, "unit": SHARE,
}  # fmt: skip
number = st.floats(-1, 1)
figure = st.builds(
    Score, metric=st.text(), group=st.text(), value=number, low=st.none() | number, high=st.none() | number,
    chance=st.none() | number, ceiling=st.none() | number, ceiling_source=st.text(), n=st.integers(1, 2**40),
    unit=st.sampled_from([SHARE, CORRELATION]),
)  # fmt: skip
whole = st.builds(
    SetScores, key=st.text(), title=st.text(), probe=st.text(), source=st.text(), voters=st.text(),
    scores=st.lists(figure, min_size=1, max_size=4, unique_by=lambda s: (s.metric, s.group)).map(tuple),
    notes=st.lists(st.text(), max_size=3).map(tuple),
)  # fmt: skip


@given(st.lists(whole, max_size=3))
def test_json_both_ways(sets):
    text = json.dumps(records.to_json(sets), allow_nan=False)
    assert records.from_json(json.loads(text)) == sets


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"value": float("nan")}, "not finite"),
        ({"low": float("inf")}, "not finite"),
        ({"unit": "points"}, "unit 'points'"),
        ({"n": 0}, "of 0 judgements"),
    ],
)
def test_figures_that_are_none(changed, message):
    with pytest.raises(ValueError, match=message):
        Score(**FIGURE | changed)


def test_a_set_has_figures_each_once():
    with pytest.raises(ValueError, match="no figure"):
        SetScores(key="x", title="x", scores=())
    with pytest.raises(ValueError, match="one figure twice"):
        SetScores(key="x", title="x", scores=(Score(**FIGURE), Score(**FIGURE)))


@pytest.fixture
def written(tmp_path):
    about = SetScores(key="x", title="X", scores=(Score(**FIGURE),))
    held = kit.arrays(twoafc=np.array([1.0, 0, np.nan, 1]))
    plain, fitted, bare = about, replace(about, probe="fitted"), replace(about, key="bare")
    results.write(
        tmp_path,
        [
            Scored(scores=plain, arrays=held, judgements="a"),
            Scored(scores=fitted, arrays=held, judgements="b"),
            Scored(scores=bare, arrays=None, judgements="c"),
        ],
        ABOUT,
    )
    return tmp_path


def test_files(written):
    found = Alignment.read(written)
    assert [each.name for each in found.sets] == ["x", "x-probe", "bare"]
    assert found.data["judgements"] == {"x": "a", "x-probe": "b", "bare": "c"}
    assert np.array_equal(found.arrays(found.sets[0])["twoafc"], [1, 0, np.nan, 1], equal_nan=True)
    assert found.arrays(found.sets[0]) is found.arrays(found.sets[0])
    assert found.arrays(found.sets[2]) is None
    assert found.data["notes"] == ["ö"] and "ö" in (written / ALIGNMENT).read_text(encoding="utf-8")


def test_outcomes_of_an_earlier_evaluation_are_removed(written):
    results.write(written, [], ABOUT)
    assert not [*written.glob("alignment/*")] and Alignment.read(written).sets == []


def test_a_failed_write_leaves_no_file_that_vouches(written, monkeypatch):
    def full(*arguments, **names):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", full)
    one = Scored(scores=SetScores(key="y", title="Y", scores=(Score(**FIGURE),)), arrays={}, judgements="")
    with pytest.raises(OSError):
        results.write(written, [one], ABOUT)
    with pytest.raises(ValueError, match="not there; python -m eval.alignment"):
        Alignment.read(written)


def _edited(change):
    def edit(path):
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "not there; python -m eval.alignment"),
        (lambda path: path.write_text(path.read_text()[:-200]), "not whole JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not whole JSON"),
        (lambda path: path.write_text("[]"), "of another version"),
        (_edited(lambda d: d.update(schema=0)), "of another version"),
        (_edited(lambda d: d.pop("judgements")), "damaged .'judgements'"),
        (_edited(lambda d: d["judgements"].pop("x")), "damaged .'x'"),
        (_edited(lambda d: d["checkpoint"].pop("weights")), "damaged .'weights'"),
        (_edited(lambda d: d.update(sets={})), "sets is no list"),
        (_edited(lambda d: d["sets"][0].pop("voters")), "damaged .'voters'"),
        (_edited(lambda d: d["sets"][0].update(title=3)), "a field of x is no text"),
        (_edited(lambda d: d["sets"][0].update(scores=[])), "x: no figure"),
        (_edited(lambda d: d["sets"][0]["scores"][0].update(value="0.5")), "a figure of twoafc is no number"),
        (_edited(lambda d: d["sets"][0]["scores"][0].pop("low")), "damaged .'low'"),
        (_edited(lambda d: d["sets"][0]["scores"][0].update(value=float("nan"))), "not finite"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(written, damage, message):
    damage(written / ALIGNMENT)
    with pytest.raises(ValueError, match=message) as told:
        Alignment.read(written)
    assert str(written / ALIGNMENT) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(b"x"), lambda p: p.write_bytes(p.read_bytes()[:-30]),
               lambda p: np.savez(p, twoafc=np.array([{}], object))]
)  # fmt: skip
def test_damaged_outcomes_are_refused(written, damage):
    damage(written / "alignment" / "x.npz")
    found = Alignment.read(written)
    with pytest.raises(ValueError, match=r"x\.npz: damaged \(.*; evaluate again"):
        found.arrays(found.sets[0])
