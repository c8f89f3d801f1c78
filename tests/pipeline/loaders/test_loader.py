"""The CPU loader: reference pixels, one stream for any split, faults, threads."""

from __future__ import annotations

import dataclasses
import gc
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from pipeline import readahead, stream
from pipeline.augment import AUGMENTS, Augment, sample_draws
from pipeline.batch import ImageText, Triplet
from pipeline.ffcv_loader import FFCVLoader
from pipeline.order import Order
from tests.kits.pipeline import apply_reference, draws_of, pairs_file, pil, triplets_file, with_wrong_pointers

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
PLAIN = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)  # values are levels


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pairs_file(tmp_path_factory.mktemp("pairs") / "p.beton", 20)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    return triplets_file(tmp_path_factory.mktemp("triplets") / "t.beton", 12)


def loader(file, **options):
    defaults = dict(batch_size=6, image_size=24, augment=AUGMENTS["paper"], seed=5)
    return FFCVLoader(file, **(defaults | options))


def take(loader, count):
    with loader:
        return [batch for _, batch in zip(range(count), loader)]


def joined(batches):
    """All tensors of consecutive batches, end to end."""
    names = [f.name for f in dataclasses.fields(batches[0])]
    return {n: torch.cat([getattr(b, n) for b in batches]) for n in names}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(AUGMENTS))
@pytest.mark.parametrize("side", [24, 100])
def test_pixels_are_the_references(pairs, preset, side):
    augment = dataclasses.replace(AUGMENTS[preset], **PLAIN)
    errors = []
    for batch in FFCVLoader.one_pass(pairs, batch_size=8, image_size=side, augment=augment, seed=2):
        d = draws_of(pairs, augment, 2, 0, batch.index)
        for row, index in enumerate(batch.index.tolist()):
            expected = apply_reference(pil(pairs, index), d, row, 0, side)
            errors.append((batch.images[row] - expected).abs().flatten())
    errors = torch.cat(errors)
    assert errors.mean() < 0.1 and errors.max() < 12, (errors.mean(), errors.max())


def test_triplets_share_draws_and_carry_votes(triplets):
    augment = dataclasses.replace(AUGMENTS["paper"], **PLAIN)
    (batch,) = FFCVLoader.one_pass(triplets, batch_size=12, image_size=24, augment=augment)
    assert isinstance(batch, Triplet)
    assert torch.equal(batch.vote, torch.arange(12) / 12) and batch.valid.all()
    index = np.arange(12)
    size, luma = triplets.rows(index).sizes("ref"), triplets.rows(index).arrays("luma")
    height, width = (np.repeat(size[:, c : c + 1], 3, 1) for c in (0, 1))
    d = sample_draws(augment, 0, 0, index, height, width, luma)
    for v, name in enumerate(("ref", "left", "right")):
        for i in index:
            expected = apply_reference(pil(triplets, i, name), d, i, v, 24)
            assert (getattr(batch, name)[i] - expected).abs().mean() < 0.5


def test_batches_have_the_contracts_form(pairs):
    (batch,) = take(loader(pairs), 1)
    assert isinstance(batch, ImageText) and len(batch) == 6
    assert batch.images.shape == (6, 3, 24, 24)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.tokens.shape == (6, 77) and batch.tokens.dtype == torch.int32
    assert batch.index.dtype == torch.int64 and batch.valid.dtype == torch.bool
    for dtype in (torch.float16, torch.bfloat16):
        (other,) = take(loader(pairs, dtype=dtype), 1)
        assert torch.equal(other.images, batch.images.to(dtype))


def test_captions_are_drawn_among_those_there_are(pairs):
    got = joined(take(loader(pairs, augment=AUGMENTS["none"]), 40))
    rows, index = got["tokens"][:, 1], got["index"]
    assert torch.equal(rows % 1000, index.int())
    two = index % 2 == 1  # odd samples have a second caption
    assert (rows[~two] < 1000).all()
    assert 0.3 < (rows[two] >= 1000).float().mean() < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        Order(),
        Order(kind="block", block=4, window=2),
        Order(kind="block", block=3, window=2, lanes=2, turn=3),
    ],
    ids=["random", "block", "lanes"],
)
def test_workers_ranks_batches_and_restarts_change_nothing(pairs, order):
    whole = joined(take(loader(pairs, order=order), 8))  # 48 samples: two epochs and a bit
    assert sorted(whole["index"][:20].tolist()) == list(range(20))
    assert_same(joined(take(loader(pairs, order=order, workers=3), 8)), whole)
    assert_same(joined(take(loader(pairs, order=order, batch_size=16), 3)), whole)
    ranks = [take(loader(pairs, order=order, batch_size=2, rank=r, world_size=3), 8) for r in range(3)]
    assert_same(joined([b for step in zip(*ranks) for b in step]), whole)
    # Twelve samples on one rank, then the rest on two ranks with another batch size.
    first = loader(pairs, order=order)
    head = take(first, 2)
    assert first.consumed == 12
    options = dict(order=order, batch_size=3, world_size=2, consumed=first.consumed)
    tail = [take(loader(pairs, rank=r, **options), 6) for r in range(2)]
    assert_same(joined(head + [b for step in zip(*tail) for b in step]), whole)


def test_iteration_goes_on_where_it_stopped(pairs):
    whole = joined(take(loader(pairs), 6))
    paused, parts = loader(pairs), []
    for count in (1, 3, 2):
        parts += take(paused, count)
    assert_same(joined(parts), whole)


def test_a_pass_in_file_order_with_its_last_batch(pairs):
    options = dict(batch_size=8, image_size=24)
    batches = list(FFCVLoader.one_pass(pairs, **options))
    assert [len(b) for b in batches] == [8, 8, 4]
    assert torch.equal(joined(batches)["index"], torch.arange(20))
    shares = [list(FFCVLoader.one_pass(pairs, **options, rank=r, world_size=3)) for r in range(3)]
    assert_same(joined([b for share in shares for b in share]), joined(batches))
    assert list(FFCVLoader.one_pass(pairs, **options, rank=29, world_size=40)) != []


def test_batches_belong_to_the_consumer(pairs):
    """Memory is used again only when nothing refers to it any more, views included."""
    stream = loader(pairs)
    kept, copies = [], []
    for _, batch in zip(range(10), stream):
        kept.append(batch.images[1:3, 0])
        copies.append(kept[-1].clone())
        del batch
    stream.close()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies))


def damaged(tmp_path):
    whole = pairs_file(tmp_path / "whole.beton", 7)
    # A decoder that is used again would lend the last one the tables of the picture before.
    without_tables = whole.jpeg(6).tobytes().replace(b"\xff\xdb", b"\xff\xfe")
    return {2: whole.jpeg(2).tobytes()[:400], 5: b"<html>", 6: without_tables}


def test_bad_samples_are_replaced_counted_named_and_masked(tmp_path, pairs, caplog):
    broken = damaged(tmp_path)
    bad = pairs_file(tmp_path / "bad.beton", 20, broken=broken)
    with caplog.at_level(logging.WARNING, "pipeline"):
        stream = loader(bad)
        got = joined(take(stream, 10))
    whole = joined(take(loader(pairs), 10))
    expected = torch.tensor([i not in broken for i in got["index"].tolist()])
    assert torch.equal(got["valid"], expected)
    assert not got["images"][~expected].any()
    assert torch.equal(got["images"][expected], whole["images"][expected])
    assert torch.equal(got["index"], whole["index"])
    assert stream.rejected == int((~expected).sum()) == 9
    named = [r.getMessage() for r in caplog.records]
    assert len(named) == 3 and all(any(f"key key-{i})" in n for n in named) for i in broken)


def test_a_triplet_with_one_bad_picture_is_masked_whole(tmp_path):
    bad = triplets_file(tmp_path / "t.beton", 6, broken={3: b"nothing"})
    (batch,) = FFCVLoader.one_pass(bad, batch_size=6, image_size=24)
    assert batch.valid.tolist() == [True, True, True, False, True, True]


@pytest.mark.slow
def test_threads_end_with_break_close_and_collection(pairs):
    before = threading.active_count()
    for _ in loader(pairs, workers=3):
        assert threading.active_count() > before  # an executor starts as many as it finds work for
        break
    assert threading.active_count() == before
    stream = loader(pairs, workers=2)
    running = iter(stream)
    next(running)
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(running)
    second = iter(stream)  # ends a first iterator
    third = iter(stream)
    next(third)
    del second, third, stream, running
    gc.collect()
    assert threading.active_count() == before
    passes = FFCVLoader.one_pass(pairs, batch_size=4, image_size=24)
    next(passes)
    del passes
    assert threading.active_count() == before


def test_an_exception_in_a_thread_reaches_the_consumer(pairs, tmp_path):
    before = threading.active_count()
    stream = loader(with_wrong_pointers(pairs, tmp_path / "wrong.beton"), workers=2)
    with pytest.raises(ValueError, match="pointer of image is not in the allocation table"):
        next(iter(stream))
    assert threading.active_count() == before


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ffcv_loader.FFCVLoader", "dali_loader.DALILoader"])
@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt", "del stream"], ids=["exit", "ctrl-c", "del"])
def test_the_process_ends_with_a_loader_in_full_swing(pairs, end, engine):
    code = (
        "from pipeline import dali_loader, ffcv_loader\nfrom pipeline.augment import AUGMENTS\n"
        "from pipeline.order import Order\n"
        f"stream = iter({engine}({str(pairs.path)!r}, batch_size=6, image_size=200, workers=3,\n"
        f"    augment=AUGMENTS['paper'], seed=1, order=Order(kind='block', block=4, window=2)))\n"
        f"next(stream)\nprint('ready', flush=True)\n{end}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ready" in done.stdout
    assert done.returncode == (130 if "Interrupt" in end else 0) or done.returncode == -2, done.stderr
    assert "Fatal" not in done.stderr and "Segmentation" not in done.stderr


def test_files_that_are_none_are_refused(tmp_path, pairs, triplets):
    short = tmp_path / "short.beton"
    short.write_bytes(pairs.path.read_bytes()[: -len(pairs.path.read_bytes()) // 2])
    text = tmp_path / "text.beton"
    text.write_text("no beton at all, " * 20)
    for path, message in (
        (short, "truncated"),
        (text, "not an FFCV file"),
        (tmp_path / "none", "no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not within a world of 2"),
        ({"consumed": -1}, "consumed -1"),
        ({"seed": -1}, "seed -1"),
        ({"dtype": torch.float64}, "none of float32, float16, bfloat16, uint8"),
        ({"workers": 0}, "workers 0"),
        pytest.param({"pin": True}, "pin: torch finds no CUDA GPU", marks=WITHOUT_GPU),
    ],
)
def test_wrong_arguments_are_named(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        loader(pairs, **options)


def assert_memory_is_flat(stream):
    """Over some hundred epochs, once the first few have filled what is kept."""
    import psutil

    process, sizes = psutil.Process(), []
    with stream:
        for step, _ in enumerate(stream):
            if step % 40 == 39:
                gc.collect()
                sizes.append(process.memory_info().rss)
            if len(sizes) == 8:
                break
    assert max(sizes[4:]) - sizes[2] < 8 << 20, sizes


BLOCKS = Order(kind="block", block=2, window=2, lanes=2, turn=3)


@pytest.mark.parametrize("order", [Order(), Order(kind="file"), BLOCKS], ids=lambda o: o.kind)
@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_what_is_needed_is_read_ahead(request, kind, order, monkeypatch):
    """And little else, in requests that the kernel serves: it cuts off what is longer."""
    file, asked, t = request.getfixturevalue(kind), [], np.arange(6)
    monkeypatch.setattr(readahead, "REQUEST", 1000)
    monkeypatch.setattr(readahead, "advise", lambda _, *reads: asked.append(np.stack(reads, 1)))
    source = stream.Source(file, AUGMENTS["none"], 5, order)
    thread = source.read_ahead.request(t)
    if order.kind == "block":
        thread.join()
    reads, covered = np.concatenate(asked), np.zeros(file.size, int)
    assert (reads[:, 1] > 0).all() and (reads[:, 1] <= 1000).all()
    for at, length in reads:
        covered[at : at + length] += 1
    index = [order.locate(5, len(file), t)[1]]
    index += [np.arange(*r) for at in t for w in order.windows(5, len(file), at[None]) for r in w]
    wanted = np.zeros(file.size, bool)
    for column in (*source.views, "tokens" if kind == "pairs" else "luma"):
        for at, length in zip(*file.rows(np.concatenate(index)).spans(column)):
            wanted[at : at + length] = True
    assert covered[wanted].all() and (covered > 0).sum() < 1.5 * wanted.sum()
    assert covered.max() == 1 or order.kind == "block"  # by the batch and by the window


def test_a_file_that_is_removed_meanwhile_stays_readable(tmp_path):
    for order in (Order(), Order(kind="block", block=4, window=2)):
        file = pairs_file(tmp_path / "p.beton", 20)
        stream = loader(file, order=order)
        file.path.unlink()
        assert joined(take(stream, 8))["valid"].all()


def test_a_window_is_asked_for_once(pairs, monkeypatch):
    covered, windows = np.zeros(pairs.size, int), 0

    def count(_, offsets, sizes):
        if threading.current_thread() is not threading.main_thread():  # which asks for the batch alone
            for offset, size in zip(offsets, sizes):
                covered[offset : offset + size] += 1

    monkeypatch.setattr(readahead, "advise", count)
    source = stream.Source(pairs, AUGMENTS["none"], 5, Order(kind="block", block=5, window=1))
    for first in range(0, 14, 2):
        thread = source.read_ahead.request(np.arange(first, first + 2))
        if thread is not None:
            thread.join()
            windows += 1
    assert windows == 3  # two windows at first, then the next of each that is entered
    for offset, size in zip(*pairs.rows(np.arange(20)).spans("image")):
        assert (covered[offset : offset + size] == 1).all()


@pytest.mark.slow
def test_memory_is_flat_over_epochs(pairs):
    assert_memory_is_flat(loader(pairs, image_size=96, workers=2))


def test_an_augment_of_ones_own(pairs):
    own = Augment(crop="random", scale=(0.5, 1.0), flip_p=1.0)
    (batch,) = take(loader(pairs, augment=own), 1)
    assert batch.valid.all()
