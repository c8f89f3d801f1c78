"""How well an image tower agrees with people, by every test of human similarity found under a folder.

    python -m eval.alignment --checkpoint runs/pi --data ~/similarity
    python -m eval.alignment --checkpoint ViT-B-32,openai --data ~/similarity --sets nights things --probe
    torchrun --nproc-per-node 8 -m eval.alignment --checkpoint RUN --data ROOT

Figures of the features as they are come first; a linear probe's, with --probe, apart.  `python -m eval.run
--alignment ROOT` does the same after the zero-shot sets.  The report shows both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eval.options import OneModel
from pipeline.base import console, machine


@dataclass(frozen=True, kw_only=True)
class Align(OneModel):
    """Score a checkpoint by the tests of human similarity found under a folder."""

    data: Annotated[Path, tyro.conf.arg(metavar="ROOT")]
    """Folder of the sets, each in a folder of its own (nights, things, bapps, …: eval/alignment/sets.py)."""
    sets: tuple[str, ...] = ()
    """Only these sets; one that is not there is an error."""
    probe: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also fit a linear probe to people's answers, where a set has answers to fit it on; reported apart."""


def run(options: Align) -> None:
    """Raises ValueError for data that are missing or damaged, and for a checkpoint that cannot be used."""
    # These load torch, which --help does not need.
    from eval import session
    from eval.alignment import evaluate
    from eval.cache import Cache

    found = evaluate.read(options.data, options.sets)
    now = session.start(options, options.checkpoint, None)
    evaluate.evaluate(now, found, Cache(options.cache_beside(options.data)), options.probe)


def main(arguments: list[str] | None = None) -> int:
    machine.settle()
    return console.command(lambda: run(tyro.cli(Align, prog="python -m eval.alignment", args=arguments)))
