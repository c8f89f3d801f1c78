"""From image files to model input: open_clip's own transform, its uint8 half cached.

B batch, N images, S image side.

The transform is split where pixels stop being bytes.  Resizing, cropping and RGB conversion run once a set
in PIL (bit for bit what open_clip does; a GPU's resize is not) and are kept as uint8.  Scaling and
normalising run batch by batch with torchvision's own arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize

from eval.cache import Cache, mapped
from eval.distributed import Ranks
from eval.sets.evalset import Images, Unreadable

Consumer = Callable[[range, np.ndarray], None]
READER = 2  # of how files become RGB: raise it whenever an image may come out otherwise
_AHEAD = 3  # batches decoded ahead of the model
_ABANDONED = 86_400  # seconds that a file being filled may go without a change


def _step_name(step: Callable) -> str:
    """A transform's step without the address that a bare function's repr has (open_clip 3.2 uses one)."""
    return getattr(step, "__qualname__", None) or " ".join(repr(step).split())


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform in two halves; `key` names the first half and Pillow's version."""

    spatial: tuple
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]  # height, width of a crop
    key: str

    @classmethod
    def from_transform(cls, transform) -> Preprocess:
        """Split a torchvision `Compose` that ends in ToTensor, Normalize; ValueError for another shape."""
        steps = list(transform.transforms)
        names = [type(step).__name__ for step in steps]
        if len(steps) < 2 or "ToTensor" not in names[-2] or names[-1] != "Normalize":
            raise ValueError(f"the model's image transform is {names}; it must end in ToTensor, Normalize")
        spatial, scale = tuple(steps[:-2]), steps[-1]
        description = f"{[_step_name(s) for s in spatial]} pillow {PIL.__version__} reader {READER}"
        key = hashlib.blake2b(description.encode(), digest_size=8).hexdigest()
        probe = PIL.Image.new("RGB", (8, 8))
        for step in spatial:
            probe = step(probe)
        return cls(spatial, tuple(scale.mean), tuple(scale.std), (probe.height, probe.width), key)

    def crop(self, image: PIL.Image.Image) -> np.ndarray:
        """(S, S, 3) uint8."""
        for step in self.spatial:
            image = step(image)
        return np.asarray(image)

    def tensor(self, crops: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """(B, S, S, 3) uint8 → (B, 3, S, S) float32, as torchvision's ToTensor and Normalize compute it."""
        batch = torch.from_numpy(np.array(crops)).to(device)
        batch = batch.permute(0, 3, 1, 2).contiguous().to(torch.float32).div(255)
        return normalize(batch, self.mean, self.std, inplace=True)

    def describe(self) -> dict:
        return {
            "steps": [_step_name(s) for s in self.spatial],
            "mean": self.mean,
            "std": self.std,
            "pillow": PIL.__version__,
        }


class StoredCrops(NamedTuple):
    """What the cache holds of a set: (N, S, S, 3) uint8 on the memory map, and {index: message}."""

    pixels: np.ndarray
    unreadable: dict[int, str]


@dataclass(frozen=True)
class Crops:
    """A set's crops: read from the cache, or decoded and kept there."""

    images: Images
    preprocess: Preprocess
    cache: Cache
    key: str

    @property
    def path(self) -> Path | None:
        return self.cache.place("crops", f"{self.key}.npy")

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return (len(self.images), *self.preprocess.size, 3)

    def stored(self) -> StoredCrops | None:
        """What the cache holds; None where it holds nothing, or something damaged."""
        return self.cache.read(self.path, self._read)

    def _read(self, path: Path) -> StoredCrops:
        pixels = mapped(path)
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(f"{pixels.shape} of {pixels.dtype}, {self._shape} of uint8 are expected")
        listing = path.with_suffix(".json")
        rows = json.loads(listing.read_text())["unreadable"] if listing.is_file() else []
        return StoredCrops(pixels, {int(i): message for i, message in rows})

    def for_each(self, consume: Consumer, batch_size: int, workers: int, ranks: Ranks) -> dict[int, str]:
        """Call consume(indices, (B, S, S, 3) uint8) for each of this rank's batches.

        Returns {index: message} of the images, of all ranks, that no decoder reads; their rows are zero.
        Threads decode ahead while `consume` works.  Decoded crops are in the cache when this returns; if it
        raises, no part of them is.
        """
        count = len(self.images)
        spans = [range(s, min(s + batch_size, count)) for s in range(0, count, batch_size)]
        mine = [spans[i] for i in ranks.mine(len(spans))]
        stored = self.stored()
        # All must agree, even while another evaluation fills the same cache.
        everywhere = all(ranks.gather(stored is not None))
        if stored is not None and everywhere:
            for span in mine:
                consume(span, stored.pixels[span.start : span.stop])
            return stored.unreadable
        part = self._create_part(ranks)
        if part is None:
            return self._decode(mine, workers, consume, None, ranks)
        try:
            with open(part, "r+b", buffering=0) as file:
                unreadable = self._decode(mine, workers, consume, file, ranks)
                os.fsync(file.fileno())
            self._publish(part, unreadable, ranks)
            return unreadable
        finally:
            if ranks.rank == 0:
                part.unlink(missing_ok=True)

    # -- decoding ---------------------------------------------------------------------------------

    def _decode(
        self, spans: Sequence[range], workers: int, consume: Consumer, file: FileIO | None, ranks: Ranks
    ) -> dict[int, str]:
        unreadable: dict[int, str] = {}
        for span, batch, messages in self._decoded(spans, workers):
            if file is not None and not self.cache.broken:
                self._write(file, span, batch)
            unreadable |= messages
            consume(span, batch)
        return {i: message for part in ranks.gather(unreadable) for i, message in part.items()}

    def _decoded(
        self, spans: Sequence[range], workers: int
    ) -> Iterator[tuple[range, np.ndarray, dict[int, str]]]:
        """(indices, crops, {index: message} of the unreadable ones), some batches decoded ahead."""
        with ThreadPoolExecutor(workers) as pool:
            begun = ((span, [pool.submit(self._crop, i) for i in span]) for span in spans)
            waiting = deque(islice(begun, _AHEAD))
            while waiting:
                span, futures = waiting.popleft()
                waiting.extend(islice(begun, 1))
                batch = np.zeros((len(span), *self._shape[1:]), np.uint8)
                messages = {}
                for row, future in enumerate(futures):
                    crop = future.result()
                    if isinstance(crop, str):
                        messages[span[row]] = crop
                    else:
                        batch[row] = crop
                yield span, batch, messages

    def _crop(self, i: int) -> np.ndarray | str:
        """The crop, or why there is none."""
        try:
            return self.preprocess.crop(self.images[i])
        except Unreadable as error:
            return str(error)

    # -- the file that all ranks fill ---------------------------------------------------------------

    def _create_part(self, ranks: Ranks) -> Path | None:
        """The file to fill, made by rank 0; None without a cache or without room for it.

        Every evaluation has its own, so that two of them may fill one cache at the same time.
        """
        if not ranks.gather(self.cache.has_room(int(np.prod(self._shape))))[0]:
            if self.path is not None and not self.cache.broken:
                self.cache.notes.append(f"no room for {self.path.name}: its images are decoded every time")
            return None
        assert self.path is not None  # a cache that has room has a folder
        part = self.path.with_name(f".{self.key}.{ranks.gather(uuid.uuid4().hex)[0]}.part")
        if ranks.rank == 0:
            try:
                self._lay_out(part)
            except OSError as error:
                self.cache.refuse(error)
        return part if ranks.gather(part.is_file())[0] else None

    def _lay_out(self, part: Path) -> None:
        """An empty .npy of the crops' shape; removes what killed evaluations left."""
        part.parent.mkdir(parents=True, exist_ok=True)
        for old in part.parent.glob(f".{self.key}.*.part"):
            with suppress(OSError):  # another user's, or another evaluation was faster
                if time.time() - old.stat().st_mtime > _ABANDONED:
                    old.unlink()
        with open(part, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + int(np.prod(self._shape)))

    def _write(self, file: FileIO, span: range, batch: np.ndarray) -> None:
        """Write a batch to its place; not through a memory map, where a full disk would end the process."""
        row = batch[0].nbytes
        start = os.fstat(file.fileno()).st_size - len(self.images) * row  # behind the header
        data, offset = batch.data.cast("B"), start + span.start * row
        try:
            while data:
                written = os.pwrite(file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            self.cache.refuse(error)

    def _publish(self, part: Path, unreadable: dict[int, str], ranks: Ranks) -> None:
        """Give the filled file its name, unless a rank could not write its share."""
        whole = not any(ranks.gather(self.cache.broken))
        if ranks.rank == 0 and whole:
            assert self.path is not None  # `part` lies beside it
            if unreadable:
                listing = json.dumps({"unreadable": sorted(unreadable.items())})
                self.cache.keep(self.path.with_suffix(".json"), lambda path: path.write_text(listing))
            self.cache.keep(self.path, lambda path: os.replace(part, path))
        ranks.gather(None)  # no rank goes on before the file has its name
