"""A folder of what an evaluation need not compute twice.

What is kept, and by which key, is the callers' business: `eval/sets/sources.py` (indices), `eval/crops.py`,
`eval/encode.py` and `eval/scoring.py` (vectors).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from pipeline.base.files import replacing

T = TypeVar("T")


class Identified(Protocol):
    """Images that can be told apart: `stamp` is cheap, `identity` reads them all."""

    def stamp(self) -> str: ...

    def identity(self) -> str: ...


@dataclass
class Cache:
    """The folder; None keeps nothing.

    It may be read-only, full, damaged, another user's, or on a mount that lacks a feature.  What cannot be
    read is computed; what cannot be kept is reported once in `notes`.

    index/KEY.json     where a tar's members lie, and their labels or captions
    identities/STAMP   hash of a set's image bytes, found without reading them again
    crops/KEY.npy      (N, S, S, 3) uint8, with KEY.json naming the images that did not decode
    features/KEY.npy   (N, D) float32 of images, of class weights, of captions
    """

    folder: Path | None
    notes: list[str] = field(default_factory=list)
    broken: bool = False  # something could not be kept, so nothing more is tried

    def refuse(self, error: OSError) -> None:
        """Keep nothing from here on, because of `error`."""
        if not self.broken:
            self.broken = True
            reason = error.strerror or str(error)
            self.notes.append(f"{self.folder}: {reason}; nothing more is kept there (--cache DIR: elsewhere)")

    def place(self, kind: str, name: str) -> Path | None:
        """Where a file of one of the four kinds lies; None without a folder."""
        return None if self.folder is None else self.folder / kind / name

    def keep(self, path: Path | None, write: Callable[[Path], object]) -> None:
        """Call write(temporary name) and rename the file to `path`; an OSError is noted."""
        if path is not None and not self.broken:
            try:
                with replacing(path) as temporary:
                    write(temporary)
            except OSError as error:
                self.refuse(error)

    def read(self, path: Path | None, reader: Callable[[Path], T]) -> T | None:
        """reader(path); None if there is no such file, or if it is damaged, which `notes` say."""
        if path is None or not os.access(path, os.R_OK):
            return None
        try:
            return reader(path)
        except (ValueError, EOFError, OSError) as error:
            note = f"{path}: damaged, made anew ({error})"
            if note not in self.notes:
                self.notes.append(note)
            return None

    def _remembered(
        self, path: Path | None, reader: Callable[[Path], T], make: Callable[[], T], text: Callable[[T], str]
    ) -> T:
        """What `reader` finds in the file, else what `make` makes, kept as `text`."""
        value = self.read(path, reader)
        if value is None:
            value = made = make()
            self.keep(path, lambda file: file.write_text(text(made)))
        return value

    def remember(self, key: str, make: Callable[[], dict]) -> dict:
        """make()'s JSON object, from an earlier call with this key where there was one."""
        path = self.place("index", f"{key}.json")
        return self._remembered(path, lambda file: json.loads(file.read_bytes()), make, json.dumps)

    def identity(self, images: Identified) -> str:
        """A name for the images by their content; without a folder, by where they lie."""
        stamp = images.stamp()
        path = self.place("identities", stamp)
        return self._remembered(path, _read_identity, images.identity, str) if path else stamp

    def load(self, key: str, rows: int | None = None) -> np.ndarray | None:
        """The vectors of this key, `rows` of them; None where they are not kept."""

        def whole(path: Path) -> np.ndarray:
            vectors = np.load(path)
            if rows not in (None, len(vectors)):
                raise ValueError(f"{len(vectors)} vectors, {rows} are expected")
            return vectors

        return self.read(self.place("features", f"{key}.npy"), whole)

    def save(self, key: str, vectors: np.ndarray) -> None:
        """Keep the vectors for `load`."""

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.save(file, vectors)

        self.keep(self.place("features", f"{key}.npy"), write)

    def has_room(self, size: int) -> bool:
        """Whether a file of `size` bytes leaves a tenth of the disk's free space."""
        if self.folder is None or self.broken:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return size < 0.9 * shutil.disk_usage(self.folder).free
        except OSError as error:
            self.refuse(error)
            return False


def _read_identity(path: Path) -> str:
    text = path.read_text()
    if not re.fullmatch(r"[0-9a-f]{32}(-\w+)*", text):
        raise ValueError(f"{text[:40]!r} is no hash of images")
    return text


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file on the memory map; a private one on mounts without shared maps."""
    try:
        return np.load(path, mmap_mode="r")
    except OSError:
        return np.load(path, mmap_mode="c")
