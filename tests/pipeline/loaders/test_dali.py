"""The DALI engine on the CPU: parity per operation, one stream with the FFCV engine, faults."""

from __future__ import annotations

import dataclasses
import os
import struct
import threading
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dali_loader
from pipeline.augment import AUGMENTS, Augment
from pipeline.dali_graph import Size, define
from pipeline.dali_loader import DALILoader
from pipeline.ffcv_loader import FFCVLoader
from tests.kits.pipeline import (
    apply_reference,
    draws_of,
    jpeg,
    pairs_file,
    pil,
    real_file,
    triplets_file,
    with_wrong_pointers,
)
from tests.pipeline.loaders.test_loader import PLAIN, assert_memory_is_flat, assert_same, joined, take

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
    monkeypatch.setattr(dali_loader._Batch, "repair", None)  # nothing may come from the other engine
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


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["eval", "paper"])
def test_images_of_real_size_and_every_subsampling(tmp_path, preset):
    """More than a piece of them; on the GPU: tests/gpu/test_dali.py."""
    file = real_file(tmp_path / "real.beton", dali_loader.PIECE + 24, distinct=12)
    options = dict(
        batch_size=len(file), image_size=64, augment=AUGMENTS[preset], dtype=torch.uint8, workers=2
    )
    (a,) = DALILoader.one_pass(file, device="cpu", **options)
    (b,) = FFCVLoader.one_pass(file, **options)
    error = (a.images.float() - b.images.float()).abs().flatten(1).mean(1)
    assert a.valid.all() and error.mean() < 0.3 and error.max() < 3, (error.mean(), error.max())


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


def float_argument(name: bytes, value: float) -> bytes:
    """As the serialised graph holds it."""
    return name + b"\x12\x05float\x1d" + struct.pack("<f", value)


@pytest.mark.parametrize("preset", sorted(AUGMENTS))
def test_the_gpu_graph_decodes_whole_images_and_cuts_on_the_gpu(preset):
    """Which operator is on which device, and the decoder's options: all that shows without a GPU."""
    pipe = define(AUGMENTS[preset], iter([]), 8, 224, 2, "gpu", Size(256, 384))
    text = pipe.serialize()
    devices = {
        op.name.strip("_").split("_")[0]: (
            op.spec.InputDevice(0) if op.inputs else "",
            op.spec.OutputDevice(0),
        )
        for op in pipe._ops
    }
    assert devices.pop("ExternalSource") == ("", "cpu")
    # Not by regions: that fails on a GPU (nvImageCodec issue 55).
    assert devices.pop("Image") == ("cpu", "gpu") and b"ImageSlice" not in text
    pixels_pass = {"Slice", "Resize", "CoordTransform"} & set(devices)
    assert {devices[name] for name in pixels_pass} == {("gpu", "gpu")} and {"Slice", "Resize"} <= pixels_pass
    # A kernel or a copy for each image: mirroring, and branches that are put together again.
    assert set(devices) == pixels_pass, devices
    assert float_argument(b"hw_decoder_load", 1.0) in text
    assert b"preallocate_width_hint\x12\x05int64 \x80\x03" in text  # 384 as protobuf writes it
    assert b"CropMirrorNormalize" not in text and b"FLOAT16" not in text


def test_dali_lets_other_threads_run_while_it_works(pairs):
    """Training launches its steps meanwhile: waiting for DALI must not hold Python's lock."""
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    stream = iter(loader(pairs, batch_size=200, image_size=400))
    next(stream)
    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    next(stream)
    end = time.perf_counter()
    done.set()
    thread.join()
    stream.close()
    inside = [t for t in ticks if start < t < end]
    assert end - start > 0.05 and len(inside) > 100 * (end - start)  # of at most 1000 a second


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_a_batch_in_pieces_is_the_batch(tmp_path, pairs, kind, monkeypatch):
    """Pieces that end within a view, hold parts of two views, or one image past the limit of pixels.

    In turn by one graph, or by several.
    """
    file = pairs if kind == "pairs" else triplets_file(tmp_path / "t.beton", 20)
    options = dict(batch_size=20, image_size=24, augment=AUGMENTS["paper"], device="cpu", dtype=torch.uint8)
    names = ["images"] if kind == "pairs" else ["ref", "left", "right"]
    (whole,) = DALILoader.one_pass(file, **options)
    for piece, most, graphs in (
        (7, 1 << 27, 1),
        (7, 1 << 27, 3),
        (512, 9000, 2),
        (512, 1, 5),
        (13, 20_000, 9),
    ):
        monkeypatch.setitem(dali_loader.GRAPHS, "cpu", graphs)
        monkeypatch.setattr(dali_loader, "PIECE", piece)
        monkeypatch.setattr(dali_loader, "PIXELS", most)
        (parts,) = DALILoader.one_pass(file, **options)
        assert all(torch.equal(getattr(parts, name), getattr(whole, name)) for name in names)
        assert parts.valid.all()


@settings(max_examples=50, deadline=None)
@given(
    sides=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=40),
    most=st.integers(1, 200_000),
)
def test_pieces_cover_a_batch_within_their_limits(sides, most):
    height, width = np.array(sides).T[:, :, None]
    plan = SimpleNamespace(height=height, width=width)
    batch = SimpleNamespace(plan=plan, valid=np.ones((1, len(sides)), bool), arguments={"jpeg": sides})
    with mock.patch.multiple(dali_loader, PIECE=16, PIXELS=most):
        pieces = list(dali_loader._pieces(batch))
    assert [side for piece in pieces for side in piece.arguments[0]] == sides
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces:
        inside = sides[piece.part]
        assert 1 <= len(inside) <= 16 and (len(inside) == 1 or sum(h * w for h, w in inside) <= most)


@pytest.mark.parametrize("device, message", [("tpu", "neither cpu nor gpu"), ("gpu", "no CUDA GPU here")])
def test_wrong_devices_are_named(pairs, device, message):
    if device == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=message):
        loader(pairs, device=device)
