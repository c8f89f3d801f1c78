"""The recipes by name: values only, one table a stage.  The command line changes them (train/command.py).

Sources: `paper` is section 3 of the paper; what the paper leaves open is taken from the public
configuration of the same laboratory (AdamW 5e-4, weight decay .1, betas .9/.98, warm-up 150 and 2,500
steps, stage-1 batch 768).  `strong` is DeCLIP's CLIP baseline (arXiv 2110.05208), which reaches 32.8 %
on ImageNet with ViT-B/32 on this data.  `pft` is section 3.3 with the learning rate, weight decay and
batch of that public configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from train.config import MAX_LOGIT_SCALE, Compute, Data, Optim, Recipe, Saving, Stage1, Stage2

GPUS = {"paper": 6}  # ranks a node where the paper's machine is meant, unless --ngpus says otherwise
# Meant for a CPU too, and for the demonstration data.  Their towers are so small that arithmetic says nothing
# about the images they take, so the engine is given.
SMALL = ("demo", "debug")

_PAPER = Optim(lr=5e-4, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8)
_LONG = Saving(save_every=250, keep=2, keep_epochs=1, log_every=10)
_SHORT = Saving(save_every=0, log_every=10)
_SMALL = Compute(precision="fp32", compile="no")  # compiling would take longer than the run

STAGE1 = {
    "paper": Stage1(
        name="paper",
        batch=768,
        epochs=32,
        # The paper's text says the augmentations are the same in every stage; the laboratory's public
        # configuration only resizes here: --augment none.
        data=Data(augment="paper", workers=12),
        optim=dataclasses.replace(_PAPER, warmup_steps=150),
        saving=dataclasses.replace(_SHORT, val_every=100),
    ),
    "strong": Stage1(
        name="strong",
        batch=768,
        epochs=32,
        data=Data(augment="clip", crop_scale=(0.5, 1.0), workers=12),
        optim=dataclasses.replace(_PAPER, warmup_steps=150),
        saving=dataclasses.replace(_SHORT, val_every=100),
    ),
    "pft": Stage1(
        name="pft",
        batch=96,  # 16 a GPU
        epochs=8,
        trainable="qkv",
        data=Data(augment="paper", workers=12),
        optim=Optim(lr=1e-5, weight_decay=0.0, betas=(0.9, 0.999)),
        saving=dataclasses.replace(_SHORT, val_every=100),
    ),
    "demo": Stage1(
        name="demo",
        model="demo-RN",
        prior="demo",
        batch=64,
        steps=120,
        data=Data(augment="demo", workers=1, engine="ffcv"),
        optim=Optim(lr=1e-3, warmup_steps=8),
        compute=_SMALL,
        saving=_SHORT,
    ),
    "debug": Stage1(
        name="debug",
        model="debug-ViT",
        prior="demo",
        batch=16,
        steps=4,
        data=Data(augment="none", workers=1, engine="ffcv"),
        compute=_SMALL,
        saving=dataclasses.replace(_SHORT, log_every=1),
    ),
}

STAGE2 = {
    "paper": Stage2(
        name="paper",
        batch=30_720,
        epochs=32,
        scale_init=MAX_LOGIT_SCALE,
        data=Data(augment="paper", workers=12),
        optim=dataclasses.replace(_PAPER, warmup_steps=2_500),
        saving=_LONG,
    ),
    "strong": Stage2(
        name="strong",
        batch=4_096,
        epochs=32,
        data=Data(augment="clip", crop_scale=(0.5, 1.0), workers=12),
        optim=Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=2_500),
        saving=dataclasses.replace(_LONG, save_every=1_000),
    ),
    "demo": Stage2(
        name="demo",
        model="demo-RN",
        batch=128,
        epochs=40,
        scale_init=math.log(30),
        data=Data(augment="demo", workers=1, engine="ffcv"),
        optim=Optim(lr=1.5e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=50),
        compute=_SMALL,
        saving=_SHORT,
    ),
    "debug": Stage2(
        name="debug",
        model="debug-ViT",
        batch=16,
        steps=4,
        data=Data(augment="none", workers=1, engine="ffcv"),
        compute=_SMALL,
        saving=dataclasses.replace(_SHORT, log_every=1),
    ),
}

RECIPES: dict[int, Mapping[str, Recipe]] = {1: STAGE1, 2: STAGE2}


def choose(stage: str, name: str) -> Recipe:
    """The named recipe of a stage; ValueError names what there is."""
    if stage not in ("1", "2"):
        raise ValueError(f"--stage {stage}: there are stages 1 (perceptual) and 2 (contrastive)")
    table = RECIPES[int(stage)]
    if name not in table:
        raise ValueError(f"--recipe {name}: stage {stage} has {', '.join(table)}")
    return table[name]
