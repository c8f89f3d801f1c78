"""Reads a table of numbers: .npy as a memory map, or text in rows (csv, tsv, blanks).

Not here: what the numbers mean (`spaces.py`).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from pipeline.formats import utf8

_SAVE = "save the array that is meant with np.save"
_OTHERS = {
    b"MATLAB": f"a MATLAB file: scipy.io.loadmat (h5py from version 7.3 on) reads it, {_SAVE}",
    b"\x89HDF": f"HDF5: h5py reads it, {_SAVE}",
    b"PK\x03\x04": f"a zip (.npz, PyTorch's .pt, a spreadsheet): {_SAVE}",
    b"\x80": f"a pickle, which could run any program: {_SAVE}",
}


def read_numbers(path: Path) -> np.ndarray:
    """The array of a file, read-only: .npy as it is, a memory map; text as float64 (rows, columns).

    Raises ValueError that says what the file is instead, or which row of a text is wrong.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(64)
    array = _npy(path) if start.startswith(b"\x93NUMPY") else _text(path, start)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: an array of {array.dtype}, real numbers are expected")
    if not array.size:
        raise ValueError(f"{path}: no numbers in it")
    return array


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except ValueError as error:  # cut short, or Python objects
        raise ValueError(f"{path}: {error}") from None


def _text(path: Path, start: bytes) -> np.ndarray:
    for first, instead in _OTHERS.items():
        if start.startswith(first):
            raise ValueError(f"{path}: neither .npy nor text but {instead}")
    utf8.check(start, str(path))
    try:
        with warnings.catch_warnings(action="ignore"), open(path, encoding="utf-8-sig") as file:
            line = next((line for line in file if line.strip()), "")
            delimiter = next((mark for mark in ";\t," if mark in line.strip()), None)
            file.seek(0)
            array = np.loadtxt(file, ndmin=2, delimiter=delimiter)  # it warns of a file without numbers
    except ValueError as error:
        what = str(error).partition(";")[0]
        hint = "rows of numbers are expected, without a heading, names or empty cells"
        raise ValueError(f"{path}: {what} (rows counted from 0); {hint}") from None
    if len(array) > 2 and array.shape[1] > 1 and _counts_rows(array[:, 0]):
        raise ValueError(f"{path}: its first column counts the rows; leave it out (pandas: index=False)")
    return array


def _counts_rows(column: np.ndarray) -> bool:
    return any(np.array_equal(column, np.arange(first, first + len(column))) for first in (0, 1))
