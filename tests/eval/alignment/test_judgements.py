"""From the forms that readers return to what is scored: nothing is lost, turned round or decoded in vain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.alignment import judgements, similarities
from eval.metrics import perceptual
from pipeline.formats.judged.forms import Comparisons, Dissimilarities, OddOnes, Ratings, Sameness
from tests.eval.alignment import kit

COMMON = {"number": np.array([2, 3]), "group": np.array(["x", "y"]), "notes": ("told",), "voters": "human"}
PLACES = np.zeros(2, np.int32)


def _form(kind: str, folder):
    rows = {"folder": folder, "images": [f"{i}.png" for i in range(6)]}
    three = np.array([[5, 1, 3], [1, 3, 5]], np.int32)
    two = np.array([[5, 1], [1, 3]], np.int32)
    return {
        "2afc": Comparisons(**rows, rows=three, vote=np.array([0.25, 1]), votes=PLACES, **COMMON),
        "odd": OddOnes(**rows, rows=three, odd=np.eye(3)[[0, 2]], votes=PLACES, **COMMON),
        "ratings": Ratings(**rows, rows=two, score=np.array([3.0, 1]), sd=np.full(2, np.nan), **COMMON),
        "sameness": Sameness(**rows, rows=two, same=np.array([0.5, 0]), votes=PLACES, **COMMON),
    }[kind]


@pytest.fixture
def folder(tmp_path):
    kit.pngs(tmp_path, [f"{i}.png" for i in (1, 3, 5)])
    return tmp_path


@pytest.mark.parametrize(
    "kind, metrics, clusters",
    [
        ("2afc", ("twoafc", "twoafc_soft"), [[2], [0]]),
        ("odd", ("odd_one_out",), [[], []]),
        ("ratings", ("srcc", "krcc"), [[2], [0]]),
        ("sameness", ("ap",), [[2], [0]]),
    ],
)
def test_forms(folder, kind, metrics, clusters):
    """Images that no judgement is about need not exist."""
    form = _form(kind, folder)
    asked = judgements.of_judged(form)
    assert asked.names == ("1.png", "3.png", "5.png") and len(asked.images) == 3
    for ours, theirs in zip(asked.rows, form.rows):
        assert [asked.names[i] for i in ours] == [form.images[i] for i in theirs]
    assert asked.metrics == metrics and asked.clusters.tolist() == clusters
    assert asked.groups[asked.group].tolist() == ["x", "y"] and asked.number.tolist() == [2, 3]
    assert (asked.notes, asked.voters) == (("told",), "human")


def test_a_missing_image_is_named_before_anything_is_decoded(folder):
    (folder / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png: missing; 1 of 3 images of .* are"):
        judgements.of_judged(_form("2afc", folder))


def test_a_set_without_judgements_is_refused(folder):
    empty = Comparisons(
        folder=folder, images=(), rows=np.empty((0, 3), np.int32), number=np.empty(0), group=np.empty(0, str),
        vote=np.empty(0), votes=np.empty(0, np.int32),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no judgement in it"):
        judgements.of_judged(empty)


def test_pairs_of_a_matrix_that_nobody_judged_are_left_out_and_told(tmp_path):
    kit.pngs(tmp_path, ["a.png", "b.png", "c.png"])
    first = np.array([[0, 1, np.nan], [1, 0, 3], [np.nan, 3, 0]])
    second = np.array([[9.0, 5], [5, 9]])  # the diagonal does not count
    asked = judgements.of_matrices(
        [
            Dissimilarities(folder=tmp_path, images=["a.png", "b.png", "c.png"], matrix=first, name="one"),
            Dissimilarities(folder=tmp_path, images=["c.png", "a.png"], matrix=second, name="two"),
        ]
    )
    assert asked.answers.tolist() == [-1, -3, -5] and asked.rows.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert asked.names == ("one/a.png", "one/b.png", "one/c.png", "two/c.png", "two/a.png")
    assert asked.groups[asked.group].tolist() == ["one", "one", "two"]
    assert asked.notes == ("one: 1 of 3 pairs have no judgement",)


def test_a_digest_is_of_what_was_asked_not_of_where_it_lies(tmp_path):
    places = [tmp_path / name for name in ("here", "there")]
    for place in places:
        kit.pngs(place, [f"{i}.png" for i in (1, 3, 5)])
    here, there = (judgements.of_judged(_form("2afc", place)) for place in places)
    assert here.digest() == there.digest()
    others = [
        replace(here, answers=here.answers + 0.01),
        replace(here, rows=here.rows[:, [0, 2, 1]]),
        replace(here, names=("1.png", "3.png", "7.png")),
        replace(here, group=here.group[::-1]),
        here.part(np.array([0])),
    ]
    assert len({here.digest(), *(other.digest() for other in others)}) == 6


def test_larger_is_more_alike_for_model_and_people(folder):
    """The nearer image of the better score."""
    asked = judgements.of_judged(_form("ratings", folder))
    found = judgements.outcomes(asked, np.array([[0.9], [0.2]], np.float32))
    assert found["model"].tolist() == pytest.approx([0.9, 0.2]) and found["people"].tolist() == [3, 1]
    assert {*found} == {"group", "groups", "clusters", "number", "model", "people"}


# -- cosines ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unit():
    vectors = torch.randn(50, 37, generator=torch.Generator().manual_seed(0)) + 2
    vectors[7] = vectors[11]  # two equal images
    return F.normalize(vectors, dim=-1)


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_a_pair_has_one_cosine_wherever_it_stands(unit, monkeypatch, rows_at_once):
    rows = np.random.default_rng(0).integers(0, 50, (2000, 3))
    by_table = similarities.of_pairs(unit, rows, [(0, 1), (2, 0)])
    monkeypatch.setattr(similarities, "_TABLE", 0)
    monkeypatch.setattr(similarities, "_ROWS", rows_at_once)
    one_by_one = similarities.of_pairs(unit, rows, [(0, 1), (2, 0)])
    assert np.array_equal(by_table, one_by_one) and by_table.dtype == np.float32
    assert np.array_equal(similarities.of_pairs(unit, rows, [(1, 0), (0, 2)]), one_by_one)
    assert one_by_one == pytest.approx(
        np.stack([np.einsum("nd,nd->n", unit[rows[:, a]], unit[rows[:, b]]) for a, b in ((0, 1), (2, 0))], 1),
        abs=1e-6,
    )


def test_equal_images_tie_and_2afc_is_that_of_the_other_evaluation(unit):
    rows = np.concatenate([np.random.default_rng(1).integers(0, 50, (4000, 3)), [[3, 7, 11], [9, 11, 7]]])
    alike = similarities.of_pairs(unit, rows, [(0, 1), (0, 2)])
    assert (alike[-2:, 0] == alike[-2:, 1]).all()
    triplets = perceptual.Triplets(
        path=None,
        images=None,
        rows=rows,
        vote=np.zeros(len(rows)),
        split=np.full(len(rows), "test"),
        voters="",
    )
    assert np.array_equal(1 - alike, perceptual.choose(triplets, unit).dist)
