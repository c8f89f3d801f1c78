"""Which code runs a fused operation: plain torch or a Triton kernel."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernels.fused.variant import TRITON_DTYPES

Backend = Literal["auto", "torch", "triton"]


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raises ValueError for a value of the argument `name` that is none of a Literal's choices."""
    if value not in get_args(choices):
        raise ValueError(f"{name} is one of {', '.join(get_args(choices))}; got {value!r}")


def resolve(backend: Backend, x: Tensor) -> Literal["torch", "triton"]:
    """The backend for tensors like x; "auto" is Triton for CUDA tensors of a kernel's dtype, else torch.

    Raises ValueError for an unknown backend or a dtype that the kernels do not take. (Triton itself refuses
    tensors that are not on a GPU, except in its interpreter.)
    """
    check_choice("backend", backend, Backend)
    if backend == "auto":
        return "triton" if x.is_cuda and x.dtype in TRITON_DTYPES else "torch"
    if backend == "triton" and x.dtype not in TRITON_DTYPES:
        raise ValueError(f"backend 'triton' takes bfloat16, float16 and float32, got {x.dtype}; use 'torch'")
    return backend


def refuse_interpreted(x: Tensor) -> None:
    """Raises ValueError for bfloat16 in Triton's interpreter, whose products of it are wrong (up to 3.8)."""
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")  # as Triton reads it
    if interpreted and x.dtype == torch.bfloat16:
        raise ValueError("TRITON_INTERPRET: its interpreter multiplies bfloat16 wrongly; use another dtype")
