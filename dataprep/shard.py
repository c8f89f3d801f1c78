"""Converts one task of a source and writes it as one shard.

A shard is a few files in the folder of parts, each renamed into place whole: N.beton (absent if the shard
has no samples), N.rejects.jsonl, N.warnings.jsonl, N.hashes.npy (with `dedup`).  N.json is written last: its
presence means that the shard is finished.

Not here: which tasks there are (the sources), in which process they run (`pool.py`), how an image is
converted (`convert.py`).

N samples, K captions of an image.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from dataprep.convert import Converted, ImageSettings, Rejected, convert, read_image
from dataprep.samples import Bad, Pair, PassedOver, Source, Task
from pipeline import text
from pipeline.base import files
from pipeline.base.files import replacing
from pipeline.beton.fields import CONTEXT_LENGTH, pairs_schema, pictures_schema
from pipeline.beton.writer import writing

_BATCH = 256  # pairs whose captions are tokenised together
_STEP = 64  # samples between two reports of progress


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How samples are chosen and stored."""

    images: ImageSettings = field(default_factory=ImageSettings)
    dedup: bool = False
    """Keep only the first of the samples whose image files are equal to the byte."""
    share: float = 1.0
    """Build this share of the samples only, each chosen by a hash of its key (not training's --fraction)."""
    seed: int = 0
    """Seed of the choice, and of triplets that are drawn."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")

    def chooses(self, key: str) -> bool:
        """Whether the sample is in the share: its hash, as a number in [0, 1), is below it."""
        if self.share == 1:
            return True
        seeded = f"{self.seed}:{key}".encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(seeded, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64


@dataclass
class Tally:
    """Counts of one shard, or of several together."""

    samples: int = 0  # written
    seen: int = 0
    passed: int = 0  # images kept byte for byte
    rejected: Counter = field(default_factory=Counter)  # by reason
    passed_over: Counter = field(default_factory=Counter)  # by reason; never samples
    caption_lengths: np.ndarray = field(default_factory=lambda: np.zeros(CONTEXT_LENGTH + 1, np.int64))
    captions_left_out: int = 0
    warned: Counter = field(default_factory=Counter)  # decoders' warnings about images that were stored

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def count_captions(self, tokens: np.ndarray, times: int = 1) -> None:
        """Count the captions among (N, K, 77) token ids; times -1 takes them out again."""
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


def write_shard(
    source: Source, task: Task, stem: Path, settings: SampleSettings, step: Callable[[int], None]
) -> Tally:
    """Convert one task into the files `stem`.*; `step(n)` is called for every n samples seen."""
    shard = _Shard(source, task, settings, step)
    shard.write(stem.with_suffix(".beton"))
    files.write(stem.with_suffix(".rejects.jsonl"), "".join(shard.rejects))
    files.write(stem.with_suffix(".warnings.jsonl"), "".join(shard.warnings))
    if settings.dedup:
        with replacing(stem.with_suffix(".hashes.npy")) as name, open(name, "wb") as file:
            np.save(file, np.frombuffer(b"".join(shard.hashes), np.uint64).reshape(-1, 2))
    files.write(stem.with_suffix(".json"), json.dumps(shard.tally.to_json()))
    return shard.tally


@dataclass
class _Shard:
    """The state of one shard while it is written."""

    source: Source
    task: Task
    settings: SampleSettings
    step: Callable[[int], None]
    tally: Tally = field(default_factory=Tally)
    hashes: list[bytes] = field(default_factory=list)  # 16 bytes a sample
    rejects: list[str] = field(default_factory=list)  # lines of JSON
    warnings: list[str] = field(default_factory=list)  # lines of JSON

    def write(self, beton: Path) -> None:
        """Convert all samples; write them to `beton` if there are any."""
        if self.source.kind == "pairs":
            samples, schema = self._pairs(), pairs_schema(self.source.captions)
        else:
            samples, schema = self._pictures(), pictures_schema()
        first = next(samples, None)
        if first is not None:
            most = self.task.most or self.source.most(self.task)
            with writing(beton, schema, most) as writer:
                for sample in chain([first], samples):
                    writer.add(sample)
                self.tally.samples = writer.samples
        self.step(self.tally.seen % _STEP)

    def _reject(self, key: str, error: Rejected) -> None:
        self.tally.rejected[error.reason] += 1
        row = {"source": self.task.path, "key": key, "reason": error.reason, "detail": error.detail}
        self.rejects.append(json.dumps(row) + "\n")

    def _chosen(self) -> Iterator[Any]:
        """The task's samples that are in the share: Pair, Picture or Bad."""
        for sample in self.source.read(self.task):
            if isinstance(sample, PassedOver):
                self.tally.passed_over[sample.reason] += sample.number
                continue
            if self.source.kind == "pairs" and not self.settings.chooses(sample.key):
                continue  # of triplets, the pictures are those of the triplets chosen
            self.tally.seen += 1
            if self.tally.seen % _STEP == 0:
                self.step(_STEP)
            yield sample

    def _convert(self, data: bytes, name: str) -> Converted:
        """The converted image; what decoders warned of is noted under its name."""
        image = convert(data, self.settings.images)
        for line in image.warned:
            self.tally.warned[re.sub(r"\d+", "N", line)] += 1
            row = {"source": self.task.path, "key": name, "warning": line}
            self.warnings.append(json.dumps(row) + "\n")
        return image

    # -- pairs ------------------------------------------------------------------------------

    def _pairs(self) -> Iterator[dict]:
        """Rows for the writer."""
        samples = self._chosen()
        while batch := list(islice(samples, _BATCH)):
            rows = []
            for sample, ids in zip(batch, _token_ids(batch)):
                try:
                    rows.append(self._pair(sample, ids))
                except Rejected as error:
                    self._reject(sample.key, error)
            if rows:
                self.tally.count_captions(np.stack([row["tokens"] for row in rows]))
            yield from rows

    def _pair(self, pair: Pair | Bad, ids: np.ndarray) -> dict:
        if isinstance(pair, Bad):
            raise Rejected(pair.reason, pair.detail)
        tokens = self._tokens(pair, ids)
        data = read_image(pair.image, self.settings.images)
        image = self._convert(data, pair.key)
        if self.settings.dedup:
            self.hashes.append(hashlib.blake2b(data, digest_size=16).digest())
        self.tally.passed += image.passed
        return {"image": image.jpeg, "tokens": tokens, "luma": image.luma, "key": _encoded(pair.key)}

    def _tokens(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """The first K of its captions, (K, 77), padded with rows of zeros; Rejected without any."""
        if isinstance(pair.captions, np.ndarray):
            ids = pair.captions[text.lengths(pair.captions) > 2]
        if not len(ids):
            raise Rejected("empty caption")
        table = np.zeros((self.source.captions, CONTEXT_LENGTH), np.int32)
        self.tally.captions_left_out += max(0, len(ids) - len(table))
        table[: len(ids)] = ids[: len(table)]
        return table

    # -- pictures ---------------------------------------------------------------------------

    def _pictures(self) -> Iterator[dict]:
        """Rows for the writer."""
        for picture in self._chosen():
            try:
                image = self._convert(read_image(picture.image, self.settings.images), picture.key)
            except Rejected as error:
                self._reject(picture.key, error)
                continue
            self.tally.passed += image.passed
            yield {"image": image.jpeg, "luma": image.luma, "number": picture.number}


def _token_ids(batch: list[Pair | Bad]) -> list[np.ndarray]:
    """(captions, 77) token ids of each pair's texts that are not empty, tokenised in one call."""
    texts = [s.captions if isinstance(s, Pair) and isinstance(s.captions, list) else [] for s in batch]
    ids = text.tokenize([caption for captions in texts for caption in captions])
    not_empty = text.lengths(ids) > 2  # start and end tokens alone say nothing
    stops = list(accumulate(map(len, texts)))
    return [ids[start:stop][not_empty[start:stop]] for start, stop in zip([0, *stops], stops)]


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
