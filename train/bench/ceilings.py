"""What a device reaches by itself: large copies and products, and the very products of a model's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from kernels.bench.clock import call_ms
from train import model as models
from train.config import Recipe
from train.model import Towers

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.convolution, aten.convolution_backward)
SENT = 1 << 28  # bytes of the copy from the host


def large(toy: bool = False) -> dict[str, float]:
    """Of this device: a large copy, and a product of 8192³ in bfloat16."""
    from kernels.bench.gpu import bench_limits

    measured = bench_limits(toy)
    return {"copy_gb_s": measured["bytes_per_s"] / 1e9, "tflops_8192": measured["flop_per_s"] / 1e12}


def sent() -> dict[str, float]:
    """Copies to this GPU, from the host's pinned and pageable memory."""
    row = {}
    host = torch.randint(0, 256, (SENT,), dtype=torch.uint8)
    for name, memory in (("pinned", host.pin_memory()), ("pageable", host)):
        ms = call_ms(lambda memory=memory: memory.to("cuda", non_blocking=True), 5)  # type: ignore[misc]
        row[f"h2d_{name}_gb_s"] = SENT / ms / 1e6
    return row


# -- a model's own products ---------------------------------------------------------------------


class _Operand(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def random(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this layout: the layout decides which kernel multiplies."""
        elements = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        return torch.randn(elements, dtype=dtype, device=device).as_strided(self.shape, self.stride)


@dataclass
class Product:
    """A matrix product or convolution, as often as a step has it."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]  # `_Operand`s where it takes tensors
    flops: int
    count: int = 0

    @property
    def name(self) -> str:
        """Its operator and the shapes it multiplies."""
        shapes = ["×".join(map(str, x.shape)) for x in self.arguments if isinstance(x, _Operand)]
        return f"{self.call} {' '.join(shapes)}".removeprefix("aten.").replace(".default", "")


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Product] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._overloadpacket in PRODUCTS:
            operands = tree_map_only(Tensor, lambda x: _Operand(tuple(x.shape), x.stride()), args)
            flops = flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.found.setdefault(f"{function}{operands}", Product(function, operands, flops)).count += 1
        return out


def recorded(step: Callable[[], object]) -> list[Product]:
    """All that `step` multiplies, each once; compiled code is not seen."""
    with _Record() as record:
        step()
    return list(record.found.values())


def products(recipe: Recipe, part: Any) -> list[Product]:
    """What the forward and backward pass of a micro-batch multiplies, attention and loss apart.

    Found on the device "meta", which has shapes alone.  part: a stage's, of which only shapes are read, with
    packed captions.
    """
    clip = models.create(recipe.model, "meta").train()
    models.set_trainable(clip, recipe)
    towers = Towers(clip, replace(recipe, compute=replace(recipe.compute, compile="no", attention="sdpa")))
    part = tree_map_only(Tensor, lambda x: x.to("meta"), part)

    def forward_backward() -> None:
        if recipe.stage == 1:
            inputs = torch.cat([part.ref, part.left, part.right]), None
        else:
            inputs = part.images, part.captions
        features = [x for x in towers.plain(*inputs) if x is not None]
        torch.cat([x.flatten() for x in features]).square().sum().backward()

    return recorded(forward_backward)


def measure(found: list[Product], precision: str, device: torch.device) -> list[dict[str, Any]]:
    """Each by itself on random numbers, the longest in all first."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = []
    for product in found:
        arguments = [x.random(dtype, device) if isinstance(x, _Operand) else x for x in product.arguments]
        ms = call_ms(lambda: product.call(*arguments), 5, 2)  # noqa: B023 (called here)
        tflops = product.flops / ms / 1e9
        rows.append({"product": product.name, "count": product.count, "ms": ms, "tflops": tflops})
    return sorted(rows, key=lambda row: -row["ms"] * row["count"])
