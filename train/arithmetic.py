"""Floating-point operations of a model's towers as they are trained, and what GPUs can do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.flops import flop_counter
from kernels.towers import encode_image, encode_text
from pipeline.base.hardware import gpu


def example(clip: nn.Module, samples: int, tokens: int) -> tuple[Tensor, Tensor]:
    """(images, captions of `tokens` tokens) on the CPU that fit the model."""
    side = image_side(clip)
    length = max(2, min(tokens, clip.context_length))
    captions = torch.zeros(samples, clip.context_length, dtype=torch.int64)
    captions[:, :length] = 320
    captions[:, length - 1] = clip.vocab_size - 1  # the end token is the largest
    return torch.rand(samples, 3, side, side), captions


def image_side(clip: nn.Module) -> int:
    """The side of the square images that the image tower takes."""
    side = clip.visual.image_size
    return int(side[0] if isinstance(side, (tuple, list)) else side)


def forward_flops(clip: nn.Module, tokens: int) -> tuple[int, int]:
    """(of an image, of a caption of `tokens` tokens), 2 × multiply-adds, forward pass; counted by torch.

    Leaves the model as it is, its running statistics too.
    """
    images, captions = (x.to(clip.logit_scale.device) for x in example(clip, 1, tokens))
    training = clip.training
    clip.eval()
    found = []
    for encode, given in ((encode_image, images), (encode_text, captions)):
        with flop_counter() as counter, torch.no_grad():
            encode(clip, given)
        found.append(counter.get_total_flops())
    clip.train(training)
    return found[0], found[1]


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second of a known GPU, else None."""
    if device.type != "cuda":
        return None
    card = gpu(torch.cuda.get_device_name(device))
    return card.flops if card else None
