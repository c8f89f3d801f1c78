"""Which code runs a fused operation: plain torch or a Triton kernel."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor

Engine = Literal["auto", "torch", "triton"]

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def resolve(engine: Engine, x: Tensor) -> Literal["torch", "triton"]:
    """The engine for tensors like x; "auto" is Triton for CUDA tensors of a kernel's dtype, else torch.

    Raises ValueError for an unknown engine or a dtype that the kernels do not take. (Triton itself refuses
    tensors outside of a GPU, except in its interpreter.)
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine is one of {', '.join(get_args(Engine))}; got {engine!r}")
    if engine == "auto":
        return "triton" if x.is_cuda and x.dtype in KERNEL_DTYPES else "torch"
    if engine == "triton" and x.dtype not in KERNEL_DTYPES:
        raise ValueError(f"engine 'triton' takes bfloat16, float16 and float32, got {x.dtype}; use 'torch'")
    return engine


def refuse_interpreted(x: Tensor) -> None:
    """ValueError for bfloat16 in Triton's interpreter, which multiplies matrices of it wrongly (3.8, too)."""
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")  # as Triton reads it
    if interpreted and x.dtype == torch.bfloat16:
        raise ValueError(
            "TRITON_INTERPRET: Triton's interpreter multiplies bfloat16 wrongly; take float16 or float32, or "
            "another engine than 'triton'"
        )
