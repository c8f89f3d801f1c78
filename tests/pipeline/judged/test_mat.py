"""MATLAB's files: scipy writes them, and reads the whole ones as the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.io import loadmat, savemat

from pipeline.formats.judged import mat

DTYPES = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")
PEOPLE = np.arange(12.0).reshape(2, 6)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.booleans())
def test_arrays_are_those_of_scipy(tmp_path_factory, data, dtype, compressed):
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    shape = data.draw(array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4))
    array = data.draw(arrays(np.dtype(dtype), shape))
    savemat(path, {"first": array, "text": "abc", "a_second_name": 7}, do_compression=compressed)
    found, expected = mat.read(path), loadmat(path)
    assert list(found) == ["first", "text", "a_second_name"] and found["text"] is None
    for name in ("first", "a_second_name"):
        np.testing.assert_array_equal(found[name], expected[name].astype(np.float64))
        assert found[name].dtype == np.float64


@pytest.mark.parametrize("compressed", [False, True])
def test_structs(tmp_path, compressed):
    inner = {"pairwisedistances": PEOPLE, "n": 2, "label": "abc", "cells": np.array([1, "a"], object)}
    savemat(
        tmp_path / "a.mat", {"BEHAVIOR": {"set1": inner, "set2": {}}, "x": [1j]}, do_compression=compressed
    )
    found = mat.read(tmp_path / "a.mat")
    assert found["x"] is None and list(found["BEHAVIOR"]) == ["set1", "set2"]
    assert found["BEHAVIOR"]["set1"]["pairwisedistances"].tolist() == PEOPLE.tolist()
    assert found["BEHAVIOR"]["set1"]["n"].tolist() == [[2]]
    assert found["BEHAVIOR"]["set1"]["label"] is found["BEHAVIOR"]["set1"]["cells"] is None


def test_an_array_of_structs_is_none(tmp_path):
    several = np.array([(1.0,), (2.0,)], [("x", "f8")])
    savemat(tmp_path / "a.mat", {"several": several})
    assert mat.read(tmp_path / "a.mat") == {"several": None}


def test_the_other_byte_order(tmp_path):
    """Built by hand, since scipy writes its machine's order only; scipy reads it, too."""

    def element(kind, data):
        return np.array([kind, len(data)], ">u4").tobytes() + data + bytes(-len(data) % 8)

    parts = element(6, np.array([6, 0], ">u4").tobytes()) + element(5, np.array([1, 2], ">i4").tobytes())
    parts += element(1, b"x") + element(9, np.array([1.5, -2], ">f8").tobytes())
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI" + element(14, parts))
    assert mat.read(path)["x"].tolist() == loadmat(path)["x"].tolist() == [[1.5, -2]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(512), "a MATLAB file of version 7.3"),
        (b"\x89HDF\r\n\x1a\n" + bytes(512), "a MATLAB file of version 7.3 (HDF5); save it again with -v7"),
        (b"", "not a MATLAB file of version 5 to 7"),
        (b"\x80\x04N." * 100, "not a MATLAB file of version 5 to 7"),
        (b"a,b,c\n1,2,3\n" * 20, "not a MATLAB file of version 5 to 7"),
        (bytes(126) + b"IM" + b"\1", "a damaged MATLAB file (cut short)"),
    ],
)  # fmt: skip
def test_other_files(tmp_path, data, message):
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError) as caught:
        mat.read(tmp_path / "a.mat")
    assert str(caught.value).startswith(f"{tmp_path / 'a.mat'}: {message}")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="none.mat: no such file"):
        mat.read(tmp_path / "none.mat")


def damaged(path, compressed):
    """The file, cut short at each byte and with each byte changed in three ways."""
    savemat(path, {"sim": PEOPLE, "BEHAVIOR": {"set1": {"x": [[1, 2]]}}}, do_compression=compressed)
    whole = path.read_bytes()
    yield from (whole[:size] for size in range(129, len(whole)))
    for place in range(126, len(whole)):
        yield from (
            whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :] for flip in (1, 16, 255)
        )


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_is_a_value_error_or_another_value(tmp_path, compressed):
    path, seen = tmp_path / "a.mat", 0
    for data in list(damaged(path, compressed)):
        path.write_bytes(data)
        try:
            found = mat.read(path)
        except ValueError as error:
            seen += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            whole = list(found) == ["sim", "BEHAVIOR"] and np.array_equal(found["sim"], PEOPLE)
            cut = list(found) in ([], ["sim"])
            assert not compressed or whole or cut  # a changed value in it would have another sum
    assert seen > 300


def test_structs_without_end(tmp_path):
    deep = {"x": 1}
    for _ in range(20):
        deep = {"x": deep}
    savemat(tmp_path / "a.mat", deep)
    with pytest.raises(ValueError, match="type 14 at depth 17 where an array is expected"):
        mat.read(tmp_path / "a.mat")
