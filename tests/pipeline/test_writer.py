"""The writer's files, read by stock FFCV and by our own reader; joining; faults."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import simplejpeg
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.beton.fields import ALLOCATION, HEADER, Beton, pairs_schema, triplets_schema
from pipeline.beton.writer import Jpeg, checksum, join, writing

# numba's finalizers complain when FFCV's compiled loaders are collected
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PAGE = 1 << 16  # small pages, so that a few samples need several


def picture(seed: int, height: int = 24, width: int = 32) -> Jpeg:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Jpeg(simplejpeg.encode_jpeg(pixels, 90), height, width)


def pair(seed: int, image: Jpeg | None = None) -> dict:
    tokens = np.zeros((2, 77), np.int32)
    tokens[:, :3] = 49406, seed, 49407
    return {"image": image or picture(seed), "tokens": tokens, "luma": seed / 2, "key": f"é{seed}".encode()}


def write(path, samples, schema=None, **options):
    with writing(path, schema or pairs_schema(2), len(samples) + 3, **options) as writer:
        for sample in samples:
            writer.add(sample)
    return Beton(path)


def check_pairs(beton: Beton, samples: list[dict]) -> None:
    assert len(beton) == len(samples)
    everything = np.arange(len(samples))
    assert (beton.rows(everything).arrays("tokens") == [s["tokens"] for s in samples]).all()
    assert beton.metadata["luma"].tolist() == [s["luma"] for s in samples]
    assert beton.rows(everything).sizes("image").tolist() == [
        [s["image"].height, s["image"].width] for s in samples
    ]
    sums = beton.metadata["image_xxh3"].view(np.uint64).tolist()
    assert sums == [xxhash.xxh3_64_intdigest(s["image"].data) for s in samples]
    for i, sample in enumerate(samples):
        assert beton.jpeg(i).tobytes() == sample["image"].data
        assert beton.text("key", i) == sample["key"].decode()
    check_pages(beton)


def check_pages(beton: Beton) -> None:
    """No value crosses a page border, and a sample lies in one page."""
    table, page = beton.allocations, beton.page_size
    assert (table["ptr"] // page == (table["ptr"] + table["size"] - 1) // page).all()
    pages = (table["ptr"] // page).reshape(len(beton), -1)
    assert (pages == pages[:, :1]).all()
    assert (table["sample_id"].reshape(len(beton), -1) == np.arange(len(beton))[:, None]).all()


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 150_000), min_size=1, max_size=12))
def test_any_sizes_come_back_and_pages_grow(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("writer") / "a.beton"
    samples = [pair(i, Jpeg(bytes([i + 1]) * size, 3, 5)) for i, size in enumerate(sizes)]
    beton = write(path, samples, page_size=PAGE)
    check_pairs(beton, samples)
    assert beton.page_size & (beton.page_size - 1) == 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_join_equals_one_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("join")
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    samples, shards, keep = [], [], []
    for number, count in enumerate(counts):
        sizes = data.draw(st.lists(st.integers(1, 150_000), min_size=count, max_size=count))
        here = [pair(len(samples) + i, Jpeg(bytes([i + 1]) * s, 3, 5)) for i, s in enumerate(sizes)]
        shards.append(write(folder / f"{number}.beton", here, page_size=PAGE).path)
        keep.append(np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))))
        samples += here
    join(shards, folder / "all.beton")
    check_pairs(Beton(folder / "all.beton"), samples)
    chosen = [s for s, k in zip(samples, np.concatenate(keep)) if k]
    if chosen:
        join(shards, folder / "some.beton", keep)
        check_pairs(Beton(folder / "some.beton"), chosen)


def stock_loader(path, images, process_cache=False):
    """Stock FFCV's Loader with stock decoders: a dict of arrays for the whole file."""
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    loader = Loader(
        str(path), batch_size=5, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
        os_cache=not process_cache, pipelines={name: [SimpleRGBImageDecoder()] for name in images},
    )  # fmt: skip
    names = list(loader.reader.handlers)
    columns: dict = {name: [] for name in names}
    with contextlib.closing(iter(loader)) as batches:
        for batch in batches:
            for name, value in zip(loader.pipeline_specs, batch):
                columns[name].append(np.asarray(value).copy())
    return {name: np.concatenate(parts) for name, parts in columns.items()}


@pytest.mark.slow
def test_stock_ffcv_reads_a_joined_file(tmp_path):
    """Through FFCV's own cache of pages: a value that crossed a page border would come out wrong."""
    samples = [pair(i, picture(i, 64, 80)) for i in range(23)]
    write(tmp_path / "a.beton", samples[:9], page_size=PAGE)
    write(tmp_path / "b.beton", samples[9:], page_size=PAGE)
    join([tmp_path / "a.beton", tmp_path / "b.beton"], tmp_path / "all.beton")
    got = stock_loader(tmp_path / "all.beton", ["image"], process_cache=True)
    assert (got["tokens"] == [s["tokens"] for s in samples]).all()
    assert (got["luma"][:, 0] == [s["luma"] for s in samples]).all()
    assert got["image_xxh3"][:, 0].tolist() == [checksum(s["image"].data) for s in samples]
    for row, sample in zip(got["key"], samples):
        assert row[: len(sample["key"])].tobytes() == sample["key"]
    for row, sample in zip(got["image"], samples):
        expected = simplejpeg.decode_jpeg(sample["image"].data, fastdct=True)
        assert np.abs(row.astype(int) - expected).max() <= 3  # FFCV decodes with the fast DCT


@pytest.mark.slow
def test_header_equals_stock_writers(tmp_path):
    """Field descriptors byte for byte as FFCV's own DatasetWriter writes them."""
    from ffcv.fields import BytesField, FloatField, IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    class One:
        def __len__(self):
            return 1

        def __getitem__(self, _):
            image = simplejpeg.decode_jpeg(picture(0).data)
            key = np.frombuffer(b"key", np.uint8)
            return image, image, image, 0.5, 3, np.zeros(3, np.float32), key, *[checksum(picture(0).data)] * 3

    fields = {
        "ref": RGBImageField(write_mode="jpg"), "left": RGBImageField(write_mode="jpg"),
        "right": RGBImageField(write_mode="jpg"), "vote": FloatField(), "votes": IntField(),
        "luma": NDArrayField(np.dtype("<f4"), (3,)), "key": BytesField(),
        "ref_xxh3": IntField(), "left_xxh3": IntField(), "right_xxh3": IntField(),
    }  # fmt: skip
    DatasetWriter(str(tmp_path / "stock.beton"), fields, num_workers=1).from_indexed_dataset(One())
    stock = Beton(tmp_path / "stock.beton")
    sample = dict.fromkeys(("ref", "left", "right"), picture(0))
    sample |= {"vote": 0.5, "votes": 3, "luma": np.zeros(3, np.float32), "key": b"key"}
    ours = write(tmp_path / "ours.beton", [sample], triplets_schema())
    assert ours.dtype == stock.dtype
    # Image fields carry no arguments that the reader uses: FFCV stores none for them either.
    described = slice(HEADER.itemsize, HEADER.itemsize + 10 * 1041)
    assert ours.path.read_bytes()[described] == stock.path.read_bytes()[described]


def test_checksums_cannot_be_forged_or_forgotten(tmp_path):
    beton = write(tmp_path / "a.beton", [pair(0) | {"image_xxh3": 7}, pair(1)])
    assert beton.metadata["image_xxh3"].tolist() == [checksum(picture(i).data) for i in (0, 1)]


def test_a_file_with_checksums_is_not_joined_with_one_without(tmp_path):
    write(tmp_path / "a.beton", [pair(0)])
    old = write(tmp_path / "b.beton", [pair(1)], pairs_schema(2, checksums=False))
    assert (
        old.kind == "pairs" and not old.checksummed and old.dtype.names == ("image", "tokens", "luma", "key")
    )
    with pytest.raises(ValueError, match="columns differ"):
        join([tmp_path / "a.beton", old.path], tmp_path / "all.beton")


def test_nothing_is_left_when_the_block_fails(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        write(tmp_path / "a.beton", [])
    with pytest.raises(KeyboardInterrupt):
        with writing(tmp_path / "a.beton", pairs_schema(2), 5) as writer:
            writer.add(pair(0))
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_failed_rewrite_keeps_the_old_file(tmp_path):
    old = write(tmp_path / "a.beton", [pair(0)]).path.read_bytes()
    with pytest.raises(ValueError, match="empty value"):
        write(tmp_path / "a.beton", [pair(1) | {"key": b""}])
    assert (tmp_path / "a.beton").read_bytes() == old
    assert os.listdir(tmp_path) == ["a.beton"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": np.zeros((2, 77), np.int64)}, "tokens: int64"),
        ({"tokens": np.zeros((1, 77), np.int32)}, r"tokens: int32 \(1, 77\)"),
        ({"image": Jpeg(b"x", 70_000, 3)}, "16-bit"),
    ],
)
def test_values_that_the_schema_cannot_hold(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.beton", [pair(0) | change])


def test_joining_refuses_other_columns_and_unfinished_shards(tmp_path):
    write(tmp_path / "a.beton", [pair(0)])
    one = pair(1)
    write(tmp_path / "b.beton", [one | {"tokens": one["tokens"][:1]}], pairs_schema(1))
    with pytest.raises(ValueError, match="columns differ"):
        join([tmp_path / "a.beton", tmp_path / "b.beton"], tmp_path / "all.beton")
    raw = bytearray((tmp_path / "a.beton").read_bytes())
    raw[16:24] = bytes(8)
    (tmp_path / "c.beton").write_bytes(raw)
    with pytest.raises(ValueError, match="unfinished"):
        join([tmp_path / "a.beton", tmp_path / "c.beton"], tmp_path / "all.beton")
    assert sorted(os.listdir(tmp_path)) == ["a.beton", "b.beton", "c.beton"]


@pytest.mark.slow
def test_pointers_past_32_bits(tmp_path):
    """Two sparse 3 GiB shards: the joined file's pointers pass 2^32, and all values come back."""
    far = 3 << 30
    paths = []
    for name, seed in (("a", 1), ("b", 2)):
        path = write(tmp_path / f"{name}.beton", [pair(seed), pair(seed + 10)]).path
        stretch(path, far)
        paths.append(path)
    join(paths, tmp_path / "all.beton")
    joined = Beton(tmp_path / "all.beton")
    assert int(joined.allocations["ptr"].max()) > 1 << 32
    assert (tmp_path / "all.beton").stat().st_size > 1 << 32
    check_pairs(joined, [pair(1), pair(11), pair(2), pair(12)])
    got = stock_loader(joined.path, ["image"])
    assert (got["tokens"][:, 0, 1] == [1, 11, 2, 12]).all()


def stretch(path, by: int) -> None:
    """Move the last sample of a file and the allocation table `by` bytes on, leaving a hole."""
    beton, raw = Beton(path), np.fromfile(path, np.uint8)
    table = beton.allocations
    width = len(table) // len(beton)
    start = int(table["ptr"][-width])
    tail = raw[start : int(table["ptr"][-1] + table["size"][-1])].tobytes()
    record = beton.metadata
    record["image"]["data_ptr"][-1] += by
    record["tokens"][-1] += by
    record["key"]["ptr"][-1] += by
    table["ptr"][-width:] += by
    header = raw[: HEADER.itemsize].view(HEADER).copy()
    header["alloc_table_ptr"] += by
    meta = beton.size - beton.allocations.nbytes  # where the table was
    offset = HEADER.itemsize + len(beton.fields) * 1041
    assert table.dtype == ALLOCATION
    with open(path, "r+b") as file:
        file.write(header.tobytes())
        file.seek(offset)
        file.write(record.tobytes())
        file.seek(start + by)
        file.write(tail)
        file.seek(meta + by)
        file.write(table.tobytes())
