"""What `--engine auto` stands for: FFCV decodes on the rank's cores, DALI on the GPU's JPEG engine.

The rule, the same for a run and for its plan, by the figures of a rank:

* On a CPU: FFCV.  DALI there is five times slower (docs/loader.md).
* FFCV, if its workers, as far as the rank has cores for them, decode MARGIN times what a step takes.
* Else DALI, where it is installed and the GPU has a JPEG engine.  Without one it would decode on the units
  that train, which is left to whoever asks for it.
* Else FFCV, with a line that says how far short it falls, and what would help.

What a step takes is assumed, not measured: a share of the card's peak over the arithmetic of a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.base.hardware import installed
from train.config import Recipe

EFFICIENCY = 0.5  # share of the peak that a step reaches
# Images that the FFCV engine decodes and augments in a second on one core as the system counts them: 10,900
# on 14 threads of the H200 machine of docs/benchmarks.md.  Whole cores with nothing beside them do 1,450.
DECODE = 780.0
MARGIN = 1.2  # a loader that is just fast enough makes the step wait whenever it is late

ON_CPU = "ffcv (auto): on a CPU DALI is five times slower"
DALI_ON_CPU = "dali on a CPU, as asked: five times slower than ffcv"
INSTALL = "pip install 'perceptual-initialization[dali]'"


def rate(flops: float, work: float, efficiency: float = EFFICIENCY) -> float:
    """Samples a second of a GPU with a peak of `flops` operations a second.

    work: operations of a sample; what is computed twice counts twice.
    """
    return flops * efficiency / work


@dataclass(frozen=True)
class Feed:
    """What decides beside the step: of a rank, the same on all of them."""

    cores: float
    """What it has of its node's; 0: not known."""
    jpeg_engine: bool
    """Whether its GPU has one."""
    dali: bool = True
    """Whether DALI is installed."""
    decode: float = DECODE
    """Images a core decodes in a second."""


class Choice(NamedTuple):
    """An engine ("auto": it depends on cores that are not known), and why, for the log."""

    engine: Literal["auto", "ffcv", "dali"]
    line: str


def choose(images: float, workers: int, feed: Feed) -> Choice:
    """images: that a rank's step takes in a second; 0: not known.  workers: FFCV's threads."""
    if not images:
        return Choice(
            "ffcv", "ffcv (auto): how fast this GPU trains is not known; --engine dali is the other"
        )
    takes = f"a GPU takes {images:,.0f} images/s"
    enough = math.ceil(MARGIN * images / feed.decode)
    if not feed.cores:
        other = "dali" if feed.jpeg_engine else "too few (the GPU has no JPEG engine for dali)"
        return Choice(
            "auto", f"auto: {takes}; ffcv from {enough} cores and --workers a GPU, below that {other}"
        )
    can = min(workers, feed.cores) * feed.decode
    have = f"{takes}, {workers} workers on {feed.cores:.3g} cores decode {can:,.0f} ({can / images:.2f}×)"
    if can >= MARGIN * images:
        return Choice("ffcv", f"ffcv (auto): {have}")
    if feed.jpeg_engine and feed.dali:
        return Choice("dali", f"dali (auto): {have}, less than {MARGIN}×; the GPU's JPEG engine decodes")
    missing = INSTALL if feed.jpeg_engine else "--engine dali would decode without a JPEG engine"
    return Choice(
        "ffcv", f"ffcv (auto), which is short: {have}; {enough} cores and --workers would do, or {missing}"
    )


def check(recipe: Recipe) -> None:
    """ValueError if the engine that is asked for is not installed."""
    if recipe.data.engine == "dali" and not installed("nvidia.dali"):
        raise ValueError(f"--engine dali: DALI is not installed here: {INSTALL}, or --engine ffcv")
