"""Each kernel beside its peers: the parts of `python -m kernels.bench --gpu`."""

from __future__ import annotations

from functools import partial

from kernels.bench import gpu
from tests.gpu.sections.common import TOY


def infonce() -> dict:
    return part("infonce")


def attention() -> dict:
    return part("attention")


def triplet() -> dict:
    return part("triplet")


def part(name: str) -> dict:
    limits = gpu.attempt(partial(gpu.bench_limits, TOY))
    return {"limits": limits, **gpu.PARTS[name](limits, TOY)}
