"""`python -m eval.study.votes`: what a network that was never trained says of triplets, as a table of votes.

The control arm "Untrained votes" learns these: they are as consistent as a network's, and nobody's judgement.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from pipeline.base import console, machine
from pipeline.base.files import replacing


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Write votes (N,) float32: 1 where the right image is nearer to the reference, 0 the left, 0.5 a tie."""

    model: str
    """An open_clip model, or one of train/model_configs."""
    seed: int
    """Of its random weights."""
    triplets: Path
    """A .beton; row i of the table is its sample i."""
    out: Path
    """A .npy."""


def write(options: Votes) -> None:
    """Raises ValueError for a file that holds no triplets, or an unknown model."""
    from eval.evaluate import evaluate, read_data
    from eval.options import Evaluate
    from eval.report.compare import choices

    with tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluate(
            checkpoint=options.model, seed=options.seed, triplets=options.triplets, no_cache=True
        )
        evaluate(read_data(evaluation), options.model, Path(folder))
        arrays = dict(np.load(Path(folder) / "predictions" / "triplets.npz"))
    votes = choices(arrays).prefers_right().astype(np.float32)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.out) as temporary, open(temporary, "wb") as file:
        np.save(file, votes)
    console.say(f"{options.out}: {len(votes):,} votes, {votes.mean():.1%} for the right image")


def main(arguments: list[str] | None = None) -> int:
    machine.settle()
    return console.command(lambda: write(tyro.cli(Votes, prog="python -m eval.study.votes", args=arguments)))


if __name__ == "__main__":
    sys.exit(main())
