"""Numbers in MATLAB's files of versions 5 to 7 (what `save` writes unless told -v7.3): arrays and structs.

Why not scipy's reader: at some wrong bytes it ends the process without a word (scipy 1.17.1, loadmat), and
only eval/ has scipy.  The tests compare the two.

Not here: text, cells, complex numbers, sparse arrays and arrays of structs, which read as None; version 7.3,
which is HDF5.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Value = np.ndarray | dict[str, "Value"] | None

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _NUMBERS = 2, range(6, 16)  # classes of arrays: double, single, and the eight of whole numbers
_COMPLEX = 0x800
_DEEPEST = 16  # structs in structs
_MOST = 1 << 30  # bytes of an array, unpacked


def read(path: Path) -> dict[str, Value]:
    """The variables of a file by their names: arrays are float64, structs are dicts of their fields.

    Raises ValueError that names the file: it is of another kind or version, or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    data = path.read_bytes()
    if data.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise ValueError(f"{path}: a MATLAB file of version 7.3 (HDF5); save it again with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError(f"{path}: not a MATLAB file of version 5 to 7; save it again with -v7")
    try:
        found = [_variable(kind, part, order) for kind, part in _elements(memoryview(data)[128:], order)]
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{path}: a damaged MATLAB file ({error})") from None
    return {name: value for name, value in found if name}


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of what follows one another in `data`."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("cut short")
        kind, size = (int(number) for number in np.frombuffer(data[at : at + 8], f"{order}u4"))
        if kind >> 16:  # up to 4 bytes stand within the head itself
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            after = at + 8
        else:
            start = at + 8
            after = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > min(after, len(data)):
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        at = after


def _variable(kind: int, data: memoryview, order: str) -> tuple[str, Value]:
    if kind != _COMPRESSED:
        return _matrix(kind, data, order, 0)
    unpacker = zlib.decompressobj()
    whole = memoryview(unpacker.decompress(data, _MOST))
    if not unpacker.eof:
        raise ValueError("cut short, or too large")
    return _matrix(*_next(_elements(whole, order)), order, 0)


def _matrix(kind: int, data: memoryview, order: str, depth: int) -> tuple[str, Value]:
    if kind != _MATRIX or depth > _DEEPEST:
        raise ValueError(f"type {kind} at depth {depth} where an array is expected")
    if not len(data):  # a field that was never set
        return "", None
    parts = _elements(data, order)
    flags, shape = _integers(_next(parts), order), _integers(_next(parts), order)
    name = bytes(_next(parts)[1]).decode("latin-1")
    if not flags or len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"{name} has flags {flags} and shape {shape}")
    what = flags[0] & 0xFF
    if what in _NUMBERS and not flags[0] & _COMPLEX:
        return name, _array(name, _next(parts), shape, order)
    if what == _STRUCT and math.prod(shape) == 1:
        (width,) = _integers(_next(parts), order)
        names = bytes(_next(parts)[1])
        if not 0 < width <= 64:
            raise ValueError(f"{name} has names of {width} characters")
        fields = [
            names[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), width)
        ]
        return name, {field: _matrix(*_next(parts), order, depth + 1)[1] for field in fields}
    return name, None


def _array(name: str, part: tuple[int, memoryview], shape: list[int], order: str) -> np.ndarray:
    kind, data = part
    if kind not in _TYPES or len(data) != math.prod(shape) * np.dtype(_TYPES[kind]).itemsize:
        raise ValueError(f"{name} {shape} has {len(data)} bytes of type {kind}")
    return np.frombuffer(data, order + _TYPES[kind]).astype(np.float64).reshape(shape, order="F")


def _integers(part: tuple[int, memoryview], order: str) -> list[int]:
    kind, data = part
    if kind not in (5, 6) or len(data) % 4:
        raise ValueError(f"{len(data)} bytes of type {kind} where whole numbers are expected")
    return np.frombuffer(data, order + _TYPES[kind]).tolist()


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(parts, None)
    if found is None:
        raise ValueError("cut short")
    return found
