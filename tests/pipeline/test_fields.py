"""Reading a .beton: schema round trip, and files that are not whole."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.build import RunSettings, build
from dataprep.shard import SampleSettings
from dataprep.sources.pairs import open_pairs
from pipeline.beton.fields import ARRAY, Beton, Field, pairs_schema, triplets_schema
from tests.kits import dataprep as kit


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    table = kit.write_csv(folder / "in/c.csv", kit.folder_of_images(folder / "in", 5))
    build(open_pairs(table), folder / "p.beton", SampleSettings(), RunSettings(workers=1))
    return Beton(folder / "p.beton")


@given(
    st.sampled_from(["<f4", "<i4", "<u1", "<f8", "<i8"]),
    st.lists(st.integers(1, 99), min_size=1, max_size=5).map(tuple),
)
def test_array_fields_come_back_from_their_arguments(dtype, shape):
    field = Field(ARRAY, np.dtype(dtype), shape)
    assert Field.parse(ARRAY, field.arguments()) == field


def test_schema_and_values(beton):
    assert beton.fields == pairs_schema(1) and beton.kind == "pairs" and set(triplets_schema()) > {"vote"}
    assert beton.rows(np.array([4, 0])).arrays("tokens").shape == (2, 1, 77)
    assert beton.rows(np.array([0])).sizes("image").tolist() == [[40, 56]]
    again = pickle.loads(pickle.dumps(beton))
    assert again.path == beton.path and len(again) == 5
    pointers, sizes = beton.rows(np.array([[0, 1], [2, 3]])).spans("image")
    assert pointers.shape == (2, 2) and sizes[0, 0] == len(kit.jpeg(0))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_files_cut_short_are_refused(beton, tmp_path, share):
    data = beton.path.read_bytes()
    (tmp_path / "cut.beton").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="cut.beton: .*(short|truncated|header)"):
        Beton(tmp_path / "cut.beton")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.beton").write_bytes(b"\x07" * 5000)
    with pytest.raises(ValueError, match="not an FFCV file"):
        Beton(tmp_path / "x.beton")
    with pytest.raises(ValueError, match="no such file"):
        Beton(tmp_path / "none.beton")


@pytest.mark.parametrize("told", [b"[", b"7", b'[["","|O"]]', b'[["x","<i4"]]', b'[["","<zz"]]', b"[[]]"])
def test_a_damaged_element_type_is_named(beton, tmp_path, told):
    whole = b'[["", "<i4"]]'
    assert whole in beton.path.read_bytes()
    (tmp_path / "x.beton").write_bytes(beton.path.read_bytes().replace(whole, told.ljust(len(whole))))
    with pytest.raises(ValueError, match="x.beton: .*array"):
        Beton(tmp_path / "x.beton")


def test_values_of_another_length_are_refused(beton, tmp_path):
    """Also where the lengths make up for each other: rows would hold their neighbours' tokens."""
    table = beton.allocations
    table["size"][[1, 4]] += np.array([-8, 8]).astype(np.uint64)  # tokens of samples 0 and 1
    (tmp_path / "x.beton").write_bytes(beton.path.read_bytes()[: -table.nbytes] + table.tobytes())
    with pytest.raises(ValueError, match="x.beton: a value of tokens does not have its 308 bytes"):
        Beton(tmp_path / "x.beton").rows(np.arange(5)).arrays("tokens")


def test_dali_decodes_the_same_bytes(beton):
    fn = pytest.importorskip("nvidia.dali.fn")
    import simplejpeg
    from nvidia.dali import pipeline_def

    data = [beton.jpeg(i) for i in range(5)]

    @pipeline_def(batch_size=5, num_threads=1, device_id=None)
    def decode():
        return fn.decoders.image(fn.external_source(lambda: data), device="cpu")

    pipe = decode()
    pipe.build()
    (images,) = pipe.run()
    for i in range(5):
        ours = simplejpeg.decode_jpeg(data[i].tobytes())
        assert np.abs(np.asarray(images[i]).astype(int) - ours).max() <= 4


DAMAGED = [b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"captions": null}', b'{"source": "x"}']
DAMAGED += [
    b'{"rejected": {"no image": [1]}}',
    b'{"captions": {"lengths": 3}}',
    b'{"captions": {"lengths": [""]}}',
]
DAMAGED += [b'{"captions": {"mean_tokens": {}}}']


@pytest.mark.parametrize("held", DAMAGED)
def test_a_damaged_json_beside_is_named(beton, tmp_path, held):
    (tmp_path / "x.beton").write_bytes(beton.path.read_bytes())
    assert Beton(tmp_path / "x.beton").info == {}
    (tmp_path / "x.json").write_bytes(held)
    with pytest.raises(ValueError, match="x.json: (damaged|not what the build writes)"):
        assert Beton(tmp_path / "x.beton").info
