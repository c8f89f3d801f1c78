"""The kernels with other tiles, warps and stages than their own, at the sizes of training.

Variants are compiled, on toy inputs, before this process has its turn: integers are not specialised, so the
same binaries serve. A kernel's time is that of its launches alone, without what torch does around them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.testing import do_bench

from kernels.bench.clock import call_ms
from kernels.bench.infonce import SCALE, pairs
from kernels.bench.sides import attempt, device
from kernels.fused import attention as rows_kernels  # `attention` and `triplet` are sections' names
from kernels.fused import contrastive as tiles_kernels
from kernels.fused import triplet as triplet_kernels
from kernels.fused.variant import Variant
from tests.gpu.sections.common import TOY, await_turn, cuda

Call = Callable[[], object]
Setting = dict[str, int]  # constants of the kernel, warps, stages, or a number of its module
Launch = tuple[Any, ...]  # variant, grid, arguments


def table(names: str, *rows: str) -> list[Setting]:
    return [dict(zip(names.split(), map(int, x.split()))) for row in rows for x in row.split(",")]


INFONCE = table(
    "BLOCK_M BLOCK_N BLOCK_K warps stages",
    "128 128 64 8 3, 128 128 64 8 2, 128 128 64 8 4, 128 128 64 4 3, 128 128 64 4 4, 128 128 32 8 4",
    "128 128 128 8 2, 128 128 128 4 2, 128 256 64 8 2, 128 256 64 8 3, 128 256 64 8 4, 128 256 32 8 4",
    "128 256 128 8 2, 256 128 64 8 2, 256 128 64 8 3, 256 128 64 8 4, 64 128 64 4 3, 64 128 64 4 4",
    "64 128 128 4 3, 64 256 64 4 3, 64 256 64 8 3, 128 64 64 4 3, 128 64 128 4 3",
)
TRIPLET = table(
    "BLOCK_B warps LOSS_PROGRAMS",  # 9999999: a program for each block
    "1 1 3168, 1 1 8192, 1 1 16384, 1 1 32768, 1 1 9999999, 1 2 16384, 1 2 32768, 1 2 9999999, 1 4 16384",
    "1 4 9999999, 2 1 16384, 2 1 9999999, 2 2 16384, 2 2 9999999, 2 4 16384, 2 4 9999999, 4 4 9999999",
)
FORWARD = table("warps", "2, 4, 8")
BACKWARD = table("BLOCK_Q warps stages", "32 4 1, 32 8 1, 32 4 2, 32 8 2, 64 4 1, 64 8 1, 128 4 1, 128 8 1")
# As `clock.kernel_ms`, in a quarter of its time.
milliseconds = partial(do_bench, warmup=10, rep=40, return_mode="median") if cuda() else partial(call_ms, n=1)
POOL = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
BINARIES: dict[tuple, Future] = {}


class Case(NamedTuple):
    """A kernel at one size, and what is tried of it."""

    name: str
    module: ModuleType
    make: str  # the module's function that chooses the variant
    prepare: Callable[[bool], Call]  # of toy inputs or not: what launches the kernel
    settings: list[Setting]


def noise(*shape: int) -> Tensor:
    dtype = torch.bfloat16 if cuda() else torch.float16  # the interpreter multiplies bfloat16 wrongly
    generator = torch.Generator(device()).manual_seed(0)
    return torch.randn(shape, device=device(), generator=generator).to(dtype)


def triplet_case(batch: int, width: int) -> Case:
    def prepare(toy: bool) -> Call:
        count = 8 if toy else batch
        vote = torch.rand(count, device=device())
        return partial(triplet_kernels.run, *noise(3, count, width), vote, 0.05, 1 / count, True)

    return Case(f"triplet {batch}×{width}", triplet_kernels, "loss_variant", prepare, TRIPLET)


def attention_case(kind: str, rows: int, length: int, heads: int, mask: rows_kernels.Mask) -> Case:
    def prepare(toy: bool) -> Call:
        shape, own = ((2, length), 1) if toy else ((rows, length), heads)
        captions = (torch.arange(length, device=device(), dtype=torch.int32) // 16).expand(shape).contiguous()
        qkv, segment = noise(*shape, 3 * own * rows_kernels.HEAD), captions if mask == "segments" else None
        upstream = [noise(*shape, own * rows_kernels.HEAD)] if kind == "backward" else []
        return partial(getattr(rows_kernels, kind), qkv, segment, *upstream, own, mask)

    settings = FORWARD if kind == "forward" else [x for x in BACKWARD if x["BLOCK_Q"] <= max(64, length)]
    name = f"attention {kind} {rows}×{length}, {heads} heads, {mask}"
    return Case(name, rows_kernels, f"{kind}_variant", prepare, settings)


def infonce_case(kind: str, n: int, N: int, dtype: str) -> Case:
    def prepare(toy: bool) -> Call:
        rows, columns, width = (24, 48, 128) if toy else (n, N, 512)
        image, texts = (x.to(getattr(torch, dtype)) for x in pairs(columns, width))
        inputs = image[:rows], texts, torch.tensor(SCALE, device=device())
        if kind == "lse":
            return partial(tiles_kernels.sweep, *inputs, 0, None)
        lse = tiles_kernels.sweep(*inputs, 0, None)[:2]
        return partial(tiles_kernels.gradients, *inputs, lse, 0, None)

    return Case(f"InfoNCE {kind} {n}×{N}, {dtype}", tiles_kernels, f"{kind}_variant", prepare, INFONCE)


def cases() -> list[Case]:
    kinds, halves = ("lse", "gradient"), ("float16", "bfloat16")[: None if cuda() else 1]
    infonce = [infonce_case(kind, 5120, N, half) for half in halves for N in (30720, 5120) for kind in kinds]
    rows: tuple[Any, ...] = ((5120, 50, 12, "full"), (680, 128, 8, "segments"))
    attention = [attention_case(kind, *shape) for shape in rows for kind in ("forward", "backward")]
    return [triplet_case(65536, 512), triplet_case(65536, 1024), *attention, *infonce]


def chosen(case: Case, setting: Setting) -> Any:
    """A context in which the case's module chooses this setting."""
    make = getattr(case.module, case.make)

    def other(*args) -> Variant:
        own = make(*args)
        constants = {key: setting.get(key, value) for key, value in own.constants.items()}
        options = {key: setting.get(key, getattr(own, key)) for key in ("warps", "stages")}
        return dataclasses.replace(own, constants=constants, **options)

    numbers = {key: value for key, value in setting.items() if hasattr(case.module, key)}
    return patch.multiple(case.module, **{case.make: other}, **numbers)


def launches(case: Case, setting: Setting, call: Call) -> list[Launch]:
    """What the call would launch, without launching it."""
    with chosen(case, setting), patch.object(Variant, "launch", autospec=True) as launch:
        call()
    return [asked.args for asked in launch.call_args_list]


def settings_of(case: Case, call: Call) -> list[Setting]:
    """The kernel's own setting, then the others."""
    own = launches(case, {}, call)[0][0]
    known = {**vars(case.module), **own.constants, "warps": own.warps, "stages": own.stages}
    present = {key: known[key] for key in case.settings[0]}
    return [present, *(s for s in case.settings if s != present)][: None if cuda() else 2]


def binary(launch: Launch) -> Future:
    """The launch's compiled kernel (None in the interpreter), which takes one of the threads once."""
    variant, grid, *args = launch
    options = {**variant.constants, "num_warps": variant.warps, "num_stages": variant.stages}
    if (key := (variant.name, *options.values())) not in BINARIES:
        BINARIES[key] = POOL.submit(variant.kernel.warmup, *args, grid=grid, **options)
    return BINARIES[key]


def row(case: Case, setting: Setting, call: Call, present: list[Tensor]) -> dict[str, Any]:
    """Milliseconds on the GPU of the kernel's launches, and how far its results are from the present ones."""
    asked = launches(case, setting, call)
    compiled = binary(asked[0]).result()
    with chosen(case, setting):
        results = zip(tree_leaves(call()), present)
    apart = max(float((x.float() - y.float()).norm() / y.float().norm()) for x, y in results)
    ms = milliseconds(lambda: [variant.launch(*rest) for variant, *rest in asked])
    taken = {} if compiled is None else {"registers": compiled.n_regs, "spills": compiled.n_spills}
    return {"ms": round(ms, 4), "apart": float(f"{apart:.1e}"), **taken}


def measure(case: Case, settings: list[Setting]) -> dict[str, Any]:
    """A row for each setting, the present one first; and the best three."""
    call = case.prepare(TOY)
    present = tree_leaves(call())
    names = [" ".join(f"{key}={value}" for key, value in setting.items()) for setting in settings]
    rows = {n: attempt(partial(row, case, s, call, present)) for n, s in zip(names, settings)}
    best = sorted((x["ms"], name) for name, x in rows.items() if "ms" in x)[:3]
    result = {"present": names[0], "ms": rows[names[0]].get("ms"), "best": {name: ms for ms, name in best}}
    print(json.dumps({"case": case.name, **result}), flush=True)
    return {**result, "rows": rows}


def tune() -> dict[str, Any]:
    if not cuda() and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
    begun, todo = time.perf_counter(), []
    for case in cases():
        call = case.prepare(True)
        todo.append((case, settings_of(case, call)))
        for setting in todo[-1][1]:
            binary(launches(case, setting, call)[0])
    wait(BINARIES.values())
    result: dict[str, Any] = {"compile_s": round(time.perf_counter() - begun, 1)}
    await_turn()
    begun = time.perf_counter()
    result |= {case.name: attempt(partial(measure, case, settings)) for case, settings in todo}
    return result | {"measure_s": round(time.perf_counter() - begun, 1)}
