"""The pixel operations of the FFCV engine, compiled once and cached on disk.

`process` takes samples from JPEG bytes to the values of a batch without Python in between, so threads run it
side by side.  It calls the decoder that FFCV is built on (libturbojpeg, through FFCV's extension), with two
differences.  It looks at the decoder's result, which FFCV does not.  And it asks for the accurate transform:
FFCV's `imdecode` always takes the fast one, which is 1 level off on average and no faster today.  The decoded
pixels are those of PIL and DALI to the bit.

Resizing is PIL's: antialiased bicubic (a = -0.5), horizontal pass first, rounded and clipped after each pass.
FFCV's own resize (OpenCV INTER_AREA) becomes bilinear when it enlarges.

Elsewhere: reading files (`beton/fields.py`), drawing numbers (`augment.py`), batches (`stream.py`).

S side of the result, H x W stored image.  Images are (rows, columns, 3) uint8, colours interleaved.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.base.compiled import compiled
from pipeline.formats import markers

_FAST = {"contract", "nnan", "ninf", "nsz"}  # no reassociation: the same sums on every machine
_ROWS = 4  # rows that share the horizontal weights
_MAX_RADIUS = 30  # of the blur: ceil(3 sigma) for the largest sigma `Augment` takes
_PREFIX = "perceptual_initialization_"

_next_segment, _is_frame = compiled(markers.next_segment), compiled(markers.is_frame)
_init = types.ExternalFunction(_PREFIX + "tjInitDecompress", types.intp())
_destroy = types.ExternalFunction(_PREFIX + "tjDestroy", types.int32(types.intp))
_decompress = types.ExternalFunction(
    _PREFIX + "tjDecompress2",
    types.int32(types.intp, types.intp, types.uint64, types.intp, types.int32, types.int32,
                types.int32, types.int32, types.int32),
)  # fmt: skip


@cache
def load_decoder() -> None:
    """Make the decoder known to compiled code; call it before `process`.

    It loads FFCV's shared object alone: importing the package costs seconds and is not needed.
    Raises ValueError when ffcv is not installed.
    """
    spec = importlib.util.find_spec("ffcv")
    folders = (spec and spec.submodule_search_locations) or []
    objects = [p for f in folders for p in sorted(Path(f).glob("_libffcv*.so"))]
    if not objects:
        raise ValueError("ffcv is not installed (its _libffcv was not found): run `make setup`")
    library = ctypes.CDLL(str(objects[0]))
    for name in ("tjInitDecompress", "tjDestroy", "tjDecompress2"):
        llvm.add_symbol(_PREFIX + name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)


@compiled
def jpeg_size(data):
    """(height, width) in a JPEG's frame header, or (0, 0) for other bytes, as data (n,) uint8."""
    if len(data) < 2 or data[0] != 0xFF or data[1] != 0xD8:
        return 0, 0
    marker, start, stop = _next_segment(data, 2)
    while marker != 0 and not _is_frame(marker):
        marker, start, stop = _next_segment(data, stop)
    if marker == 0 or start + 9 > len(data):
        return 0, 0
    height = np.int64(data[start + 5]) << 8 | np.int64(data[start + 6])
    return height, np.int64(data[start + 7]) << 8 | np.int64(data[start + 8])


@compiled
def decode(data, height, width, out):
    """Decode a JPEG of this size to out (>= height * width * 3,) uint8; returns whether it went well.

    A warning counts as a failure (part of the image is missing).  The size is compared first: the
    decoder would silently fill a smaller rectangle.  Each image gets a new decoder (microseconds):
    an old one would lend an image without tables those of its predecessor.
    """
    h, w = jpeg_size(data)
    if h == 0 or h != height or w != width:
        return False
    decoder = _init()
    failed = _decompress(decoder, data.ctypes.data, len(data), out.ctypes.data, width, 0, height, 0, 0)
    _destroy(decoder)
    return failed == 0


@compiled
def decodable(data, start, size, height, width):
    """(N,) bool: which of the JPEGs (N,) in `data` decode without a warning or an error."""
    ok = np.zeros(len(start), np.bool_)
    for n in range(len(start)):
        out = np.empty(height[n] * width[n] * 3, np.uint8)
        ok[n] = decode(data[start[n] : start[n] + size[n]], height[n], width[n], out)
    return ok


@compiled
def _cubic(x):
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2:
        return ((-0.5 * x + 2.5) * x - 4) * x + 2
    return 0.0


@compiled
def filter_taps(size, whole, start, side):
    """PIL's bicubic weights, `size` pixels → `whole`, of which `side` from `start` on are wanted.

    Returns first (side,) int64 and weights (side, K >= 4) float32.  All rows have the same number of
    weights, padded with zeros; the reader clamps or pads pixels.
    """
    scale = size / whole
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    first, values = np.empty(side, np.int64), np.zeros((side, int(np.ceil(support)) * 2 + 1))
    most = 4
    for x in range(side):
        centre = (start + x + 0.5) * scale
        low = max(0, int(centre - support + 0.5))
        high = min(size, int(centre + support + 0.5))
        total = 0.0
        for k in range(high - low):
            values[x, k] = _cubic((k + low - centre + 0.5) / stretch)
            total += values[x, k]
        values[x] /= total
        first[x] = low
        most = max(most, high - low)
    return first, values[:, :most].astype(np.float32)


@intrinsic
def _weigh_pixel(context, row, row_step, weights, count, out, out_step):
    """One output pixel of `_ROWS` rows: out[r] = sum over k of weights[k] * row[r][3k : 3k + 4].

    Pointers and steps in bytes, float32.  Four lanes (red, green, blue and the next red) make one vector;
    the fourth is overwritten by the next pixel.  By hand because LLVM finds no vectors here: a resize of
    256 x 384 to 224 takes 0.27 ms of CPU so, 0.40 ms with twelve running sums in plain @njit, and 1.0 ms with
    the plainest loop, all to the same bits (mean of four boxes; a whole "paper" sample takes some 1.2 ms).
    """

    def generate(context, builder, signature, args):
        row, row_step, weights, count, out, out_step = args
        word, lane, pointer = row.type, ir.IntType(32), ir.PointerType()
        vector = ir.VectorType(ir.FloatType(), 4)
        empty, everywhere = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(lane, 4), [0] * 4)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * 4)) for _ in range(_ROWS)]
        with cgutils.for_range(builder, count) as loop:
            at = builder.add(weights, builder.mul(loop.index, ir.Constant(word, 4)))
            weight = builder.load(builder.inttoptr(at, pointer), typ=ir.FloatType())
            weight = builder.insert_element(empty, weight, ir.Constant(lane, 0))
            weight = builder.shuffle_vector(weight, empty, everywhere)
            at = builder.add(row, builder.mul(loop.index, ir.Constant(word, 12)))
            for total in sums:
                pixel = builder.load(builder.inttoptr(at, pointer), align=4, typ=vector)
                product = builder.fmul(pixel, weight, flags=["contract"])
                so_far = builder.load(total, typ=vector)
                builder.store(builder.fadd(so_far, product, flags=["contract"]), total)
                at = builder.add(at, row_step)
        for total in sums:
            builder.store(builder.load(total, typ=vector), builder.inttoptr(out, pointer), align=4)
            out = builder.add(out, out_step)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@compiled(fastmath=_FAST)
def _to_levels(values, out):
    """values (n,) float32 → out (n,) uint8, clipped and rounded (halves up, as PIL does)."""
    for i in range(len(out)):
        out[i] = np.uint8(min(max(values[i], np.float32(0)), np.float32(255)) + np.float32(0.5))


@compiled(fastmath=_FAST)
def _round_levels(values):
    """`_to_levels` in place; a function of its own, since LLVM makes no vectors of overlapping arguments."""
    for i in range(len(values)):
        values[i] = np.floor(min(max(values[i], np.float32(0)), np.float32(255)) + np.float32(0.5))


@compiled(fastmath=_FAST)
def _scale(weight, a, out):
    for i in range(len(out)):
        out[i] = weight * a[i]


@compiled(fastmath=_FAST)
def _add_pair(weight, a, b, out):
    for i in range(len(out)):
        out[i] += weight * (a[i] + b[i])


@compiled(fastmath=_FAST)
def _squeeze(image, top, left, height, width, first, weights, lines, rows):
    """Horizontal pass: a box of image (H, 3W) → rows (height + _ROWS, 3S + 1) float32.

    lines (_ROWS, >= 3 (width + K) + 1) float32 is scratch; past the box its pixels meet zero weights.
    """
    lines[:, 3 * width :] = 0
    for y in range(0, height, _ROWS):
        block = min(_ROWS, height - y)
        for r in range(block):
            pixels, line = image[top + y + r, 3 * left : 3 * (left + width)], lines[r]
            for i in range(len(pixels)):
                line[i] = np.float32(pixels[i])
        for x in range(len(first)):
            _weigh_pixel(lines.ctypes.data + 12 * first[x], lines.strides[0], weights[x].ctypes.data,
                         weights.shape[1], rows[y].ctypes.data + 12 * x, rows.strides[0])  # fmt: skip
        for r in range(block):
            _round_levels(rows[y + r])


@compiled(fastmath=_FAST)
def _stack(rows, height, first, weights, total, out):
    """Vertical pass: rows (>= height, 3S + 1) float32 → out (S, 3S) uint8; total (3S,) is scratch."""
    last = height - 1
    for y in range(len(out)):
        w, at = weights[y], first[y]
        a, b = rows[at], rows[min(at + 1, last)]
        c, d = rows[min(at + 2, last)], rows[min(at + 3, last)]
        for i in range(len(total)):
            total[i] = w[0] * a[i] + w[1] * b[i] + w[2] * c[i] + w[3] * d[i]
        for k in range(4, len(w)):
            weight, a = w[k], rows[min(at + k, last)]
            for i in range(len(total)):
                total[i] += weight * a[i]
        _to_levels(total, out[y])


@compiled
def covering(height, width, side):
    """torchvision's Resize(side), CenterCrop(side): (rows, columns when resized, the crop's top, left)."""
    short, long = min(height, width), max(height, width)
    long = int(side * long / short)
    rows, columns = (side, long) if height <= width else (long, side)
    return rows, columns, int(np.rint((rows - side) / 2)), int(np.rint((columns - side) / 2))


@compiled
def scratch_size(height, width, side):
    """Number of float32 that `resize` and `blur` need for images up to this size."""
    taps = 4 * max(height, width) // side + 8
    resize = (height + _ROWS) * (3 * side + 1) + _ROWS * (3 * (width + taps) + 4) + 3 * side
    return max(resize, 3 * side * side + 6 * side + 6 * _MAX_RADIUS)


@compiled
def resize(image, top, left, height, width, covers, scratch, out):
    """A box of image (H, W, 3) uint8, resized to out (S, S, 3) uint8.

    It is squeezed to the square.  With `covers`, it is scaled to cover the square, and cut (`covering`).
    """
    side = len(out)
    rows_whole, columns_whole, first_row, first_column = side, side, 0, 0
    if covers:
        rows_whole, columns_whole, first_row, first_column = covering(height, width, side)
    first_x, weights_x = filter_taps(width, columns_whole, first_column, side)
    first_y, weights_y = filter_taps(height, rows_whole, first_row, side)
    line = 3 * (width + weights_x.shape[1]) + 4
    stop = (height + _ROWS) * (3 * side + 1)
    rows = scratch[:stop].reshape(height + _ROWS, 3 * side + 1)
    lines = scratch[stop : stop + _ROWS * line].reshape(_ROWS, line)
    total = scratch[stop + _ROWS * line :][: 3 * side]
    _squeeze(image.reshape(len(image), -1), top, left, height, width, first_x, weights_x, lines, rows)
    _stack(rows, height, first_y, weights_y, total, out.reshape(side, -1))


@compiled(fastmath=_FAST)
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


@compiled
def _mirrored(i, n):
    """Reflection without repeating the edge (torch's "reflect")."""
    i = abs(i)
    return i if i < n else 2 * (n - 1) - i


@compiled
def _gaussian(sigma, radius):
    """The middle and one wing of the normalised window: (radius + 1,) float32."""
    weights = np.empty(radius + 1, np.float64)
    for k in range(radius + 1):
        weights[k] = np.exp(-0.5 * (k / sigma) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).astype(np.float32)


@compiled(fastmath=_FAST)
def _pad_line(line, radius, out):
    """line (3S,) uint8 → out (3S + 6 radius,) float32, reflected at both ends."""
    width, pad = len(line), 3 * radius
    middle = out[pad : pad + width]
    for i in range(width):
        middle[i] = np.float32(line[i])
    for k in range(3, pad + 3, 3):
        for c in range(3):
            out[pad - k + c] = out[pad + k + c]
            out[pad + width - 3 + k + c] = out[pad + width - 3 - k + c]


@compiled
def blur(image, sigma, scratch):
    """image (S, S, 3) uint8, in place: Gaussian of window 2 ceil(3 sigma) + 1, edges reflected."""
    side, width = len(image), 3 * len(image)
    radius = min(int(np.ceil(np.float32(3) * sigma)), side - 1)
    taps, pad = _gaussian(sigma, radius), 3 * radius
    lines = image.reshape(side, width)
    rows, total = scratch[: side * width].reshape(side, width), scratch[side * width :][:width]
    padded = scratch[side * width + width :][: width + 2 * pad]
    for y in range(side):
        _pad_line(lines[y], radius, padded)
        _scale(taps[0], padded[pad:], rows[y])
        for k in range(1, radius + 1):
            _add_pair(taps[k], padded[pad - 3 * k :], padded[pad + 3 * k :], rows[y])
    for y in range(side):
        _scale(taps[0], rows[y], total)
        for k in range(1, radius + 1):
            _add_pair(taps[k], rows[_mirrored(y - k, side)], rows[_mirrored(y + k, side)], total)
        _to_levels(total, lines[y])


@compiled
def look_up(image, flip, table, out):
    """image (S, S, 3) uint8 → out (S, S, 3) by `table` (3, 256) of the same dtype, mirrored on request."""
    side = len(image)
    red, green, blue = table[0], table[1], table[2]
    for y in range(side):
        for x in range(side):
            to = side - 1 - x if flip else x
            out[y, to, 0] = red[image[y, x, 0]]
            out[y, to, 1] = green[image[y, x, 1]]
            out[y, to, 2] = blue[image[y, x, 2]]


class Jpegs(NamedTuple):
    """N stored JPEGs; `process` takes those whose bytes lie at data[start : start + size]."""

    data: np.ndarray  # (bytes,) uint8
    start: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64
    height: np.ndarray  # (N,) int64: what the file's table says
    width: np.ndarray  # (N,) int64
    intact: np.ndarray  # (N,) bool: False refuses a JPEG before it is decoded


class Values(NamedTuple):
    """What the levels become, in the dtype of the batch."""

    table: np.ndarray  # (3, 256), of `augment.lookup_table`
    blank: np.ndarray  # (3,), of `augment.mean_colour`: a pixel of an image that does not decode


@compiled
def process(jpegs, draws, values, out, valid):
    """Samples from their stored bytes to the images of a batch.

    jpegs: `Jpegs` (N).  draws: `augment.Draws.of_view` of the same samples.  values: `Values` of the dtype
    of out (N, S, S, 3).  valid (N,) bool is written.
    """
    side = out.shape[1]
    pixels = np.empty(np.max(jpegs.height * jpegs.width) * 3 + 1, np.uint8)
    scratch = np.empty(scratch_size(np.max(jpegs.height), np.max(jpegs.width), side), np.float32)
    small = np.empty((side, side, 3), np.uint8)
    for n in range(len(jpegs.start)):
        start, size, h, w = jpegs.start[n], jpegs.size[n], jpegs.height[n], jpegs.width[n]
        valid[n] = jpegs.intact[n] and decode(jpegs.data[start : start + size], h, w, pixels)
        if not valid[n]:
            out[n] = values.blank
            continue
        image, box = pixels[: h * w * 3].reshape(h, w, 3), draws.box[n]
        resize(image, box[0], box[1], box[2], box[3], draws.covers, scratch, small)
        if draws.coloured[n]:
            recolour(small, draws.matrix[n])
        if draws.sigma[n] > 0:
            blur(small, draws.sigma[n], scratch)
        look_up(small, draws.flip[n], values.table, out[n])
