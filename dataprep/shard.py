"""What a source delivers, and how one task of it becomes one shard.

A shard is some files in the folder of parts, each renamed into place whole: N.beton (absent if nothing
was taken), N.rejects.jsonl, N.warnings.jsonl, with `dedup` N.hashes.npy, and last N.json, which tells that
the shard is finished.

Not here: which tasks there are (the sources), in which process they run (`pool.py`).

N samples, K captions of an image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from dataprep.convert import Converted, ImageSettings, Rejected, convert
from pipeline import text
from pipeline.base.files import replacing
from pipeline.beton.fields import CONTEXT_LENGTH, Field, pairs_schema, triplets_schema
from pipeline.beton.writer import writing

_BATCH = 256  # pairs converted before their captions are tokenised together
_CACHE_BYTES = 256 << 20  # converted images of triplets that are kept for the next triplets


class Task(NamedTuple):
    """A piece of a source that becomes one shard; `start` and `stop` are the source's own measure."""

    path: str
    start: int
    stop: int
    most: int  # as many samples at the most; 0: the source's `most` tells
    weight: int  # its share of the work: samples, or bytes where samples cannot be counted
    line: int = 1  # where `start` lies in a table of lines


class Pair(NamedTuple):
    """An image, as bytes or as a file's path, and its captions, as strings or as (K, 77) token ids."""

    key: str
    image: bytes | str | Path
    captions: list[str] | np.ndarray


class Triplet(NamedTuple):
    """Three images (files, or their bytes), the fraction of `votes` people who preferred `right`."""

    key: str
    ref: bytes | Path
    left: bytes | Path
    right: bytes | Path
    vote: float
    votes: int


class Bad(NamedTuple):
    """A sample that the source itself cannot deliver."""

    key: str
    reason: str
    detail: str = ""


class Left(NamedTuple):
    """Something of a source that was never a sample and is passed over; counted, and no reject."""

    what: str
    count: int = 1


class Source(Protocol):
    """Where samples come from; a picklable value whose `tasks` are the same every time."""

    kind: str  # pairs or triplets
    captions: int  # K of the file; 0 for triplets

    def tasks(self) -> list[Task]: ...

    def images(self) -> int | None:
        """How many images will be stored, to estimate the space; None if that is not known."""
        ...

    def read(self, task: Task) -> Iterator[Pair | Triplet | Bad | Left]: ...

    def describe(self) -> dict:
        """What goes into the JSON: enough to tell whether the source changed."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How samples are chosen and stored."""

    images: ImageSettings = field(default_factory=ImageSettings)
    dedup: bool = False
    """Keep only the first of the samples whose image files are equal to the byte."""
    share: float = 1.0
    """Build this share of the samples only, each chosen by a hash of its key (not training's --fraction)."""
    seed: int = 0
    """Seed of the choice."""

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")


@dataclass
class Tally:
    """Counts of one shard, or of all of them together."""

    samples: int = 0
    seen: int = 0
    passed: int = 0  # images kept byte for byte
    rejected: Counter = field(default_factory=Counter)
    passed_over: Counter = field(default_factory=Counter)  # what no sample was
    caption_lengths: np.ndarray = field(default_factory=lambda: np.zeros(CONTEXT_LENGTH + 1, np.int64))
    captions_left_out: int = 0
    warned: Counter = field(default_factory=Counter)  # what was said of pictures that were taken all the same

    def __iadd__(self, other: Tally) -> Tally:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def count_captions(self, tokens: np.ndarray, times: int = 1) -> None:
        """Count the captions among (N, K, 77) token ids, or take them out again (times -1)."""
        lengths = text.lengths(tokens[tokens[..., 0] != 0])
        self.caption_lengths += times * np.bincount(lengths, minlength=CONTEXT_LENGTH + 1)

    def to_json(self) -> dict:
        """Plain values, for `from_json`."""
        return vars(self) | {"caption_lengths": self.caption_lengths.tolist()}

    @classmethod
    def from_json(cls, value: dict) -> Tally:
        """The inverse of `to_json`."""
        lengths = np.array(value["caption_lengths"], np.int64)
        counts = {name: Counter(value[name]) for name in ("rejected", "passed_over", "warned")}
        return cls(**value | counts | {"caption_lengths": lengths})


def schema(source: Source) -> dict[str, Field]:
    """Columns of the file that `source` becomes."""
    return pairs_schema(source.captions) if source.kind == "pairs" else triplets_schema()


def chosen(key: str, settings: SampleSettings) -> bool:
    """Whether the sample is in the share: its hash, as a number in [0, 1), is below it."""
    if settings.share == 1:
        return True
    digest = hashlib.blake2b(f"{settings.seed}:{key}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") < settings.share * 2**64


def write_shard(
    source: Source, task: Task, stem: Path, settings: SampleSettings, step: Callable[[int], None]
) -> Tally:
    """Convert one task into the files `stem`.*; `step(n)` is called for every n samples seen."""
    return _Shard(source, task, stem, settings, step).write()


class _Shard:
    """The state of one shard while it is written."""

    def __init__(self, source, task, stem, settings, step):
        self.source, self.task, self.stem, self.settings, self.step = source, task, stem, settings, step
        self.tally, self.hashes, self.rejects, self.warnings = Tally(), [], None, []
        self.cache: dict[bytes | Path, Converted] = {}
        self.cached = 0

    def write(self) -> Tally:
        tally, beton = self.tally, self.stem.with_suffix(".beton")
        samples = self._pairs() if self.source.kind == "pairs" else self._triplets()
        with replacing(self.stem.with_suffix(".rejects.jsonl")) as name, open(name, "w") as self.rejects:
            first = next(samples, None)
            if first is not None:
                share, most = self.source.kind == "triplets", self.task.most or self.source.most(self.task)
                with writing(beton, schema(self.source), most, share=share) as writer:
                    writer.add(first)
                    for sample in samples:
                        writer.add(sample)
                    tally.samples = writer.samples
        with replacing(self.stem.with_suffix(".warnings.jsonl")) as name:
            name.write_text("".join(self.warnings))
        self.step(tally.seen % 64)
        if self.settings.dedup:
            with replacing(self.stem.with_suffix(".hashes.npy")) as name, open(name, "wb") as file:
                np.save(file, np.frombuffer(b"".join(self.hashes), np.uint64).reshape(-1, 2))
        with replacing(self.stem.with_suffix(".json")) as name:
            name.write_text(json.dumps(tally.to_json()))
        return tally

    def _reject(self, key: str, error: Rejected) -> None:
        self.tally.rejected[error.reason] += 1
        row = {"source": self.task.path, "key": key, "reason": error.reason, "detail": error.detail}
        self.rejects.write(json.dumps(row) + "\n")

    def _raws(self) -> Iterator[Pair | Triplet | Bad]:
        """The task's chosen samples."""
        for raw in self.source.read(self.task):
            if isinstance(raw, Left):
                self.tally.passed_over[raw.what] += raw.count
                continue
            if not chosen(raw.key, self.settings):
                continue
            self.tally.seen += 1
            if self.tally.seen % 64 == 0:
                self.step(64)
            yield raw

    def _convert(self, data: bytes, name: str) -> Converted:
        """The converted image; what Pillow warned of is noted under its name."""
        image = convert(data, self.settings.images)
        for line in image.warned:
            self.tally.warned[re.sub(r"\d+", "N", line)] += 1
            row = {"source": self.task.path, "key": name, "warning": line}
            self.warnings.append(json.dumps(row) + "\n")
        return image

    # -- pairs ------------------------------------------------------------------------------

    def _pairs(self) -> Iterator[dict]:
        raws = self._raws()
        while batch := list(islice(raws, _BATCH)):
            ready = []
            for raw, tokens in zip(batch, self._tokens(batch)):
                try:
                    if isinstance(tokens, Rejected):
                        raise tokens
                    data = read_image(raw.image, self.settings.images)
                    ready.append((raw.key, self._convert(data, raw.key), tokens))
                except Rejected as error:
                    self._reject(raw.key, error)
                    continue
                if self.settings.dedup:
                    self.hashes.append(hashlib.blake2b(data, digest_size=16).digest())
            if ready:
                self.tally.count_captions(np.stack([tokens for _, _, tokens in ready]))
            for key, image, tokens in ready:
                self.tally.passed += image.passed
                name = key.encode("utf-8", "surrogateescape")
                yield {"image": image.jpeg, "tokens": tokens, "luma": image.luma, "key": name}

    def _tokens(self, batch: list[Pair | Bad]) -> list[np.ndarray | Rejected]:
        """(K, 77) ids of each pair's captions, all tokenised at once; Rejected where none is left."""
        said = [raw.captions if isinstance(raw, Pair) else [] for raw in batch]
        counts = [len(captions) if isinstance(captions, list) else 0 for captions in said]
        strings = [c for captions in said if isinstance(captions, list) for c in captions]
        rows = text.tokenize(strings)
        said_something = text.lengths(rows) > 2  # start and end alone say nothing
        out, at, most = [], 0, self.source.captions
        for raw, count in zip(batch, counts):
            ids, at = rows[at : at + count][said_something[at : at + count]], at + count
            if isinstance(raw, Bad):
                out.append(Rejected(raw.reason, raw.detail))
                continue
            if not isinstance(raw.captions, list):
                ids = raw.captions[text.lengths(raw.captions) > 2]
            if not len(ids):
                out.append(Rejected("empty caption"))
                continue
            self.tally.captions_left_out += max(0, len(ids) - most)
            table = np.zeros((most, CONTEXT_LENGTH), np.int32)
            table[: len(ids)] = ids[: len(table)]
            out.append(table)
        return out

    # -- triplets ---------------------------------------------------------------------------

    def _triplets(self) -> Iterator[dict]:
        for raw in self._raws():
            try:
                if isinstance(raw, Bad):
                    raise Rejected(raw.reason, raw.detail)
                images = [self._cached(path) for path in (raw.ref, raw.left, raw.right)]
            except Rejected as error:
                self._reject(raw.key, error)
                continue
            self.tally.passed += sum(image.passed for image in images)
            ref, left, right = (image.jpeg for image in images)
            luma = np.array([image.luma for image in images], np.float32)
            key = raw.key.encode("utf-8", "surrogateescape")
            yield {
                "ref": ref, "left": left, "right": right, "vote": raw.vote, "votes": raw.votes,
                "luma": luma, "key": key,
            }  # fmt: skip

    def _cached(self, path: bytes | Path) -> Converted:
        """The converted image, remembered for the next triplets within a limit of bytes."""
        if path not in self.cache:
            try:
                name = str(path) if isinstance(path, Path) else "(no file)"
                image = self._convert(read_image(path, self.settings.images), name)
            except Rejected as error:
                if isinstance(path, bytes) or str(path) in error.detail:
                    raise
                raise Rejected(error.reason, f"{path}: {error.detail}".removesuffix(": ")) from None
            self.cached += len(image.jpeg.data)
            self.cache[path] = image
            while self.cached > _CACHE_BYTES and len(self.cache) > 1:
                self.cached -= len(self.cache.pop(next(iter(self.cache))).jpeg.data)
        return self.cache[path]


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe too without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _why_missing(path: str) -> str:
    """What may be wrong with the name of a file that is not there."""
    if "\\" in path:
        return "; folders are parted by / here, not by Windows' \\"
    if any(os.path.exists(unicodedata.normalize(form, path)) for form in ("NFC", "NFD")):
        return "; it is there, but under the same letters written in another way (Unicode's NFC and NFD)"
    return ""


def read_image(image: bytes | str | Path, settings: ImageSettings) -> bytes:
    """The bytes of an image file; Rejected if it is missing, unreadable or too large."""
    if isinstance(image, bytes):
        return image
    try:
        with open(image, "rb", buffering=0, opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Rejected("unreadable file", f"{image}: a device or pipe")
            if (size := status.st_size) > settings.max_bytes:
                raise Rejected("too many bytes", f"{size}, the limit is {settings.max_bytes}")
            data = file.read()
    except FileNotFoundError:
        raise Rejected("missing file", f"{image}{_why_missing(str(image))}") from None
    except Rejected:
        raise
    except (OSError, ValueError) as error:  # a folder, no permission, a name that cannot be
        raise Rejected("unreadable file", f"{image}: {error}") from None
    return data
