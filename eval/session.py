"""A model that is loaded and ready, on its device, among its ranks: what every evaluation begins with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eval import distributed, models
from eval.assumptions import activation
from eval.distributed import Ranks
from eval.encode import Encoders
from eval.models import Loaded
from eval.options import OneModel
from pipeline.base import console, hardware

PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "pillow", "torchvision")  # that figures depend on


@dataclass(frozen=True, kw_only=True)
class Session:
    """A model that is ready, and where its results go."""

    options: OneModel
    model: Loaded
    out: Path
    encoders: Encoders
    ranks: Ranks

    @property
    def name(self) -> str:
        return f"{self.model.name} ({self.model.about['pretrained']})"

    def say(self, line: str) -> None:
        """Of rank 0."""
        if self.ranks.rank == 0:
            console.say(line)

    def begin(self, what: str, notes: Sequence[str]) -> None:
        """Say what is evaluated and what a reader must know of it."""
        self.say(f"{self.name}: {what}, {self.encoders.device}, {self.options.precision}")
        if "told_by" in self.model.about:  # a file beside the weights may be another's
            self.say(f"weights used as {self.model.about['told_by']} tells")
        for note in (*self.model.assumed, *notes):
            self.say(f"note: {note}")

    def about(self, **settings: object) -> dict:
        """What a file of results says besides the figures; settings: those of one command alone."""
        return {
            "checkpoint": {
                **self.model.about,
                "weights": self.encoders.identity,
                "activation": activation(self.model.model),
                "assumed": self.model.assumed,
            },
            "recipe": self.model.recipe,
            "settings": {
                "device": str(self.encoders.device),
                "precision": self.options.precision,
                **settings,
                "batch_size": self.options.batch_size,
                "ranks": self.ranks.world_size,
                "preprocess": self.encoders.preprocess.describe(),
            },
            "versions": hardware.versions(PACKAGES),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def start(options: OneModel, checkpoint: str, out: Path | None) -> Session:
    """Load the model and join the ranks.

    out: over the options' own.  ValueError for a checkpoint, device or folder of results that cannot
    be used.
    """
    device = _device(options.device)
    model = models.load(checkpoint, options.seed)
    place = _out_folder(model, out or options.out)
    ranks = distributed.start(device)
    encoders = models.encoders_for(model, device, options.precision)
    return Session(options=options, model=model, out=place, encoders=encoders, ranks=ranks)


def _device(name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if cuda:  # before anything is put there: this rank's card, not the first for all
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        device = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"--device {name}: PyTorch has none of that name here ({reason})") from None
    return device


def _out_folder(model: Loaded, out: Path | None) -> Path:
    """Where the results go.  ValueError where they could not be written once everything is computed."""
    usual = Path("eval-results") / "-".join(dict.fromkeys((model.name, model.about["pretrained"])))
    out = out or (model.run / "eval" if model.run else usual)
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {nearest} is no folder that can be written to")
    return out
