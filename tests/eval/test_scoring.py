"""One model over several sets: texts, batches, ranks, damaged data."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from eval import encode, scoring
from eval.distributed import Ranks
from eval.metrics import zeroshot
from eval.sets import prompts
from tests.kits.eval import encoders, score, three_sets, tiny_model

SETTINGS = scoring.Settings(batch_size=4, text_batch_size=8, workers=2)


@pytest.fixture
def root(tmp_path):
    return three_sets(tmp_path)


# -- texts ---------------------------------------------------------


@pytest.mark.slow
def test_cut_texts_are_open_clips_features():
    model, tokenizer, _ = tiny_model()
    texts = ["a", "a photo of a very long " + "long " * 90 + "thing", "", "two words", "a"]
    found = encode.text_features(texts, encoders(model=model), 2, Ranks())
    with torch.no_grad():
        expected = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(encode.stacked(texts, found), expected, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_classifier_is_open_clips():
    import open_clip

    model, tokenizer, _ = tiny_model()
    names = [f"thing {i}" for i in range(7)]
    texts = prompts.Prompts(tuple(names), ("a {c}.", "the {c}, or {c}", "{c}"), "own").texts()
    features = encode.stacked(texts, encode.text_features(texts, encoders(model=model), 5, Ranks()))
    ours = zeroshot.classifier(features, len(names))
    templates = [lambda c: f"a {c}.", lambda c: f"the {c}, or {c}", lambda c: c]
    expected = open_clip.build_zero_shot_classifier(
        model, tokenizer, names, templates, num_classes_per_batch=3
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


# -- the whole suite ---------------------------------------------------------


@pytest.mark.slow
def test_pictures_in_common_are_encoded_once(root, tmp_path):
    made = encoders()
    seen = []

    def counting(x):
        seen.append(len(x))
        return made.image(x)

    counted = encode.Encoders(counting, made.text, made.tokenize, made.preprocess, made.identity, cut=True)
    first = score(root, tmp_path / "cache", made=counted)
    assert sum(seen) == 12 and first.texts_encoded == 14 + 21  # three batches of 4; prompts and captions once
    again = score(root, tmp_path / "cache", made=counted)
    assert sum(seen) == 12 and again.texts_encoded == 0
    for a, b in zip(first.sets, again.sets):
        assert a.metrics == b.metrics and all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, workers", [(1, 1), (3, 4), (64, 2)])
def test_metrics_do_not_depend_on_batch_or_workers(root, batch_size, workers):
    options = scoring.Settings(batch_size=batch_size, text_batch_size=batch_size + 1, workers=workers)
    expected, found = score(root), score(root, settings=options)
    assert [s.metrics for s in found.sets] == [s.metrics for s in expected.sets]


@pytest.mark.slow
def test_a_damaged_picture(root, tmp_path):
    tar = root / "wds_a" / "test" / "0.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"\x89PNG", data.index(b"\x89PNG") + 1)
    data[at : at + 60] = b"\0" * 60
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.tar, member 000001\.png.*1 of a's 11 images cannot be read"):
        score(root)
    options = scoring.Settings(batch_size=4, workers=1, max_unreadable=0.1)
    for time in range(3):  # decoded, from the cache, and where somebody made room by removing the crops
        found = score(root, tmp_path / "cache", options).sets[0]
        assert len(found.unreadable) == 1 and found.arrays["index"].tolist() == [0, *range(2, 11)]
        if time == 1:
            shutil.rmtree(tmp_path / "cache" / "crops")


def test_a_diverged_model_is_refused(root, tmp_path):
    made = encoders()

    def diverged(x):
        out = made.image(x).clone()
        out[1] = torch.nan
        return out

    bad = encode.Encoders(diverged, made.text, made.tokenize, made.preprocess, "nan", cut=True)
    with pytest.raises(ValueError, match=r"3 of 11 embeddings are not finite \(first: .*member 000001.png\)"):
        score(root, made=bad)

    def silent(x):
        return made.text(x) * torch.inf

    bad = encode.Encoders(made.image, silent, made.tokenize, made.preprocess, "nan", cut=True)
    with pytest.raises(ValueError, match="texts: .* embeddings are not finite"):
        score(root, made=bad)


def _rank(rank, world, rendezvous, root, cache, out):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    outcome = score(root, cache, ranks=Ranks(rank, world))
    torch.save([s.metrics for s in outcome.sets], f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_same(root, tmp_path):
    import torch.multiprocessing as mp

    expected = [s.metrics for s in score(root).sets]
    out = tmp_path / "metrics"
    mp.spawn(_rank, (2, tmp_path / "rendezvous", root, tmp_path / "cache", out), nprocs=2)
    assert [torch.load(f"{out}.{r}") for r in range(2)] == [expected, expected]
    # what two ranks cached is what one finds
    assert [s.metrics for s in score(root, tmp_path / "cache").sets] == expected
