"""Folders of images with texts of the same name beside them, as img2dataset and captioners write them.

NAME.jpg with NAME.txt and NAME.json (or NAME.jpg.txt, NAME.jpg.json), in the folder or in its subfolders.
`members.py` reads the captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

from dataprep.samples import Bad, Pair, PairSource, PassedOver, Task, pieces
from dataprep.sources.members import CAPTIONED, Reading, never_downloaded
from pipeline.formats.tars import PICTURES

SHARD = 4_000  # samples a shard
_PICTURES = tuple(f".{ending}" for ending in PICTURES)


def has_pairs(folder: Path) -> bool:
    """Whether the folder, or one of its first subfolders, holds an image with a text of its name."""
    return any(
        set(PICTURES) & set(parts) and CAPTIONED & set(parts)
        for path in islice(folders(folder), 32)
        for parts in _samples(path).values()
    )


@lru_cache(maxsize=2)
def _samples(folder: str) -> dict[str, dict[str, str]]:
    """Stem → {ending: name} of the folder's images and texts, sorted; without hidden files."""
    samples: dict[str, dict[str, str]] = {}
    names = set(os.listdir(folder))
    for name in sorted(names - built(names)):
        stem, dot, ending = name.rpartition(".")
        ending = ending.lower()
        if ending in CAPTIONED and stem in names and stem.lower().endswith(_PICTURES):
            stem = stem.rpartition(".")[0]  # NAME.jpg.txt
        if stem and name[0] != "." and not name.endswith("_stats.json"):
            parts = samples.setdefault(stem, {})
            parts[name if ending in parts else ending] = name
    return {stem: parts for stem, parts in samples.items() if not {*PICTURES, *CAPTIONED}.isdisjoint(parts)}


def built(names: Iterable[str]) -> set[str]:
    """Those of a folder's names that a build wrote beside its .beton; they do not belong to a source."""
    ends = ".json", ".rejects.jsonl", ".warnings.jsonl"
    return {n.removesuffix(".beton") + end for n in names if n.endswith(".beton") for end in ends}


def folders(path: Path) -> Iterator[str]:
    """The folder and all subfolders, sorted; without hidden ones, a build's parts and links to parents."""
    stack: list[tuple[str, tuple]] = [(str(path), ())]
    while stack:
        folder, above = stack.pop()
        status = os.stat(folder)
        own = status.st_dev, status.st_ino
        if own in above:
            continue
        yield folder
        with os.scandir(folder) as entries:
            inside = [e.path for e in entries if e.name[0] != "." and e.is_dir()]
        inside = sorted(path for path in inside if not path.endswith(".beton.parts"))
        stack += [(path, (*above, own)) for path in reversed(inside)]


@dataclass(frozen=True)
class Sidecars(PairSource):
    """All samples under a folder, folder by folder, sorted by name."""

    path: Path
    reading: Reading
    wanted: int
    layout = "files"

    def tasks(self) -> list[Task]:
        return list(_plan(self.path))

    def read(self, task: Task) -> Iterator[Pair | Bad | PassedOver]:
        samples = _samples(task.path)
        for stem in islice(samples, task.start, task.stop):
            key = os.path.relpath(os.path.join(task.path, stem), self.path)
            yield from self._sample(key, task.path, samples[stem])
        if not task.start:
            yield from never_downloaded(Path(f"{task.path}_stats.json"))

    def _sample(self, key: str, folder: str, names: dict[str, str]) -> Iterator[Pair | Bad | PassedOver]:
        images = self.reading.images(names)
        if not images:
            yield Bad(key, "no image", f"it has {', '.join(names)}")
            return
        try:
            texts = {e: Path(folder, names[e]).read_bytes() for e in names if e in CAPTIONED}
        except OSError as error:
            yield Bad(key, "bad caption", str(error))
            return
        pair, passed_over = self.reading.pair(key, os.path.join(folder, names[images[0]]), names, texts)
        yield from passed_over
        unused = sum(ending == name for ending, name in names.items())
        if unused and isinstance(pair, Pair):
            yield PassedOver("files whose names differ only in capitals from one that was taken", unused)
        yield pair

    def describe(self) -> dict:
        lines = {"lines": True} if self.reading.lines else {}
        paths = sorted({task.path for task in self.tasks()})
        # Every file, not the folders: rewriting a text leaves its folder as it was.
        files = [Path(p, name) for p in paths for parts in _samples(p).values() for name in parts.values()]
        return lines | self.description(self.path, self.reading.choice, files, folders=len(paths))


@cache
def _plan(path: Path) -> tuple[Task, ...]:
    tasks = [task for folder in folders(path) for task in pieces(folder, len(_samples(folder)), SHARD)]
    if not tasks:
        raise ValueError(f"{path}: no images with texts of the same name")
    return tuple(tasks)
