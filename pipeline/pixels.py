"""The pixel operations of the FFCV engine, compiled once and cached on disk.

`process` takes samples from JPEG bytes to normalised values without Python in between, so
threads run it side by side.  It decodes with FFCV's compiled decoder (`ffcv.libffcv`'s
`imdecode`, called by address), and unlike FFCV it looks at the result.

Resizing is PIL's: antialiased bicubic (a = -0.5), horizontal pass first, rounded and clipped
after each pass.  FFCV's own resize (OpenCV INTER_AREA) becomes bilinear when it enlarges.
Does not read files, draw numbers or know about batches.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types

_imdecode = types.ExternalFunction(
    "perceptual_initialization_imdecode",
    types.int32(types.intp, types.uint64, types.uint32, types.uint32, types.intp, types.uint32,
                types.uint32, types.uint32, types.uint32, types.uint32, types.uint32, types.uint32,
                types.uint32),
)  # fmt: skip


@cache
def load_decoder() -> None:
    """Makes FFCV's decoder known to compiled code; before the first call of `process` or `decode`.

    Loads the shared object alone: importing the package costs seconds and is not needed.
    Raises ValueError when ffcv is not installed.
    """
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec else []
    objects = [p for f in folders for p in sorted(Path(f).glob("_libffcv*.so"))]
    if not objects:
        raise ValueError("ffcv is not installed (its _libffcv was not found): run `make setup`")
    library = ctypes.CDLL(str(objects[0]))
    address = ctypes.cast(library.imdecode, ctypes.c_void_p).value
    llvm.add_symbol("perceptual_initialization_imdecode", address)


@njit(nogil=True, cache=True)
def jpeg_size(data):
    """(height, width) in a JPEG's frame header, or (0, 0) for other bytes, as data (n,) uint8."""
    n = len(data)
    if n < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return 0, 0
    at = 2
    while at + 9 < n and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            height = np.int64(data[at + 5]) << 8 | np.int64(data[at + 6])
            return height, np.int64(data[at + 7]) << 8 | np.int64(data[at + 8])
        at += 2 + (np.int64(data[at + 2]) << 8 | np.int64(data[at + 3]))
    return 0, 0


@njit(nogil=True, cache=True)
def decode(data, height, width, out):
    """Decodes a JPEG of this size to out (>= height * width * 3,) uint8; whether it went well.

    The size is compared first: the decoder would silently fill a smaller rectangle.
    """
    h, w = jpeg_size(data)
    if h != height or w != width:
        return False
    return _imdecode(data.ctypes.data, len(data), height, width, out.ctypes.data,
                     height, width, 0, 0, 1, 1, 0, 0) == 0  # fmt: skip


@njit(nogil=True, cache=True)
def _cubic(x):
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2:
        return ((-0.5 * x + 2.5) * x - 4) * x + 2
    return 0.0


@njit(nogil=True, cache=True)
def filter_taps(size, side):
    """PIL's bicubic weights, `size` pixels → `side`: first (side,), count (side,), weights (side, taps)."""
    scale = size / side
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    first, count = np.empty(side, np.int64), np.empty(side, np.int64)
    weights = np.zeros((side, int(np.ceil(support)) * 2 + 1), np.float32)
    values = np.empty(weights.shape[1])
    for x in range(side):
        centre = (x + 0.5) * scale
        low = max(0, int(centre - support + 0.5))
        high = min(size, int(centre + support + 0.5))
        total = 0.0
        for k in range(high - low):
            values[k] = _cubic((k + low - centre + 0.5) / stretch)
            total += values[k]
        for k in range(high - low):
            weights[x, k] = values[k] / total
        first[x], count[x] = low, high - low
    return first, count, weights


@njit(nogil=True, cache=True, fastmath={"contract", "nnan", "ninf", "nsz"})
def _squeeze_row(pixels, row, first, count, weights, out):
    """Horizontal pass of one row: pixels (3w,) uint8 → out (3S + 1,) float32; row (3w + 1,) is scratch."""
    for i in range(len(pixels)):
        row[i] = np.float32(pixels[i])
    for x in range(len(first)):
        at = first[x] * 3
        r = g = b = spare = np.float32(0)  # four lanes make one vector; the fourth is overwritten next
        for k in range(count[x]):
            weight = weights[x, k]
            r += weight * row[at]
            g += weight * row[at + 1]
            b += weight * row[at + 2]
            spare += weight * row[at + 3]
            at += 3
        out[3 * x] = r
        out[3 * x + 1] = g
        out[3 * x + 2] = b
        out[3 * x + 3] = spare
    for i in range(len(out)):
        out[i] = np.rint(min(max(out[i], np.float32(0)), np.float32(255)))


@njit(nogil=True, cache=True, fastmath={"contract", "nnan", "ninf", "nsz"})
def resize(image, top, left, height, width, out):
    """A box of image (H, W, 3) uint8, resized to out (S, S, 3) uint8."""
    side = out.shape[0]
    first_x, count_x, weights_x = filter_taps(width, side)
    first_y, count_y, weights_y = filter_taps(height, side)
    rows = np.empty((height, 3 * side + 1), np.float32)
    scratch = np.zeros(3 * width + 1, np.float32)
    total = np.empty(3 * side, np.float32)
    flat, lines = image.reshape(image.shape[0], -1), out.reshape(side, -1)
    for y in range(height):
        _squeeze_row(
            flat[top + y, 3 * left : 3 * (left + width)], scratch, first_x, count_x, weights_x, rows[y]
        )
    for y in range(side):
        total[:] = 0
        for k in range(count_y[y]):
            weight, row = weights_y[y, k], rows[first_y[y] + k]
            for i in range(len(total)):
                total[i] += weight * row[i]
        line = lines[y]
        for i in range(len(total)):
            line[i] = np.uint8(np.rint(min(max(total[i], np.float32(0)), np.float32(255))))


@njit(nogil=True, cache=True, fastmath={"contract", "nnan", "ninf", "nsz"})
def recolour(image, m):
    """image (S, S, 3) uint8, in place: each pixel times the 3x4 matrix m."""
    flat = image.reshape(-1)
    zero, top = np.float32(0), np.float32(255)
    for i in range(len(flat) // 3):
        r, g, b = np.float32(flat[3 * i]), np.float32(flat[3 * i + 1]), np.float32(flat[3 * i + 2])
        x = m[0, 0] * r + m[0, 1] * g + m[0, 2] * b + m[0, 3]
        y = m[1, 0] * r + m[1, 1] * g + m[1, 2] * b + m[1, 3]
        z = m[2, 0] * r + m[2, 1] * g + m[2, 2] * b + m[2, 3]
        flat[3 * i] = np.uint8(np.rint(min(max(x, zero), top)))
        flat[3 * i + 1] = np.uint8(np.rint(min(max(y, zero), top)))
        flat[3 * i + 2] = np.uint8(np.rint(min(max(z, zero), top)))


@njit(nogil=True, cache=True)
def _mirrored(i, n):
    """Reflection without repeating the edge (torch's "reflect")."""
    i = abs(i)
    return i if i < n else 2 * (n - 1) - i


@njit(nogil=True, cache=True, fastmath={"contract", "nnan", "ninf", "nsz"})
def blur(image, sigma):
    """image (S, S, 3) uint8, in place: Gaussian of window 2 ceil(3 sigma) + 1, edges reflected."""
    side = image.shape[0]
    radius = min(int(np.ceil(np.float32(3) * sigma)), side - 1)
    if radius == 0:
        return
    weights = np.empty(radius + 1, np.float64)
    for k in range(radius + 1):
        weights[k] = np.exp(-0.5 * (k / sigma) ** 2)
    taps = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    width, pad = 3 * side, 3 * radius
    lines = image.reshape(side, width)
    rows, padded = np.empty((side, width), np.float32), np.empty(width + 2 * pad, np.float32)
    for y in range(side):
        line, row = lines[y], rows[y]
        for i in range(width):
            padded[pad + i] = np.float32(line[i])
        for k in range(1, radius + 1):
            for c in range(3):
                padded[pad - 3 * k + c] = padded[pad + 3 * _mirrored(-k, side) + c]
                padded[pad + 3 * (side - 1 + k) + c] = padded[pad + 3 * _mirrored(side - 1 + k, side) + c]
        for i in range(width):
            row[i] = taps[0] * padded[pad + i]
        for k in range(1, radius + 1):
            tap = taps[k]
            before, after = padded[pad - 3 * k :], padded[pad + 3 * k :]
            for i in range(width):
                row[i] += tap * (before[i] + after[i])
    total = np.empty(width, np.float32)
    for y in range(side):
        middle, line = rows[y], lines[y]
        for i in range(width):
            total[i] = taps[0] * middle[i]
        for k in range(1, radius + 1):
            tap, above, below = taps[k], rows[_mirrored(y - k, side)], rows[_mirrored(y + k, side)]
            for i in range(width):
                total[i] += tap * (above[i] + below[i])
        for i in range(width):
            line[i] = np.uint8(np.rint(min(max(total[i], np.float32(0)), np.float32(255))))


@njit(nogil=True, cache=True)
def normalise(image, flip, table, out):
    """image (S, S, 3) uint8 → out (S, S, 3) by `table` (3, 256) of the same dtype, mirrored on request."""
    side = image.shape[0]
    red, green, blue = table[0], table[1], table[2]
    for y in range(side):
        for x in range(side):
            to = side - 1 - x if flip else x
            out[y, to, 0] = red[image[y, x, 0]]
            out[y, to, 1] = green[image[y, x, 1]]
            out[y, to, 2] = blue[image[y, x, 2]]


@njit(nogil=True, cache=True)
def process(data, start, size, height, width, box, matrix, colour, sigma, flip, table, out, valid):
    """Samples from the file's bytes to normalised images.

    data: the whole file, uint8.  start, size, height, width: (N,) int64 of the stored JPEGs.
    box (N, 4) int32, matrix (N, 3, 4), colour (N,), sigma (N,), flip (N,): see `augment.Draws`.
    table (3, 256) and out (N, S, S, 3) have one dtype.  valid (N,) bool is written; an image that
    does not decode becomes `table`'s zero, the mean colour.
    """
    side = out.shape[1]
    pixels = np.empty(max(np.max(height * width) * 3, 1), np.uint8)
    small = np.empty((side, side, 3), np.uint8)
    for n in range(len(start)):
        h, w = height[n], width[n]
        valid[n] = decode(data[start[n] : start[n] + size[n]], h, w, pixels)
        if not valid[n]:
            out[n] = 0
            continue
        image = pixels[: h * w * 3].reshape(h, w, 3)
        resize(image, box[n, 0], box[n, 1], box[n, 2], box[n, 3], small)
        if colour[n]:
            recolour(small, matrix[n])
        if sigma[n] > 0:
            blur(small, sigma[n])
        normalise(small, flip[n], table, out[n])
