"""BAPPS (richzhang/PerceptualSimilarity): 2afc/{train,val}/SUBSET/{ref,p0,p1,judge}.

Files of the same name in the four folders belong together.  judge/*.npy holds one float, the fraction of
people who preferred p1 (of 2 people in train, of 5 in val); it is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np

from dataprep.samples import Bad, Source, Task, Triplet, state_of
from dataprep.sources.nights import plan

PEOPLE = {"train": 2, "val": 5}
_PARTS = ("ref", "p0", "p1", "judge")


@cache
def _names(folder: Path) -> tuple[str, ...]:
    """Names in a folder, sorted, without hidden files."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; BAPPS has 2afc/SPLIT/SUBSET/{{ref,p0,p1,judge}}")
    return tuple(sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")))


@dataclass(frozen=True)
class Bapps(Source):
    """One split; empty `subsets` takes all that exist."""

    folder: Path  # holds train and val, or 2afc
    split: str
    subsets: tuple[str, ...] = ()
    kind = "triplets"
    votes = "human"

    def root(self) -> Path:
        base = self.folder / "2afc"
        return (base if base.is_dir() else self.folder) / self.split

    def chosen(self) -> tuple[str, ...]:
        """The subsets to read; ValueError if one is missing or its folders do not match."""
        existing = _names(self.root())
        for name in self.subsets:
            if name not in existing:
                raise ValueError(f"{self.root()}: no subset {name}; it has {', '.join(existing) or 'none'}")
        chosen = self.subsets or existing
        for name in chosen:
            columns = [_names(self.root() / name / part) for part in _PARTS]
            for row in zip_longest(*columns, fillvalue="no more"):
                if len({Path(file).stem for file in row}) > 1:
                    files = ", ".join(f"{part}/{file}" for part, file in zip(_PARTS, row))
                    raise ValueError(f"{self.root() / name}: its folders do not match: {files}")
        return chosen

    def tasks(self) -> list[Task]:
        tasks = []
        for subset in self.chosen():
            folder = self.root() / subset
            tasks += plan(str(folder), len(_names(folder / "ref")), repeated=False)
        if not tasks:
            raise ValueError(f"{self.root()}: no triplets")
        return tasks

    def images(self) -> int:
        return 3 * sum(task.weight for task in self.tasks())

    def read(self, task: Task) -> Iterator[Triplet | Bad]:
        base = Path(task.path)
        names = [_names(base / part)[task.start : task.stop] for part in _PARTS]
        for ref, left, right, judge in zip(*names):
            key = f"{self.split}/{base.name}/{Path(ref).stem}"
            try:
                vote = float(np.load(base / "judge" / judge, allow_pickle=False).reshape(-1)[0])
                if not 0 <= vote <= 1:
                    raise ValueError(f"{vote} is no fraction")
            except (ValueError, OSError, EOFError, IndexError) as error:
                yield Bad(key, "bad judgement", f"{base / 'judge' / judge}: {error}")
                continue
            images = base / "ref" / ref, base / "p0" / left, base / "p1" / right
            yield Triplet(key, *images, vote, PEOPLE.get(self.split, 0))

    def describe(self) -> dict:
        parts = [self.root() / subset / part for subset in self.chosen() for part in _PARTS]
        return {
            "name": "bapps", "path": str(self.folder), "split": self.split, "subsets": list(self.chosen()),
            "files": sum(len(_names(part)) for part in parts), "state": state_of(parts),
        }  # fmt: skip
