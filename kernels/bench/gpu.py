"""The benchmark's part for a GPU: what the card reaches, and each kernel beside its peers.

Every figure comes with a limit that is measured on the card first: bytes a second of a large copy, or FLOP/s
of a large matrix product. A part or a side that fails is a row that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kernels.bench.attention import bench_attention
from kernels.bench.clock import kernel_ms
from kernels.bench.infonce import bench_infonce
from kernels.bench.sides import attempt, device
from kernels.bench.triplet import bench_triplet

Part = Callable[..., dict[str, Any]]  # (limits, toy=False)
PARTS: dict[str, Part] = {
    "triplet": bench_triplet,
    "infonce": bench_infonce,
    "attention": bench_attention,
}


def bench_gpu() -> dict[str, Any]:
    """All parts on the current CUDA device; raises ValueError where there is none."""
    if not torch.cuda.is_available():
        raise ValueError("--gpu: torch sees no CUDA device here")
    import triton

    head = {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    return head | run_parts(PARTS)


def run_parts(parts: dict[str, Part]) -> dict[str, Any]:
    """The limits, and each part's result."""
    limits = attempt(bench_limits)
    result: dict[str, Any] = {"limits": limits}
    for name, part in parts.items():
        result[name] = attempt(partial(part, limits))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return result


def bench_limits(toy: bool = False) -> dict[str, float]:
    """A copy of 2 GiB, bytes read and written a second, and a product of 8192³ in bfloat16, FLOP/s."""
    elements, side = (1 << 16, 64) if toy else (1 << 30, 8192)
    a = torch.randn(elements, device=device(), dtype=torch.bfloat16)
    copy = 2 * a.nbytes / kernel_ms(a.clone) * 1e3
    x, y = torch.randn(2, side, side, device=device(), dtype=torch.bfloat16)
    product = 2 * side**3 / kernel_ms(lambda: x @ y) * 1e3
    print(f"limits: copy {copy / 1e9:.0f} GB/s, product {product / 1e12:.0f} TFLOP/s", flush=True)
    return {"bytes_per_s": copy, "flop_per_s": product}
