"""Stage 2: one step of symmetric InfoNCE, equation (3), over the whole batch or micro-batches.

The loss of a batch is not a sum over its parts: every pair is every other pair's negative.  With
`negatives="global"` a batch that is forwarded in parts still gets its exact gradient (gradient caching,
Gao et al. 2021, arXiv 2101.06983): features of all parts without a graph, the loss and its gradient with
respect to the features, then each part again with a graph and that gradient fed in.  With
`negatives="micro"` each part is a batch of its own, as in the authors' runs.

A pair whose image did not decode is left out of the loss, as if the batch had not had it.  (Only batch
normalisation, in ResNets, still sees the blank image that stands in its place.)

B pairs of a rank, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.contrastive import contrastive_loss
from pipeline.batch import ImageText
from pipeline.packing import Packed, pack
from train.config import Stage2
from train.distributed import World, micro_batches, replicate
from train.model import Towers, fit_context

ROW = 128  # tokens of a packed row


class Part(NamedTuple):
    """A micro-batch on the device; `last` is the one whose backward pass the ranks share."""

    images: Tensor
    captions: Tensor | Packed
    valid: Tensor
    last: bool


class ContrastiveStage:
    """Gradients and validation of stage 2; `measures` names what `gradients` returns."""

    unit = "pairs"
    images = 1  # of a sample
    measures = ("loss",)

    def __init__(self, recipe: Stage2, clip: nn.Module, world: World):
        self.recipe, self.world, self.clip = recipe, world, clip
        self.towers = Towers(clip, recipe)
        self.replica = replicate(self.towers, world)
        self.micro = recipe.compute.micro or recipe.rank_batch(world.size)
        self.group = dist.group.WORLD if world.size > 1 else None
        self.packs = recipe.compute.pack == "yes" or (
            recipe.compute.pack == "auto" and (recipe.compute.compile or world.device.type == "cuda")
        )
        self.rows = 0  # of packed captions; the first batch decides

    def _parts(self, batch: ImageText) -> list[Part]:
        parts = []
        for part, last in micro_batches(batch, self.micro):
            captions = self._captions(part.tokens.cpu())
            captions = Packed(*map(self._sent, captions)) if self.packs else self._sent(captions)
            parts.append(Part(self._sent(part.images), captions, self._sent(part.valid), last))
        return parts

    def _sent(self, x: Tensor) -> Tensor:
        """x on this rank's device; memory that is not pinned would be copied only once the card is idle."""
        if self.world.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()
        return x.to(self.world.device, non_blocking=True)

    def _captions(self, tokens: Tensor) -> Tensor | Packed:
        """Padded as they are, or in rows of one length: the same number of rows in every step if possible."""
        tokens = fit_context(tokens, self.clip.context_length)
        if not self.packs:
            return tokens
        if not self.rows:
            self.rows = -(-len(pack(tokens, ROW).tokens) * 17 // 16)
        return pack(tokens, ROW, self.rows)

    def _loss(self, image: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        """The loss of all ranks' valid pairs, from features (B, D) that are not normalised."""
        return contrastive_loss(
            F.normalize(image, dim=-1),
            F.normalize(text, dim=-1),
            self.clip.logit_scale.exp(),
            valid=valid,
            group=self.group,
        )

    def gradients(self, batch: ImageText) -> Tensor:
        """Add this step's gradient to the parameters; returns (loss,), the same on every rank."""
        parts = self._parts(batch)
        if len(parts) > 1 and self.recipe.negatives == "global":
            return self._cached_gradients(parts)
        total = torch.zeros(1, device=self.world.device)
        for part in parts:
            with self.replica.synchronised(part.last):
                features = self.replica.module(part.images, part.captions)
                loss = self._loss(*features, part.valid) / len(parts)
                loss.backward()
            total += loss.detach()
        return total

    def _cached_gradients(self, parts: list[Part]) -> Tensor:
        image, text = self._features(parts)
        valid = torch.cat([part.valid for part in parts])
        loss = self._loss(image.requires_grad_(), text.requires_grad_(), valid)
        d_image, d_text, d_scale = torch.autograd.grad(loss, (image, text, self.clip.logit_scale))
        slices = zip(d_image.split(self.micro), d_text.split(self.micro))
        for part, (part_image, part_text) in zip(parts, slices):
            with self.replica.synchronised(part.last):
                image, text = self.replica.module(part.images, part.captions)
                fed = (image * part_image).sum() + (text * part_text).sum()
                if part.last:  # once, and in the pass whose gradients the ranks average
                    fed = fed + self.clip.logit_scale * d_scale
                fed.backward()
        return loss.detach().reshape(1)

    @torch.no_grad()
    def _features(self, parts: Iterable[Part]) -> tuple[Tensor, Tensor]:
        """Features of all parts, in order; running statistics stay as they were."""
        buffers = list(self.towers.buffers())
        before = [buffer.clone() for buffer in buffers]
        features = [self.towers(part.images, part.captions) for part in parts]
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
        image, text = zip(*features)
        return torch.cat(image), torch.cat(text)

    @torch.no_grad()
    def constrain(self) -> None:
        """After an update: keep the logit scale between 1 and its largest value."""
        self.clip.logit_scale.clamp_(0, self.recipe.scale_max)

    @torch.no_grad()
    def validate(self, batches: Iterable[ImageText]) -> dict[str, float]:
        """Mean loss over the batches of a held-out split; each rank's batches have their own negatives."""
        total = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            tokens = fit_context(batch.tokens, self.clip.context_length)
            image, text = self.towers(batch.images.to(self.world.device), tokens.to(self.world.device))
            image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
            valid = batch.valid.to(self.world.device)
            loss, pairs = contrastive_loss(image, text, self.clip.logit_scale.exp(), valid=valid), valid.sum()
            total += torch.stack([loss * pairs, pairs]).double().cpu()
        loss, count = self.world.total(total).tolist()
        if not count:
            raise ValueError(f"{self.recipe.data.val}: no sample of it decodes; check --val")
        return {"val_loss": loss / count}
