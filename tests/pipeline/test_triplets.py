"""Files of triplets that share their pictures: against the plain writer's, by our reader and stock FFCV's."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import AUGMENTS
from pipeline.beton import triplets
from pipeline.beton.fields import Beton, pictures_schema, triplets_schema
from pipeline.beton.triplets import SIDES, Some, write_triplets
from pipeline.beton.writer import writing
from pipeline.order import Order, Subset
from tests.pipeline.test_writer import PAGE, picture, stock_loader, write

# numba's finalizers complain when FFCV's compiled loaders are collected
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def drawn(count: int, pictures: int, width: int = 6) -> Some:
    rng = np.random.default_rng(count)
    keys = [b"k%d" % (number % 10 ** (width - 1)) for number in range(count)]
    rows, vote = rng.integers(0, pictures, (count, 3)).astype(np.int32), rng.random(count)
    return Some(rows, vote, rng.integers(0, 9, count), np.array(keys, f"S{width}"))


def samples_of(images, some: Some) -> list[dict]:
    """The same triplets, each with its own pictures."""
    return [
        dict(zip(SIDES, (images[i] for i in row)))
        | {"vote": vote, "votes": votes, "luma": (row / 2).astype(np.float32), "key": key}
        for row, vote, votes, key in zip(*some)
    ]


def shards(folder, images, each: int) -> list:
    """Shards of `each` pictures; picture i has luma i / 2."""
    paths = []
    for start in range(0, len(images), each):
        paths.append(folder / f"{start}.beton")
        with writing(paths[-1], pictures_schema(), each, page_size=PAGE) as writer:
            for number, image in enumerate(images[start : start + each], start):
                writer.add({"image": image, "luma": number / 2, "number": number})
    return paths


def build(folder, images, some: Some, each: int = 3) -> Beton:
    out = folder / "triplets.beton"

    def take(part: slice) -> Some:
        return Some(*(column[part] for column in some))

    write_triplets(shards(folder, images, each), out, len(some.rows), some.key.dtype.itemsize, take)
    return Beton(out)


@settings(max_examples=25)
@given(
    count=st.integers(1, 400), pictures=st.integers(1, 9), each=st.integers(1, 9), width=st.integers(2, 3000)
)
def test_it_is_what_the_plain_writer_stores(tmp_path_factory, count, pictures, each, width):
    """Every column of every sample, of many pages and pieces; no value crosses a page border."""
    folder = tmp_path_factory.mktemp("t")
    images, some = [picture(i, 24 + i, 32) for i in range(pictures)], drawn(count, pictures, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplets, "_CHUNK", 7)
        beton = build(folder, images, some, each)
    plain = write(folder / "plain.beton", samples_of(images, some), triplets_schema(), page_size=PAGE)
    assert beton.kind == "triplets" and beton.checksummed and len(beton) == count
    everything = np.arange(count)
    ours, theirs = beton.rows(everything), plain.rows(everything)
    assert (ours.arrays("luma") == theirs.arrays("luma")).all()
    assert (ours.checksums(SIDES) == theirs.checksums(SIDES)).all()
    for name in ("vote", "votes"):
        assert (ours.records[name] == theirs.records[name]).all()
    for side in SIDES:
        assert (ours.sizes(side) == theirs.sizes(side)).all()
    for i in range(0, count, 17):
        assert beton.text("key", i) == plain.text("key", i)
        assert [beton.jpeg(i, side).tobytes() for side in SIDES] == [
            plain.jpeg(i, side).tobytes() for side in SIDES
        ]
    first, last = (
        beton.allocations["ptr"] // PAGE,
        (beton.allocations["ptr"] + beton.allocations["size"] - 1) // PAGE,
    )
    assert (first == last).all()
    assert len(np.unique(np.concatenate([ours.spans(side)[0] for side in SIDES]))) == len(
        np.unique(some.rows)
    )


def test_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match="no samples to write"):
        build(tmp_path, [picture(0)], drawn(0, 1))
    assert not (tmp_path / "triplets.beton").exists()


@pytest.mark.slow
def test_stock_ffcv_reads_it(tmp_path):
    images, some = [picture(i) for i in range(4)], drawn(40, 4)
    got = stock_loader(build(tmp_path, images, some).path, list(SIDES), process_cache=True)
    for side, column in zip(SIDES, some.rows.T):
        expected = np.stack([simplejpeg.decode_jpeg(images[i].data, fastdct=True) for i in column])
        assert np.abs(got[side].astype(int) - expected).max() <= 3  # FFCV decodes with the fast DCT
    assert (got["votes"][:, 0] == some.votes).all() and (got["vote"][:, 0] == some.vote).all()
    assert (got["luma"] == some.rows.astype(np.float32) / 2).all()
    for row, key in zip(got["key"], some.key):
        assert row[: len(key)].tobytes() == key


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ffcv", "dali"])
def test_engines_deliver_it_as_a_file_that_shares_nothing(tmp_path, engine):
    """The same batches, also of a share of the samples, in the middle of a pass, and started again there."""
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        from pipeline.dali_loader import DALILoader as Loader
    else:
        from pipeline.ffcv_loader import FFCVLoader as Loader
    images, some = [picture(i, 40 + 8 * i, 64) for i in range(5)], drawn(40, 5)
    plain = write(tmp_path / "plain.beton", samples_of(images, some), triplets_schema())
    shared = build(tmp_path, images, some)
    options = dict(batch_size=8, image_size=24, augment=AUGMENTS["paper"], seed=0, dtype=torch.uint8)
    options |= {"device": "cpu"} if engine == "dali" else {}
    for more in (
        {},
        {"order": Order(subset=Subset(20, 1))},
        {"order": Order(kind="block", block=4)},
        {"consumed": 16},
    ):
        with Loader(plain, **options, **more) as theirs, Loader(shared, **options, **more) as ours:
            for a, b, _ in zip(theirs, ours, range(6)):
                assert a.valid.all() and torch.equal(a.index, b.index) and torch.equal(a.vote, b.vote)
                assert all(torch.equal(getattr(a, side), getattr(b, side)) for side in SIDES)
