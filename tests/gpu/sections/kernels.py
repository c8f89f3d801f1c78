"""Each kernel beside its peers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from kernels.bench.clock import call_ms, peak_bytes
from tests.gpu.sections.common import TOY, cuda, device


def beside(sides: dict, inputs: list, moved: float = 0) -> dict:
    """Forward and backward of each side: ms, peak memory, GB/s of `moved` bytes; or how a side failed."""
    rows: dict[str, dict | str] = {}
    for name, call in sides.items():
        try:
            rows[name] = one_side(call, inputs, moved)
        except Exception as error:
            rows[name] = f"{type(error).__name__}: {error}"[:300]
    return rows


def one_side(call, inputs: list, moved: float) -> dict:
    upstream = torch.ones_like(call().detach())

    def both():
        return torch.autograd.grad(call(), inputs, upstream)

    row = {"forward_ms": call_ms(call), "ms": call_ms(both)}
    if cuda():
        row["peak_mb"] = peak_bytes(both) / 1e6
    if moved:
        row["gb_s"] = moved / row["ms"] / 1e6
    return row


def infonce() -> dict:
    """A rank's loss of a global batch, without the network, beside open_clip's; errors to float64."""
    from kernels.bench.ranks import EqualRanks, open_clip_rank_loss
    from kernels.contrastive import contrastive_loss

    torch.set_float32_matmul_precision("high")
    compiled = torch.compile(open_clip_rank_loss)
    result, n = {}, 64 if TOY else 5120
    for ranks in (1, 4) if TOY else (1, 6, 12):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            scale = torch.tensor(100.0, device=device(), requires_grad=True)
            inputs = [*(x.to(dtype).requires_grad_() for x in pairs(n)), scale]
            sides = {
                "ours": partial(contrastive_loss, *inputs, group=EqualRanks(ranks)),
                "ClipLoss eager": partial(open_clip_rank_loss, *inputs, ranks),
            }
            if ranks != 12:
                sides["ClipLoss compiled"] = partial(compiled, *inputs, ranks)
            result[f"{n}x{n * ranks} {str(dtype)[6:]}"] = beside(sides, inputs)
    result["errors"] = loss_errors()
    return result


def pairs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors image, text (n, 512) whose pairs are alike, float32."""
    g = torch.Generator(device()).manual_seed(0)
    texts = F.normalize(torch.randn(n, 512, device=device(), generator=g), dim=-1)
    images = F.normalize(texts + 0.7 * torch.randn(n, 512, device=device(), generator=g), dim=-1)
    return images, texts


def loss_errors() -> dict:
    """Relative errors of loss and gradients against float64 on the same float32 features, 2,048 pairs."""
    from kernels import reference
    from kernels.contrastive import contrastive_loss

    images, texts = pairs(64 if TOY else 2048)
    wide = [images.double().requires_grad_(), texts.double().requires_grad_()]
    exact = reference.contrastive_loss(*wide, torch.tensor(100.0, device=device(), dtype=torch.float64))
    expected = [exact.detach(), *torch.autograd.grad(exact, wide)]
    rows = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaves = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        loss = contrastive_loss(*(x.to(dtype) for x in leaves), torch.tensor(100.0, device=device()))
        actual = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        rows[str(dtype)[6:]] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(actual, expected)]
    return rows


def attention() -> dict:
    """Rows of an image's 50 tokens, and packed captions: ours, every SDPA backend, torch's varlen_attn."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from kernels.attention import attention as ours
    from kernels.bench.cases import synthetic_captions, synthetic_lengths
    from pipeline.packing import pack

    dtype, result = torch.bfloat16, {}
    size = 16 if TOY else 5120
    packed = pack(synthetic_captions(synthetic_lengths(size)).int(), 128)
    segment = packed.segment.to(device())
    ends = caption_ends(packed.segment, size).to(device())
    uniform = torch.arange(0, 50 * size + 1, 50, dtype=torch.int32, device=device())
    shapes = {
        "picture": (size, 50, 12, None, uniform, 50),
        "captions": (len(segment), 128, 8, segment, ends, 77),
    }
    for name, (rows, length, heads, numbers, bounds, longest) in shapes.items():
        qkv = torch.randn(rows, length, 3 * heads * 64, device=device(), dtype=dtype).requires_grad_()
        call = partial(ours, qkv, heads, segment=numbers, causal=numbers is not None)
        sides = {"triton": partial(call, backend="triton")} if cuda() else {}
        for kernel in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):

            def with_kernel(kernel=kernel, call=call):
                with sdpa_kernel(getattr(SDPBackend, kernel)):
                    return call(backend="sdpa")

            sides[kernel.lower()] = with_kernel
        sides["varlen_attn"] = partial(varlen, qkv, heads, bounds, longest, numbers is not None)
        sides["sdpa, its choice"] = partial(call, backend="sdpa")
        result[name] = beside(sides, [qkv], 11 * qkv.nbytes / 3)
    return result


def caption_ends(segment: torch.Tensor, captions: int) -> torch.Tensor:
    """Bounds of the runs of equal segment in packed rows laid end to end, filler included, int32."""
    flat = segment + (torch.arange(len(segment)) * (captions + 1))[:, None]
    change = torch.nonzero(flat.flatten().diff()).flatten() + 1
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), change, torch.tensor([flat.numel()])])
    return bounds.int()


def varlen(qkv, heads: int, bounds: torch.Tensor, longest: int, causal: bool) -> torch.Tensor:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.view(-1, 3, heads, 64).unbind(1)
    known = inspect.signature(varlen_attn).parameters
    window = {"window_size": (-1, 0) if causal else (-1, -1)}  # torch 2.11's word for it
    mask = {"is_causal": causal} if "is_causal" in known else window
    longest = max(longest, int(bounds.diff().max()) if causal else 0)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, **mask)


def triplet() -> dict:
    from kernels.bench.gpu import bench_limits, bench_triplet

    if not cuda():
        return {"skipped": "this part of the benchmark is for a GPU alone"}
    limits: dict[str, float] = {}
    bench_limits(limits)
    return bench_triplet(limits)
