"""Text of users' files: UTF-8, with or without a byte-order mark.  Errors name what a file is instead."""

from __future__ import annotations

_ANEW = "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
_OTHERS = {
    b"\xff\xfe": f"UTF-16; {_ANEW}", b"\xfe\xff": f"UTF-16; {_ANEW}",
    b"\x1f\x8b": "gzip data; gunzip it", b"BZh9": "bzip2 data; bunzip2 it", b"\xfd7zXZ": "xz data; unxz it",
    b"\x28\xb5\x2f\xfd": "zstd data; unzstd it", b"PAR1\x15": "parquet; name it .parquet",
    b"\x93NUMPY": "a numpy array; np.savetxt writes one as text",
    b"PK\x03\x04": "a zip or a spreadsheet; unpack it, or save it as csv in UTF-8",
    b"\xd0\xcf\x11\xe0": "an Office document; save it as csv in UTF-8",
    b"version https://git-lfs": "a pointer of Git LFS; git lfs pull fetches the file",
}  # fmt: skip


def instead(data: bytes) -> str:
    """What a file is by its first bytes, and what to do about it; empty if they are none of those known."""
    return next((advice for first, advice in _OTHERS.items() if data.startswith(first)), "")


def check(start: bytes, where: str) -> None:
    """ValueError naming `where` if the first bytes of a file show that it is no UTF-8 text."""
    advice = instead(start) or (f"UTF-16 without a mark; {_ANEW}" if b"\0" in start[:64] else "")
    if advice:
        raise ValueError(f"{where}: not UTF-8 text but {advice}")


def text(data: bytes, where: str) -> str:
    """The text without its mark.  Raises ValueError that names `where`, the wrong byte and its line."""
    check(data, where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}: not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}; "
            "save it as UTF-8 (from Windows: iconv -f CP1252 -t UTF-8)"
        ) from None
