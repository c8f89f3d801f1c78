"""The DALI engine on the CPU: parity per operation, one stream with the FFCV engine, faults."""

from __future__ import annotations

import dataclasses
import logging
import os

import numpy as np
import pytest
import torch

from pipeline import dali_loader
from pipeline.augment import AUGMENTS, Augment
from pipeline.dali_loader import DALILoader, define
from pipeline.ffcv_loader import FFCVLoader
from tests.kits.pipeline import (
    apply_reference,
    damaged_jpegs,
    decodable_but_for_dali,
    draws_of,
    jpeg,
    pairs_file,
    picture,
    pil,
    triplets_file,
    with_wrong_pointers,
)
from tests.pipeline.test_loader import PLAIN, assert_memory_is_flat, assert_same, joined, take

OPERATIONS = {
    "resize": Augment(),
    "centre": AUGMENTS["eval"],
    "crop": Augment(crop="random", scale=(0.2, 1.0)),
    "colour": Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=1.0, gray_p=0.2),
    "blur": Augment(blur_p=1.0),
    "flip": Augment(flip_p=0.5),
    "all": AUGMENTS["paper"],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pairs_file(tmp_path_factory.mktemp("pairs") / "p.beton", 20)


def loader(file, engine=DALILoader, **options):
    defaults = dict(batch_size=6, image_size=24, augment=AUGMENTS["paper"], seed=5)
    if engine is DALILoader:
        defaults["device"] = "cpu"
    return engine(file, **(defaults | options))


@pytest.mark.slow
@pytest.mark.parametrize("side", [24, 100])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_pixels_of_both_engines_and_the_reference(pairs, name, side, monkeypatch):
    """Levels of 255. DALI's antialiasing filter has its own support and rounding: the resize differs most."""
    monkeypatch.setattr(dali_loader, "_repair", None)  # no batch may come from the other engine
    augment = dataclasses.replace(OPERATIONS[name], **PLAIN)
    options = dict(batch_size=8, image_size=side, augment=augment, seed=2)
    ours, references, theirs = [], [], []
    for batch in DALILoader.one_pass(pairs, device="cpu", **options):
        theirs.append(batch.images)
        d = draws_of(pairs, augment, 2, 0, batch.index)
        for row, index in enumerate(batch.index.tolist()):
            references.append(apply_reference(pil(pairs, index), d, row, 0, side))
    for batch in FFCVLoader.one_pass(pairs, **options):
        ours.append(batch.images)
    theirs, ours, reference = torch.cat(theirs), torch.cat(ours), torch.stack(references)
    for other in (ours, reference):
        error = (theirs - other).abs()
        assert error.mean() < 0.7 and error.max() < 40, (error.mean(), error.max())


@pytest.mark.slow
def test_photographs_agree(shared_data, tmp_path):
    from PIL import Image

    from pipeline.beton.fields import pairs_schema
    from pipeline.beton.writer import writing

    files = sorted((shared_data / "photos").glob("*.jpg"))[:16]
    with writing(tmp_path / "p.beton", pairs_schema(1), len(files)) as writer:
        for i, path in enumerate(files):
            image = jpeg(np.asarray(Image.open(path).convert("RGB").resize((384, 256))))
            tokens = np.ones((1, 77), np.int32)
            writer.add({"image": image, "tokens": tokens, "luma": 110.0, "key": b"%d" % i})
    augment = dataclasses.replace(AUGMENTS["paper"], **PLAIN)
    options = dict(batch_size=16, image_size=224, augment=augment)
    (a,) = DALILoader.one_pass(tmp_path / "p.beton", device="cpu", **options)
    (b,) = FFCVLoader.one_pass(tmp_path / "p.beton", **options)
    error = (a.images - b.images).abs()
    assert error.mean() < 0.3 and error.max() < 20, (error.mean(), error.max())


def test_the_stream_is_the_ffcv_engines(pairs):
    a, b = joined(take(loader(pairs), 8)), joined(take(loader(pairs, FFCVLoader), 8))
    images = a.pop("images"), b.pop("images")
    assert_same(a, b)
    assert (images[0] - images[1]).abs().mean() < 0.02


def test_triplets_are_the_ffcv_engines(tmp_path):
    file = triplets_file(tmp_path / "t.beton", 7)
    a = take(loader(file, batch_size=5), 3)
    b = take(loader(file, FFCVLoader, batch_size=5), 3)
    for x, y in zip(a, b):
        assert torch.equal(x.vote, y.vote) and torch.equal(x.index, y.index) and x.valid.all()
        for name in ("ref", "left", "right"):
            assert (getattr(x, name) - getattr(y, name)).abs().mean() < 0.02


@pytest.mark.slow
def test_ranks_restarts_and_engines_continue_one_stream(pairs):
    whole = joined(take(loader(pairs), 8))
    ranks = [take(loader(pairs, batch_size=2, rank=r, world_size=3, workers=2), 8) for r in range(3)]
    assert_same(joined([b for step in zip(*ranks) for b in step]), whole)
    first = loader(pairs)
    head = take(first, 2)
    assert first.consumed == 12
    assert_same(joined(head + take(loader(pairs, batch_size=9, consumed=12), 4)), whole)
    other = joined(take(loader(pairs, FFCVLoader, consumed=first.consumed), 6))
    assert torch.equal(other["index"], whole["index"][12:])
    assert torch.equal(other["tokens"], whole["tokens"][12:])


def test_batches_have_the_contracts_form(pairs):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        (batch,) = take(loader(pairs, dtype=dtype), 1)
        assert batch.images.shape == (6, 3, 24, 24) and batch.images.dtype == dtype
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_batches_belong_to_the_consumer(pairs):
    kept = [b.images for b in take(loader(pairs), 8)]
    again = [b.images.clone() for b in take(loader(pairs), 8)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again))


def test_a_pass_in_file_order_with_its_last_batch(pairs):
    batches = list(DALILoader.one_pass(pairs, batch_size=8, image_size=24, device="cpu"))
    assert [len(b) for b in batches] == [8, 8, 4]
    assert torch.equal(joined(batches)["index"], torch.arange(20))


@pytest.fixture(scope="module", params=[True, False], ids=["checksums", "none"])
def battered(request, tmp_path_factory):
    """A file most of whose pictures were damaged, each in a way of its own."""
    folder, each = tmp_path_factory.mktemp("battered"), 6
    whole = pairs_file(folder / "whole.beton", 120)
    broken = damaged_jpegs(whole, each)
    return pairs_file(folder / "p.beton", 120, broken=broken, checksums=request.param)


@pytest.mark.parametrize("preset", ["none", "paper"])
def test_both_engines_judge_every_damage_alike(battered, preset):
    """Some damage makes another sound JPEG of other pixels: without checksums neither can see that."""
    options = dict(batch_size=32, image_size=24, augment=AUGMENTS[preset], seed=1)
    ours = joined(list(FFCVLoader.one_pass(battered, **options)))
    theirs = joined(list(DALILoader.one_pass(battered, device="cpu", **options)))
    masked = int((~ours["valid"]).sum())
    assert masked == 108 if battered.checksummed else 40 < masked < 108
    assert ours["valid"][108:].all()
    assert torch.equal(ours["valid"], theirs["valid"])
    assert not theirs["images"][~theirs["valid"]].any()
    assert (ours["images"] - theirs["images"]).abs().flatten(1).mean(1).max() < 0.1


@pytest.mark.slow
def test_damage_is_masked_at_every_visit(battered):
    """In training, over epochs and on several ranks, of which each has seen other samples before."""
    options = dict(batch_size=10, world_size=3, workers=2)
    for rank in range(3):
        a = joined(take(loader(battered, rank=rank, **options), 12))
        b = joined(take(loader(battered, FFCVLoader, rank=rank, **options), 12))
        assert torch.equal(a["index"], b["index"]) and torch.equal(a["valid"], b["valid"])
        assert not a["images"][~a["valid"]].any()
        assert (a["images"] - b["images"]).abs().flatten(1).mean(1).max() < 0.1


def test_a_triplet_with_one_bad_picture_is_masked_whole(tmp_path):
    whole = triplets_file(tmp_path / "whole.beton", 6)
    data = bytearray(whole.jpeg(3, "left"))
    middle = len(data) * 2 // 3
    data[middle : middle + 24] = b"\xff" * 24
    bad = triplets_file(tmp_path / "t.beton", 6, broken={3: bytes(data)})
    (batch,) = DALILoader.one_pass(bad, batch_size=6, image_size=24, device="cpu")
    assert batch.valid.tolist() == [True, True, True, False, True, True]


def without_tables(data: bytes) -> bytes:
    """A whole JPEG by its markers, but with its quantisation tables turned into comments."""
    return data.replace(b"\xff\xdb", b"\xff\xfe")


@pytest.mark.parametrize("screened", [True, False])
def test_bad_samples_are_replaced_counted_named_and_masked(tmp_path, pairs, caplog, monkeypatch, screened):
    """Even those that only DALI stumbles over: each costs nothing but its own batch."""
    broken = {
        2: pairs.jpeg(2).tobytes()[:400], 5: b"<html>", 9: jpeg(picture(0, 8, 8)).data,
        12: without_tables(pairs.jpeg(12).tobytes()),
    }  # fmt: skip
    bad = pairs_file(tmp_path / "bad.beton", 20, broken=broken, checksums=screened)
    if not screened:
        decodable_but_for_dali(len(broken[12]), monkeypatch)
    with caplog.at_level(logging.WARNING, "pipeline"):
        stream = loader(bad)
        got = joined(take(stream, 10))
    clean = joined(take(loader(pairs), 10))
    expected = torch.tensor([i not in broken for i in got["index"].tolist()])
    assert torch.equal(got["index"], clean["index"]) and torch.equal(got["valid"], expected)
    assert not got["images"][~expected].any()
    error = (got["images"] - clean["images"])[expected].abs().flatten(1).mean(1)
    assert error.max() < 0.1  # a repaired batch comes from the other engine
    hit = {t // 6 for t in range(60) if got["index"][t] == 12 and not screened}
    untouched = torch.tensor([t // 6 not in hit for t in range(60)]) & expected
    assert torch.equal(got["images"][untouched], clean["images"][untouched])
    repaired = ~untouched & expected
    assert screened or not torch.equal(got["images"][repaired], clean["images"][repaired])
    assert stream.rejected == int((~expected).sum())
    named = [r.getMessage() for r in caplog.records]
    repairs = [n for n in named if n.startswith("DALI gave up")]
    assert len(repairs) == (not screened)
    named = [n for n in named if n not in repairs]
    assert len(named) == 4 and all(any(f"key key-{i})" in n for n in named) for i in broken)


def test_an_exception_while_planning_reaches_the_consumer(pairs, tmp_path):
    stream = loader(with_wrong_pointers(pairs, tmp_path / "wrong.beton"))
    with pytest.raises(ValueError, match="pointer of image is not in the allocation table"):
        next(iter(stream))


def test_threads_end_with_break_and_close(pairs):
    threads = lambda: len(os.listdir("/proc/self/task"))  # noqa: E731
    for _ in loader(pairs):
        break
    before = threads()
    for _ in loader(pairs, workers=3):
        assert threads() > before
        break
    assert threads() == before


@pytest.mark.slow
def test_memory_is_flat_over_epochs(pairs):
    assert_memory_is_flat(loader(pairs, image_size=96, workers=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8], ids=str)
def test_the_gpu_graph_is_defined_without_a_driver(dtype):
    for augment in AUGMENTS.values():
        pipe = define(augment, iter([]), 8, 224, dtype, 2, "gpu")
        text = pipe.serialize()
        assert (b"CropMirrorNormalize" in text) == (dtype == torch.float16)
        # Whole pictures: the decoder of regions fails on a GPU (nvImageCodec issue 55).
        assert b"mixed" in text and b"decoders__Image" in text and b"ImageSlice" not in text


@pytest.mark.parametrize("device, message", [("tpu", "neither cpu nor gpu"), ("gpu", "no CUDA GPU here")])
def test_wrong_devices_are_named(pairs, device, message):
    if device == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=message):
        loader(pairs, device=device)
