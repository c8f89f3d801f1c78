"""Evaluate a checkpoint: zero-shot classification, retrieval, 2AFC.

    python -m eval.run --checkpoint runs/demo/pi --data data/demo/eval
    python -m eval.run --checkpoint ViT-B-32,openai --data ~/datasets --families VTAB
    python -m eval.run --checkpoint runs/pi --data ~/datasets --watch 3600 --submit slurm
    torchrun --nproc-per-node 8 -m eval.run --checkpoint RUN --data ROOT

Everything is offline.  This file is the command alone: its options are in `eval/options.py`, the evaluation
in `eval/evaluate.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro

from eval.options import Evaluate, Where
from pipeline.base import console, machine


def run(options: Evaluate) -> None:
    """Evaluate one checkpoint, or with --watch those of a run, here or in jobs."""
    # These load torch, which --help does not need.
    from eval.evaluate import evaluate, evaluate_alone, read_data
    from eval.watch import submitted, watch

    folder = Path(options.checkpoint)
    if options.watch is None:
        evaluate(read_data(options), options.checkpoint, None)
    elif options.submit == "here":
        data = read_data(options)
        watch(folder, options.watch, lambda checkpoint, out: evaluate(data, checkpoint, out))
    else:
        alone = replace(options, watch=None, submit="here", where=Where())
        watch(folder, options.watch, submitted(options.submit, folder, evaluate_alone, alone, options.where))


def main(arguments: list[str] | None = None) -> int:
    machine.settle()
    return console.command(lambda: run(tyro.cli(Evaluate, prog="python -m eval.run", args=arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
