"""Which downstream tasks lie under a folder, each in a folder of its own or the folder itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from eval.cache import Cache
from eval.downstream import counting, instances
from eval.downstream.probes import ClassTask
from eval.downstream.records import Outcome
from eval.sets import catalog, sources
from eval.sets.evalset import Images, is_foreign


class Task(Protocol):
    """Images to embed, and what their features are scored for.

    may_lose: whether unreadable images may be left out.  score: takes for each of `images` the features of
    those kept and their numbers.
    """

    @property
    def key(self) -> str: ...
    @property
    def images(self) -> list[Images]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def may_lose(self) -> bool: ...

    def score(self, features: Sequence[Tensor], kept: Sequence[np.ndarray]) -> Outcome: ...


def find(root: Path, datasets: Sequence[str], cache: Cache, say: Callable[[str], None]) -> list[Task]:
    """The tasks in `root` and its folders, in the order of their folders' names; what is none goes to `say`.

    datasets: only these.  Raises ValueError for one that is not there, two of one key, none at all, and data
    that are damaged or not what their name says.
    """
    if not root.is_dir():
        raise ValueError(f"--data {root}: no such folder")
    root = catalog.snapshot(Path(os.path.abspath(root)))
    wanted = {catalog.entry_for(name).key for name in datasets}
    found: dict[str, tuple[Task, Path]] = {}
    passed: dict[str, str] = {}  # key → why it is none
    folders = [root] + sorted(d for d in root.iterdir() if d.is_dir() and not is_foreign(d.name))
    for folder in map(catalog.snapshot, folders):
        key = catalog.entry_for(catalog.name_of(folder)).key
        if wanted and catalog.find(key) and key not in wanted:
            continue  # another set's name: it need not be opened
        try:
            task = _read(folder, cache)
        except ValueError as error:
            if folder != root and (not wanted or key in wanted):
                raise
            passed[key] = str(error)  # of the root: its folders may be sets all the same
            continue
        if isinstance(task, str):
            passed |= {key: task} if folder != root else {}
        elif not wanted or task.key in wanted:
            if task.key in found:
                raise ValueError(f"{folder} and {found[task.key][1]} both hold {task.key}; keep one of them")
            found[task.key] = task, folder
        if folder == root and not isinstance(task, str):
            break  # the root itself is the set: its folders are its parts
    _check(datasets, found.keys(), passed, root)
    if passed:
        say("passed over: " + ", ".join(f"{key} ({why})" for key, why in sorted(passed.items())))
    return [task for task, _ in found.values()]


def _read(folder: Path, cache: Cache) -> Task | str:
    """The task in this very folder, or why there is none."""
    readers = (counting.read, instances.read_revisited, instances.read_folders)
    for reader in readers:
        if (task := reader(folder)) is not None:
            return task
    evalset = sources.read_folder(folder, None, cache)
    if evalset is None:
        return "in no known form"
    if evalset.prompts is None:
        return "captions, no classes"
    training = sources.read_training(evalset, None, cache)
    return "no training split beside it" if training is None else ClassTask(evalset, training)


def _check(datasets: Sequence[str], found: Collection[str], passed: dict[str, str], root: Path) -> None:
    for name in datasets:
        key = catalog.entry_for(name).key
        if key not in found:
            why = f" ({passed[key]})" if key in passed else catalog.near(name, root)
            raise ValueError(f"--datasets {name}: no such task under {root}{why}; found: {', '.join(found)}")
    if not found:
        why = "; ".join(f"{key}: {text}" for key, text in passed.items())
        raise ValueError(
            f"--data {root}: no downstream task in it{f' ({why})' if why else ''}; python -m eval.downstream "
            "--help lists the forms"
        )
