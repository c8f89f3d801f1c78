"""results.json without its texts: the same figures, and digests that tell texts apart."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from eval.results import RESULTS, Evaluation, _without_texts
from tests.kits import eval_study as kit

# what could be taken for the end of a list, or for another's beginning
NASTY = st.sampled_from(
    ["\n   ]", '"captions": [', "]", '": [\n    ', '"', "\\", "ünd 雪", "", "\udc80", "a"]
)
TEXTS = st.lists(st.lists(NASTY | st.text(max_size=5), max_size=3), max_size=4)


def _record(captions, names):
    return {
        "name": "x",
        "captions": captions,
        "metrics": {"acc1": 0.5},
        "notes": ["kept", "[\n   ]"],
        "classnames": names,
    }


@given(TEXTS, st.lists(NASTY, max_size=3))
def test_only_the_texts_are_cut(captions, names):
    data = {
        "datasets": {"a": _record(captions, names), "b": _record(names, [])},
        "triplets": {"notes": ["n"]},
    }
    raw = json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
    for key, record in json.loads(_without_texts(raw))["datasets"].items():
        for name, value in data["datasets"][key].items():
            if name in ("captions", "classnames") and value:
                assert isinstance(record[name], str) and len(record[name]) == 32
            else:
                assert record[name] == json.loads(json.dumps(value))


def test_digests_do_not_depend_on_the_layout(tmp_path):
    place = kit.run(tmp_path / "run", 0, kit.steady(0.3)) / "eval" / "step-000080"
    whole, ours = Evaluation.read(place), Evaluation.read(place, texts=False)
    (place / RESULTS).write_text(json.dumps(whole.data))
    assert Evaluation.read(place, texts=False).data == ours.data
    for key, record in whole.datasets.items():
        for name, value in record.items():
            assert ours.datasets[key][name] == value or name in ("captions", "classnames", "templates")
    whole.datasets["mscoco_captions"]["captions"][2][1] += "."
    (place / RESULTS).write_text(json.dumps(whole.data))
    changed = Evaluation.read(place, texts=False).datasets
    assert [key for key in changed if changed[key] != ours.datasets[key]] == ["mscoco_captions"]
