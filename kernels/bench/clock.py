"""Time and memory of calls on a GPU. (Clocks of processes and paired rounds: `pipeline.base.measure`.)"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def kernel_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of a call on the GPU, each with its inputs out of the L2 cache; else `call_ms`."""
    if not torch.cuda.is_available():
        return call_ms(call, 3, 1)
    from triton.testing import do_bench

    return do_bench(call, warmup=50, rep=200, return_mode="median")


def busy_ms(call: Callable[[], object], n: int = 10) -> float:
    """Milliseconds of a call for which the GPU has work: its kernels' own times, by torch's profiler.

    `kernel_ms` also counts the GPU's waits for a host that launches more slowly than the kernels run. In a
    training step the host runs ahead, and no kernel waits.
    """
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as traced:
        for _ in range(n):
            call()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in traced.key_averages()) / n / 1e3


def call_ms(call: Callable[[], object], n: int = 10, warm_up: int = 3) -> float:
    """Median milliseconds of `n` calls after some more: CUDA events, the wall clock where there is no GPU."""
    for _ in range(warm_up):
        call()
    return statistics.median((_on_gpu if torch.cuda.is_available() else _on_cpu)(call) for _ in range(n))


def _on_gpu(call: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def _on_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def peak_bytes(call: Callable[[], object]) -> int:
    """GPU memory allocated at most during a call, beyond what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
