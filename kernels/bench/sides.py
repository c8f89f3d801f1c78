"""Several implementations of one function beside each other: time, memory, errors, or how one failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.bench.clock import busy_ms, kernel_ms, peak_bytes

Call = Callable[[], Tensor]


def device() -> torch.device:
    """The GPU, or the CPU where there is none (for toy sizes)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def beside(
    title: str,
    sides: Mapping[str, Call],
    inputs: Sequence[Tensor],
    exact: Sequence[Tensor],
    work: float = 0.0,
    limit: float | None = None,
) -> dict[str, dict[str, Any]]:
    """A row for each side, printed too; a side that raises is a row with "failed".

    inputs: leaves that the sides are differentiated by. exact: output and gradients in float64, as
    `differentiate` gives them. work: bytes or FLOPs of forward and backward; limit: how many a second the
    card reaches, if that is known.
    """
    rows = {}
    for name, call in sides.items():
        rows[name] = attempt(partial(_row, call, inputs, exact, work, limit))
        print(f"{title}, {name}: {_words(rows[name])}", flush=True)
    return rows


def attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part returns, or {"failed": what it raised}: other parts go on."""
    try:
        return part()
    except Exception as error:  # out of memory, no such kernel here, a compiler's own error …
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def differentiate(call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The call's result and its gradients by the inputs; upstream 1, or noise where there are many."""
    out = call()
    return [out.detach(), *torch.autograd.grad(out, inputs, _upstream(out))]


def _row(
    call: Call, inputs: Sequence[Tensor], exact: Sequence[Tensor], work: float, limit: float | None
) -> dict[str, Any]:
    errors = [_error(*pair) for pair in zip(differentiate(call, inputs), exact, strict=True)]
    upstream = _upstream(call().detach())

    def both() -> None:
        torch.autograd.grad(call(), inputs, upstream)

    row: dict[str, Any] = {"forward_ms": kernel_ms(call), "ms": kernel_ms(both), "errors": errors}
    if torch.cuda.is_available():
        row |= {"busy_ms": busy_ms(both), "peak_bytes": peak_bytes(both)}
    if limit:
        row["share_of_limit"] = work / (row.get("busy_ms", row["ms"]) / 1e3) / limit
    return row


def _upstream(out: Tensor) -> Tensor:
    if out.ndim == 0:
        return torch.ones_like(out)
    noise = torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(0), device=out.device)
    return noise.to(out.dtype)


def _error(actual: Tensor, exact: Tensor) -> float:
    """Relative, in norm."""
    return float((actual.double() - exact).norm() / exact.norm())


def _words(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed'].splitlines()[0]}"
    words = [f"{row['forward_ms']:.3f} ms forward, {row['ms']:.3f} ms with backward"]
    words += [f"{row['busy_ms']:.3f} ms in kernels"] if "busy_ms" in row else []
    words += [f"{row['peak_bytes'] / 1e6:.0f} MB"] if "peak_bytes" in row else []
    words += [f"{row['share_of_limit']:.0%} of the limit"] if "share_of_limit" in row else []
    return ", ".join([*words, "errors " + " ".join(f"{e:.1e}" for e in row["errors"])])
