"""Crops, embeddings and metrics against open_clip, torchvision and plain loops."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eval.ranks import Ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval import encode, suite
from eval.crops import Cache, Preprocess
from eval.metrics import perceptual, retrieval, zeroshot
from eval.sets import prompts, sources
from eval.sets.evalset import FileImages
from tests.kits.eval import encoded, encoders, pictures, tiny_model, write_webdataset

NAMES = [f"thing {i}" for i in range(7)]
SETTINGS = suite.Settings(batch_size=4, text_batch_size=8, workers=2)


@pytest.fixture
def root(tmp_path):
    """Two sets over the same pictures, one with captions, one below five classes."""
    images = [encoded(p) for p in pictures(11)]
    write_webdataset(tmp_path / "wds_a", images, [i % 7 for i in range(11)], NAMES)
    write_webdataset(tmp_path / "wds_b", images, [i % 2 for i in range(11)], NAMES[:2], shards=2)
    captions = [[f"picture {i} {j}" for j in range(1 + i % 3)] for i in range(11)]
    write_webdataset(tmp_path / "wds_c", images, captions)
    return tmp_path


def run(root, cache=None, options=SETTINGS, ranks=None, made=None):
    cache = Cache(cache)
    sets = sources.discover(root, cache=cache)
    return suite.evaluate(made or encoders(), sets, None, cache, options, ranks or Ranks())


# -- crops ---------------------------------------------------------


def _odd_images():
    rng = np.random.default_rng(1)
    grey = Image.fromarray(rng.integers(0, 256, (50, 31), dtype=np.uint8))
    palette = pictures(1, 3)[0].convert("P", palette=Image.Palette.ADAPTIVE)
    clear = Image.fromarray(rng.integers(0, 256, (20, 64, 4), dtype=np.uint8), "RGBA")
    return [*pictures(3), grey, palette, clear, pictures(1, 4, (500, 334))[0]]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_crops_are_open_clips_transform(mode):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(size=32, resize_mode=mode), is_train=False)
    ours = Preprocess.from_transform(transform)
    for image in _odd_images():
        image = image.convert("RGB")
        expected = transform(image)
        assert torch.equal(ours.tensor(ours.crop(image)[None])[0], expected)


def test_other_transforms_are_refused():
    from torchvision import transforms

    with pytest.raises(ValueError, match="must end in ToTensor, Normalize"):
        Preprocess.from_transform(transforms.Compose([transforms.Resize(8)]))


def test_preprocessing_names_the_cache():
    from open_clip.transform import PreprocessCfg, image_transform_v2

    keys = {
        Preprocess.from_transform(image_transform_v2(PreprocessCfg(size=s), False)).key for s in (32, 32, 48)
    }
    assert len(keys) == 2


# -- texts ---------------------------------------------------------


def test_cut_texts_are_open_clips_features():
    model, tokenizer, _ = tiny_model()
    texts = ["a", "a photo of a very long " + "long " * 90 + "thing", "", "two words", "a"]
    found = encode.text_features(texts, encoders(model=model), 2, Ranks())
    with torch.no_grad():
        expected = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(encode.stacked(texts, found), expected, rtol=0, atol=2e-6)


def test_classifier_is_open_clips():
    import open_clip

    model, tokenizer, _ = tiny_model()
    texts = prompts.Prompts(tuple(NAMES), ("a {c}.", "the {c}, or {c}", "{c}"), "own").texts()
    features = encode.stacked(texts, encode.text_features(texts, encoders(model=model), 5, Ranks()))
    ours = zeroshot.classifier(features, len(NAMES))
    templates = [lambda c: f"a {c}.", lambda c: f"the {c}, or {c}", lambda c: c]
    expected = open_clip.build_zero_shot_classifier(
        model, tokenizer, NAMES, templates, num_classes_per_batch=3
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


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


def test_nights_folder(shared_data):
    folder = shared_data / "nights_sample"
    found = perceptual.read(folder)
    assert len(found.vote) == 6 and set(found.split) == {"val", "test"}
    every = perceptual.read_nights(folder, ("train", "val", "test"))
    assert len(every.vote) == 17 and every.notes == ("3 triplets of fewer than 6 votes left out",)
    made = encoders()
    outcome = suite.evaluate(made, [], found, Cache(None), SETTINGS, Ranks())
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


# -- the whole suite ---------------------------------------------------------


def test_pictures_in_common_are_encoded_once(root, tmp_path):
    made = encoders()
    seen = []

    def counting(x):
        seen.append(len(x))
        return made.image(x)

    counted = encode.Encoders(counting, made.text, made.tokenize, made.preprocess, made.identity, cut=True)
    first = run(root, tmp_path / "cache", made=counted)
    assert sum(seen) == 12 and first.texts_encoded == 14 + 21  # three batches of 4; prompts and captions once
    again = run(root, tmp_path / "cache", made=counted)
    assert sum(seen) == 12 and again.texts_encoded == 0
    for a, b in zip(first.sets, again.sets):
        assert a.metrics == b.metrics and all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)


@pytest.mark.parametrize("batch_size, workers", [(1, 1), (3, 4), (64, 2)])
def test_metrics_do_not_depend_on_batch_or_workers(root, batch_size, workers):
    options = suite.Settings(batch_size=batch_size, text_batch_size=batch_size + 1, workers=workers)
    expected, found = run(root), run(root, options=options)
    assert [s.metrics for s in found.sets] == [s.metrics for s in expected.sets]


def test_a_damaged_picture(root, tmp_path):
    tar = root / "wds_a" / "test" / "0.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"\x89PNG", data.index(b"\x89PNG") + 1)
    data[at : at + 60] = b"\0" * 60
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.tar, member 000001\.png.*1 of a's 11 images cannot be read"):
        run(root)
    options = suite.Settings(batch_size=4, workers=1, max_unreadable=0.1)
    for time in range(3):  # decoded, from the cache, and where somebody made room by removing the crops
        found = run(root, tmp_path / "cache", options).sets[0]
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
        run(root, made=bad)

    def silent(x):
        return made.text(x) * torch.inf

    bad = encode.Encoders(made.image, silent, made.tokenize, made.preprocess, "nan", cut=True)
    with pytest.raises(ValueError, match="texts: .* embeddings are not finite"):
        run(root, made=bad)


def _rank(rank, world, rendezvous, root, cache, out):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    outcome = run(root, cache, ranks=Ranks(rank, world))
    torch.save([s.metrics for s in outcome.sets], f"{out}.{rank}")
    dist.destroy_process_group()


def test_two_ranks_give_the_same(root, tmp_path):
    import torch.multiprocessing as mp

    expected = [s.metrics for s in run(root).sets]
    out = tmp_path / "metrics"
    mp.spawn(_rank, (2, tmp_path / "rendezvous", root, tmp_path / "cache", out), nprocs=2)
    assert [torch.load(f"{out}.{r}") for r in range(2)] == [expected, expected]
    # what two ranks cached is what one finds
    assert [s.metrics for s in run(root, tmp_path / "cache").sets] == expected


def test_a_bare_functions_address_is_not_in_the_key():
    from torchvision import transforms

    def key(function):
        steps = [transforms.Resize(8), transforms.CenterCrop(8), function]
        normal = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        made = Preprocess.from_transform(transforms.Compose([*steps, transforms.ToTensor(), normal]))
        assert "0x" not in str(made.describe())
        return made.key

    def rgb(image):
        return image.convert("RGB")

    first = key(rgb)
    rgb = type(rgb)(rgb.__code__, globals(), "rgb")  # as another process has it: elsewhere in memory
    rgb.__qualname__ = "test_a_bare_functions_address_is_not_in_the_key.<locals>.rgb"
    assert key(rgb) == first


@pytest.mark.parametrize("part", ["index", "identities", "crops", "features"])
@pytest.mark.parametrize("left", [0.0, 0.5, None])
def test_what_is_damaged_in_a_cache_is_made_anew(root, tmp_path, part, left):
    """As a machine that crashes leaves files: empty, short, or with what was there before."""
    first = run(root, tmp_path / "cache")
    for file in tmp_path.glob("cache/*/*"):
        data = file.read_bytes()
        if file.parent.name == part:
            file.write_bytes(b"\xff{" * 50 if left is None else data[: int(left * len(data))])
        if part == "crops" and file.parent.name == "features":  # where these are, no crop is looked at
            file.unlink()
    cache = Cache(tmp_path / "cache")
    sets = sources.discover(root, cache=cache)
    again = suite.evaluate(encoders(), sets, None, cache, suite.Settings(batch_size=4, workers=2), Ranks())
    for a, b in zip(first.sets, again.sets):
        assert a.metrics == b.metrics and all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    assert cache.notes and all(f"/{part}/" in n and "damaged, made anew" in n for n in cache.notes)


def test_another_picture_with_the_old_ones_size_and_time(tmp_path):
    """As `cp -p` and `rsync -t` put it there."""
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    images, stat = FileImages([(file, 0, -1, "a.png")]), file.stat()
    before = images.stamp()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert images.stamp() != before


def test_two_evaluations_fill_one_cache(root, tmp_path):
    """Walks interleaved at their worst: the second begins when the first has written everything."""
    one = sources.discover(root)[0]
    made, cache = encoders().preprocess, Cache(tmp_path / "cache")
    expected = [b.copy() for _, b in encode.crops_of(one, made, Cache(None)).batches(4, 1, Ranks())]
    first, second = (encode.crops_of(one, made, cache).batches(4, 1, Ranks()) for _ in range(2))
    for _ in expected:
        next(first)
    next(second)
    assert list(first) == []
    stored = encode.crops_of(one, made, cache)
    assert np.array_equal(stored.stored(), np.concatenate(expected))
    assert len(list(second)) == len(expected) - 1
    assert [p.name for p in stored.path.parent.iterdir()] == [stored.path.name]


def test_what_a_killed_evaluation_left_is_removed_after_a_day(root, tmp_path):
    one = sources.discover(root)[0]
    crops = encode.crops_of(one, encoders().preprocess, Cache(tmp_path / "cache"))
    crops.path.parent.mkdir(parents=True)
    old, new = (crops.path.with_name(f".{crops.key}.{name}.part") for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    list(crops.batches(4, 1, Ranks()))
    assert {p.name for p in crops.path.parent.iterdir()} == {crops.path.name, new.name}


def test_a_walk_broken_off_leaves_nothing(root, tmp_path):
    made = encoders()

    def full(x):
        raise RuntimeError("out of memory")

    bad = encode.Encoders(full, made.text, made.tokenize, made.preprocess, "full", cut=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(root, tmp_path / "cache", made=bad)
    assert list((tmp_path / "cache" / "crops").iterdir()) == []


def test_no_room_for_crops(root, tmp_path, monkeypatch):
    monkeypatch.setattr(Cache, "has_room", lambda self, n: False)
    cache = Cache(tmp_path / "cache")
    sets = sources.discover(root, cache=cache)
    suite.evaluate(encoders(), sets, None, cache, SETTINGS, Ranks())
    assert "decoded every time" in cache.notes[0] and not (tmp_path / "cache" / "crops").exists()


@pytest.mark.parametrize(
    "place, number",
    [
        ("pathlib.Path.mkdir", errno.EROFS),  # read-only data
        ("os.replace", errno.EPERM),  # another user's file in a folder with the sticky bit
        ("os.pwrite", errno.ENOSPC),
        ("numpy.lib.format.write_array_header_1_0", errno.EACCES),
    ],
)
def test_a_cache_that_cannot_be_kept_changes_nothing(root, tmp_path, monkeypatch, place, number):
    expected, cache = run(root), Cache(tmp_path / "cache")

    def fail(*arguments, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, fail)
    sets = sources.discover(root, cache=cache)
    found = suite.evaluate(encoders(), sets, None, cache, SETTINGS, Ranks())
    assert [s.metrics for s in found.sets] == [s.metrics for s in expected.sets]
    assert len(cache.notes) == 1 and os.strerror(number) in cache.notes[0] and "--cache" in cache.notes[0]
    assert not [p for p in (tmp_path / "cache").rglob("*.part")] and not (tmp_path / "cache/crops").is_file()
    assert not list((tmp_path / "cache").rglob("crops/*.npy"))


def test_another_users_leftovers_and_files_do_not_stop_an_evaluation(root, tmp_path, monkeypatch):
    """An abandoned part that one may not remove, a finished file that one may not read."""
    one = sources.discover(root)[0]
    crops = encode.crops_of(one, encoders().preprocess, Cache(tmp_path / "cache"))
    crops.path.parent.mkdir(parents=True)
    old = crops.path.with_name(f".{crops.key}.old.part")
    old.touch()
    os.utime(old, (1, 1))
    crops.path.write_bytes(b"not to be read")
    unlink, access = Path.unlink, os.access

    def sticky(path, **named):
        if path == old:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, **named)

    monkeypatch.setattr(Path, "unlink", sticky)
    monkeypatch.setattr(os, "access", lambda path, mode: path != crops.path and access(path, mode))
    walked = np.concatenate([b.copy() for _, b in crops.batches(4, 1, Ranks())])
    monkeypatch.undo()
    assert np.array_equal(crops.stored(), walked) and crops.cache.notes == [] and old.exists()


def test_crops_are_read_where_files_are_not_mapped_shared(root, tmp_path, monkeypatch):
    one = sources.discover(root)[0]
    crops = encode.crops_of(one, encoders().preprocess, Cache(tmp_path / "cache"))
    expected = np.concatenate([b.copy() for _, b in crops.batches(4, 1, Ranks())])
    real = mmap.mmap

    def private_only(*arguments, **named):
        if named["access"] == mmap.ACCESS_READ:
            raise OSError(errno.ENODEV, "No such device")
        return real(*arguments, **named)

    monkeypatch.setattr(mmap, "mmap", private_only)
    assert np.array_equal(crops.stored(), expected)
