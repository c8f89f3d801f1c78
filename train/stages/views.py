"""Stage 1 without people: two views of each image are told from all others (`--objective views`).

The control "plain self-supervision on the same images", as SimCLR (Chen et al. 2020, arXiv 2002.05709): the
images of the triplets, each twice with draws of its own, and symmetric InfoNCE between the two views of all
images of the global batch.  Other than there, the loss is on the tower's own output, without a projection
head, and an image's negatives are the other views of other images alone (SimCLR: also those of its own view).

The three images of a triplet share their draws within a view, as in the triplet's own objective.

An image that a batch has more than once would be its own negative.  So only its first place counts; images
are known by the checksum of their bytes.  In a file without checksums repeated images do count.

B triplets of a rank, n = 3·B images of it, N of all ranks, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.contrastive import Collectives, contrastive_loss
from pipeline.batch import Triplet
from pipeline.beton.fields import Beton, checksum_column
from train.config import Stage1
from train.distributed import World, synchronised
from train.stages.caching import cached_gradients
from train.stages.stage import micro_batches
from train.stages.stage1 import PerceptualStage

ROWS = 4096  # of the similarities that exist at a time


class Part(NamedTuple):
    """A micro-batch of B triplets; `last` is the one whose backward pass the ranks share."""

    ref: Tensor  # (2·B, 3, S, S), the views of a triplet one after the other; left and right alike
    left: Tensor
    right: Tensor
    valid: Tensor  # (3·B,) bool: images, triplet after triplet
    identity: Tensor | None  # (3·B,) int64, equal for equal images; None: not known
    last: bool


class ViewsStage(PerceptualStage):
    """Measures "loss", and "views_top1": the share of images whose other view is the most similar one.

    Both are of the global batch, and the same on every rank.  Validation is the triplets'.
    """

    def __init__(self, recipe: Stage1, clip: nn.Module, world: World, file: Beton | None = None):
        super().__init__(recipe, clip, world, file)
        self.ranks = Collectives(dist.group.WORLD if world.size > 1 else None)
        self.scale = torch.tensor(1 / recipe.temperature, dtype=torch.float64, device=world.device)
        self.identity = identities(file) if file is not None and file.checksummed else None

    def prepare(self, batch: Triplet) -> list[Part]:  # type: ignore[override]
        """The batch, which has each triplet twice, in micro-batches."""
        return [self._part(part, last) for part, last in micro_batches(batch, 2 * self.micro)]

    def _part(self, part: Triplet, last: bool) -> Part:
        valid = part.valid.view(-1, 2).all(1).repeat_interleave(3)
        identity = None if self.identity is None else self.identity[part.index[::2]].flatten()
        return Part(part.ref, part.left, part.right, valid, identity, last)

    def _features(self, towers: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        """(first views, second views) of a part's images, triplet after triplet: (n, D), not normalised."""
        features, _ = towers(torch.cat([part.ref, part.left, part.right]))
        images = features.view(3, -1, 2, features.shape[1]).transpose(0, 1).flatten(0, 1)
        first, second = images.unbind(1)
        return first, second

    def gradients(self, parts: list[Part]) -> dict[str, Tensor]:  # type: ignore[override]
        """The loss of the whole batch, exactly, however it is split."""
        measured: dict[str, Tensor] = {}
        loss = partial(self._loss, counted=self._counted(parts), measured=measured)
        if len(parts) > 1:
            return {"loss": cached_gradients(self, parts, self._features, loss), **measured}
        with synchronised(self.replica, last=True):
            value = loss(*self._features(self.replica, parts[0]))
            value.backward()
        return {"loss": value.detach(), **measured}

    def _loss(self, first: Tensor, second: Tensor, counted: Tensor, measured: dict[str, Tensor]) -> Tensor:
        """Equation (3) with the second views in the place of texts; `measured` gets the accuracy.

        first, second: (n, D), not normalised.  counted: (n,) bool.
        """
        first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
        measured["views_top1"] = self._top1(first.detach(), second.detach(), counted)
        return contrastive_loss(first, second, self.scale, valid=counted, group=self.ranks)

    def _top1(self, first: Tensor, second: Tensor, counted: Tensor) -> Tensor:
        """The share of the first views whose nearest second view, of all ranks', is their own."""
        others, among = self.ranks.all_gather(second), self._everyones(counted)
        own = self.ranks.rank * len(first) + torch.arange(len(first), device=first.device)
        nearest = [(rows @ others.T).masked_fill_(~among, -torch.inf).argmax(1) for rows in first.split(ROWS)]
        hits = ((torch.cat(nearest) == own) & counted).sum()
        return self.ranks.all_reduce(hits).float() / among.sum().clamp_min(1)

    def _everyones(self, flags: Tensor) -> Tensor:
        """(n,) bool on each rank → (N,)."""
        return self.ranks.all_gather(flags.byte()).bool()

    def _counted(self, parts: Sequence[Part]) -> Tensor:
        """(n,) bool: this rank's images that decode and are the first of their kind in the global batch."""
        valid = torch.cat([part.valid for part in parts])
        if self.identity is None:
            return valid
        identity = torch.cat([part.identity for part in parts if part.identity is not None])
        first = firsts(self.ranks.all_gather(identity), self._everyones(valid))
        return first[self.ranks.rank * len(valid) :][: len(valid)]


def identities(file: Beton) -> Tensor:
    """(samples, 3) int64: what the file's images are known by."""
    table = file.metadata
    sums = [torch.from_numpy(table[checksum_column(name)].copy()) for name in ("ref", "left", "right")]
    return torch.stack(sums, 1)


def firsts(identity: Tensor, valid: Tensor) -> Tensor:
    """(N,) bool: which are the first valid one of their identity.  The host does not wait for the device."""
    order = torch.argsort(~valid, stable=True)
    order = order[torch.argsort(identity[order], stable=True)]
    ordered = identity[order]
    new = torch.ones_like(valid)
    new[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(valid).scatter_(0, order, new) & valid
