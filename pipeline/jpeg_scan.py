"""Entropy-decodes a baseline JPEG without making pixels: is it sound, and how bright is it?

What makes passing JPEGs through slow is the proof that each one decodes.  The proof needs every
Huffman code of the scan, but no coefficient except the luma's means (DC): a table look-up tells of a
run of codes at once how many bits to skip and how far the block has come.  libjpeg stores each
coefficient first.

Only streams without any blemish are vouched for.  Whatever else (a wrong code, a coefficient past the
block, bytes left over or missing, a rare feature) is left to libjpeg: `dataprep/convert.py` asks it
before a picture is stored, `screen.py` before it is decoded.

Source: ITU-T T.81, annexes B (markers), C (Huffman tables) and F.2 (baseline decoding).
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.base.compiled import compiled

PEEK = 11  # bits looked up at once (the fastest of 10…13); longer codes are compared length by length
END = 128  # coefficients that an end-of-block code counts for: more than a block has
_MASK = (1 << PEEK) - 1
_SHIFT = np.uint64(64 - PEEK)
_SPAN = 256.0  # of a block's mean from middle grey; past it libjpeg's clamping wraps around
_UNSOUND = math.nan
_LOW, _HIGH = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)
_ONES, _NONE = np.uint64(0x0101010101010101), np.uint64(0xFFFFFFFFFFFFFFFF)


def mean_luma(data: bytes) -> float | None:
    """Mean luma, 0…255, of a three-component baseline JPEG that is sound to its last bit, else None.

    From the means of its 8×8 blocks: within about 0.5 of the mean of the decoded pixels, for a block
    that sticks out of the image counts by the part inside.
    """
    if len(data) < 16:
        return None
    luma = _mean_luma(np.frombuffer(data, np.uint8), words_of(data), 0, 0)
    return None if math.isnan(luma) else luma


def words_of(data: bytes | np.ndarray) -> np.ndarray:
    """The eight bytes from each byte of `data` on, but for the last seven: a view, (n - 7,) uint64."""
    return np.ndarray(max(0, len(data) - 7), "<u8", data, 0, 1)


@compiled
def vouch(data, words, start, size, height, width):
    """Which of the JPEGs (N,) in `data` are sound and of the size they should be; (N,) bool."""
    sound = np.zeros(len(start), np.bool_)
    for n in range(len(start)):
        if size[n] >= 16:
            stop = start[n] + size[n]
            luma = _mean_luma(data[start[n] : stop], words[start[n] : stop - 7], height[n], width[n])
            sound[n] = not math.isnan(luma)
    return sound


@compiled
def _mean_luma(data, words, expected_height, expected_width):
    """`mean_luma`, or NaN; also for another size than expected, if that is not 0."""
    step = np.zeros(4, np.int64)  # the DC quantisation of each table
    look = np.zeros((8, 1 << PEEK), np.int32)  # DC tables 0…3, AC tables 4…7: see _entry
    limits = np.full((8, 18), -1, np.int64)  # greatest code of each length; [17] marks a table as there
    offsets = np.zeros((8, 17), np.int64)  # from a code to its symbol
    symbols = np.zeros((8, 256), np.int64)
    frame = np.zeros((3, 4), np.int64)  # id, across, down, quantisation table
    height = width = 0
    at = 2 if data[0] == 0xFF and data[1] == 0xD8 else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = _byte(data, at + 1), _pair(data, at + 2)
        body, end = at + 4, at + 2 + length
        if length < 2 or end > len(data):
            return _UNSOUND
        if marker == 0xDB:
            sound = _read_quantisation(data, body, end, step)
        elif marker == 0xC4:
            sound = _read_huffman(data, body, end, look, limits, offsets, symbols)
        elif marker == 0xC0:
            sound = length == 17 and width == 0 and _read_frame(data, body, frame)
            height, width = _pair(data, body + 1), _pair(data, body + 3)
            expected = height == expected_height and width == expected_width
            sound = sound and (expected_height == 0 or expected)
        elif marker == 0xDA:
            tables = _read_scan(data, body, length, frame, limits)
            steps = step[frame[:, 3]].min()
            if height == 0 or width == 0 or steps == 0 or tables[0, 0] < 0:
                return _UNSOUND
            size = (height, width, step[frame[0, 3]])
            return _decode(data, words, end, size, frame, tables, (look, limits, offsets, symbols))
        else:
            sound = _is_harmless(data, marker, body, end)
        if not sound:
            return _UNSOUND
        at = end
    return _UNSOUND


@compiled
def _byte(data, at):
    return np.int64(data[at])  # bare, numba makes floats of uint8 with int64


@compiled
def _pair(data, at):
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@compiled
def _is_harmless(data, marker, at, end):
    """Whether libjpeg goes past a segment without a word: APPn and COM, and "no restarts"."""
    if marker == 0xE0 and end - at >= 14:
        jfif = _pair(data, at) == 0x4A46 and _pair(data, at + 2) == 0x4946 and data[at + 4] == 0
        return not jfif or data[at + 5] == 1  # it warns of other revisions, and the loaders heed warnings
    restarts = marker == 0xDD and end - at == 2 and _pair(data, at) == 0
    return 0xE0 <= marker <= 0xEF or marker == 0xFE or restarts


@compiled
def _read_quantisation(data, at, end, step):
    while at < end:
        wide, table = _byte(data, at) >> 4, _byte(data, at) & 15
        size = 65 + 64 * wide
        if wide > 1 or table > 3 or at + size > end:
            return False
        step[table] = _pair(data, at + 1) if wide else _byte(data, at + 1)
        at += size
    return True


@compiled
def _read_frame(data, at, frame):
    """Whether the frame has three components of 8 bits, in one of the usual samplings of the chroma."""
    for c in range(3):
        factors = _byte(data, at + 7 + 3 * c)
        frame[c, 0], frame[c, 1] = _byte(data, at + 6 + 3 * c), factors >> 4
        frame[c, 2], frame[c, 3] = factors & 15, _byte(data, at + 8 + 3 * c)
    across, down = frame[0, 1], frame[0, 2]
    luma = (across == 1 or across == 2 or across == 4) and 1 <= down <= 2 and across * down <= 4
    chroma = frame[1:, 1:3].min() == 1 and frame[1:, 1:3].max() == 1
    return data[at] == 8 and data[at + 5] == 3 and luma and chroma and frame[:, 3].max() <= 3


@compiled
def _read_huffman(data, at, end, look, limits, offsets, symbols):
    while at < end:
        kind, table = _byte(data, at) >> 4, _byte(data, at) & 15
        if kind > 1 or table > 3 or at + 17 > end:
            return False
        row = 4 * kind + table
        look[row, :] = 0
        first, code, count = at + 17, 0, 0
        for length in range(1, 17):
            number = _byte(data, at + length)
            if count + number > 256 or first + count + number > end or code + number > 1 << length:
                return False
            offsets[row, length], limits[row, length] = count - code, code + number - 1
            for i in range(count, count + number):
                symbols[row, i] = _byte(data, first + i)
                entry = _entry(kind, symbols[row, i], length)
                if entry == 0:
                    return False
                if length <= PEEK:
                    spread = 1 << (PEEK - length)
                    start = (code + i - count) * spread
                    look[row, start : start + spread] = entry
            code, count = 2 * (code + number), count + number
        limits[row, 17] = 0
        at = first + count
    return True


@compiled
def _entry(kind, symbol, length):
    """What a code says: bits 0…7 its own bits with those of its value, 16… its own; 0 if it is unsound.

    Bits 8…15, DC: one more than the value's bits.  AC: how many coefficients the block is further.
    """
    run, size = symbol >> 4, symbol & 15
    if kind == 0:
        return length + symbol | symbol + 1 << 8 | length << 16 if symbol <= 11 else 0
    if size == 0:
        further = END if run == 0 else 16 if run == 15 else 0
        return length | further << 8 | length << 16 if further else 0
    return length + size | run + 1 << 8 | length << 16 if size <= 10 else 0


@compiled
def _gather_runs(look, tables):
    """For each component the AC codes that are seen whole at once: their bits, how far they go."""
    runs = np.empty((3, 1 << PEEK), np.uint16)  # small: they stay in the first-level cache
    for c in range(3):
        if c == 2 and tables[1, 1] == tables[2, 1]:
            runs[2] = runs[1]
            break
        codes = look[tables[c, 1]]
        for seen in range(1 << PEEK):
            bits, further = codes[seen] & 255, codes[seen] >> 8 & 255
            while 0 < bits < PEEK and further < END:
                following = codes[seen << bits & _MASK]
                if following == 0 or bits + (following >> 16) > PEEK:
                    break
                bits, further = bits + (following & 255), further + (following >> 8 & 255)
            runs[c, seen] = bits | further << 8
    return runs


@compiled
def _read_scan(data, at, length, frame, limits):
    """The DC and AC table of each component, (3, 2); -1 if the scan is not one of all three."""
    tables = np.full((3, 2), -1, np.int64)
    if length != 12 or data[at] != 3 or data[at + 7] != 0 or data[at + 8] != 63 or data[at + 9] != 0:
        return tables
    for c in range(3):
        named, pair = _byte(data, at + 1 + 2 * c), _byte(data, at + 2 + 2 * c)
        dc, ac = pair >> 4, 4 + (pair & 15)
        if named != frame[c, 0] or dc > 3 or ac > 7 or limits[dc, 17] < 0 or limits[ac, 17] < 0:
            tables[0, 0] = -1
            return tables
        tables[c, 0], tables[c, 1] = dc, ac
    return tables


@compiled
def _refill(data, at, bits, held, absent):
    """At least 57 bits, byte by byte; past a marker or the end zeros, counted in `absent`."""
    while held <= 56:
        byte = np.int64(0)
        if at + 1 >= len(data) or (data[at] == 0xFF and data[at + 1] != 0):
            absent += 8
        else:
            byte = _byte(data, at)
            at += 2 if byte == 0xFF else 1  # a zero is stuffed after 0xFF
        bits |= np.uint64(byte) << np.uint64(56 - held)
        held += 8
    return at, bits, held, absent


@compiled
def _swapped(word):
    """The bytes of a word in the other order (one instruction, once compiled)."""
    word = word >> np.uint64(32) | word << np.uint64(32)
    pairs, bytes_ = np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00FF00FF00FF00FF)
    word = (word >> np.uint64(16)) & pairs | (word & pairs) << np.uint64(16)
    return (word >> np.uint64(8)) & bytes_ | (word & bytes_) << np.uint64(8)


@compiled
def _long_code(row, bits, limits, offsets, symbols):
    """The entry of a code that is longer than a look-up; 0 if there is none."""
    for length in range(PEEK + 1, 17):
        code = np.int64(bits >> np.uint64(64 - length))
        if code <= limits[row, length]:
            return _entry(row >> 2, symbols[row, offsets[row, length] + code], length)
    return 0


@compiled
def _decode(data, words, at, size, frame, tables, huffman):
    """Mean luma of the scan at `at`; NaN unless it ends where the image does.

    Refilling is written out twice: as a function it isn't inlined, and costs more than the decoding.
    """
    height, width, step = size
    look, limits, offsets, symbols = huffman
    runs = _gather_runs(look, tables)
    blocks = np.zeros((_filled(height, frame[0, 2]), _filled(width, frame[0, 1])))  # the luma's means
    level = np.int64(0)
    bits, held, absent = np.uint64(0), np.int64(0), np.int64(0)  # the next bits, from the top; how many
    for top in range(0, len(blocks), frame[0, 2]):
        for left in range(0, blocks.shape[1], frame[0, 1]):
            for c in range(3):
                dc, ac = tables[c, 0], tables[c, 1]
                x, y, right = left, top, left + frame[c, 1]
                for _ in range(frame[c, 1] * frame[c, 2]):
                    word = words[at] if at < len(words) else _NONE
                    if ((word & _LOW) + _ONES) & word & _HIGH:  # a byte is 0xFF: a stuffed one or a marker
                        at, bits, held, absent = _refill(data, at, bits, held, absent)
                    else:
                        bits |= _swapped(word) >> np.uint64(held)
                        at, held = at + (63 - held >> 3), held | 56
                    found = look[dc, np.int64(bits >> _SHIFT)]
                    if found == 0:
                        found = _long_code(dc, bits, limits, offsets, symbols)
                        if found == 0:
                            return _UNSOUND
                    if c == 0:
                        level += _difference(bits, found)
                        blocks[y, x], x = level * step / 8, x + 1
                        if x == right:
                            x, y = left, y + 1
                    bits, held, done = bits << np.uint64(found & 255), held - (found & 255), 1
                    while done < 64:
                        word = words[at] if at < len(words) else _NONE
                        if ((word & _LOW) + _ONES) & word & _HIGH:
                            at, bits, held, absent = _refill(data, at, bits, held, absent)
                        else:
                            bits |= _swapped(word) >> np.uint64(held)
                            at, held = at + (63 - held >> 3), held | 56
                        for _ in range(2):  # each takes 26 bits at most, of 56
                            found = np.int64(runs[c, np.int64(bits >> _SHIFT)])
                            if found == 0:
                                found = _long_code(ac, bits, limits, offsets, symbols) & 0xFFFF
                                if found == 0:
                                    return _UNSOUND
                            before, done = done, done + (found >> 8)
                            if done >= 64:
                                break
                            bits, held = bits << np.uint64(found & 255), held - (found & 255)
                    if done != 64 and not END < done < END + 64:  # the block may have ended within the run
                        found = _last_codes(look[ac], bits, before)
                        if found == 0:
                            return _UNSOUND
                    bits, held = bits << np.uint64(found & 255), held - (found & 255)
        if held < absent:  # bits were used that are not there
            return _UNSOUND
    ended = held - absent < 8 and at + 2 <= len(data) and data[at] == 0xFF and data[at + 1] == 0xD9
    return _mean(blocks, height, width) if ended and held >= absent else _UNSOUND


@compiled
def _filled(length, unit):
    """Blocks along a side: whole units of `unit` blocks that cover it."""
    return -(-length // (8 * unit)) * unit


@compiled
def _mean(blocks, height, width):
    """Mean of the blocks' means (from middle grey) over the image; NaN for one that no encoder makes."""
    total = 0.0
    for y in range(len(blocks)):
        for x in range(blocks.shape[1]):
            if abs(blocks[y, x]) > _SPAN:
                return _UNSOUND
            inside = max(0, min(8, height - 8 * y)) * max(0, min(8, width - 8 * x))
            total += inside * min(255.0, max(0.0, blocks[y, x] + 128))
    return total / (height * width)


@compiled
def _last_codes(look, bits, done):
    """The bits of the codes that fill a block of `done` coefficients exactly; 0 if they overfill it."""
    used = 0
    while done < 64:
        found = look[np.int64((bits << np.uint64(used)) >> _SHIFT)]
        if found == 0:
            return 0
        used, done = used + (found & 255), done + (found >> 8 & 255)
    return used if done == 64 else 0


@compiled
def _difference(bits, found):
    """The value after a DC code at the top of `bits`: T.81's EXTEND."""
    size = (found >> 8 & 255) - 1
    if size == 0:
        return np.int64(0)
    value = np.int64((bits << np.uint64(found >> 16)) >> np.uint64(64 - size))
    return value if value >> size - 1 else value - (1 << size) + 1
