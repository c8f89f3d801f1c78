"""Floating-point operations as torch counts them, attention on the CPU included."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _forward(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch counts the GPU's fused attention, but not the CPU's.
_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def flop_counter() -> FlopCounterMode:
    """A context; its `get_total_flops()` afterwards: 2 a multiplication and addition of all in it."""
    return FlopCounterMode(display=False, custom_mapping=_CPU)
