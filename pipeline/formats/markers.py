"""The walk over a JPEG's markers, once: plain Python here, compiled by `pixels.py`.

Source: ITU-T T.81, annex B.
"""

from __future__ import annotations

SCAN, END = 0xDA, 0xD9  # the image's data begins; the image ends


def next_segment(data, at):
    """(marker, start, stop) of the segment at `at`, marker and length included.

    data: bytes, or (n,) uint8 where it is compiled.  The marker is 0 where the image's data
    begin, or what is there is no segment.
    """
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these carry no length
            at += 2
        elif marker in (SCAN, END):
            break
        else:  # not << 8, of which numba makes floats; nor np.int64, which is slow in plain Python
            return marker, at, at + 2 + data[at + 2] * 256 + data[at + 3]
    return 0, at, at


def is_frame(marker):
    """Whether a segment is the frame header, which holds the image's size."""
    return 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC
