"""Each kernel beside its peers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from sections.common import TOY, cuda, device, timed


def beside(sides: dict, inputs: list, limit_bytes: float = 0, exact: list | None = None) -> dict:
    """Forward and backward of each side: ms, peak memory, error to `exact`; a side that fails says so."""
    rows = {}
    for name, call in sides.items():
        try:
            rows[name] = one_side(call, inputs, limit_bytes, exact)
        except Exception as error:
            rows[name] = f"{type(error).__name__}: {error}"[:300]
    return rows


def one_side(call, inputs: list, moved: float, exact: list | None) -> dict:
    upstream = torch.ones_like(call().detach())

    def both():
        return torch.autograd.grad(call(), inputs, upstream)

    row = {"forward_ms": timed(call), "ms": timed(both)}
    if exact is not None:
        got = [call().detach(), *both()]
        row["errors"] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact)]
    if cuda():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        torch.cuda.synchronize()
        row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    if moved:
        row["gb_s"] = moved / row["ms"] / 1e6
    return row


def infonce() -> dict:
    """A rank's loss of a global batch, collectives left out, beside open_clip's; errors to float64."""
    from kernels.bench.gpu import _rank_loss

    torch.set_float32_matmul_precision("high")
    result = {}
    for n, total in ((64, 256),) if TOY else ((5120, 5120), (5120, 30720), (5120, 65536)):
        g = torch.Generator(device()).manual_seed(0)
        texts = F.normalize(torch.randn(total, 512, device=device(), generator=g), dim=-1)
        images = F.normalize(texts + 0.7 * torch.randn(total, 512, device=device(), generator=g), dim=-1)
        scale = torch.tensor(100.0, device=device(), requires_grad=True)
        labels = torch.arange(n, device=device())

        def clip_loss(images, texts, scale, n=n, labels=labels):
            per_image, per_text = scale * images[:n] @ texts.T, scale * texts[:n] @ images.T
            return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2

        compiled = torch.compile(clip_loss)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, y = (t.to(dtype).requires_grad_() for t in (images, texts))
            sides = {"ClipLoss eager": partial(clip_loss, x, y, scale)}
            if total != 65536:
                sides["ClipLoss compiled"] = partial(compiled, x, y, scale)
            if cuda():
                sides = {"ours": partial(_rank_loss, x, y, scale, n)} | sides
            rows = beside(sides, [x, y, scale])
            result[f"{n}x{total} {str(dtype)[6:]}"] = rows
    result["errors"] = loss_errors()
    return result


def loss_errors() -> dict:
    """Relative errors of loss and gradients against float64 on the same float32 features, 2,048 pairs."""
    from kernels import reference
    from kernels.contrastive import contrastive_loss

    n = 64 if TOY else 2048
    texts = F.normalize(torch.randn(n, 512, device=device()), dim=-1)
    images = F.normalize(texts + 0.7 * torch.randn(n, 512, device=device()), dim=-1)
    wide = [images.double().requires_grad_(), texts.double().requires_grad_()]
    exact = reference.contrastive_loss(*wide, torch.tensor(100.0, device=device(), dtype=torch.float64))
    wanted = [exact.detach(), *torch.autograd.grad(exact, wide)]
    rows = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaves = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        loss = contrastive_loss(*(x.to(dtype) for x in leaves), torch.tensor(100.0, device=device()))
        got = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        rows[str(dtype)[6:]] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, wanted)]
    return rows


def attention() -> dict:
    """Rows of a picture's 50 tokens, and packed captions: ours, every SDPA backend, torch's varlen_attn."""
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
        for backend in (
            SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
        ):  # fmt: skip

            def one_backend(backend=backend, call=call):
                with sdpa_kernel(backend):
                    return call(backend="sdpa")

            sides[backend.name.lower()] = one_backend
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
    how = {"is_causal": causal} if "is_causal" in known else {"window_size": (-1, 0) if causal else (-1, -1)}
    longest = max(longest, int(bounds.diff().max()) if causal else 0)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, **how)


def triplet() -> dict:
    from kernels.bench import gpu as bench_gpu

    found: dict[str, float] = {}
    bench_gpu.bench_limits(found)
    return bench_gpu.bench_triplet(found)
