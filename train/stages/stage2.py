"""Stage 2: one step of symmetric InfoNCE, equation (3), over the whole batch or micro-batches.

The loss of a batch is not a sum over its parts: every pair is every other pair's negative.  With
`negatives="global"` a batch that is forwarded in parts still gets its exact gradient (`caching.py`).  With
`negatives="micro"` each part is a batch of its own, as in the authors' runs.

A pair whose image did not decode is left out of the loss, as if the batch had not had it.  (Only batch
normalisation, in ResNets, still sees the blank image that stands in its place.)

B pairs of a rank, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.contrastive import contrastive_loss
from pipeline.batch import ImageText
from pipeline.beton.fields import Beton
from pipeline.packing import Packed, pack
from train.config import Stage2
from train.distributed import World, synchronised
from train.model import fit_context
from train.stages.caching import cached_gradients
from train.stages.stage import Stage, micro_batches


class Part(NamedTuple):
    """A micro-batch; `last` is the one whose backward pass the ranks share."""

    images: Tensor
    captions: Tensor | Packed
    valid: Tensor
    last: bool


def enough_rows(counts: Sequence[int], captions: int, context: int) -> int:
    """Packed rows for batches of so many captions: few batches in a billion need more.

    counts: how many captions of the file have 0, 1, 2 … tokens; longer ones than `context` are cut.  The same
    for every start of a run, so that compiled code, which is made for one shape, can be used again.
    """
    lengths, share = np.clip(np.arange(len(counts)), 1, context), np.array(counts) / sum(counts)
    drawn = np.random.default_rng(0).choice(lengths, captions, p=share)
    batch = (np.arange(context) < drawn[:, None]).astype(np.int32)
    mean = lengths @ share
    deviation = math.sqrt((lengths - mean) ** 2 @ share / captions)
    # The batch drawn here may be a small one, by a deviation or two of its mean length.
    return math.ceil(len(pack(torch.from_numpy(batch)).tokens) * (1 + 8 * deviation / mean)) + 1


class ContrastiveStage(Stage):
    """Measures the "loss" of a step, which is the same on every rank."""

    recipe: Stage2

    def __init__(self, recipe: Stage2, clip: nn.Module, world: World, file: Beton | None = None):
        super().__init__(recipe, clip, world, file)
        self.group = dist.group.WORLD if world.size > 1 else None
        self.packs = recipe.compute.pack == "yes" or (
            recipe.compute.pack == "auto" and (recipe.compute.compiles or world.device.type == "cuda")
        )
        counts = file.info.get("captions", {}).get("lengths", []) if file is not None else []
        self.rows = enough_rows(counts, self.micro, self.clip.context_length) if sum(counts) else 0

    def prepare(self, batch: ImageText) -> list[Part]:
        """The batch in micro-batches, captions packed."""
        return [
            Part(part.images, self._captions(part.tokens.cpu()), part.valid, last)
            for part, last in micro_batches(batch, self.micro)
        ]

    def _captions(self, tokens: Tensor) -> Tensor | Packed:
        """Padded as they are, or in rows of one length: as many rows as before if they do."""
        tokens = fit_context(tokens, self.clip.context_length)
        if not self.packs:
            return tokens
        if not self.rows:  # a file that does not say: its first batch decides
            self.rows = -(-len(pack(tokens).tokens) * 17 // 16)
        return pack(tokens, rows=self.rows)

    def _loss(
        self, image: Tensor, text: Tensor, valid: Tensor, group: dist.ProcessGroup | None = None
    ) -> Tensor:
        """Equation (3), from features (B, D) that are not normalised; `valid` (B,) leaves pairs out.

            s(I_i, T_j) = cosine of image i and text j               similarity
            Z_ij        = s(I_i, T_j) / τ                            logits; 1/τ is the logit scale
            L           = ½ · cross_entropy(Z,  (1, …, N))           images → texts
                        + ½ · cross_entropy(Zᵀ, (1, …, N))           texts → images

        N pairs are those of all ranks in `group`, or of this rank alone.  The cross-entropies are means over
        i; `kernels/contrastive.py` computes them without the matrix Z, and `kernels/reference.py` plainly.
        """
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)  # their products are s(I, T)
        logit_scale = self.clip.logit_scale.exp()  # 1/τ; the parameter is its logarithm
        return contrastive_loss(image, text, logit_scale, valid=valid, group=group)

    def _features(self, towers: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        return towers(part.images, part.captions)

    def gradients(self, parts: list[Part]) -> dict[str, Tensor]:
        """The loss of the whole batch, or the mean over its micro-batches."""
        if len(parts) > 1 and self.recipe.negatives == "global":
            valid = torch.cat([part.valid for part in parts])
            loss = partial(self._loss, valid=valid, group=self.group)
            scale = self.clip.logit_scale
            return {"loss": cached_gradients(self, parts, self._features, loss, besides=[scale])}
        total = torch.zeros((), device=self.world.device)
        for part in parts:
            with synchronised(self.replica, part.last):
                image, text = self._features(self.replica, part)
                share = self._loss(image, text, part.valid, self.group) / len(parts)
                share.backward()
            total += share.detach()
        return {"loss": total}

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the logit scale between 1 and its largest value."""
        self.clip.logit_scale.clamp_(0, self.recipe.scale_max)

    @torch.no_grad()
    def validate(self, batches: Iterable[ImageText]) -> dict[str, float]:
        """Mean loss over the batches of a held-out split; each rank's batches have their own negatives."""
        total = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            tokens = fit_context(batch.tokens, self.clip.context_length)
            image, text = self.towers(batch.images.to(self.world.device), tokens.to(self.world.device))
            valid = batch.valid.to(self.world.device)
            loss, pairs = self._loss(image, text, valid), valid.sum()
            total += torch.stack([loss * pairs, pairs]).double().cpu()
        loss, count = self.world.total(total).tolist()
        if not count:
            raise ValueError(f"{self.recipe.data.val}: no sample of it decodes; check --val")
        return {"val_loss": loss / count}
