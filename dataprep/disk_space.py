"""How much disk space a build will take, estimated from samples spread over its source."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from dataprep.convert import ImageSettings, Rejected, convert, read_image
from dataprep.samples import Bad, Pair, PassedOver, Picture, Source, Task
from dataprep.shard import SampleSettings
from pipeline.beton.fields import CONTEXT_LENGTH

_TASKS, _SAMPLES = 8, 64  # about so many are looked at
_FURTHEST = 1024  # samples are read up to so many from the beginnings of the tasks, all together


def check(folder: Path, source: Source, settings: SampleSettings, unfinished: int, more: int = 0) -> None:
    """ValueError if `folder` has clearly less room than a build with so many `unfinished` tasks will take.

    more: bytes of the file that are no images'.
    """
    need, free = needed(source, settings, unfinished) + more, shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{folder}: about {_in_words(need)} are needed (shards and the joined file), "
            f"{_in_words(free)} are free; make room, choose another --out, or --no-disk-check"
        )


def needed(source: Source, settings: SampleSettings, unfinished: int) -> float:
    """Bytes of the shards of `unfinished` tasks and of the joined file; 0 if no image could be read."""
    tasks, images = source.tasks(), source.images()
    samples = _spread(source, tasks)
    sizes = [size for sample in samples for size in _sizes(sample, settings.images, images is not None)]
    stored, read = np.sum(sizes, 0) if sizes else (0, 0)
    if not stored:
        return 0.0
    columns = 4 * CONTEXT_LENGTH * source.captions + 128  # tokens, key and metadata
    stored += columns * sum(size[0] > 0 for size in sizes)
    factor = images / len(sizes) if images is not None else sum(task.weight for task in tasks) / read
    if source.kind == "pictures":  # of a share already; they are always copied
        return stored * factor * (unfinished / len(tasks) + 1)
    return settings.share * stored * factor * (unfinished / len(tasks) + (len(tasks) > 1))


def _spread(source: Source, tasks: list[Task]) -> Iterator[Pair | Picture | Bad | PassedOver]:
    """Samples of tasks all over the source."""
    tasks = tasks[:: -(-len(tasks) // _TASKS)]
    each = _FURTHEST // len(tasks)
    for task in tasks:
        step = max(1, min(each, task.most or _FURTHEST) * len(tasks) // _SAMPLES)
        yield from islice(source.read(task), 0, each, step)


def _sizes(sample: object, settings: ImageSettings, counted: bool) -> Iterator[tuple[int, int]]:
    """(bytes stored, bytes read) of each image; (0, 0) for a sample without one if the source counted it."""
    if isinstance(sample, Pair | Picture):
        with contextlib.suppress(Rejected):
            data = read_image(sample.image, settings)
            yield len(convert(data, settings).jpeg.data), len(data)
    elif counted:
        yield 0, 0


def _in_words(size: float) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")) if size >= u or u == 1e3)
    return f"{size / unit:,.1f} {name}"
