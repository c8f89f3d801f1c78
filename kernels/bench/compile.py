"""Compiles the Triton kernels for cards that need not be present, and reads off the resources they take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

from kernels.fused.variant import Variant


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one multiprocessor of a card has (CUDA C++ programming guide, technical specifications)."""

    name: str
    capability: int
    shared: int  # bytes a block may use
    shared_all: int  # bytes of the multiprocessor
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


CARDS = {
    80: Card(name="A100", capability=80, shared=163 << 10, shared_all=164 << 10),
    90: Card(name="H100", capability=90, shared=227 << 10, shared_all=228 << 10),
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int  # a thread
    stack: int  # bytes a thread: spilled registers
    shared: int  # bytes a block
    tensor_cores: int  # matrix instructions in the code

    def occupancy(self, variant: Variant, card: Card) -> float:
        """Share of the multiprocessor's warps that can be resident, 0 if the kernel does not fit the card."""
        if self.shared > card.shared:
            return 0.0
        registers = -(-self.registers // 8) * 8 * 32 * variant.warps
        resident = min(card.registers // registers, card.warps // variant.warps, card.blocks)
        if self.shared:
            resident = min(resident, card.shared_all // (self.shared + 1024))
        return resident * variant.warps / card.warps


def variants(card: Card) -> list[Variant]:
    """Every kernel variant that can be selected on the card."""
    from kernels.fused import attention, contrastive, triplet

    return [*triplet.variants(), *contrastive.variants(), *attention.variants(card.capability)]


def source(variant: Variant) -> Any:
    """What is compiled, as Triton's ASTSource: types, constants, and which arguments are divisible by 16.

    The last holds of the pointers that the kernel lets Triton look at.
    """
    from triton.compiler import ASTSource

    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, parameter in enumerate(variant.kernel.params)
        if variant.arguments.get(parameter.name, "").startswith("*") and not parameter.do_not_specialize
    }
    signature = {name: variant.arguments.get(name, "constexpr") for name in variant.kernel.arg_names}
    return ASTSource(variant.kernel, signature, constexprs=dict(variant.constants), attrs=divisible)


def compile_variant(variant: Variant, card: Card) -> Resources:
    """Compiles for the card, and reads the resources off the binary with cuobjdump of Triton's wheel."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    target = GPUTarget("cuda", card.capability, 32)
    compiled = triton.compile(source(variant), target=target, options=options)
    usage = _cuobjdump(compiled.asm["cubin"])
    fields = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert fields, usage
    return Resources(
        registers=int(fields[1]),
        stack=int(fields[2]),
        shared=max(int(fields[3]), compiled.metadata.shared),
        tensor_cores=len(re.findall(r"wgmma\.mma_async|mma\.sync", compiled.asm["ptx"])),
    )


def _cuobjdump(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.check_output(command, text=True)
