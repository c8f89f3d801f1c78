"""The Triton kernels in Triton's interpreter, on the CPU, at odd shapes and against the plain formulas.

The interpreter multiplies bfloat16 matrices wrongly. So kernels with a matrix product run in float32 and
float16 here and refuse bfloat16; in it tests/kernels/test_compile.py compiles them and tests/gpu runs them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.attention import attention
from kernels.contrastive import contrastive_loss
from kernels.fused import attention as fused_attention
from kernels.fused import contrastive as fused_contrastive
from kernels.triplet import triplet_loss
from tests.kits.kernels import assert_as_good, unit_pairs


@pytest.mark.parametrize(("batch", "width"), [(1, 96), (3, 512), (65, 1000), (5, 640), (2, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_triplet(batch: int, width: int, dtype: torch.dtype, reduction: str):
    generator = torch.Generator().manual_seed(batch)
    features = [torch.randn(batch, width, generator=generator).to(dtype) for _ in range(3)]
    vote = torch.randint(0, 5, (batch,), generator=generator) / 4
    upstream = torch.rand(batch, generator=generator) if reduction == "none" else torch.tensor(0.7)
    results = {}
    for name, kind in (("triton", dtype), ("torch", dtype), ("exact", torch.float64)):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in features]
        backend = "triton" if name == "triton" else "torch"
        loss, hits = triplet_loss(*inputs, vote, 0.05, reduction=reduction, backend=backend)
        loss.backward(upstream.to(loss.dtype))
        results[name] = [loss.detach(), *(x.grad for x in inputs)]
        if name == "triton":
            fused_hits = hits
    torch.testing.assert_close(fused_hits.double(), hits)
    for what, *values in zip(("loss", "d_ref", "d_left", "d_right"), *results.values()):
        assert_as_good(*values, what, scale=1.0 if what == "loss" else 0.0)  # of cosines


def test_triplet_zero_vectors_and_parts():
    """Zero vectors as in torch's cosine_similarity; gradients only where asked for; backward once."""
    generator = torch.Generator().manual_seed(0)
    ref, left, right = torch.randn(3, 4, 32, generator=generator)
    ref[0], left[1], right[2] = 0, 0, 1e-9
    vote = torch.tensor([0.0, 1.0, 0.25, 0.5])
    results = []
    for backend in ("triton", "torch"):
        inputs = [ref.clone(), left.clone().requires_grad_(), right.clone().requires_grad_()]
        loss, _ = triplet_loss(*inputs, vote, backend=backend)
        loss.backward()
        assert inputs[0].grad is None
        results.append([loss.detach(), inputs[1].grad, inputs[2].grad])
        if backend == "triton":
            again, _ = triplet_loss(*inputs, vote, backend=backend)
            torch.autograd.grad(again, inputs[1], retain_graph=True)
            with pytest.raises(RuntimeError, match="backward once"):
                again.backward()
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="widths up to 4096"):
        triplet_loss(*torch.ones(3, 1, 5000), torch.ones(1), backend="triton")
    with pytest.raises(ValueError, match="takes bfloat16"):
        triplet_loss(*torch.ones(3, 1, 5, dtype=torch.float64), torch.ones(1), backend="triton")


@pytest.mark.parametrize(("n", "width"), [(1, 96), (3, 512), (65, 1000), (130, 640)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_contrastive(n: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_contrastive, "SLICE_BYTES", 1)  # as many slices as there can be
    features = unit_pairs(n, width, dtype)
    results = []
    for backend, kind in (("triton", dtype), ("torch", dtype), ("torch", torch.float64)):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in features]
        scale = torch.tensor([50.0], dtype=torch.promote_types(kind, torch.float32), requires_grad=True)
        loss = contrastive_loss(*inputs, scale, backend=backend)
        loss.backward(torch.tensor(3.0, dtype=loss.dtype))
        results.append([loss.detach(), *(x.grad for x in (*inputs, scale))])
    # What the results are differences of.
    sizes = {"loss": 50.0, "d_image": 150 / n, "d_text": 150 / n, "d_scale": 3.0}
    for (what, size), *values in zip(sizes.items(), *results):
        assert_as_good(*values, what, scale=size)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's; of what is then left out
@pytest.mark.parametrize(
    ("n", "width", "which"),
    [(1, 96, [0]), (3, 512, [1]), (70, 100, [3, 64, 65, 69]), (70, 1000, range(64)), (70, 64, range(70))],
)
def test_contrastive_without_invalidunit_pairs(n: int, width: int, which):
    """One pair invalid, some, a whole tile, all."""
    valid = torch.ones(n, dtype=torch.bool)
    valid[list(which)] = False
    results = []
    for backend in ("triton", "torch"):
        inputs = [x.requires_grad_() for x in unit_pairs(n, width, torch.float32)]
        scale = torch.tensor(50.0, requires_grad=True)
        loss = contrastive_loss(*inputs, scale, valid=valid, backend=backend)
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in (*inputs, scale))])
    # The gradients are differences of terms up to 50 / 6 (scale over valid pairs): 1e-5 of those.
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        assert ours.isfinite().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("invalid", [[], [0, 3, 4, 5]])
@pytest.mark.parametrize(("n", "ranks", "width"), [(3, 4, 64), (70, 2, 32)])
def test_contrastive_ranks(n: int, ranks: int, width: int, invalid: list[int]):
    """Each rank's rows against all columns: offsets, merged columns, and the sum of the parts."""
    image, text = unit_pairs(n * ranks, width, torch.float32)
    valid = torch.ones(n * ranks, dtype=torch.bool)
    valid[invalid] = False
    seen = valid[:, None] & valid
    scale = torch.tensor(20.0)
    logits = scale * image @ text.T
    ranges = [slice(r * n, r * n + n) for r in range(ranks)]
    masks = [(valid[own], valid) if invalid else None for own in ranges]
    parts = [fused_contrastive.sweep(image[own], text, scale, own.start, m) for own, m in zip(ranges, masks)]
    rows, columns, diagonal = zip(*parts)
    logits = logits.masked_fill(~seen, -1e30)
    row_lse, column_lse = logits.logsumexp(1), logits.logsumexp(0)
    torch.testing.assert_close(torch.cat(rows), row_lse)
    torch.testing.assert_close(torch.stack(columns).logsumexp(0), column_lse)
    torch.testing.assert_close(torch.cat(diagonal)[valid], logits.diagonal()[valid])
    g = (logits - row_lse[:, None]).exp() + (logits - column_lse).exp() - 2 * torch.eye(n * ranks)
    g = g.masked_fill(~seen, 0)
    for own, m in zip(ranges, masks):
        lse = row_lse[own], column_lse
        gradients = fused_contrastive.gradients(image[own], text, scale, lse, own.start, m)
        expected = (g[own] @ text, g[own].T @ image[own], (g[own] * (image[own] @ text.T)).sum())
        for ours, exact in zip(gradients, expected):
            torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_contrastive_extreme_logits():
    """Logits whose exponentials do not exist in float32, in rows and columns that have nothing else."""
    image, text = unit_pairs(70, 32, torch.float32)
    scale = torch.tensor(5000.0)
    ours = contrastive_loss(image, -text, scale, backend="triton")
    torch.testing.assert_close(ours, reference.contrastive_loss(image, -text, scale))


def _segments(rows: int, length: int) -> Tensor:
    """Captions of random lengths; the filler at the end has number 0."""
    generator = torch.Generator().manual_seed(length)
    segment = torch.zeros(rows, length, dtype=torch.int64)
    for row in segment:
        at, number = 0, 1
        while at < length:
            size = int(torch.randint(1, 40, (1,), generator=generator))
            row[at : at + size] = number if at + size <= length else 0
            at, number = at + size, number + 1
    return segment


@pytest.mark.parametrize("mask", ["full", "causal", "segments"])
@pytest.mark.parametrize(
    ("rows", "length", "heads"), [(1, 1, 1), (2, 50, 3), (1, 65, 2), (1, 77, 1), (2, 128, 1)]
)
@pytest.mark.parametrize("card", [80, 90])
def test_attention(mask: str, rows: int, length: int, heads: int, card: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_attention, "capability", lambda x: card)
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(rows, length, 3 * heads * 64, generator=generator).half()
    upstream = torch.randn(rows, length, heads * 64, generator=generator).half()
    segment = _segments(rows, length) if mask == "segments" else None
    results = []
    for backend, kind in (("triton", torch.float16), ("sdpa", torch.float16), ("exact", torch.float64)):
        x = qkv.to(kind, copy=True).requires_grad_()
        if backend == "exact":
            out = reference.attention(x, heads, segment, mask != "full")
        else:
            out = attention(x, heads, segment=segment, causal=mask != "full", backend=backend)
        out.backward(upstream.to(kind))
        results.append([out.detach(), x.grad])
    for what, *values in zip(("out", "d_qkv"), *results):
        assert_as_good(*values, what)


def test_attention_and_contrastive_refuse_bfloat16_in_the_interpreter():
    """Its products are off by powers of ten: the loss of 37 pairs came out as 1.6e11."""
    with pytest.raises(ValueError, match="interpreter multiplies bfloat16 wrongly"):
        contrastive_loss(*unit_pairs(37, 48, torch.bfloat16), torch.tensor(20.0), backend="triton")
    with pytest.raises(ValueError, match="interpreter multiplies bfloat16 wrongly"):
        attention(torch.ones(1, 8, 3 * 64, dtype=torch.bfloat16), 1, backend="triton")
