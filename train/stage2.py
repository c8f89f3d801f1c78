"""Stage 2: one step of symmetric InfoNCE, equation (3), over the whole batch or micro-batches.

The loss of a batch is not a sum over its parts: every pair is every other pair's negative.  With
`negatives="global"` a batch that is forwarded in parts still gets its exact gradient (gradient caching,
Gao et al. 2021, arXiv 2101.06983): features of all parts without a graph, the loss and its gradient with
respect to the features, then each part again with a graph and that gradient fed in.  With
`negatives="micro"` each part is a batch of its own, as in the authors' runs.

B pairs of a rank, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.contrastive import contrastive_loss
from pipeline.batch import ImageText
from train.config import Stage2
from train.distributed import World, micro_batches, replicate
from train.model import Towers


class ContrastiveStage:
    """Gradients and validation of stage 2; `measures` names what `gradients` returns."""

    unit = "pairs"
    measures = ("loss",)

    def __init__(self, recipe: Stage2, clip: nn.Module, world: World):
        self.recipe, self.world, self.clip = recipe, world, clip
        self.towers = Towers(clip, recipe)
        self.replica = replicate(self.towers, world)
        self.micro = recipe.compute.micro or recipe.rank_batch(world.size)
        self.group = dist.group.WORLD if world.size > 1 else None

    def _loss(self, image: Tensor, text: Tensor) -> Tensor:
        """The loss of all ranks' pairs, from features (B, D) that are not normalised."""
        return contrastive_loss(
            F.normalize(image, dim=-1),
            F.normalize(text, dim=-1),
            self.clip.logit_scale.exp(),
            group=self.group,
        )

    def gradients(self, batch: ImageText) -> Tensor:
        """Add this step's gradient to the parameters; returns (loss,), the same on every rank."""
        if len(batch) > self.micro and self.recipe.negatives == "global":
            return self._cached_gradients(batch)
        share = self.micro / len(batch)
        total = torch.zeros(1, device=batch.images.device)
        for part, last in micro_batches(batch, self.micro):
            with self.replica.synchronised(last):
                loss = self._loss(*self.replica.module(part.images, part.tokens)) * share
                loss.backward()
            total += loss.detach()
        return total

    def _cached_gradients(self, batch: ImageText) -> Tensor:
        parts = list(micro_batches(batch, self.micro))
        image, text = self._features(part for part, _ in parts)
        loss = self._loss(image.requires_grad_(), text.requires_grad_())
        d_image, d_text, d_scale = torch.autograd.grad(loss, (image, text, self.clip.logit_scale))
        slices = zip(d_image.split(self.micro), d_text.split(self.micro))
        for (part, last), (part_image, part_text) in zip(parts, slices):
            with self.replica.synchronised(last):
                image, text = self.replica.module(part.images, part.tokens)
                fed = (image * part_image).sum() + (text * part_text).sum()
                if last:  # once, and in the pass whose gradients the ranks average
                    fed = fed + self.clip.logit_scale * d_scale
                fed.backward()
        return loss.detach().reshape(1)

    @torch.no_grad()
    def _features(self, parts: Iterable[ImageText]) -> tuple[Tensor, Tensor]:
        """Features of all parts, in order; running statistics stay as they were."""
        buffers = list(self.towers.buffers())
        before = [buffer.clone() for buffer in buffers]
        features = [self.towers(part.images, part.tokens) for part in parts]
        for buffer, value in zip(buffers, before):
            buffer.copy_(value)
        image, text = zip(*features)
        return torch.cat(image), torch.cat(text)

    @torch.no_grad()
    def validate(self, batches: Iterable[ImageText]) -> dict[str, float]:
        """Mean loss over the batches of a held-out split; each rank's batches have their own negatives."""
        total = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            batch = batch.to(self.world.device)
            image, text = self.towers(batch.images, batch.tokens)
            image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
            loss = contrastive_loss(image, text, self.clip.logit_scale.exp())
            total += torch.tensor([float(loss) * len(batch), len(batch)], dtype=torch.float64)
        loss, count = self.world.total(total).tolist()
        return {"val_loss": loss / count}
