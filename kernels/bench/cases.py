"""The training steps that are compared (open_clip's, ours with each saving alone), and their captions."""

from __future__ import annotations

import math
import statistics
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.contrastive import contrastive_loss
from kernels.flops import flop_counter
from kernels.towers import TowerSettings, encode_image, encode_text
from pipeline.text import CONTEXT_LENGTH, END, START


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step; the defaults are open_clip's own."""

    towers: TowerSettings | None = None  # None: model.encode_image and model.encode_text
    our_loss: bool = False
    fused_optimizer: bool = True


CASES = {
    "open_clip": Case(),
    "open_clip again": Case(),  # how far apart this machine puts two equal steps
    "towers": Case(towers=TowerSettings(trim=False, prune=False, patch_gemm=False)),  # nothing left out
    "trim": Case(towers=TowerSettings(prune=False, patch_gemm=False)),
    "prune": Case(towers=TowerSettings(trim=False, patch_gemm=False)),
    "patch_gemm": Case(towers=TowerSettings(trim=False, prune=False)),
    "loss": Case(our_loss=True),
    "all": Case(towers=TowerSettings(), our_loss=True),
    "all+pointwise": Case(towers=TowerSettings(recompute="pointwise"), our_loss=True),
    "open_clip, unfused AdamW": Case(fused_optimizer=False),
}


def synthetic_lengths(batch: int, mean: float = 16.0, sigma: float = 0.5) -> list[int]:
    """Caption lengths in tokens, with start and end token: a log-normal distribution's quantiles, shuffled.

    mean: of the lengths. sigma: standard deviation of their logarithm. Lengths are cut to 3 … CONTEXT_LENGTH.
    """
    normal = statistics.NormalDist(math.log(mean) - sigma**2 / 2, sigma)
    lengths = [math.exp(normal.inv_cdf((i + 0.5) / batch)) for i in range(batch)]
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(0)).tolist()
    return [min(CONTEXT_LENGTH, max(3, round(lengths[i]))) for i in order]


def synthetic_captions(lengths: list[int]) -> Tensor:
    """Random tokens (B, 77) int64 of these lengths, zero after the end token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(lengths), CONTEXT_LENGTH, dtype=torch.int64)
    for row, length in zip(tokens, lengths):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def read_captions(path: Path, batch: int) -> Tensor:
    """Tokens (batch, 77) of captions spread evenly over a file that has one a line."""
    import open_clip

    captions = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(captions) < batch:
        raise ValueError(f"{path}: {len(captions)} captions, but a batch of {batch} was asked for")
    return open_clip.tokenize([captions[i * len(captions) // batch] for i in range(batch)])


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that operators return while the mode is on: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage(), known)
        return out

    def _follow(self, storage: Any, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


class Cost(NamedTuple):
    """Of a step's forward and backward pass."""

    flops: int  # by torch's counter: 2 a multiplication and addition
    kept_bytes: int  # for the backward pass
    peak_bytes: int  # gradients counted in, parameters not


class Step:
    """One model, its optimizers, and a batch; runs any case on it."""

    def __init__(self, model: nn.Module, images: Tensor, tokens: Tensor):
        from open_clip.loss import ClipLoss

        self.model: Any = model
        self.images, self.tokens = images, tokens
        self.clip_loss = ClipLoss()
        self.optimizers = {
            fused: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused) for fused in (True, False)
        }

    def run(self, case: Case) -> None:
        """Forward, loss, backward and update."""
        self.model.zero_grad()
        self.loss(case).backward()
        self.optimizers[case.fused_optimizer].step()

    def loss(self, case: Case) -> Tensor:
        if case.towers is None:
            image, text = self.model.encode_image(self.images), self.model.encode_text(self.tokens)
        else:
            image = encode_image(self.model, self.images, case.towers)
            text = encode_text(self.model, self.tokens, case.towers)
        loss = contrastive_loss if case.our_loss else self.clip_loss
        return loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.model.logit_scale.exp())

    def count(self, case: Case) -> Cost:
        """What one forward and backward pass takes."""
        self.model.zero_grad()
        with flop_counter() as counter, PeakMemory() as memory:
            loss = self.loss(case)
            kept = memory.now
            loss.backward()
        return Cost(counter.get_total_flops(), kept, memory.peak)
