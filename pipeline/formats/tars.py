"""Tars of samples, as webdataset, img2dataset and clip-benchmark write them: the one reader of all rooms.

A sample is a run of members with the same key: the path up to the first dot of the file's name (webdataset's
rule).  An ending that comes a second time begins the next sample, so repeated keys stay apart.

The reader also takes tars that were joined by `cat`, members after a damaged header, links to earlier
members, and tars inside gzip, bzip2, xz or zstd.  Hidden members (macOS writes `._NAME` beside each) are
passed over and counted.  Of a plain tar, only headers and the members asked for are read.

What a caption or a label is, its callers know.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from pipeline.formats import utf8

VERSION = 1  # raise it whenever a tar may give other samples: caches of samples are keyed by it
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Of several images in a sample the first of these is taken; the first four are clip-benchmark's order.
PICTURES = (
    "webp", "png", "jpg", "jpeg", "jfif", "jpe", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm",
    "pnm", "avif", "jp2", "j2k", "ico", "tga",
)  # fmt: skip
UNSORTED = "its parts do not follow each other in the tar; pack it anew with tar --sort=name"
_BLOCK, _CHUNK = 512, 1 << 20
_FAULTS = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError)


class Part(NamedTuple):
    """One member of a sample: its bytes if they were asked for, and where they lie in the (unpacked) tar."""

    name: str
    offset: int
    size: int
    data: bytes | None = None


class Sample(NamedTuple):
    """Members of one key; `parts` by their ending, in lower case."""

    key: str
    parts: dict[str, Part]

    @property
    def pictures(self) -> list[str]:
        """Endings of its images; the first is the one to take."""
        return [ending for ending in PICTURES if ending in self.parts]


class Fault(NamedTuple):
    """Something in a tar that cannot be read; `name` is the member, or the last one before it."""

    name: str
    detail: str


def split(name: str) -> tuple[str, str]:
    """(key, ending in lower case) of a member's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def hidden(name: str) -> bool:
    """Whether a path leads through a name with a leading dot, or macOS's folder of such files."""
    return any((p[:1] == "." and p not in (".", "..")) or p == "__MACOSX" for p in name.split("/"))


def compression(path: Path) -> str:
    """What the tar is packed in: gzip, bzip2, xz, zstd, or nothing (empty)."""
    with open(path, "rb") as file:
        head = file.read(_BLOCK)
    if _is_header(head):
        return ""  # whatever its first member is called
    return next((kind for magic, (kind, _) in _PACKED.items() if head.startswith(magic)), "")


def _is_header(block: bytes) -> bool:
    return len(block) == _BLOCK and block[257:262] == b"ustar"


class Tar:
    """One tar, open for reading; close it, or use it in a `with`.

    `hidden` counts the members passed over so far.  Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path):
        self.path, self.hidden = Path(path), 0
        self.compression = compression(self.path)
        opener = next((o for kind, o in _PACKED.values() if kind == self.compression), open)
        self._file = _File(opener(self.path, "rb"))
        self._length = float("inf") if self.compression else self.path.stat().st_size
        self._known: dict[str, tuple[int, int]] | None = None  # members so far, once a link asks for them

    def __enter__(self) -> Tar:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def samples(self, wanted: Callable[[str, int], bool]) -> Iterator[Sample | Fault]:
        """Every sample in order; the bytes of members for which `wanted(ending, size)` are read at once."""
        key, parts = "", dict[str, Part]()
        for item in self.members():
            if isinstance(item, Part):
                part_key, ending = split(item.name)
                if parts and (part_key != key or ending in parts):
                    yield Sample(key, parts)
                    parts = {}
                key = part_key
                read = self._read(item) if wanted(ending, item.size) else item
                if isinstance(read, Part):
                    parts[ending] = read
                    continue
                parts, item = {}, read  # the fault names the sample's member
            if parts:
                yield Sample(key, parts)
                parts = {}
            yield item
        if parts:
            yield Sample(key, parts)

    def members(self) -> Iterator[Part | Fault]:
        """Every file in the tar, links resolved, hidden ones left out and counted; none of their bytes."""
        for header in self._headers():
            if isinstance(header, Fault):
                yield header
            elif header.isreg() or header.islnk() or header.issym():
                if hidden(header.name):
                    self.hidden += 1
                    continue
                part = self._part(header)
                if self._known is not None and isinstance(part, Part):
                    self._known[posixpath.normpath(part.name)] = part.offset, part.size
                yield part

    @cached_property
    def scattered(self) -> Container[str]:
        """Keys whose members do not follow each other: the tar is not sorted."""
        seen: dict[str, set[str]] = {}
        last, keys = None, set()
        with Tar(self.path) as again:
            for item in again.members():
                if isinstance(item, Fault):
                    continue
                key, ending = split(item.name)
                if key != last:
                    before = frozenset(seen.get(key, ()))
                if before and ending not in before:
                    keys.add(key)
                seen.setdefault(key, set()).add(ending)
                last = key
        return keys

    # -- headers --------------------------------------------------------------------------------

    def _headers(self) -> Iterator[tarfile.TarInfo | Fault]:
        """All headers, past end marks and damage; a tar that is cut short ends in a Fault."""
        following: int | None = 0
        name = ""
        while (start := following) is not None:
            tar = None
            try:
                self._file.seek(start)
                tar = tarfile.TarFile(fileobj=self._file)  # type: ignore[arg-type]  # reading needs no write()
                # Its offsets count from the file's start.
                while (header := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # undeclared; it would keep every header
                    name = header.name
                    if header.size < 0 or tar.offset < header.offset_data:  # it would lead in circles
                        raise tarfile.ReadError("a header with a negative size")
                    plain = header.isreg() and not header.issparse()
                    if plain and header.offset_data + header.size > self._length:
                        yield Fault(name, "cut short: the file ends inside this member")
                        return
                    yield header
                following, fault = self._after(tar.offset)
            except _FAULTS as error:
                fault = f"damaged: {error}" if start or tar else self._not_a_tar(error)
                following = self._search(max(start, tar.offset if tar else 0))
            if fault:
                yield Fault(name, fault)

    def _not_a_tar(self, error: Exception) -> str:
        with open(self.path, "rb") as file:
            kind = utf8.instead(file.read(64)) if not self.compression else ""
        return f"no tar but {kind}" if kind else f"not a tar, or damaged: {error}"

    def _after(self, offset: int) -> tuple[int | None, str]:
        """Where the next header stands when tarfile sees none at `offset`, and what is wrong."""
        block = self._file.last  # tarfile has just read it
        if len(block) < _BLOCK:
            return None, "it ends without the end mark: cut short?"
        if not any(block):
            return self._first(offset + _BLOCK, any), ""  # another tar was joined to this one
        return self._search(offset), f"damaged: what lies at {offset:,} is no member"

    def _search(self, offset: int) -> int | None:
        """The next header after the block at `offset`, which is none; None where there is no more."""
        try:
            return self._first(offset + _BLOCK, _is_header)
        except _FAULTS:
            return None  # the caller reports the fault that led here

    def _first(self, offset: int, wanted: Callable[[bytes], bool]) -> int | None:
        """Where the first block that is `wanted` stands, from `offset` on; None where there is none."""
        self._file.seek(offset)
        while block := self._file.read(_BLOCK):
            if wanted(block):
                return offset
            offset += _BLOCK
        return None

    # -- members --------------------------------------------------------------------------------

    def _part(self, header: tarfile.TarInfo) -> Part | Fault:
        if header.issparse():
            return Fault(header.name, "stored as a sparse file; pack the tar without --sparse")
        if header.isreg():
            return Part(header.name, header.offset_data, header.size)
        folder = posixpath.dirname(header.name) if header.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, header.linkname))
        if self._known is None:
            self._known = self._before(header.offset)
        if target not in self._known:
            return Fault(header.name, f"a link to {header.linkname}, which does not lie before it in the tar")
        return Part(header.name, *self._known[target])

    def _before(self, offset: int) -> dict[str, tuple[int, int]]:
        """Name → (offset, size) of the files that lie before `offset`."""
        with Tar(self.path) as again:
            headers = (h for h in again._headers() if isinstance(h, tarfile.TarInfo))
            before = takewhile(lambda header: header.offset < offset, headers)
            files = (h for h in before if h.isreg() and not h.issparse())
            return {posixpath.normpath(h.name): (h.offset_data, h.size) for h in files}

    def _read(self, part: Part) -> Part | Fault:
        try:
            self._file.seek(part.offset)
            data = self._file.read(part.size)
        except _FAULTS as error:
            return Fault(part.name, f"damaged: {error}")
        return part._replace(data=data) if len(data) == part.size else Fault(part.name, "cut short")


class _File:
    """A file for tarfile that can repeat its last read without seeking back: slow in a packed tar."""

    def __init__(self, file):
        self._file, self.last, self._again = file, b"", b""
        self.close = file.close

    def tell(self) -> int:
        return self._file.tell() - len(self._again)

    def seek(self, offset: int) -> None:
        at = self._file.tell()
        if offset == at - len(self._again):
            return
        self._again = self.last if offset == at - len(self.last) else b""
        if not self._again:
            self._file.seek(offset)

    def read(self, size: int) -> bytes:
        again, self._again = self._again[:size], self._again[size:]
        self.last = again + self._file.read(size - len(again)) if size > len(again) else again
        return self.last


class _Zstd:
    """pyarrow's zstd stream with the forward seeks that `_File` makes; Python has its own from 3.14 on."""

    def __init__(self, path: Path):
        import pyarrow

        self._stream, self._at = pyarrow.input_stream(str(path), compression="zstd"), 0
        self.close = self._stream.close

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int) -> None:
        if offset < self._at:
            raise io.UnsupportedOperation("a link inside zstd leads back; unpack it first (unzstd)")
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass


def _zstd(path: Path, _mode: str):
    try:
        from compression import zstd
    except ImportError:
        return _Zstd(path)
    return zstd.open(path)


_PACKED: dict[bytes, tuple[str, Callable]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\0": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}
UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}
