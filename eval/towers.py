"""Image towers without texts: timm's, and open_clip's where a file holds the image tower alone.

They are used like open_clip's models wherever only images are needed.  Where texts are, they are refused by
name.  Nothing is downloaded but a pretrained tag that is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize


class Tower(nn.Module):
    """An image tower as `eval.encode.from_open_clip` takes models, with (B, 3, S, S) → (B, D) and no texts.

    transform: its evaluation transform, None for open_clip's own.  told: what the user called it.
    """

    def __init__(self, visual: nn.Module, told: str, transform: Compose | None = None):
        super().__init__()
        self.visual, self.told, self.transform = visual, told, transform

    def encode_image(self, images: Tensor) -> Tensor:
        return self.visual(images)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Always ValueError."""
        raise ValueError(
            f"--checkpoint {self.told}: an image tower alone, and {len(texts)} texts are to be encoded; "
            "--triplets without --data, eval.alignment and eval.downstream need images only"
        )

    encode_text = tokenize


class Pooled(nn.Module):
    """timm's pooled features of an image, before any classifier.

    `forward_head(forward_features(x), pre_logits=True)`, as timm's own documentation of feature extraction
    has it.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


def from_timm(name: str, tag: str, weights: dict[str, Tensor] | None, seed: int, told: str) -> Tower:
    """timm's model `name` with the published weights of `tag`, else with these, else with random ones.

    weights: by timm's names; a classifier's are passed over.  seed: of random weights.  The pixels are
    prepared as timm's configuration of the name (and tag) says.
    Raises RuntimeError, OSError or ValueError for a name, tag or weights that cannot be had or do not fit.
    """
    torch.manual_seed(seed)
    model = timm.create_model(f"{name}.{tag}" if tag else name, pretrained=bool(tag), num_classes=0)
    if weights is not None:
        _fill(model, clean_state_dict(weights))
    return Tower(Pooled(model), told, _transform(model))


def _fill(model: Any, weights: dict[str, Tensor]) -> None:
    """ValueError unless the weights are the model's, all of them and in its shapes, but for a classifier."""
    own = model.state_dict()
    classifier = model.pretrained_cfg.get("classifier") or ()
    classifier = (classifier,) if isinstance(classifier, str) else classifier
    heads = {name.partition(".")[0] for name in classifier}
    taken = {n: value for n, value in weights.items() if n in own or n.partition(".")[0] not in heads}
    for name in sorted(own.keys() | taken.keys()):
        shapes = [tuple(side[name].shape) if name in side else "absent" for side in (own, taken)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is {shapes[1]} in the file, expected {shapes[0]}: another model's")
    model.load_state_dict(taken)


def _transform(model: Any) -> Compose:
    """timm's own evaluation transform; its mean and std as numbers, which the results can say."""
    config = timm.data.resolve_model_data_config(model)
    *steps, scale = timm.data.create_transform(**config, is_training=False).transforms
    assert isinstance(scale, Normalize)  # what timm ends in for images of Pillow's
    return Compose([*steps, Normalize(tuple(config["mean"]), tuple(config["std"]))])
