"""What an evaluation set is once indexed: its images, unread, and its labels or captions.

Finding and reading sets is `eval/sets/sources.py`'s business, decoding and cropping `eval/crops.py`'s.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from eval.cache import Identified
from eval.sets import catalog
from eval.sets.catalog import Entry
from eval.sets.prompts import CLASSNAMES_FILE, Prompts, known_classnames
from pipeline.beton.fields import CHANGED
from pipeline.formats import pictures, tars

_DECODE_ERRORS = (Image.DecompressionBombError, OSError, SyntaxError, ValueError, struct.error)
# What Pillow decodes by itself and people keep images in; EPS (Ghostscript) and documents are left out.
_SUFFIXES = {f".{ending}" for ending in (*tars.PICTURES, "mpo", "apng", "jpx", "pcx", "qoi")}


def is_image(name: str) -> bool:
    """Whether a file of that name is read as an image; hidden ones (macOS's `._x.jpg`) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES


# Folders that systems put among the user's: from Macs' archives, a NAS, a formatted disk, Windows.
_FOREIGN = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
HIDDEN = "hidden files (names that begin with a dot) passed over"
BLANK = "blank captions left out"


def is_foreign(name: str) -> bool:
    """Whether a folder of that name is hidden or a system's: no class and no set."""
    return name.startswith(".") or name in _FOREIGN


# Pillow's warnings do not name the image; what matters becomes Unreadable, which does.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def touched(path: Path) -> tuple[str, int, int, int]:
    """Name, size and times of a file; −1 for one that is not there (its image is unreadable).

    Both times: `cp -p` and `rsync -t` put another file there with an earlier st_mtime, not st_ctime.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return str(path), -1, -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hashed(value: object, size: int = 16) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=size).hexdigest()


class Unreadable(ValueError):
    """An image that no decoder reads; the message names it."""


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow's conversion; 16 bits are reduced to 8, of which Pillow (and so the field) makes white."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65_535:
            raise ValueError(f"pixels of mode {image.mode} have no agreed range")
        image = Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
    return image.convert("RGB")


class Member(NamedTuple):
    """Where an image's bytes lie; size -1: the whole file."""

    path: Path
    offset: int
    size: int
    name: str

    @classmethod
    def whole(cls, path: Path, name: str = "") -> Member:
        """A file that is an image."""
        return cls(path, 0, -1, name or path.name)


class Images(Identified, Protocol):
    """The images of a set, each decoded to RGB when it is asked for; safe to read from threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Image.Image: ...

    def name(self, i: int) -> str: ...


class FileImages:
    """Images that are byte ranges of files (tar members, or whole files)."""

    reading = ""  # ends the cache's keys where the same bytes give other pixels than here

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)

    def __len__(self) -> int:
        return len(self.members)

    def name(self, i: int) -> str:
        member = self.members[i]
        return str(member.path) if member.size < 0 else f"{member.path}, member {member.name}"

    def read(self, i: int) -> bytes:
        member = self.members[i]
        with open(member.path, "rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def __getitem__(self, i: int) -> Image.Image:
        """Image `i` as RGB, converted before any resizing, as webdataset's and torchvision's loaders do."""
        try:
            return _rgb(Image.open(io.BytesIO(self.read(i))))
        except UnidentifiedImageError:
            raise Unreadable(f"{self.name(i)}: no image that any decoder knows") from None
        except _DECODE_ERRORS as error:
            raise Unreadable(f"{self.name(i)}: not a readable image ({error})") from None

    def stamp(self) -> str:
        """Changes whenever a file was touched: a cheap key to what `identity` found by reading."""
        rows = sorted(touched(path) for path in {m.path for m in self.members})
        spans = [(str(m.path), m.offset, m.size) for m in self.members]
        return _hashed((rows, spans)) + self.reading

    def identity(self) -> str:
        """Hash of the images' bytes in order: two sets over the same images have the same one."""
        digest = hashlib.blake2b(digest_size=16)
        for i in range(len(self)):
            try:
                data = self.read(i)
            except OSError:  # not there: a link to nowhere
                data = b""
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest() + self.reading


class ArrayImages:
    """Images held as one uint8 array (N, H, W) or (N, H, W, 3)."""

    def __init__(self, array: np.ndarray, where: Path):
        self.array, self.where = array, where

    def __len__(self) -> int:
        return len(self.array)

    def name(self, i: int) -> str:
        return f"{self.where}, image {i}"

    def __getitem__(self, i: int) -> Image.Image:
        return Image.fromarray(self.array[i]).convert("RGB")

    def identity(self) -> str:
        digest = hashlib.blake2b(repr(self.array.shape).encode(), digest_size=16)
        for start in range(0, len(self.array), 1024):
            digest.update(np.ascontiguousarray(self.array[start : start + 1024]).data)
        return digest.hexdigest()

    stamp = identity  # the array is in memory: reading it is cheap


class StoredImages(ArrayImages):
    """Images in a file that is sliced like an array (an HDF5 data set), read one by one."""

    def __getitem__(self, i: int) -> Image.Image:
        try:
            return super().__getitem__(i)
        except OSError as error:
            raise Unreadable(f"{self.name(i)}: not readable ({error})") from None

    def identity(self) -> str:
        try:
            return super().identity()
        except OSError as error:
            raise ValueError(f"{self.where}: not readable ({error})") from None

    def stamp(self) -> str:
        return _hashed(touched(self.where))


Box = tuple[int, int, int, int]  # left, top, right, bottom


class CroppedImages(FileImages):
    """Boxes cut out of files, as PASCAL VOC's single objects are."""

    def __init__(self, paths: Sequence[Path], boxes: Sequence[Box]):
        super().__init__([Member.whole(path) for path in paths])
        self.boxes = list(boxes)
        self.reading = f"-{_hashed(self.boxes, 8)}"

    def __getitem__(self, i: int) -> Image.Image:
        return super().__getitem__(i).crop(self.boxes[i])


# -- of triplets ------------------------------------------------------------------------------


class PreparedImages(FileImages):
    """Files as the build prepares them: upright, transparency on white, 16 bits reduced to 8.

    Zero-shot sets are read as the field's reference reads them: transparency dropped, the EXIF orientation
    ignored.  A folder of triplets and the .beton made of it must get the same figure, so both are read as
    `pipeline/formats/pictures.py` says.
    """

    reading = "-prepared"

    def _pixels(self, i: int) -> np.ndarray:
        return pictures.read(self.read(i))

    def __getitem__(self, i: int) -> Image.Image:
        try:
            return Image.fromarray(self._pixels(i))
        except (ValueError, OSError) as error:
            raise Unreadable(f"{self.name(i)}: {error}") from None


class BetonImages(PreparedImages):
    """JPEGs of a .beton; one that the engines would refuse is not read."""

    reading = "-stored"

    def __init__(
        self, members: Sequence[Member], sizes: Sequence[Sequence[int]], checksums: Sequence[int | None]
    ):
        """sizes: (height, width) of each, and its checksum if there is one, as the file's table has them."""
        super().__init__(members)
        self.sizes, self.checksums = list(sizes), list(checksums)

    def _pixels(self, i: int) -> np.ndarray:
        data, expected = self.read(i), self.checksums[i]
        if expected is not None:
            from pipeline.beton.writer import checksum  # files without one need no xxhash

            if checksum(data) != expected:
                raise ValueError(CHANGED)
        return pictures.stored(data, *self.sizes[i])


# -- sets ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _IndexedSet:
    """What sets of both tasks have: N images, of which none has been decoded yet.

    notes: what was left out or taken for granted, for the user to read.
    """

    entry: Entry
    path: Path
    source: str  # the form it was read from
    images: Images
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def _check_counts(self, classes: int | None = None) -> None:
        if not len(self.images):
            raise ValueError(f"{self.path}: no image in it")
        catalog.check_counts(self.entry, len(self.images), classes, self.path)


@dataclass(frozen=True, eq=False)
class RetrievalSet(_IndexedSet):
    """captions: a list of one or more for each image."""

    captions: list[list[str]]
    prompts: ClassVar[None] = None

    def __post_init__(self) -> None:
        self._check_counts()


@dataclass(frozen=True, eq=False)
class ClassificationSet(_IndexedSet):
    """labels (N,) int64: each image's class among those of `prompts`.

    groups (N,) int64: images with equal numbers are not independent.  Classes that no image has, or that
    share a name, are added to the notes.
    """

    labels: np.ndarray
    prompts: Prompts
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._check_counts(len(self.prompts.classes))
        self._check_labels(len(self.prompts.classes))
        object.__setattr__(self, "notes", (*self.notes, *self._about_classes()))

    def _check_labels(self, classes: int) -> None:
        assert len(self.labels) == len(self.images)
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= classes))
        if bad.size:
            i = int(bad[0])
            raise ValueError(
                f"{self.images.name(i)}: label {self.labels[i]} is out of range for {classes} class names"
            )
        if not self.prompts.classes[-1] and self.labels.max() < classes - 1:
            raise ValueError(
                f"{self.path}: the class names end in a blank line, one more class, which no image has; "
                f"remove it from {CLASSNAMES_FILE}"
            )

    def _about_classes(self) -> list[str]:
        """Classes that no image has, and (but for the field's own lists) those that share a name."""
        names, out = self.prompts.classes, []
        empty = [names[i] or "''" for i in sorted({*range(len(names))} - {*self.labels.tolist()})]
        if empty:
            out.append(f"{len(empty)} classes without an image, still among the answers: {shown(empty)}")
        if "" in names and names != known_classnames(self.entry.prompts):
            out.append(f"{names.count('')} classes without a name (blank lines among the class names)")
        twice = [n for n, count in Counter(map(str.lower, names)).items() if count > 1]  # one to a tokenizer
        if twice and names != known_classnames(self.entry.prompts):
            out.append(
                f"{len(twice)} names are shared by classes, which no model can tell apart: {shown(twice)}"
            )
        return out


EvalSet = ClassificationSet | RetrievalSet  # `prompts is None` tells which


def shown(items: Sequence[str], limit: int = 5) -> str:
    """The first of them, and that there are more."""
    return ", ".join(items[:limit]) + (", …" if len(items) > limit else "")
