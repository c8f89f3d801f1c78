"""The trainer's own step: recipe, settled settings, model, optimizer, stage, prefetcher, `loop.update`."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipeline.base import hardware
from train import distributed
from train import model as models
from train.bench import ceilings, kinds, synthetic
from train.bench.side import Side
from train.config import Recipe
from train.device import auto, memory
from train.device.prefetch import Prefetcher
from train.loop import STAGES, update
from train.optim import Optimizer
from train.splits import mean_tokens

FIGURES = ("rate", "fed", "memory", "kinds", "products", "card")  # methods of `Trainer`


class Trainer(Side):
    """A step as `loop.train` takes it, of one rank.

    host: the batch as a loader delivers it.  given: the same, prepared in parts.
    """

    def __init__(self, recipe: Recipe, tokens: float):
        super().__init__()
        with distributed.join(recipe.compute.threads) as world:
            self.device = world.device
        clip = models.build(recipe)
        self.host: Any = synthetic.batch(recipe, models.image_side(clip), tokens)
        if self.device.type == "cuda":  # as the loader has it
            self.host = type(self.host)(**{name: x.pin_memory() for name, x in vars(self.host).items()})
        file = synthetic.file(self.host)
        self.tokens = mean_tokens(file)
        # No loader runs here; ffcv takes none of the GPU's memory.
        recipe = replace(recipe, data=replace(recipe.data, engine="ffcv"))
        self.recipe, lines = auto.on(world, recipe, clip, file)
        self.settings = lines[-1] if lines else ""
        clip.to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = Optimizer(clip, recipe.optim)
        self.stage = STAGES[recipe.stage](self.recipe, clip, world, file)
        self.model, self.moments = self.stage.towers, self.optimizer.adamw
        self.given = tree_map_only(Tensor, lambda x: x.to(self.device), self.stage.prepare(self.host))

    def step(self) -> Tensor:
        return self.update(self.given)

    def update(self, parts: list[Any]) -> Tensor:
        """A step on these parts."""
        # So small a rate that the numbers stay what they are at the start of a run.
        return update(self.stage, self.optimizer, parts, self.recipe.optim.lr * 1e-6)["loss"]

    @property
    def compiles(self) -> bool:
        return self.recipe.compute.compile != "no"

    def fed_step(self, batches: Prefetcher) -> Tensor:
        """A step on the next batch of a prefetcher that prepares for `stage`."""
        return self.update(next(batches)[0])

    # -- figures ------------------------------------------------------------------------

    def rate(self) -> dict[str, Any]:
        """As of every side; with the settings, and useful arithmetic as a share of the data sheet's."""
        row = super().rate()
        # Nothing computed twice.
        useful = 3 * models.sample_flops(self.stage.clip, self.recipe, round(self.tokens))
        tflops = useful * self.recipe.batch / row["ms"] / 1e9
        card = hardware.gpu(torch.cuda.get_device_name()) if self.device.type == "cuda" else None
        return {
            "settings": self.settings,
            "compute": asdict(self.recipe.compute),
            "tokens": self.tokens,
            **row,
            "useful_gflop": useful / 1e9,
            "useful_tflops": tflops,
            **({"useful_of_sheet": tflops * 1e12 / card.flops} if card else {}),
        }

    def fed(self) -> dict[str, float]:
        """The same through the prefetcher, from the host."""
        with Prefetcher(itertools.repeat(self.host), self.stage.prepare, self.device) as batches:
            self.fed_step(batches)
            ms = 1e3 * self.in_a_row(lambda: self.fed_step(batches), self.steps).wall
        return {"together_ms": ms, f"together_{self.recipe.unit}_s": self.recipe.batch / ms * 1e3}

    def memory(self) -> dict[str, float]:
        """As of every side; with what the plan says."""
        row, compute = super().memory(), self.recipe.compute
        if row:
            assert compute.recompute != "auto"  # it is settled
            sizes = memory.sizes(self.recipe, round(self.tokens), self.compiles)
            micro = self.recipe.micro_batch(self.recipe.batch)
            planned = sizes.total(self.recipe, self.recipe.batch, compute.recompute, micro)
            row["planned_gb"] = planned / 1e9
        return row

    def kinds(self) -> dict[str, Any]:
        """Where the time goes."""
        return kinds.profile(self.step, self.device)

    def products(self) -> dict[str, Any]:
        """The matrix products of a step by themselves: what is left of it when all else costs nothing."""
        if self.compiles:
            found, times = ceilings.products(self.recipe, self.given[0]), len(self.given)
        else:
            found, times = ceilings.recorded(self.step), 1
        rows = ceilings.measure(found, self.recipe.compute.precision, self.device)
        alone = times * sum(row["ms"] * row["count"] for row in rows)
        flops = times * sum(product.flops * product.count for product in found)
        return {"products_ms": alone, "products_tflops": flops / alone / 1e9, "products": rows[:16]}

    def card(self) -> dict[str, Any]:
        """What the GPU reaches in large copies and products."""
        return {"card": ceilings.large() | ceilings.sent()} if self.device.type == "cuda" else {}
