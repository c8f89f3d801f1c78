"""What all sections of a session share: the device, and a turn on it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

TOY = "--toy" in sys.argv
SCRATCH = Path(os.environ.get("CARD_SCRATCH", "/tmp/card"))


def await_turn() -> None:
    """Wait until this process may have the card for itself."""
    print("READY", flush=True)
    sys.stdin.readline()


def await_turn_once_compiled() -> None:
    """The same when the first compiled graph is about to run."""
    from torch._inductor import output_code

    call = output_code.CompiledFxGraph.__call__

    def first(self, inputs):
        output_code.CompiledFxGraph.__call__ = call
        await_turn()
        return call(self, inputs)

    output_code.CompiledFxGraph.__call__ = first


def cuda() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if cuda() else "cpu")


def out() -> Path:
    return Path(os.environ.get("OUT", SCRATCH / "out"))


def mean_ms(call: Callable[[], object], n: int) -> float:
    """Mean milliseconds of `n` calls in a row, after two more: the host runs ahead, as in training."""
    for _ in range(2):
        call()
    if cuda():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(n):
        call()
    if cuda():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun) / n
