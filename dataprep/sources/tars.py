"""Webdataset tars, as img2dataset and CLIP's users write them: KEY.jpg with KEY.txt and KEY.json.

A tar is one shard; `pipeline/formats/tars.py` reads it, `members.py` says what a caption is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataprep.shard import Bad, Left, Pair, Task
from dataprep.sources import columns
from dataprep.sources.members import SAID, Reading, most_captions, never_downloaded, told
from pipeline.formats.tars import ENDINGS, PICTURES, UNSORTED, Fault, Sample, Tar, compression, split

_READ = {*PICTURES, *SAID}
_MIXED = "samples of this name stand mixed, so it cannot be told which text is whose"


@dataclass(frozen=True)
class Tars:
    """A list of tars."""

    path: Path
    files: tuple[Path, ...]
    reading: Reading
    wanted: int
    max_bytes: int
    kind = "pairs"

    @property
    def captions(self) -> int:
        return self.wanted or most_captions(self)

    def tasks(self) -> list[Task]:
        tasks = []
        for path in self.files:
            size = path.stat().st_size
            # A member is a block of 512 bytes at the least; in a packed tar it may be less than one byte.
            most = 0 if compression(path) else size // 1024 + 1
            tasks.append(Task(str(path), 0, size, most, size))
        return tasks

    def most(self, task: Task) -> int:
        """As many samples at the most in a packed tar; unpacks it."""
        with Tar(task.path) as tar:
            return 1 + sum(1 for _ in tar.members())

    def images(self) -> None:
        return None

    def read(self, task: Task) -> Iterator[Pair | Bad | Left]:
        """The samples of one tar; what a damaged tar still holds is read, and the damage is told."""
        unsorted: set[str] = set()
        said = {*SAID, *self.reading.choice.captions}
        mixed = ""  # the key whose samples stand mixed: image, image, text, text
        before = None
        if Path(task.path).stat().st_size != task.stop:
            raise ValueError(f"{task.path}: it changed since this build began; wait until it is whole")
        with Tar(task.path) as tar:
            for item in tar.samples(self._takes):
                if isinstance(item, Fault):
                    if item != before:  # damage that is met twice: by a member and after it
                        yield Bad(item.name, "damaged tar", f"{task.path}: {item.detail}")
                    before = item
                    continue
                raw, left = self._sample(item)
                lacking = isinstance(raw, Bad) and raw.reason in ("no image", "empty caption")
                if lacking and item.key in tar.scattered:
                    if item.key not in unsorted:
                        yield Bad(item.key, "not sorted by key", UNSORTED)
                    unsorted.add(item.key)
                    continue
                if item.key == mixed and isinstance(raw, Pair):
                    raw, left = Bad(item.key, "repeated key", _MIXED), []
                half = not self.reading.pictures(item.parts) or said.isdisjoint(item.parts)
                mixed = item.key if half or item.key == mixed else ""
                yield from left
                yield raw
            if tar.hidden:
                yield Left("hidden members", tar.hidden)
        if task.path == str(self.files[0]):
            yield from self._without_tar()
        yield from never_downloaded(Path(f"{split(task.path)[0]}_stats.json"))

    def _without_tar(self) -> list[Left]:
        """Shards of img2dataset's of which the statistics are there, and not the tar."""
        lost = []
        for folder in {path.parent for path in self.files}:
            there = {split(path.name)[0] for path in folder.iterdir() if path.name.lower().endswith(ENDINGS)}
            stats = {path.name.removesuffix("_stats.json") for path in folder.glob("*_stats.json")}
            lost += [name for name in stats - there if name.isdecimal()]
        return [Left(f"shards without their tar, {min(lost)} the first", len(lost))] if lost else []

    def _takes(self, ending: str, size: int) -> bool:
        choice = self.reading.choice
        return (ending in _READ or ending in (choice.image, *choice.captions)) and size <= self.max_bytes

    def _sample(self, sample: Sample) -> tuple[Pair | Bad, list[Left]]:
        key, parts = sample
        pictures = self.reading.pictures(parts)
        if not pictures:
            dots = "; a key ends at the first dot of a name" if any("." in e for e in parts) else ""
            return Bad(key, "no image", f"it has {', '.join(parts) or 'nothing'}{dots}"), []
        image = parts[pictures[0]]
        if image.data is None:
            return Bad(key, "too many bytes", f"{image.size}, the limit is {self.max_bytes}"), []
        texts = {name: part.data for name, part in parts.items() if part.data is not None}
        try:
            captions, left = self.reading.captions(key, texts)
        except ValueError as error:
            return Bad(key, "bad caption", str(error)), []
        if not captions:
            return Bad(key, "empty caption", f"it has {', '.join(parts)}{told(texts)}"), left
        dotted = sum(ending.rpartition(".")[2] in PICTURES for ending in parts if "." in ending)
        if dotted and not self.reading.choice.image:
            left.append(Left("pictures whose names have further dots (a key ends at the first dot)", dotted))
        if len(pictures) > 1:
            left.append(Left("pictures beside the one taken", len(pictures) - 1))
        return Pair(key, image.data, captions), left

    def describe(self) -> dict:
        lines = {"lines": True} if self.reading.lines else {}
        return lines | {
            "name": "pairs", "layout": "tars", "path": str(self.path), "files": len(self.files),
            "captions": self.captions, "columns": vars(self.reading.choice),
            "state": columns.state_of(self.files),
        }  # fmt: skip
