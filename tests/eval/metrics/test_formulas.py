"""Accuracy, recall and 2AFC against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import scoring
from eval.cache import Cache
from eval.distributed import Ranks
from eval.metrics import perceptual, retrieval, zeroshot
from tests.kits.eval import encoded, encoders, pictures

SETTINGS = scoring.Settings(batch_size=4, text_batch_size=8, workers=2)


# -- classification ---------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 10_000))
def test_accuracy_by_a_plain_loop(n, classes, seed):
    rng = np.random.default_rng(seed)
    features = F.normalize(torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32)), dim=-1)
    weights = F.normalize(torch.from_numpy(rng.normal(size=(6, classes)).astype(np.float32)), dim=0)
    labels = rng.integers(0, classes, n)
    found = zeroshot.metrics(zeroshot.predict(features, weights, labels, 7), classes)
    order = np.argsort(-(features @ weights).numpy(), 1, kind="stable")
    assert found["acc1"] == np.mean([order[i, 0] == labels[i] for i in range(n)])
    recalls = [np.mean(order[labels == c, 0] == c) for c in range(classes) if (labels == c).any()]
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-12)
    if classes < 5:
        assert "acc5" not in found
    else:
        assert found["acc5"] == np.mean([labels[i] in order[i, :5] for i in range(n)])


# -- retrieval ---------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10_000), st.integers(1, 30))
def test_recall_by_a_plain_loop(n, seed, chunk):
    rng = np.random.default_rng(seed)
    captions = [["x"] * int(k) for k in rng.integers(1, 4, n)]
    owner = retrieval.owners(captions)
    images = F.normalize(torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32)), dim=-1)
    texts = F.normalize(torch.from_numpy(rng.normal(size=(len(owner), 5)).astype(np.float32)), dim=-1)
    i2t, t2i = retrieval.both_ways(images, texts, owner, chunk)
    found = retrieval.metrics(i2t, t2i)
    scores = (texts @ images.T).numpy()
    for k in (1, 5, 10):
        if k <= len(owner):
            best = np.argsort(-scores.T, 1)[:, :k]
            expected = np.mean([any(owner[t] == i for t in best[i]) for i in range(n)])
            assert found[f"text_retrieval_recall@{k}"] == pytest.approx(expected, abs=1e-6)
        if k <= n:
            best = np.argsort(-scores, 1)[:, :k]
            expected = np.mean([owner[t] in best[t] for t in range(len(owner))])
            assert found[f"image_retrieval_recall@{k}"] == pytest.approx(expected, abs=1e-6)
        assert (f"image_retrieval_recall@{k}" in found) == (k <= n)
    ranks = [(scores[:, i] > scores[owner == i, i].max()).sum() for i in range(n)]
    assert i2t.rank.tolist() == ranks
    assert all(r >= 10 or r == f for r, f in zip(i2t.rank, i2t.first))


# -- 2AFC ---------------------------------------------------------


def test_twoafc_ties_soft_votes_and_splits():
    dist = np.array([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2], [0.5, 0.1], [0.1, 0.3]], np.float32)
    vote = np.array([0.0, 0.25, 1.0, 0.5, 1.0])
    choices = perceptual.Choices(dist, vote, np.array(["test", "test", "val", "test", "val"]))
    assert np.array_equal(choices.credit(), [1, 0, 0.5, np.nan, 0], equal_nan=True)
    assert choices.soft_credit().tolist() == [1, 0.25, 0.5, 0.5, 0]
    found = perceptual.metrics(choices)
    assert found["twoafc"] == 1.5 / 4 and found["twoafc@val"] == 0.25 and found["triplets@test"] == 3
    assert found["ceiling"] == pytest.approx((1 + 0.75 + 1 + 0.5 + 1) / 5)


@pytest.mark.slow
def test_nights_folder(shared_data):
    folder = shared_data / "nights_sample"
    found = perceptual.read(folder)
    assert len(found.vote) == 6 and set(found.split) == {"val", "test"}
    every = perceptual.read_nights(folder, ("train", "val", "test"))
    assert len(every.vote) == 17 and every.notes == ("3 triplets of fewer than 6 votes left out",)
    made = encoders()
    outcome = scoring.score(made, [], found, Cache(None), SETTINGS, Ranks())
    with torch.no_grad():
        for row, dist in zip(found.rows, outcome.triplets.arrays["dist"]):
            x = [made.preprocess.tensor(made.preprocess.crop(found.images[i])[None]) for i in row]
            ref, left, right = (made.image(v) for v in x)
            expected = [1 - F.cosine_similarity(ref, v).item() for v in (left, right)]
            assert dist == pytest.approx(expected, abs=1e-5)


def _nights(folder, rows, header="id,left_vote,right_vote,votes,ref_path,left_path,right_path,split"):
    folder.mkdir(exist_ok=True)
    for name in "abc":
        (folder / f"{name}.png").write_bytes(encoded(pictures(1)[0]))
    (folder / "data.csv").write_text("\n".join([header, *rows]))
    return folder


def test_bad_nights_is_named(tmp_path):
    good = "5,1,0,8,a.png,b.png,c.png,test"
    assert len(perceptual.read(_nights(tmp_path / "n", [good, "6,1,0,3,a.png,b.png,c.png,test"])).vote) == 1
    for row, message in [
        ("5,1,0,8,a.png,b.png,d.png,test", "triplet 5: .*d.png is missing"),
        ("5,x,0,8,a.png,b.png,c.png,test", "row 2: a vote is not a number"),
        ("5,0,0,8,a.png,b.png,c.png,test", "row 2: left_vote 0 and right_vote 0 prefer neither"),
        ("5,1,0,8,a.png,b.png,c.png,train", "no triplet of split val or test"),
    ]:
        with pytest.raises(ValueError, match=message):
            perceptual.read(_nights(tmp_path / "n", [row]))
    header = "id,l,right_vote,votes,ref_path,left_path,right_path,split"
    with pytest.raises(ValueError, match="no column left_vote; it has id, l, right_vote"):
        perceptual.read(_nights(tmp_path / "n", [good], header))
