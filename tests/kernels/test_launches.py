"""Every launch is one of the compilations that tests/kernels/test_compile.py looks at.

Triton compiles a kernel for the values of its arguments too: integers that are 1, integers and addresses that
16 divides. What it would compile for a launch is asked of its own binder; nothing is launched.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from kernels.attention import attention
from kernels.bench.compile import CARDS, source, variants
from kernels.contrastive import contrastive_loss
from kernels.fused import attention as fused_attention
from kernels.fused import contrastive as fused_contrastive
from kernels.fused.variant import Variant
from kernels.triplet import triplet_loss

HALF = [torch.float16, torch.bfloat16]


def compiled() -> set[tuple]:
    """Kernel, types, constants and assumptions, and options of all that is compiled ahead of time."""
    keys = set()
    for variant in (v for card in CARDS.values() for v in variants(card)):
        built = source(variant)
        arguments = []
        for i, (name, kind) in enumerate(built.signature.items()):
            value = variant.constants[name] if kind == "constexpr" else "D" if (i,) in built.attrs else ""
            arguments.append((kind, value))
        keys.add((variant.kernel.__name__, tuple(arguments), variant.warps, variant.stages))
    return keys


def wanted(variant: Variant, args: tuple) -> tuple:
    """The same of what Triton would compile for a launch."""
    kernel = variant.kernel
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    _, arguments, _ = bind(*args, **variant.constants)
    arguments = tuple((kind, "" if key is None else key) for kind, key in arguments)
    return kernel.__name__, arguments, variant.warps, variant.stages


@pytest.fixture
def launches(monkeypatch) -> list[tuple[Variant, tuple]]:
    """The launches that a test asks for, instead of running them; all are checked at its end."""
    asked: list[tuple[Variant, tuple]] = []
    monkeypatch.setattr(Variant, "launch", lambda self, grid, *args: asked.append((self, args)))
    yield asked
    assert asked
    known = compiled()
    missing = {variant.name: key for variant, args in asked if (key := wanted(variant, args)) not in known}
    assert not missing


def odd(*shape: int, dtype: torch.dtype, shifted: bool, grad: bool = True) -> Tensor:
    """Zeros, with `shifted` one value behind an address that 16 divides."""
    flat = torch.zeros(torch.Size(shape).numel() + 1, dtype=dtype)
    return (flat[1:] if shifted else flat[:-1]).view(shape).requires_grad_(grad)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_triplet(dtype: torch.dtype, shifted: bool, launches):
    shapes = [(1, 1), (16, 16), (17, 17), (1, 255), (2, 256), (3, 300), (2, 512), (1, 1000), (1, 2000)]
    for batch, width in [*shapes, (1, 4096), (1, 4095)]:
        for reduction in ("mean", "none"):
            for grad in (False, True):
                features = [odd(batch, width, dtype=dtype, shifted=shifted, grad=grad) for _ in range(3)]
                vote = odd(batch, dtype=torch.float32, shifted=shifted, grad=False)
                loss, _ = triplet_loss(*features, vote, reduction=reduction, backend="triton")
                if grad:
                    loss.backward(odd(*loss.shape, dtype=loss.dtype, shifted=shifted, grad=False))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_contrastive(dtype: torch.dtype, shifted: bool, launches, monkeypatch):
    monkeypatch.setattr(fused_contrastive, "SLICE_BYTES", 1)  # as many slices as there can be
    for n, width in [(1, 1), (1, 64), (16, 16), (17, 17), (130, 64), (144, 1000)]:
        for masked in (False, True):
            image, text = (odd(n, width, dtype=dtype, shifted=shifted) for _ in range(2))
            scale = odd(1, dtype=torch.float32, shifted=shifted)
            valid = odd(n, dtype=torch.bool, shifted=shifted, grad=False) if masked else None
            contrastive_loss(image, text, scale, valid=valid, backend="triton").backward()


@pytest.mark.parametrize("offset", [0, 1, 16, 17])
def test_contrastive_of_a_rank(offset: int, launches):
    image, texts = (odd(n, 64, dtype=torch.float16, shifted=True, grad=False) for n in (1, 48))
    scale, row_lse, column_lse = torch.zeros(()), torch.zeros(1), torch.zeros(48)
    fused_contrastive.sweep(image, texts, scale, offset, None)
    fused_contrastive.gradients(image, texts, scale, (row_lse, column_lse), offset, None)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("card", [80, 90])
def test_attention(card: int, dtype: torch.dtype, shifted: bool, launches, monkeypatch):
    monkeypatch.setattr(fused_attention, "capability", lambda x: card)
    masks: list[dict[str, Any]] = [{}, {"causal": True}, {"causal": True, "segment": True}]
    for rows, length, heads in [(1, 1, 1), (1, 16, 1), (16, 50, 12), (3, 65, 16), (2, 77, 8), (1, 128, 2)]:
        for mask in masks:
            qkv = odd(rows, length, 3 * heads * 64, dtype=dtype, shifted=shifted)
            if "segment" in mask:
                mask = mask | {"segment": odd(rows, length, dtype=torch.int32, shifted=shifted, grad=False)}
            out = attention(qkv, heads, **mask, backend="triton")
            out.backward(odd(*out.shape, dtype=dtype, shifted=shifted, grad=False))


def test_a_launch_that_was_not_compiled_is_seen():
    """Of another type, and at an address that the kernel does not expect."""
    variant = fused_attention.forward_variant(torch.float16, 50, "full", 90)
    good = [torch.zeros(8, dtype=torch.float16) for _ in range(3)]
    assert wanted(variant, (*good, 50, 12, 0.1)) in compiled()
    shifted = [odd(8, dtype=torch.float16, shifted=True), *good[1:]]
    assert wanted(variant, (*shifted, 50, 12, 0.1)) not in compiled()
    assert wanted(variant, (*good, 50, 1 << 31, 0.1)) not in compiled()
