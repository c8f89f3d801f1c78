"""Floating-point operations by torch's counter, with the CPU's attention and our own counted too."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import kernels.attention  # noqa: F401 (it defines our own operators)


def _forward(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _short_rows(qkv, *_, out_shape=None, **__) -> int:
    rows, length, width = qkv  # of three projections; two products of 2 · L² · E for each head of a row
    return 4 * rows * length**2 * width // 3


def _short_rows_backward(qkv, *_, out_shape=None, **__) -> int:
    return _short_rows(qkv) * 5 // 2


# torch itself counts only the GPU's fused attention, and counts what a mask leaves out.
_CUSTOM = {
    torch.ops.perceptual_initialization.attention: _short_rows,
    torch.ops.perceptual_initialization.attention_backward: _short_rows_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def flop_counter() -> FlopCounterMode:
    """A context that counts; `get_total_flops()` afterwards: 2 for each multiplication and addition in it."""
    return FlopCounterMode(display=False, custom_mapping=_CUSTOM)
