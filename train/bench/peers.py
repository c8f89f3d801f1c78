"""open_clip's training step beside ours: its model, loss and fused AdamW, as its own training calls them.

Each form runs in a process of its own (`worker.py`), which imports open_clip from where the form lies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.augment import lookup_table, normalise
from train import data, distributed
from train import model as models
from train.architectures import CONFIGS
from train.bench import synthetic
from train.bench.forms import FORMS, Form, Name
from train.bench.side import Side
from train.config import Recipe, Stage1, Stage2
from train.device import auto
from train.model import fit_context


def make(name: Name, recipe: Recipe, tokens: float, main: Path | None) -> Peer:
    """The side of that name; raises ValueError where open_clip's main branch is needed and not there."""
    form = FORMS[name]
    if form.main:
        if main is None:
            raise ValueError("--open-clip-main FOLDER is not given")
        assert "open_clip" not in sys.modules
        sys.path.insert(0, str(main))
    return Peer(form, recipe, tokens)


class Peer(Side):
    """A step of open_clip on the batch, or on as much of it as fits the GPU."""

    def __init__(self, form: Form, recipe: Recipe, tokens: float):
        import open_clip

        super().__init__()
        with distributed.join(recipe.compute.threads) as world:
            self.device = world.device
        self.form, self.recipe, self.tokens = form, recipe, tokens
        self.version = open_clip.__version__
        self.model: Any = _build(recipe, form.main).to(self.device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.moments = torch.optim.AdamW(trained, lr=recipe.optim.lr * 1e-6, fused=True)
        self.clip_loss = open_clip.ClipLoss()
        if self.device.type == "cuda":
            self.recipe = replace(recipe, batch=_fitting(recipe))
        self._take_batch()

    @property
    def compiles(self) -> bool:
        return self.form.compiled != "nothing"

    def _take_batch(self) -> None:
        made = synthetic.batch(self.recipe, models.image_side(self.model), self.tokens)
        table = lookup_table(data.augmentation(self.recipe), torch.float32)
        self.given = _inputs(made, table, self.model.context_length, self.form.main)
        self.given = tuple(x.to(self.device) for x in self.given)
        loss = _triplets if self.recipe.stage == 1 else _pairs
        run = self.model.encode_image if self.recipe.stage == 1 else self.model
        if self.form.compiled == "model":
            run = torch.compile(run)
        self._body: Callable[[], Tensor] = lambda: self._forward_backward_update(loss, run)
        if self.form.compiled == "step":
            self._body = torch.compile(self._body)

    def _forward_backward_update(self, loss: Callable[..., Tensor], run: Callable[..., Any]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, self.recipe.compute.precision == "bf16"):
            value = loss(self, run, *self.given)
        value.backward()
        self.moments.step()
        return value

    def step(self) -> Tensor:
        self.moments.zero_grad()
        loss = self._body()
        if isinstance(self.recipe, Stage2):
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, self.recipe.scale_max)
        return loss.detach()

    def first(self) -> dict[str, Any]:
        """As of every side; the batch is halved until a step fits the GPU."""
        while True:
            try:
                row = super().first()
                return {"version": self.version, "compiled": self.form.compiled, **row}
            except torch.OutOfMemoryError:
                if self.recipe.batch < 64:
                    raise
            self.recipe = replace(self.recipe, batch=self.recipe.batch // 2)
            self.moments.zero_grad()
            torch.compiler.reset()
            torch.cuda.empty_cache()
            self._take_batch()


def _build(recipe: Recipe, main: bool) -> nn.Module:
    """The recipe's model with the very weights that ours starts from (main: its text tower may differ)."""
    import open_clip

    if recipe.model not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS)
    torch.manual_seed(recipe.seed)
    options = {"force_custom_text": True} if main else {}
    model: Any = open_clip.create_model(recipe.model, output_dict=True, **options)
    if isinstance(recipe, Stage2):
        nn.init.constant_(model.logit_scale, recipe.scale_init)
    models.set_trainable(model, recipe)
    return model.train()


def _inputs(made: Any, table: Tensor, context: int, cut: bool) -> tuple[Tensor, ...]:
    """What a loss takes of a batch: float32 images, and captions, padded or `cut` to the longest."""
    if hasattr(made, "tokens"):
        tokens = fit_context(made.tokens.long(), context)
        longest = int((tokens.argmax(1) + 1).max())
        return normalise(made.images, table), tokens[:, :longest].contiguous() if cut else tokens
    return normalise(torch.cat([made.ref, made.left, made.right]), table), made.vote


def _pairs(peer: Peer, run: Callable[..., dict], images: Tensor, tokens: Tensor) -> Tensor:
    """Stage 2: open_clip's own loss."""
    return sum(peer.clip_loss(**run(images, tokens), output_dict=True).values())


def _triplets(peer: Peer, run: Callable[[Tensor], Tensor], images: Tensor, vote: Tensor) -> Tensor:
    """Stage 1: the paper's equations (1) and (2) as they stand."""
    recipe = peer.recipe
    assert isinstance(recipe, Stage1)
    ref, left, right = run(images).float().chunk(3)
    delta = F.cosine_similarity(ref, right) - F.cosine_similarity(ref, left)  # distance left − right
    losses = F.relu(recipe.margin - delta) * vote + F.relu(recipe.margin + delta) * (1 - vote)
    return losses.mean()


def _fitting(recipe: Recipe) -> int:
    """Samples of its batch that a step should fit on this GPU, by the plan of a step like open_clip's."""
    compute = replace(recipe.compute, compile="no", recompute="none", micro="auto")
    if isinstance(recipe, Stage2):  # the micro-batches of `negatives` would need a size
        recipe = replace(recipe, negatives="global")
    plain = replace(recipe, compute=compute)
    bytes_here = torch.cuda.get_device_properties(0).total_memory
    return auto.settle(plain, recipe.batch, 77, bytes_here).way.micro
