"""From image files to model input: open_clip's own transform, its uint8 half cached.

B batch, N images, S image side.

The transform is split where pixels stop being bytes: resizing, cropping and RGB conversion run
once a set in PIL (bit for bit what open_clip does, a GPU's resize is not) and are kept as uint8;
scaling and normalising are done batch by batch with torchvision's own arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from eval.ranks import Ranks
from eval.sets.evalset import ArrayImages, FileImages, Unreadable
from pipeline.base.files import replacing

Images = FileImages | ArrayImages
READER = 2  # of how files become RGB: raise it whenever a picture may come out otherwise
_AHEAD = 3  # batches decoded ahead of the model
_ABANDONED = 86_400  # seconds that a file being filled may go without a change


def _described(step: Callable) -> str:
    """A transform's step without the address that a bare function's repr has (open_clip 3.2 uses one)."""
    return getattr(step, "__qualname__", None) or " ".join(repr(step).split())


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform in two halves; `key` names the first half and Pillow's version."""

    spatial: tuple
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    key: str

    @classmethod
    def from_transform(cls, transform) -> Preprocess:
        """Split a torchvision `Compose` that ends in ToTensor, Normalize; ValueError for another shape."""
        steps = list(transform.transforms)
        names = [type(s).__name__ for s in steps]
        if len(steps) < 2 or "ToTensor" not in names[-2] or names[-1] != "Normalize":
            raise ValueError(f"the model's image transform is {names}; it must end in ToTensor, Normalize")
        spatial, normalize = tuple(steps[:-2]), steps[-1]
        described = f"{[_described(s) for s in spatial]} pillow {PIL.__version__} reader {READER}"
        key = hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
        probe = PIL.Image.new("RGB", (8, 8))
        for step in spatial:
            probe = step(probe)
        return cls(spatial, tuple(normalize.mean), tuple(normalize.std), (probe.height, probe.width), key)

    def crop(self, image: PIL.Image.Image) -> np.ndarray:
        """(S, S, 3) uint8."""
        for step in self.spatial:
            image = step(image)
        return np.asarray(image)

    def tensor(self, crops: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """(B, S, S, 3) uint8 → (B, 3, S, S) float32, as torchvision's ToTensor and Normalize compute it."""
        batch = torch.from_numpy(np.array(crops)).to(device)
        batch = batch.permute(0, 3, 1, 2).contiguous().to(torch.float32).div(255)
        mean = torch.tensor(self.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=device).view(-1, 1, 1)
        return batch.sub_(mean).div_(std)

    def describe(self) -> dict:
        return {
            "steps": [_described(s) for s in self.spatial],
            "mean": self.mean,
            "std": self.std,
            "pillow": PIL.__version__,
        }


@dataclass
class Cache:
    """A folder of what need not be computed twice; None keeps nothing.

    It may be another user's, read-only, full, damaged, or on a mount that cannot do what is asked: what
    cannot be read is computed, and what cannot be kept is said once in `notes`.

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
            why = error.strerror or str(error)
            self.notes.append(f"{self.folder}: {why}; nothing more is kept there (--cache DIR: elsewhere)")

    def keep(self, path: Path, write: Callable[[Path], object]) -> None:
        """Call write(temporary name), and rename what it wrote to `path`, if it can be done."""
        if not self.broken:
            try:
                with replacing(path) as temporary:
                    write(temporary)
            except OSError as error:
                self.refuse(error)

    def remember(self, key: str, make: Callable[[], object]) -> object:
        """make()'s JSON value, from an earlier call with this key where there was one."""
        if self.folder is None:
            return make()
        path = self.folder / "index" / f"{key}.json"
        if (known := self.read(path, lambda p: json.loads(p.read_text(encoding="utf-8")))) is not None:
            return known
        value = make()
        self.keep(path, lambda p: p.write_text(json.dumps(value)))
        return value

    def identity(self, images: Images) -> str:
        """Names the set's pictures by content; without a folder, by where they lie."""
        stamp = images.stamp()
        if self.folder is None:
            return stamp
        path = self.folder / "identities" / stamp
        if (known := self.read(path, _hash)) is not None:
            return known
        found = images.identity()
        self.keep(path, lambda p: p.write_text(found))
        return found

    def features_path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / "features" / f"{key}.npy"

    def read(self, path: Path, reader: Callable[[Path], object]) -> object | None:
        """reader(path); None where there is no such file, or it is damaged, which `notes` say."""
        if not os.access(path, os.R_OK):
            return None
        try:
            return reader(path)
        except (ValueError, EOFError, OSError) as error:
            note = f"{path}: damaged, made anew ({error})"
            self.notes += [note] if note not in self.notes else []
            return None

    def has(self, key: str, rows: int | None = None) -> bool:
        return self.load(key, rows) is not None

    def load(self, key: str, rows: int | None = None) -> np.ndarray | None:
        """The vectors of this key, `rows` of them; None where they are not kept."""

        def whole(path: Path) -> np.ndarray:
            value = np.load(path)
            if rows not in (None, len(value)):
                raise ValueError(f"{len(value)} vectors, {rows} are expected")
            return value

        path = self.features_path(key)
        return None if path is None else self.read(path, whole)

    def save(self, key: str, value: np.ndarray) -> None:
        path = self.features_path(key)
        if path is None:
            return

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.save(file, value)

        self.keep(path, write)

    def has_room(self, bytes_needed: int) -> bool:
        """Whether a file of that size leaves a tenth of the disk's free space untouched."""
        if self.folder is None or self.broken:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return bytes_needed < 0.9 * shutil.disk_usage(self.folder).free
        except OSError as error:
            self.refuse(error)
            return False


def _hash(path: Path) -> str:
    text = path.read_text()
    if not re.fullmatch(r"[0-9a-f]{32}(-\w+)*", text):
        raise ValueError(f"{text[:40]!r} names no pictures")
    return text


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file on the memory map; on a mount without shared maps, on a private one."""
    try:
        return np.load(path, mmap_mode="r")
    except OSError:
        return np.load(path, mmap_mode="c")


@dataclass
class Crops:
    """A set's crops: read from the cache, or decoded (and cached) while they are first walked through.

    After a walk `bad` holds {index: message} for the images that no decoder read; their rows are zero.
    """

    images: Images
    preprocess: Preprocess
    cache: Cache
    key: str
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        return None if self.cache.folder is None else self.cache.folder / "crops" / f"{self.key}.npy"

    def stored(self) -> np.ndarray | None:
        """(N, S, S, 3) uint8 on the memory map, or None; fills `bad`."""
        return None if self.path is None else self.cache.read(self.path, self._stored)

    def _stored(self, path: Path) -> np.ndarray:
        crops, shape = mapped(path), (len(self.images), *self.preprocess.size, 3)
        if crops.shape != shape or crops.dtype != np.uint8:
            raise ValueError(f"{crops.shape} of {crops.dtype}, {shape} of uint8 are expected")
        listed = path.with_suffix(".json")
        rows = json.loads(listed.read_text())["unreadable"] if listed.is_file() else []
        self.bad = {int(i): message for i, message in rows}
        return crops

    def _one(self, i: int) -> np.ndarray | str:
        try:
            return self.preprocess.crop(self.images[i])
        except Unreadable as error:
            return str(error)

    def _decoded(self, spans: Sequence[range], workers: int) -> Iterator[tuple[range, np.ndarray]]:
        height, width = self.preprocess.size
        with ThreadPoolExecutor(max(1, workers)) as pool:
            waiting = [[pool.submit(self._one, i) for i in span] for span in spans[:_AHEAD]]
            for number, span in enumerate(spans):
                if number + _AHEAD < len(spans):
                    waiting.append([pool.submit(self._one, i) for i in spans[number + _AHEAD]])
                batch = np.zeros((len(span), height, width, 3), np.uint8)
                for row, (i, future) in enumerate(zip(span, waiting[number])):
                    result = future.result()
                    if isinstance(result, str):
                        self.bad[i] = result
                    else:
                        batch[row] = result
                waiting[number] = []
                yield span, batch

    def batches(self, batch_size: int, workers: int, ranks: Ranks) -> Iterator[tuple[range, np.ndarray]]:
        """This rank's (indices, (B, S, S, 3) uint8); the last batch of the set may be shorter."""
        count = len(self.images)
        spans = [range(s, min(s + batch_size, count)) for s in range(0, count, batch_size)]
        mine = [spans[i] for i in ranks.mine(len(spans))]
        # One rank looks, so that all agree even while another evaluation fills the same cache.
        if ranks.gather(self.stored() is not None)[0]:
            stored = self.stored()
            yield from ((span, stored[span.start : span.stop]) for span in mine)
            return
        part = self._create(ranks)
        if part is None:
            yield from self._walked(mine, workers, None, ranks)
            return
        try:
            with open(part, "r+b", buffering=0) as store:
                yield from self._walked(mine, workers, store, ranks)
                os.fsync(store.fileno())
            self._finish(part, ranks)
        finally:  # a walk that was broken off leaves nothing
            if ranks.rank == 0:
                part.unlink(missing_ok=True)

    def _walked(
        self, spans: Sequence[range], workers: int, store: FileIO | None, ranks: Ranks
    ) -> Iterator[tuple[range, np.ndarray]]:
        for span, batch in self._decoded(spans, workers):
            if store is not None and not self.cache.broken:
                self._put(store, span, batch)
            yield span, batch
        for other in ranks.gather(self.bad):
            self.bad.update(other)

    def _put(self, store: FileIO, span: range, batch: np.ndarray) -> None:
        """Write a batch to its place; not by a memory map, where a full disk would end the process."""
        row = batch[0].nbytes
        first = os.fstat(store.fileno()).st_size - len(self.images) * row  # behind the header
        left, at = memoryview(batch).cast("B"), first + span.start * row
        try:
            while left:
                done = os.pwrite(store.fileno(), left, at)
                left, at = left[done:], at + done
        except OSError as error:
            self.cache.refuse(error)

    def _create(self, ranks: Ranks) -> Path | None:
        """The file all ranks fill, made by the first; None without a cache or without room for it.

        Every evaluation has its own, so that two of them may fill one cache at the same time.
        """
        shape = (len(self.images), *self.preprocess.size, 3)
        room = ranks.gather(self.cache.has_room(int(np.prod(shape))))[0]
        if not room:
            if self.cache.folder is not None and not self.cache.broken:
                self.cache.notes.append(f"no room for {self.path.name}: its images are decoded every time")
            return None
        part = self.path.with_name(f".{self.key}.{ranks.gather(uuid.uuid4().hex)[0]}.part")
        if ranks.rank == 0:
            try:
                self._lay_out(part, shape)
            except OSError as error:
                self.cache.refuse(error)
        return part if ranks.gather(part.is_file())[0] else None

    def _lay_out(self, part: Path, shape: tuple[int, ...]) -> None:
        """An empty .npy of that shape; what killed evaluations left is removed."""
        part.parent.mkdir(parents=True, exist_ok=True)
        for old in part.parent.glob(f".{self.key}.*.part"):
            with suppress(OSError):  # another user's, or another evaluation was faster
                if time.time() - old.stat().st_mtime > _ABANDONED:
                    old.unlink()
        with open(part, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(shape)))

    def _finish(self, part: Path, ranks: Ranks) -> None:
        whole = not any(ranks.gather(self.cache.broken))
        if ranks.rank == 0 and whole:
            if self.bad:
                listed = json.dumps({"unreadable": sorted(self.bad.items())})
                self.cache.keep(self.path.with_suffix(".json"), lambda p: p.write_text(listed))
            self.cache.keep(self.path, lambda p: os.replace(part, p))
        ranks.barrier()
