"""Webdataset tars, as img2dataset and CLIP's users write them: KEY.jpg with KEY.txt and KEY.json.

A tar is one shard.  The caption is the .txt file, or fields of the .json.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from dataprep import columns
from dataprep.shard import Bad, Pair, Task

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("txt", "caption", "captions")  # a member of its own, one caption in it


@dataclass(frozen=True)
class Tars:
    """A list of tars, in the order of their names."""

    path: Path
    files: tuple[Path, ...]
    choice: columns.Choice  # of captions: "txt" is the member, other names are fields of the .json
    wanted: int
    max_bytes: int
    kind = "pairs"

    @property
    def captions(self) -> int:
        return self.wanted or _most_captions(self)

    def tasks(self) -> list[Task]:
        sizes = [path.stat().st_size for path in self.files]
        # An image and its caption take two blocks each of 512 bytes at the least.
        return [Task(str(path), 0, size, size // 2048 + 1, size) for path, size in zip(self.files, sizes)]

    def images(self) -> None:
        return None

    def read(self, task: Task) -> Iterator[Pair | Bad]:
        """The samples of one tar; what a cut tar still holds is read, then the cut is told."""
        held: dict[str, bytes | int] = {}
        key, name = "", task.path
        try:
            with tarfile.open(task.path, "r|*") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # it would keep every header
                    if not member.isfile():
                        continue
                    name = member.name
                    stem, _, ending = _split(name)
                    if stem != key and held:
                        yield self._sample(key, held)
                        held = {}
                    key = stem
                    held[ending] = member.size
                    if member.size <= self.max_bytes and self._wanted(ending):
                        held[ending] = tar.extractfile(member).read()
            if held:
                yield self._sample(key, held)
            _check_end(Path(task.path))
        except FileNotFoundError:
            raise
        except (tarfile.TarError, EOFError, OSError) as error:
            yield Bad(name, "damaged tar", f"{task.path}: {error}")

    def _wanted(self, ending: str) -> bool:
        return ending in IMAGES or ending in TEXTS or ending == "json"

    def _sample(self, key: str, members: dict[str, bytes | int]) -> Pair | Bad:
        ending = next((name for name in IMAGES if name in members), None)
        if ending is None:
            return Bad(key, "no image", f"it has {', '.join(members) or 'nothing'}")
        image = members[ending]
        if isinstance(image, int):
            return Bad(key, "too many bytes", f"{image}, the limit is {self.max_bytes}")
        try:
            return Pair(key, image, self._captions(members))
        except ValueError as error:
            return Bad(key, "bad caption", str(error))

    def _captions(self, members: dict[str, bytes | int]) -> list[str]:
        def text(name: str) -> str:
            value = members[name]
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""

        fields = json.loads(text("json")) if "json" in members else {}
        fields = fields if isinstance(fields, dict) else {}
        if self.choice.captions:
            found = [text(n) if n in TEXTS and n in members else fields.get(n) for n in self.choice.captions]
            return [caption for value in found for caption in columns.strings(value)]
        for name in TEXTS:
            if name in members:
                return [text(name)]
        names = [name for name in columns.CAPTIONS if fields.get(name)][:1] or columns.PARTS
        return [caption for name in names for caption in columns.strings(fields.get(name))]

    def describe(self) -> dict:
        return {
            "name": "pairs", "layout": "tars", "path": str(self.path), "files": len(self.files),
            "captions": self.captions, "columns": vars(self.choice), "state": columns.state_of(self.files),
        }  # fmt: skip


def _check_end(path: Path) -> None:
    """tarfile takes a tar that is cut between two members for a whole one; the end mark is missing then."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        if any(file.read()):
            raise tarfile.ReadError("it ends without the end mark: cut short?")


def _split(name: str) -> tuple[str, str, str]:
    """webdataset's key: the path up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, dot, ending.lower()


@cache
def _most_captions(source: Tars) -> int:
    """The most captions among the first samples."""
    counts = [1]
    for raw in islice(source.read(source.tasks()[0]), 200):
        if isinstance(raw, Pair):
            counts.append(len(raw.captions))
    return min(max(counts), columns.MOST_CAPTIONS)
