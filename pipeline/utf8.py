"""Text as people's files hold it: UTF-8, with or without a byte-order mark; anything else is named."""

from __future__ import annotations


def foreign(data: bytes) -> str:
    """The other encoding that the first bytes of a file tell of; empty where they tell of none."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    return "UTF-16 without a mark" if b"\0" in data[:64] else ""


def text(data: bytes, where: str) -> str:
    """The text without its mark.  Raises ValueError naming `where`, the line and the byte that are wrong."""
    told = foreign(data)
    if told:
        raise ValueError(f"{where}: not UTF-8 text but {told}; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}: not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}; "
            "save it as UTF-8 (from Windows: iconv -f CP1252 -t UTF-8)"
        ) from None
