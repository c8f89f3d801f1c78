"""Where a step's time goes, by kind of kernel (on a CPU, of operator), from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

# kind → words in the names of its kernels, small letters; the first that fits counts
KINDS = {
    "attention": ("attention", "flash", "fmha", "mem_eff"),
    "loss": ("lse_kernel", "gradient_kernel", "triplet_kernel", "scale_kernel", "cross_entropy"),
    "gemm": ("gemm", "cutlass", "xmma", "nvjet", "wgmma", "cublas", "::mm", "addmm", "bmm", "convol"),
    "optimizer": ("adam", "multi_tensor", "lpnorm", "vector_norm"),
    "norm": ("layer_norm", "layernorm", "gammabeta", "batch_norm", "batchnorm"),
    "gelu": ("gelu", "erf"),
    "copy": ("memcpy", "copy_", "memset", "fill", "zero_"),
    "other fused": ("triton_",),
}
TRACED, LONGEST = 2, 45  # steps that are traced; kernels that are named


def kind(kernel: str) -> str:
    """Of a kernel, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def profile(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Milliseconds a step by kind, how many kernels, and the longest: [name, milliseconds, calls]."""
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[getattr(ProfilerActivity, device.type.upper())]) as traced:
        for _ in range(TRACED):
            step()
        if cuda:
            torch.cuda.synchronize()
    clock = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(((getattr(e, clock), e) for e in traced.key_averages()), key=lambda pair: -pair[0])
    total: dict[str, float] = {}
    for time, event in events:
        total[kind(event.key)] = total.get(kind(event.key), 0) + time / TRACED / 1e3
    longest = [[e.key[:120], round(t / TRACED / 1e3, 2), e.count // TRACED] for t, e in events[:LONGEST]]
    return {
        "ms_by_kind": {name: round(ms, 2) for name, ms in sorted(total.items(), key=lambda x: -x[1])},
        "kernels_a_step": sum(e.count for t, e in events if t) // TRACED,
        "longest": longest,
    }
