"""The cache: what is kept, damaged, full, read-only, or filled by two at a time."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eval import encode
from eval.cache import Cache
from eval.distributed import Ranks
from eval.sets import sources
from eval.sets.evalset import FileImages, Member
from tests.kits.eval import encoders, score, three_sets


@pytest.fixture
def root(tmp_path):
    return three_sets(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["index", "identities", "crops", "features"])
@pytest.mark.parametrize("left", [0.0, 0.5, None])
def test_what_is_damaged_in_a_cache_is_made_anew(root, tmp_path, part, left):
    """As a machine that crashes leaves files: empty, short, or with what was there before."""
    first = score(root, tmp_path / "cache")
    for file in tmp_path.glob("cache/*/*"):
        data = file.read_bytes()
        if file.parent.name == part:
            file.write_bytes(b"\xff{" * 50 if left is None else data[: int(left * len(data))])
        if part == "crops" and file.parent.name == "features":  # where these are, no crop is looked at
            file.unlink()
    cache = Cache(tmp_path / "cache")
    again = score(root, cache)
    for a, b in zip(first.sets, again.sets):
        assert a.metrics == b.metrics and all(np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    assert cache.notes and all(f"/{part}/" in n and "damaged, made anew" in n for n in cache.notes)


def test_another_picture_with_the_old_ones_size_and_time(tmp_path):
    """As `cp -p` and `rsync -t` put it there."""
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    images, stat = FileImages([Member.whole(file)]), file.stat()
    before = images.stamp()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert images.stamp() != before


def walked(crops) -> np.ndarray:
    """All crops, put together from the batches."""
    batches = []
    crops.for_each(lambda span, batch: batches.append(batch.copy()), 4, 1, Ranks())
    return np.concatenate(batches)


def test_two_evaluations_fill_one_cache(root, tmp_path):
    """At their worst: the second begins when the first has written everything, and ends after it."""
    images = sources.discover(root)[0].images
    made, cache = encoders().preprocess, Cache(tmp_path / "cache")
    expected = walked(encode.crops_of(images, made, Cache(None)))
    first, second = (encode.crops_of(images, made, cache) for _ in range(2))
    begun, batches = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        last = len(images) - 1
        ending = pool.submit(
            first.for_each, lambda span, _: last not in span or begun.wait(30), 4, 1, Ranks()
        )  # fmt: skip

        def consume(span, batch):
            begun.set()
            ending.result(30)  # from here on the first one's file is there
            batches.append(batch.copy())

        second.for_each(consume, 4, 1, Ranks())
    assert np.array_equal(np.concatenate(batches), expected)
    assert np.array_equal(first.stored().pixels, expected)
    assert [p.name for p in first.path.parent.iterdir()] == [first.path.name]


def test_what_a_killed_evaluation_left_is_removed_after_a_day(root, tmp_path):
    images = sources.discover(root)[0].images
    crops = encode.crops_of(images, encoders().preprocess, Cache(tmp_path / "cache"))
    crops.path.parent.mkdir(parents=True)
    old, new = (crops.path.with_name(f".{crops.key}.{name}.part") for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    walked(crops)
    assert {p.name for p in crops.path.parent.iterdir()} == {crops.path.name, new.name}


def test_a_walk_broken_off_leaves_nothing(root, tmp_path):
    made = encoders()

    def full(x):
        raise RuntimeError("out of memory")

    bad = encode.Encoders(full, made.text, made.tokenize, made.preprocess, "full", cut=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(root, tmp_path / "cache", made=bad)
    assert list((tmp_path / "cache" / "crops").iterdir()) == []


def test_no_room_for_crops(root, tmp_path, monkeypatch):
    monkeypatch.setattr(Cache, "has_room", lambda self, n: False)
    cache = Cache(tmp_path / "cache")
    score(root, cache)
    assert "decoded every time" in cache.notes[0] and not (tmp_path / "cache" / "crops").exists()


@pytest.mark.slow
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
    expected, cache = score(root), Cache(tmp_path / "cache")

    def fail(*arguments, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, fail)
    found = score(root, cache)
    assert [s.metrics for s in found.sets] == [s.metrics for s in expected.sets]
    assert len(cache.notes) == 1 and os.strerror(number) in cache.notes[0] and "--cache" in cache.notes[0]
    assert not [p for p in (tmp_path / "cache").rglob("*.part")] and not (tmp_path / "cache/crops").is_file()
    assert not list((tmp_path / "cache").rglob("crops/*.npy"))


def test_another_users_leftovers_and_files_do_not_stop_an_evaluation(root, tmp_path, monkeypatch):
    """An abandoned part that one may not remove, a finished file that one may not read."""
    images = sources.discover(root)[0].images
    crops = encode.crops_of(images, encoders().preprocess, Cache(tmp_path / "cache"))
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
    expected = walked(crops)
    monkeypatch.undo()
    assert np.array_equal(crops.stored().pixels, expected) and crops.cache.notes == [] and old.exists()


def test_crops_are_read_where_files_are_not_mapped_shared(root, tmp_path, monkeypatch):
    images = sources.discover(root)[0].images
    crops = encode.crops_of(images, encoders().preprocess, Cache(tmp_path / "cache"))
    expected = walked(crops)
    real = mmap.mmap

    def private_only(*arguments, **named):
        if named["access"] == mmap.ACCESS_READ:
            raise OSError(errno.ENODEV, "No such device")
        return real(*arguments, **named)

    monkeypatch.setattr(mmap, "mmap", private_only)
    assert np.array_equal(crops.stored().pixels, expected)
