"""A kernel with all its compile-time choices, for its launch and for ahead-of-time compilation alike.

Triton compiles a kernel anew for integers that are 1, for those divisible by 16, and for addresses divisible
by 16. So that every launch is a variant that was compiled ahead of time, a kernel names each integer in
`do_not_specialize`, and each pointer but those to large arrays, whose addresses `aligned` sees to. What a
kernel must know of an integer is a constant: a width is told as so many times `ALIGN`, or so many blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TRITON_DTYPES: dict[torch.dtype, str] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A Triton function, its compile-time constants and its launch options."""

    name: str  # for display: the kernel and what distinguishes the variant
    kernel: Any  # the triton.jit function
    dtype: torch.dtype  # of what the arguments point to, where `types` does not say otherwise
    types: Mapping[str, str]  # Triton types of the other run-time arguments: "*fp32", "i32" …
    constants: Mapping[str, Any]  # tl.constexpr arguments
    warps: int
    stages: int = 1

    @property
    def arguments(self) -> dict[str, str]:
        """The run-time arguments in order, with their Triton types."""
        feature = f"*{TRITON_DTYPES[self.dtype]}"
        names = (name for name in self.kernel.arg_names if name not in self.constants)
        return {name: self.types.get(name, feature) for name in names}

    def launch(self, grid: tuple[int, ...], *args: Any) -> None:
        """Run over the grid with the run-time arguments in order."""
        self.kernel[grid](*args, **self.constants, num_warps=self.warps, num_stages=self.stages)


def aligned(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy of it that is contiguous and begins at a multiple of 16 bytes."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def capability(x: torch.Tensor) -> int:
    """The compiled generation that x's device belongs to: 80 (in the interpreter too) or 90."""
    return 90 if x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0) else 80
