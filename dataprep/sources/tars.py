"""Webdataset tars, as img2dataset and CLIP's users write them: KEY.jpg with KEY.txt and KEY.json.

A tar becomes one shard.  `pipeline/formats/tars.py` reads it, `members.py` reads the captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataprep.samples import Bad, Pair, PairSource, PassedOver, Task
from dataprep.sources.members import CAPTIONED, Reading, never_downloaded
from pipeline.formats.tars import ENDINGS, PICTURES, UNSORTED, Fault, Sample, Tar, compression, split

_READ = {*PICTURES, *CAPTIONED}
_MIXED = "samples of this name are interleaved, so it is unknown which text belongs to which image"


@dataclass(frozen=True)
class Tars(PairSource):
    """A list of tars."""

    path: Path
    files: tuple[Path, ...]
    reading: Reading
    wanted: int
    max_bytes: int
    layout = "tars"

    def tasks(self) -> list[Task]:
        tasks = []
        for path in self.files:
            size = path.stat().st_size
            # A member takes at least 512 bytes; in a compressed tar it may take less than one.
            most = 0 if compression(path) else size // 1024 + 1
            tasks.append(Task(str(path), 0, size, most, size))
        return tasks

    def most(self, task: Task) -> int:
        """Upper bound of the samples in a compressed tar; decompresses it."""
        with Tar(Path(task.path)) as tar:
            return 1 + sum(1 for _ in tar.members())

    def images(self) -> None:
        return None

    def read(self, task: Task) -> Iterator[Pair | Bad | PassedOver]:
        """The samples of one tar.  What a damaged tar still holds is read, and the damage is reported."""
        if Path(task.path).stat().st_size != task.stop:
            raise ValueError(f"{task.path}: it changed since this build began; wait until it is whole")
        with Tar(Path(task.path)) as tar:
            yield from self._samples(tar, task.path)
            if tar.hidden:
                yield PassedOver("hidden members", tar.hidden)
        if task.path == str(self.files[0]):
            yield from self._without_tar()
        yield from never_downloaded(Path(f"{split(task.path)[0]}_stats.json"))

    def _samples(self, tar: Tar, path: str) -> Iterator[Pair | Bad | PassedOver]:
        unsorted: set[str] = set()
        captioned = {*CAPTIONED, *self.reading.choice.captions}
        mixed = ""  # the key whose samples are interleaved: image, image, text, text
        before = None
        for item in tar.samples(self._takes):
            if isinstance(item, Fault):
                if item != before:  # damage that is met twice: by a member and after it
                    yield Bad(item.name, "damaged tar", f"{path}: {item.detail}")
                before = item
                continue
            sample, passed_over = self._sample(item)
            incomplete = isinstance(sample, Bad) and sample.reason in ("no image", "empty caption")
            if incomplete and item.key in tar.scattered:
                if item.key not in unsorted:
                    yield Bad(item.key, "not sorted by key", UNSORTED)
                unsorted.add(item.key)
                continue
            if item.key == mixed and isinstance(sample, Pair):
                sample, passed_over = Bad(item.key, "repeated key", _MIXED), []
            half = not self.reading.images(item.parts) or captioned.isdisjoint(item.parts)
            mixed = item.key if half or item.key == mixed else ""
            yield from passed_over
            yield sample

    def _without_tar(self) -> list[PassedOver]:
        """img2dataset's shards whose statistics exist without their tar."""
        lost: list[str] = []
        for folder in {path.parent for path in self.files}:
            tars = {split(path.name)[0] for path in folder.iterdir() if path.name.lower().endswith(ENDINGS)}
            stats = {path.name.removesuffix("_stats.json") for path in folder.glob("*_stats.json")}
            lost += [name for name in stats - tars if name.isdecimal()]
        return [PassedOver(f"shards without their tar, {min(lost)} the first", len(lost))] if lost else []

    def _takes(self, ending: str, size: int) -> bool:
        choice = self.reading.choice
        return (ending in _READ or ending in (choice.image, *choice.captions)) and size <= self.max_bytes

    def _sample(self, sample: Sample) -> tuple[Pair | Bad, list[PassedOver]]:
        key, parts = sample
        images = self.reading.images(parts)
        if not images:
            hint = "; a key ends at the first dot of a name" if any("." in e for e in parts) else ""
            return Bad(key, "no image", f"it has {', '.join(parts) or 'nothing'}{hint}"), []
        image = parts[images[0]]
        if image.data is None:
            return Bad(key, "too many bytes", f"{image.size}, the limit is {self.max_bytes}"), []
        texts = {name: part.data for name, part in parts.items() if part.data is not None}
        pair, passed_over = self.reading.pair(key, image.data, parts, texts)
        dotted = sum(ending.rpartition(".")[2] in PICTURES for ending in parts if "." in ending)
        if dotted and not self.reading.choice.image and isinstance(pair, Pair):
            reason = "images whose names have further dots (a key ends at the first dot)"
            passed_over.append(PassedOver(reason, dotted))
        return pair, passed_over

    def describe(self) -> dict:
        lines = {"lines": True} if self.reading.lines else {}
        choice, files = self.reading.choice, len(self.files)
        return lines | self.description(self.path, choice, self.files, files=files)
