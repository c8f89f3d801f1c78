"""What frozen image features are good for: nearest neighbours, linear probes, counting, instance retrieval.

    python -m eval.downstream --checkpoint runs/demo/pi --data ~/datasets
    python -m eval.downstream --checkpoint timm:vit_base_patch16_224,dino.safetensors --data ~/datasets

ROOT holds, each in a folder of its own:

    classification sets that eval.run reads, with their training split beside (train/ beside test/, or raw)
    FSC-147: annotation_FSC147_384.json, Train_Test_Val_FSC_147.json, images_384_VarV2/
    Revisited Oxford and Paris: gnd_roxford5k.json, jpg/
    instances: query/ID/IMAGE, gallery/ID/IMAGE

Only images are needed, so towers without texts are evaluated too.  Features are those of eval.run, from the
same cache; `python -m eval.run --downstream ROOT` does the same after its own sets.  Depth, segmentation and
other dense tasks, and sets without a training split, are not evaluated.
This file is the command alone: its options are in `eval/downstream/options.py`.
"""

from __future__ import annotations

import tyro

from eval.downstream.options import Downstream
from pipeline.base import console, machine


def _run(options: Downstream) -> None:
    # These load torch, which --help does not need.
    from eval import session
    from eval.cache import Cache
    from eval.downstream import evaluate

    cache = Cache(options.cache_beside(options.data))
    found = evaluate.read(options.data, options.datasets, cache, options.max_unreadable)
    evaluate.evaluate(session.start(options, options.checkpoint, None), found)


def main(arguments: list[str] | None = None) -> int:
    machine.settle()
    return console.command(
        lambda: _run(tyro.cli(Downstream, prog="python -m eval.downstream", args=arguments))
    )
