"""Which code runs a fused operation: plain torch or a Triton kernel."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "torch", "triton"]

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def resolve(backend: Backend, x: Tensor) -> Literal["torch", "triton"]:
    """The backend for tensors like x; "auto" is Triton for CUDA tensors of a kernel's dtype, else torch.

    Raises ValueError for an unknown backend or a dtype that the kernels do not take. (Triton itself refuses
    tensors that are not on a GPU, except in its interpreter.)
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is one of {', '.join(get_args(Backend))}; got {backend!r}")
    if backend == "auto":
        return "triton" if x.is_cuda and x.dtype in KERNEL_DTYPES else "torch"
    if backend == "triton" and x.dtype not in KERNEL_DTYPES:
        raise ValueError(f"backend 'triton' takes bfloat16, float16 and float32, got {x.dtype}; use 'torch'")
    return backend


def refuse_interpreted(x: Tensor) -> None:
    """Raises ValueError for bfloat16 in Triton's interpreter, whose products of it are wrong (up to 3.8)."""
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")  # as Triton reads it
    if interpreted and x.dtype == torch.bfloat16:
        raise ValueError(
            "TRITON_INTERPRET: Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32, or "
            "another backend than 'triton'"
        )
