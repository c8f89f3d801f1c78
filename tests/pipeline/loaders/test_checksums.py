"""Damage that is done to a finished file, whenever it is done, and the checksums that tell."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import simplejpeg
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import AUGMENTS
from pipeline.beton import checksum
from pipeline.dali_loader import DALILoader
from pipeline.ffcv_loader import FFCVLoader
from pipeline.order import Order
from pipeline.screen import Screen
from pipeline.stream import Source
from tests.kits.pipeline import overwrite, pairs_file, picture, pil, triplets_file

ENGINES = {"ffcv": FFCVLoader, "dali": DALILoader}
engines = pytest.mark.parametrize("engine", ENGINES)
CHANGED = "its bytes are not those that were written (checksum)"


def loader(engine, file, **options):
    device = {"device": "cpu"} if engine == "dali" else {}
    return ENGINES[engine](file, image_size=24, augment=AUGMENTS["paper"], seed=5, **device, **options)


@pytest.mark.slow
@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 100_000), st.integers(0, 40))
def test_the_compiled_function_is_the_packages(data, size, before):
    """Every length has a way of its own within XXH3: up to 16, 128, 240 bytes, longer ones in stripes."""
    checksum.load()
    for whole in (data, np.random.default_rng(size).bytes(size)):
        stored = np.frombuffer(b"x" * before + whole + b"y", np.uint8)  # not aligned, with neighbours
        at, one = np.full(3, before), np.array([len(whole)] * 3)
        expected = np.full(3, xxhash.xxh3_64_intdigest(whole), np.uint64).view(np.int64) ^ np.array(
            [0, 1, -(2**63)]
        )
        out = np.empty(3, np.bool_)
        checksum.matching(stored, at, one, expected, out)
        assert out.tolist() == [True, False, False]


@pytest.mark.parametrize("missing", ["xxhash._xxhash", "its function"])
def test_without_xxhash_only_files_with_checksums_are_refused(tmp_path, monkeypatch, missing):
    new, old = pairs_file(tmp_path / "new.beton", 6), pairs_file(tmp_path / "old.beton", 6, checksums=False)
    checksum.load.cache_clear()
    if missing == "its function":
        monkeypatch.setattr(checksum, "_EXPORTED", ("XXH4",))
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match="xxhash (is not installed|exports no XXH3_64bits)"):
        loader("ffcv", new, batch_size=3)
    for engine in ENGINES:
        with loader(engine, old, batch_size=3) as stream:
            assert next(iter(stream)).valid.all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return pairs_file(tmp_path_factory.mktemp("whole") / "p.beton", 7)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(whole, data):
    """At any place in any picture; then it is put back, and the picture is sound again."""
    index = data.draw(st.integers(0, len(whole) - 1))
    good = whole.jpeg(index).tobytes()
    at, change = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    for bad in (good[:at] + bytes([good[at] ^ change]) + good[at + 1 :], good):
        overwrite(whole, index, bad)
        expected = [n != index or bad == good for n in range(len(whole))]
        (batch,) = FFCVLoader.one_pass(whole, batch_size=7, image_size=8)
        assert batch.valid.tolist() == expected
        source = Source(whole, AUGMENTS["none"], 0, Order(kind="file"))
        screen, plan = Screen(source, 1), source.plan(np.arange(7))
        *_, readable = screen.begin(plan)()
        screen.close()
        assert readable.tolist() == [expected] and plan.intact[:, 0].tolist() == expected


@engines
@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_damage_after_the_first_visit_is_found(tmp_path, engine, kind, caplog):
    """A picture is seen whole, damaged while the loader runs, and masked from then on."""
    file = (pairs_file if kind == "pairs" else triplets_file)(tmp_path / "f.beton", 12)
    name = "image" if kind == "pairs" else "right"
    seen = []
    with (
        caplog.at_level(logging.WARNING, "pipeline"),
        loader(engine, file, batch_size=4, workers=2) as stream,
    ):
        for number, batch in zip(range(60), stream):  # twenty epochs
            seen += zip(batch.index.tolist(), batch.valid.tolist())
            if number == 8:  # three epochs; the batches under way were read before, or after
                good = file.jpeg(5, name).tobytes()
                overwrite(file, 5, good[:-200] + bytes([good[-200] ^ 4]) + good[-199:], name)
    before, after = seen[:36], seen[120:]  # FFCV's engine is 16 batches ahead here, DALI's fewer
    assert all(valid for _, valid in before)
    assert {index for index, valid in after if not valid} == {5} and (5, True) not in after
    assert sum(index == 5 for index, _ in after) == 10  # at every visit
    assert [r.getMessage() for r in caplog.records] == [
        f"{file.path}: sample 5 (key {file.text('key', 5)}): {CHANGED}; replaced and masked"
    ]


def with_another_table(data: bytes) -> bytes:
    """The same JPEG with other quantisation steps: it decodes without complaint to other pixels."""
    at = data.index(b"\xff\xdb") + 5
    return data[:at] + bytes([*range(60, 76)]) + data[at + 16 :]


@engines
def test_damage_that_decodes_without_complaint_is_found(tmp_path, engine, caplog):
    """Another table, or another whole JPEG of the same size in its place."""
    old = pairs_file(tmp_path / "old.beton", 60, checksums=False)
    height, width = pil(old, 14).size[::-1]
    other = simplejpeg.encode_jpeg(picture(99, height, width), 40)
    broken = {7: with_another_table(old.jpeg(7).tobytes()), 14: other}
    assert len(other) < len(old.jpeg(14))
    for index, data in broken.items():
        overwrite(old, index, data)
    options = dict(batch_size=10, workers=2)
    with loader(engine, old, **options) as stream:  # libjpeg has nothing to say of them
        assert all(batch.valid.all() for _, batch in zip(range(6), stream))
    new = pairs_file(tmp_path / "new.beton", 60, broken=broken)
    with caplog.at_level(logging.WARNING, "pipeline"), loader(engine, new, **options) as stream:
        got = [batch for _, batch in zip(range(12), stream)]
    index, valid = (torch.cat([getattr(b, name) for b in got]) for name in ("index", "valid"))
    assert sorted(index[~valid].tolist()) == [7, 7, 14, 14]
    assert all(CHANGED in r.getMessage() for r in caplog.records)


@engines
def test_a_wrong_size_in_the_table_is_found(tmp_path, engine, caplog):
    """The bytes have their checksum, but the draws were made for another picture."""
    file = pairs_file(tmp_path / "p.beton", 6)
    raw, records = bytearray(file.path.read_bytes()), file.metadata
    at = raw.index(records.tobytes())
    records["image"]["height"][2] -= 1
    raw[at : at + records.nbytes] = records.tobytes()
    file.path.write_bytes(raw)
    with caplog.at_level(logging.WARNING, "pipeline"), loader(engine, file.path, batch_size=6) as stream:
        batch = next(iter(stream))
    assert batch.index[~batch.valid].tolist() == [2]
    (record,) = caplog.records
    assert "sample 2 (key key-2): does not decode; replaced and masked" in record.getMessage()
