"""What `--init` carries over of an image tower, besides the directions of its weights.

While a network trains, its weights grow.  AdamW's steps are about as long whatever the weights are, so a
weight that has grown turns less with each.  With its first length it turns as a fresh one does
(`--init-lengths`).  Gains, biases and running statistics of normalisation are the other thing that tells a
trained tower from a fresh one whatever its directions are (`--init-norms`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from train.config import Recipe
from train.optim import decays

TOWER = "visual."
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def renewed(weights: Mapping[str, Tensor], model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """The carried `weights`, with what the recipe wants fresh; `model` is as this recipe's seed draws it."""
    weights, fresh = dict(weights), model.state_dict()
    if recipe.init_lengths == "fresh":
        for name, parameter in model.named_parameters():
            if name.startswith(TOWER) and decays(name, parameter):
                weights[name] = _at_length(weights[name], fresh[name])
    if recipe.init_norms == "fresh":
        weights |= {name: fresh[name] for name in _of_norms(model)}
    return weights


def _at_length(direction: Tensor, length: Tensor) -> Tensor:
    """`direction` with the Frobenius norm of `length`; zeros have no direction, and stay."""
    wide = direction.double()
    norm = torch.linalg.vector_norm(wide)
    if not norm:
        return direction
    return (wide * (torch.linalg.vector_norm(length.double()) / norm)).to(direction.dtype)


def _of_norms(model: nn.Module) -> Iterator[str]:
    """Names of what the image tower's normalisations hold."""
    for name, part in model.named_modules():
        if name.startswith(TOWER) and isinstance(part, NORMS):
            yield from (f"{name}.{own}" for own in part.state_dict())
