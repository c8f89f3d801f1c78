"""How much disk a build will take, estimated from samples all over its source."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from dataprep.convert import ImageSettings, Rejected, convert
from dataprep.shard import Bad, Left, Pair, SampleSettings, Source, Task, Triplet, read_image
from pipeline.beton.fields import CONTEXT_LENGTH


def check(folder: Path, source: Source, settings: SampleSettings, left: int) -> None:
    """ValueError if `folder` has clearly less room than a build that has `left` tasks to do will take."""
    need, free = needed(source, settings, left), shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{folder}: about {_in_words(need)} are needed (shards and the joined file), "
            f"{_in_words(free)} are free; make room, choose another --out, or --no-disk-check"
        )


def needed(source: Source, settings: SampleSettings, left: int) -> float:
    """Bytes of the shards of `left` tasks and of the joined file; 0 where no image could be read."""
    tasks, images = source.tasks(), source.images()
    samples = _spread(source, tasks)
    sizes = [size for raw in samples for size in _sizes(raw, settings.images, images is not None)]
    stored, given = np.sum(sizes, 0) if sizes else (0, 0)
    if not stored:
        return 0.0
    words = 4 * CONTEXT_LENGTH * source.captions + 128  # tokens, key and metadata
    stored += words * sum(size[0] > 0 for size in sizes)
    total = images / len(sizes) if images is not None else sum(t.weight for t in tasks) / given
    return settings.share * stored * total * (left / len(tasks) + (len(tasks) > 1))


def _spread(source: Source, tasks: list[Task]) -> Iterator[Pair | Triplet | Bad | Left]:
    """Some 64 samples of tasks all over the source, and not only of their beginning."""
    tasks = tasks[:: -(-len(tasks) // 8)]
    for task in tasks:
        step = max(1, min(1024 // len(tasks), task.most or 1024) * len(tasks) // 64)
        yield from islice(source.read(task), 0, 1024 // len(tasks), step)


def _sizes(raw, settings: ImageSettings, counted: bool) -> Iterator[tuple[int, int]]:
    """(stored, given) bytes of each image; a sample that was counted and has no image weighs nothing."""
    if isinstance(raw, Pair | Triplet):
        for image in [raw.image] if isinstance(raw, Pair) else [raw.ref, raw.left, raw.right]:
            with contextlib.suppress(Rejected):
                data = read_image(image, settings)
                yield len(convert(data, settings).jpeg.data), len(data)
    elif counted:
        yield 0, 0


def _in_words(size: float) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")) if size >= u or u == 1e3)
    return f"{size / unit:,.1f} {name}"
