"""Folders of images with texts of the same name beside them: img2dataset's `files`, captioners' folders.

NAME.jpg with NAME.txt and NAME.json (or NAME.jpg.txt, NAME.jpg.json), in the folder or in folders within.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

from dataprep.shard import Bad, Left, Pair, Task
from dataprep.sources import columns
from dataprep.sources.members import SAID, Reading, most_captions, never_downloaded, told
from pipeline.formats.tars import PICTURES

SHARD = 4_000  # samples a shard
_PICTURES = tuple(f".{ending}" for ending in PICTURES)


def has_pairs(folder: Path) -> bool:
    """Whether an image with a text of its name lies in the folder, or in one of the first folders in it."""
    return any(
        set(PICTURES) & set(parts) and SAID & set(parts)
        for place in islice(folders(folder), 32)
        for parts in _samples(place).values()
    )


@lru_cache(maxsize=2)
def _samples(folder: str) -> dict[str, dict[str, str]]:
    """Stem → {ending: name} of the folder's images and texts, by name; hidden files are left out."""
    out: dict[str, dict[str, str]] = {}
    names = set(os.listdir(folder))
    for name in sorted(names - built(names)):
        stem, dot, ending = name.rpartition(".")
        ending = ending.lower()
        if ending in SAID and stem in names and stem.lower().endswith(_PICTURES):
            stem = stem.rpartition(".")[0]  # NAME.jpg.txt
        if stem and name[0] != "." and not name.endswith("_stats.json"):
            parts = out.setdefault(stem, {})
            parts[name if ending in parts else ending] = name
    return {stem: parts for stem, parts in out.items() if not {*PICTURES, *SAID}.isdisjoint(parts)}


def built(names: Iterable[str]) -> set[str]:
    """Those among a folder's names that a build wrote beside its .beton: they are no part of a source."""
    ends = ".json", ".rejects.jsonl", ".warnings.jsonl"
    return {n.removesuffix(".beton") + end for n in names if n.endswith(".beton") for end in ends}


def folders(path: Path) -> Iterator[str]:
    """The folder and all within, by name, without hidden ones and parts of a build; a link back to a folder
    it lies in is not followed."""
    stack: list[tuple[str, tuple]] = [(str(path), ())]
    while stack:
        folder, above = stack.pop()
        status = os.stat(folder)
        own = status.st_dev, status.st_ino
        if own in above:
            continue
        yield folder
        with os.scandir(folder) as entries:
            inside = [e.path for e in entries if e.name[0] != "." and e.is_dir() and not _parts(e.name)]
        stack += [(name, (*above, own)) for name in sorted(inside, reverse=True)]


def _parts(name: str) -> bool:
    return name.endswith(".beton.parts")


@dataclass(frozen=True)
class Sidecars:
    """All samples under a folder, folder by folder in the order of their names."""

    path: Path
    reading: Reading
    wanted: int
    kind = "pairs"

    @property
    def captions(self) -> int:
        return self.wanted or most_captions(self)

    def tasks(self) -> list[Task]:
        return list(_plan(self.path))

    def images(self) -> int:
        return sum(task.weight for task in self.tasks())

    def read(self, task: Task) -> Iterator[Pair | Bad | Left]:
        samples = _samples(task.path)
        for stem in islice(samples, task.start, task.stop):
            key = os.path.relpath(os.path.join(task.path, stem), self.path)
            yield from self._sample(key, task.path, samples[stem])
        if not task.start:
            yield from never_downloaded(Path(f"{task.path}_stats.json"))

    def _sample(self, key: str, folder: str, names: dict[str, str]) -> Iterator[Pair | Bad | Left]:
        pictures = self.reading.pictures(names)
        if not pictures:
            yield Bad(key, "no image", f"it has {', '.join(names)}")
            return
        try:
            texts = {e: Path(folder, names[e]).read_bytes() for e in names if e in SAID}
            captions, left = self.reading.captions(key, texts)
        except (ValueError, OSError) as error:
            yield Bad(key, "bad caption", str(error))
            return
        yield from left
        if not captions:
            yield Bad(key, "empty caption", f"it has {', '.join(names)}{told(texts)}")
            return
        if len(pictures) > 1:
            yield Left("pictures beside the one taken", len(pictures) - 1)
        again = [name for ending, name in names.items() if ending == name]
        if again:
            yield Left("files named like one that was taken but for capitals", len(again))
        yield Pair(key, os.path.join(folder, names[pictures[0]]), captions)

    def describe(self) -> dict:
        lines = {"lines": True} if self.reading.lines else {}
        places = sorted({task.path for task in self.tasks()})
        # Every file, not the folders: a text written anew leaves its folder as it was.
        files = [Path(p, name) for p in places for parts in _samples(p).values() for name in parts.values()]
        return lines | {
            "name": "pairs", "layout": "files", "path": str(self.path), "folders": len(places),
            "captions": self.captions, "columns": vars(self.reading.choice),
            "state": columns.state_of(files),
        }  # fmt: skip


@cache
def _plan(path: Path) -> tuple[Task, ...]:
    tasks = []
    for folder in folders(path):
        count = len(_samples(folder))
        for start in range(0, count, SHARD):
            size = min(SHARD, count - start)
            tasks.append(Task(folder, start, start + size, size, size))
    if not tasks:
        raise ValueError(f"{path}: no images with texts of the same name")
    return tuple(tasks)
