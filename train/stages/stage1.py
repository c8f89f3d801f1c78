"""Stage 1: one step of the perceptual objective, equations (1) and (2), and its validation.

B triplets of a rank, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.triplet import triplet_loss
from pipeline.batch import Triplet
from pipeline.beton.fields import Beton
from train.config import Stage1
from train.distributed import World, synchronised
from train.stages.stage import Stage, micro_batches
from train.stages.votes import of as votes_of


class Part(NamedTuple):
    """A micro-batch; `last` is the one whose backward pass the ranks share."""

    ref: Tensor
    left: Tensor
    right: Tensor
    vote: Tensor
    valid: Tensor
    last: bool


class PerceptualStage(Stage):
    """Measures "loss" and "twoafc_soft" of a step."""

    recipe: Stage1

    def __init__(self, recipe: Stage1, clip: nn.Module, world: World, file: Beton | None = None):
        super().__init__(recipe, clip, world, file)
        votes = votes_of(recipe, file) if file is not None else None
        self.votes = None if votes is None else torch.from_numpy(votes)  # by sample number

    def prepare(self, batch: Triplet) -> list[Part]:
        """The batch in micro-batches, with the votes that the recipe asks for."""
        if self.votes is not None:
            batch = replace(batch, vote=self.votes[batch.index])
        return [
            Part(part.ref, part.left, part.right, part.vote, part.valid, last)
            for part, last in micro_batches(batch, self.micro)
        ]

    def _losses(self, towers: nn.Module, batch: Part | Triplet) -> tuple[Tensor, Tensor]:
        """Loss and hits of each triplet, (B,); 0 for one whose images did not decode."""
        images = torch.cat([batch.ref, batch.left, batch.right])
        features, _ = towers(images)
        ref, left, right = features.chunk(3)
        losses, hits = triplet_loss(ref, left, right, batch.vote, self.recipe.margin, reduction="none")
        return losses * batch.valid, hits * batch.valid

    def gradients(self, parts: list[Part]) -> dict[str, Tensor]:
        """The mean of both over this rank's triplets."""
        samples = sum(len(part.valid) for part in parts)
        total = torch.zeros(2, device=self.world.device)
        for part in parts:
            with synchronised(self.replica, part.last):
                losses, hits = self._losses(self.replica, part)
                (losses.sum() / samples).backward()
            total += torch.stack([losses.detach().sum(), hits.sum()])
        loss, hits = total / samples
        return {"loss": loss, "twoafc_soft": hits}

    @torch.no_grad()
    def validate(self, batches: Iterable[Triplet]) -> dict[str, float]:
        """Mean loss and both 2AFC scores over a held-out split that is spread over the ranks.

        val_twoafc_soft is the share of people agreed with, val_twoafc the agreement with their majority, by
        the names that evaluation uses.  The latter is missing where no triplet has a majority.
        """
        total = torch.zeros(5, dtype=torch.float64)
        for batch in batches:
            batch = batch.to(self.world.device)
            losses, hits = self._losses(self.towers, batch)
            decided = batch.valid * (batch.vote != 0.5)
            # A triplet's hits are the share of its chosen side: more than half is the majority's side.
            agrees = (torch.sign(hits - 0.5) + 1) / 2 * decided
            sums = (losses, hits, batch.valid, agrees, decided)
            total += torch.stack([x.double().sum() for x in sums]).cpu()
        loss, soft, count, majority, all_decided = self.world.total(total).tolist()
        if not count:
            raise ValueError(f"{self.recipe.data.val}: no sample of it decodes; check --val")
        if not math.isfinite(loss):  # a distance that is not a number has counted as a tie
            soft = majority = math.nan
        scores = {"val_loss": loss / count, "val_twoafc_soft": soft / count}
        return scores | ({"val_twoafc": majority / all_decided} if all_decided else {})
