"""How much disk a build will take, estimated from samples all over its source."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from dataprep.convert import Rejected, convert
from dataprep.shard import Bad, Left, Pair, Triplet, read_image
from pipeline.fields import CONTEXT_LENGTH

if TYPE_CHECKING:
    from dataprep.build import Job


def check(job: Job, left: list[int]) -> None:
    """ValueError if the free space is clearly less than the shards still to write and the joined file."""
    need, free = needed(job, left), shutil.disk_usage(job.parts).free
    if need > free:
        raise ValueError(
            f"{job.parts.parent}: about {_in_words(need)} are needed (shards and the joined file), "
            f"{_in_words(free)} are free; make room, choose another --out, or --no-disk-check"
        )


def needed(job: Job, left: list[int]) -> float:
    """Bytes of the shards of the tasks `left` and of the joined file; 0 where no image could be read."""
    images = job.source.images()
    sizes = [size for raw in _spread(job) for size in _sizes(job, raw, images is not None)]
    stored, given = np.sum(sizes, 0) if sizes else (0, 0)
    if not stored:
        return 0.0
    words = 4 * CONTEXT_LENGTH * job.source.captions + 128  # tokens, key and metadata
    stored += words * sum(size[0] > 0 for size in sizes)
    total = images / len(sizes) if images is not None else sum(t.weight for t in job.tasks) / given
    return job.settings.share * stored * total * (len(left) / len(job.tasks) + (len(job.tasks) > 1))


def _spread(job: Job) -> Iterator[Pair | Triplet | Bad | Left]:
    """Some 64 samples of tasks all over the source, and not only of their beginning."""
    tasks = job.tasks[:: -(-len(job.tasks) // 8)]
    for task in tasks:
        step = max(1, min(1024 // len(tasks), task.most or 1024) * len(tasks) // 64)
        yield from islice(job.source.read(task), 0, 1024 // len(tasks), step)


def _sizes(job: Job, raw: Pair | Triplet | Bad | Left, counted: bool) -> Iterator[tuple[int, int]]:
    """(stored, given) bytes of each image; a sample that was counted and has no image weighs nothing."""
    settings = job.settings.images
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
