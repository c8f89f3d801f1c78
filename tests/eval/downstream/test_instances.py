"""Instance retrieval: the two layouts, and figures against loops that follow the protocols."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.downstream import instances
from tests.eval.downstream.conftest import write_instances, write_revisited
from tests.kits.eval import encoded


def _features(*counts: int, width: int = 5) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [F.normalize(torch.from_numpy(rng.normal(size=(n, width))).float(), dim=1) for n in counts]


# -- Revisited Oxford and Paris ---------------------------------------------------------------------


@pytest.fixture
def revisited(tmp_path):
    return write_revisited(tmp_path / "rmine")


def test_queries_are_cropped_as_the_authors_crop_them(revisited):
    task = instances.read_revisited(revisited)
    truth = json.loads((revisited / "gnd_rmine.json").read_text())
    for i, name in enumerate(truth["qimlist"]):
        image = Image.open(revisited / "jpg" / f"{name}.jpg").convert("RGB").crop(truth["gnd"][i]["bbx"])
        assert np.array_equal(task.images[0][i], image)
    assert [m.path.stem for m in task.images[1].members] == truth["imlist"] and task.key == "rmine"


def _theirs(order: np.ndarray, right: list[int], junk: list[int]) -> float:
    """As python/evaluate.py goes about it: ranks of right answers, lowered by the junk before them."""
    ranks, passed = [], 0
    for rank, image in enumerate(order):
        passed += image in junk
        ranks += [rank - passed] if image in right else []
    steps = [((j / r if r else 1.0) + (j + 1) / (r + 1)) / 2 for j, r in enumerate(ranks)]
    return sum(steps) / len(right)


def test_easy_medium_and_hard_are_the_authors(revisited):
    task = instances.read_revisited(revisited)
    queries, gallery = _features(2, 8)
    found = {f.metric: f for f in task.score([queries, gallery], [np.arange(2), np.arange(8)]).figures}
    truth = json.loads((revisited / "gnd_rmine.json").read_text())["gnd"]
    orders = [np.argsort(-(gallery @ q).numpy(), kind="stable") for q in queries]
    protocols = {
        "map_easy": lambda g: (g["easy"], g["junk"] + g["hard"]),
        "map_medium": lambda g: (g["easy"] + g["hard"], g["junk"]),
        "map_hard": lambda g: (g["hard"], g["junk"] + g["easy"]),
    }
    for metric, parts in protocols.items():
        each = [_theirs(o, *parts(g)) for o, g in zip(orders, truth) if parts(g)[0]]
        assert found[metric].value == pytest.approx(np.mean(each)) and found[metric].n == len(each)
    assert found["map_easy"].n == 1  # the second query has no easy answer, and is left out of it


def test_a_pickle_is_never_opened(revisited, capsys):
    class Code:
        def __reduce__(self):
            return print, ("unpickled",)

    (revisited / "gnd_rmine.json").unlink()
    (revisited / "gnd_rmine.pkl").write_bytes(pickle.dumps(Code()))
    with pytest.raises(
        ValueError, match="gnd_rmine.pkl: a pickle, .* not opened; .*python -c .*gnd_rmine.json"
    ):
        instances.read_revisited(revisited)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_conversion_that_is_offered_makes_what_is_read(revisited):
    path = revisited / "gnd_rmine.json"
    truth = json.loads(path.read_text())
    for said in truth["gnd"]:  # the authors' pickle holds arrays
        said |= {kind: np.array(said[kind], np.int64) for kind in ("easy", "hard", "junk")}
    (revisited / "gnd.pkl").write_bytes(pickle.dumps(truth))
    before = path.read_text()
    path.unlink()
    code = instances.CONVERT.removeprefix("python -c '").removesuffix("'")
    subprocess.run([sys.executable, "-c", code, revisited / "gnd.pkl", path], check=True)
    assert json.loads(path.read_text()) == json.loads(before)


def test_the_published_sets_have_the_published_sizes(tmp_path):
    folder = write_revisited(tmp_path / "roxford5k", "roxford5k")
    with pytest.raises(
        ValueError, match="8 images and 2 queries; roxford5k has 4993 images and 70, others do"
    ):
        instances.read_revisited(folder)


def _gnd(number, **fields):
    return lambda t: t | {"gnd": [g | fields if i == number else g for i, g in enumerate(t["gnd"])]}


HOSTILE = [
    (
        _gnd(0, easy=[0, 8]),
        r"query 0 \(all_souls_000000\): easy names image 8; images are counted from 0 to 7",
    ),
    (_gnd(1, hard=[-1]), r"query 1 \(all_souls_000001\): hard names image -1"),
    (_gnd(0, hard=[3]), "query 0 .*: image 3 is named twice among easy, hard, junk"),
    (_gnd(0, junk=[1, 1]), "query 0 .*: image 1 is named twice"),
    (_gnd(1, junk=[1.0]), r"query 1 .*: junk is \[1.0\], a list of images' numbers"),
    (_gnd(1, easy=[True]), r"query 1 .*: easy is \[True\], a list of images' numbers"),
    (_gnd(0, easy=None), "query 0 .*: easy is None"),
    (_gnd(0, bbx=[1, 2, 3]), r"query 0 .*: bbx is \[1, 2, 3\], four numbers"),
    (_gnd(0, bbx=[20, 2, 3, 30]), "query 0 .*: bbx is .* left, top, right, bottom are expected"),
    (_gnd(0, bbx=[float("nan")] * 4), "query 0 .*: bbx is .* left, top, right, bottom are expected"),
    (lambda t: t | {"qimlist": t["imlist"][:2]}, r"query 0 \(all_souls_000002\): it is in the gallery too"),
    (lambda t: t | {"imlist": ["../x", *t["imlist"][1:]]}, "imlist: '../x' is no name of an image in jpg/"),
    (lambda t: t | {"imlist": t["imlist"][:-1] + t["imlist"][:1]}, "imlist: an image is named twice"),
    (lambda t: t | {"imlist": [], "gnd": []}, "imlist: no image"),
    (lambda t: t | {"gnd": t["gnd"][:1]}, "1 entries of gnd for 2 queries"),
    (lambda t: t | {"imlist": [*t["imlist"], "gone"]}, "gone.jpg is missing"),
    (lambda t: {"gnd": t["gnd"]}, "lists imlist, qimlist and gnd are expected"),
    (lambda t: [t], "lists imlist, qimlist and gnd are expected"),
]


@pytest.mark.parametrize("change, message", HOSTILE)
def test_what_is_wrong_is_named(revisited, change, message):
    path = revisited / "gnd_rmine.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=f"gnd_rmine.json.*{message}"):
        instances.read_revisited(revisited)


def test_two_sets_in_one_folder_and_text_that_is_no_json(revisited):
    (revisited / "gnd_other.json").write_text("{}")
    with pytest.raises(ValueError, match="gnd_rmine.json: a second set beside gnd_other.json"):
        instances.read_revisited(revisited)
    (revisited / "gnd_rmine.json").unlink()
    (revisited / "gnd_other.json").write_text("{")
    with pytest.raises(ValueError, match="gnd_other.json: not JSON"):
        instances.read_revisited(revisited)


# -- folders ----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    return write_instances(tmp_path / "shop")


def test_folders_are_instances(folders):
    task = instances.read_folders(folders)
    assert [f"{m.path.parent.name}/{m.path.name}" for m in task.images[0].members] == [
        f"item{i}/0.png" for i in range(4)
    ]
    owners = [[m.path.parent.name for m in images.members] for images in task.images]
    for of_images, numbers in zip(owners, task.owners):
        assert [f"item{n}" for n in numbers] == of_images
    assert task.notes == () and len(task.owners[1]) == 10


def test_recall_and_precision_of_folders(folders, monkeypatch):
    task = instances.read_folders(folders)
    queries, gallery = _features(4, 10)
    found = {f.metric: f for f in task.score([queries, gallery], [np.arange(4), np.arange(10)]).figures}
    assert list(found) == ["recall@1", "recall@5", "recall@10", "map"]
    precision, first = [], []
    for owner, query in zip(task.owners[0], queries):
        ranked = task.owners[1][np.argsort(-(gallery @ query).numpy(), kind="stable")] == owner
        places = np.flatnonzero(ranked)
        first.append(places[0])
        precision.append(np.mean([(i + 1) / (p + 1) for i, p in enumerate(places)]))
    for k in (1, 5, 10):
        assert found[f"recall@{k}"].value == np.mean(np.array(first) < k)
    assert found["map"].value == pytest.approx(np.mean(precision))
    assert found["recall@1"].chance == pytest.approx(0.2) and found["recall@10"].chance == 1
    whole = task.score([queries, gallery], [np.arange(4), np.arange(10)])
    monkeypatch.setattr("eval.downstream.ranking._HELD", 10)  # a query at a time
    parts = task.score([queries, gallery], [np.arange(4), np.arange(10)])
    assert np.array_equal(whole.arrays["average_precision"], parts.arrays["average_precision"])


def test_a_small_gallery_has_no_recall_beyond_its_size(tmp_path):
    task = instances.read_folders(write_instances(tmp_path / "shop", 2))
    made = task.score(_features(2, 6), [np.arange(2), np.arange(6)]).figures
    assert [f.metric for f in made] == ["recall@1", "recall@5", "map"]


def test_what_is_left_out_is_said(folders):
    (folders / "query" / "alone").mkdir()
    (folders / "query" / "alone" / "0.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    (folders / "gallery" / "item0" / "notes.txt").write_text("x")
    (folders / "gallery" / "item1" / "more").mkdir()
    (folders / "query" / "stray.png").write_bytes(b"x")
    twice = folders / "gallery" / "item3" / "c.png"
    twice.write_bytes((folders / "query" / "item3" / "0.png").read_bytes())
    task = instances.read_folders(folders)
    notes = "; ".join(task.notes)
    assert "1 queries without their instance in the gallery left out: alone" in notes
    assert "1 files of gallery/ not read" in notes and "1 files of query/ not read" in notes
    assert "1 folders inside gallery/'s folders not read: item1/more" in notes
    assert "1 queries are in the gallery too and find themselves: item3/0.png" in notes
    assert len(task.owners[0]) == 4 and len(task.owners[1]) == 11


def test_folders_that_hold_no_instances_are_refused(tmp_path, folders):
    assert instances.read_folders(tmp_path) is None
    (tmp_path / "a" / "query").mkdir(parents=True)
    (tmp_path / "a" / "gallery" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match="query: no image in it; query/ID/IMAGE is expected"):
        instances.read_folders(tmp_path / "a")
    for item in (folders / "query").iterdir():
        item.rename(item.with_name(f"other-{item.name}"))
    with pytest.raises(ValueError, match="no folder of query/ has the name of one of gallery/"):
        instances.read_folders(folders)
