"""The Triton kernels in Triton's interpreter, on the CPU, at odd shapes and against the plain formulas.

The interpreter multiplies bfloat16 matrices wrongly. So kernels with a matrix product run in float16 here and
refuse bfloat16; in it tests/kernels/test_compile.py compiles them and tests/gpu runs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.attention import attention
from kernels.bench.ranks import EqualRanks
from kernels.contrastive import contrastive_loss
from kernels.fused import attention as fused_attention
from kernels.fused import contrastive as fused_contrastive
from kernels.fused import triplet as fused_triplet
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


@pytest.mark.parametrize("needed", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(
    "upstream",
    [
        pytest.param(torch.tensor(1.0), id="1"),
        pytest.param(torch.tensor(0.7), id="a number"),
        pytest.param(torch.tensor(1.0).expand(21), id="1 for all rows"),
        pytest.param(torch.tensor(0.7).expand(21), id="a number for all rows"),
        pytest.param(torch.linspace(0, 2, 21), id="one a row"),
        pytest.param(torch.linspace(0, 2, 63)[::3], id="one a row, apart in memory"),
    ],
)
@pytest.mark.parametrize("width", [300, 528])
def test_triplet_scales_its_gradients(
    width: int, upstream: Tensor, needed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    """Those of some features or of all, with more rows than programs and more columns than a block."""
    monkeypatch.setattr(fused_triplet, "LOSS_PROGRAMS", 4)
    monkeypatch.setattr(fused_triplet, "SCALE_PROGRAMS", 2)
    features = torch.randn(3, 21, width, generator=torch.Generator().manual_seed(0))
    vote = torch.linspace(0, 1, 21)
    results = []
    for backend in ("triton", "torch"):
        inputs = [x.clone().requires_grad_(i in needed) for i, x in enumerate(features)]
        reduction = "none" if upstream.ndim else "sum"
        loss, _ = triplet_loss(*inputs, vote, reduction=reduction, backend=backend)
        loss.backward(upstream)
        assert [i for i, x in enumerate(inputs) if x.grad is not None] == list(needed)
        results.append([loss.detach(), *(inputs[i].grad for i in needed)])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "width"), [(1, 96), (3, 512), (65, 1000), (130, 640)])
def test_contrastive(n: int, width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_contrastive, "SLICE_BYTES", 1)  # as many slices as there can be
    features = unit_pairs(n, width, torch.float16)
    results = []
    for backend, kind in (("triton", torch.float16), ("torch", torch.float16), ("torch", torch.float64)):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in features]
        scale = torch.tensor([50.0], dtype=torch.promote_types(kind, torch.float32), requires_grad=True)
        loss = contrastive_loss(*inputs, scale, backend=backend)
        loss.backward(torch.tensor(3.0, dtype=loss.dtype))
        results.append([loss.detach(), *(x.grad for x in (*inputs, scale))])
    # What the results are differences of.
    sizes = {"loss": 50.0, "d_image": 150 / n, "d_text": 150 / n, "d_scale": 3.0}
    for (what, size), *values in zip(sizes.items(), *results):
        assert_as_good(*values, what, scale=size)


def far_pairs(n: int, width: int, dtype: torch.dtype, distance: float = 6.0) -> tuple[Tensor, Tensor]:
    """Unit vectors whose pairs have a cosine of 1/distance: their loss is not zero, nor are its gradients."""
    generator = torch.Generator().manual_seed(n)
    image, other = (F.normalize(torch.randn(n, width, generator=generator), dim=-1) for _ in range(2))
    return image.to(dtype), F.normalize(image + distance * other, dim=-1).to(dtype)


def assert_known_to_half(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Loss, gradients of image, text and scale by float16 copies of float32 features, and by float64.

    The copies' rounding moves a logit by some 5e-4 at a scale of 100 and D = 512, and its exponential and a
    gradient made of that by as much of themselves. Of 2,048 pairs, gradients were off by 4.8e-4 of their norm
    and the loss by 8e-6 of itself; of few pairs, gradients by 5.5e-4, and the loss by less than 1e-4.
    """
    for what, a, b in zip(("loss", "d_image", "d_text", "d_scale"), ours, exact):
        assert a.dtype == torch.float32, what
        error, size = (a.double() - b).norm(), b.norm()
        allowed = 1e-4 if what == "loss" else (1e-3 if what == "d_scale" else 7e-4) * size + 1e-6
        assert error <= allowed, f"{what}: {error:.3g} of {size:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize(
    ("n", "width", "scale"), [(1, 96, 50.0), (65, 1000, 50.0), (130, 640, 50.0), (500, 512, 100.0)]
)
@pytest.mark.parametrize("distance", [6.0, 100.0])
def test_contrastive_of_float32(n: int, width: int, scale: float, distance: float):
    """Multiplied as float16; inputs, loss and gradients are float32."""
    features = far_pairs(n, width, torch.float32, distance)
    results = []
    for backend, kind in (("triton", torch.float32), ("torch", torch.float64)):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in (*features, torch.tensor([scale]))]
        loss = contrastive_loss(*inputs, backend=backend)
        (0.7 * loss).backward()
        results.append([loss.detach(), *(x.grad for x in inputs)])
    assert_known_to_half(*results)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's; of what is then left out
@pytest.mark.parametrize(
    ("n", "width", "which"),
    [(1, 96, [0]), (3, 512, [1]), (70, 500, [3, 64, 65, 69]), (140, 1000, range(128)), (70, 64, range(70))],
)
def test_contrastive_without_invalid_pairs(n: int, width: int, which):
    """One pair invalid, some, a whole tile, all."""
    valid = torch.ones(n, dtype=torch.bool)
    valid[list(which)] = False
    results = []
    for backend, kind in (("triton", torch.float32), ("torch", torch.float64)):
        inputs = [x.to(kind).requires_grad_() for x in far_pairs(n, width, torch.float32)]
        scale = torch.tensor(50.0, dtype=kind, requires_grad=True)
        loss = contrastive_loss(*inputs, scale, valid=valid, backend=backend)
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in (*inputs, scale))])
        assert all((x.grad[~valid] == 0).all() for x in inputs)
    assert_known_to_half(*results)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("invalid", [[], [0, 3, 4, 5]])
@pytest.mark.parametrize(("n", "ranks", "width"), [(3, 4, 64), (70, 2, 96)])
def test_contrastive_parts(n: int, ranks: int, width: int, invalid: list[int]):
    """Each rank's rows against all columns: offsets, merged columns, and the sum of the parts."""
    image, text = far_pairs(n * ranks, width, torch.float16)
    wide_image, wide_text = image.float(), text.float()
    valid = torch.ones(n * ranks, dtype=torch.bool)
    valid[invalid] = False
    seen = valid[:, None] & valid
    scale = torch.tensor(20.0)
    logits = scale * wide_image @ wide_text.T
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
        d_image, d_texts, d_scale = fused_contrastive.gradients(image[own], text, scale, lse, own.start, m)
        for ours, exact in ((d_image, g[own] @ wide_text), (d_texts, g[own].T @ wide_image[own])):
            assert (ours - exact).norm() <= 5e-4 * exact.norm()  # G is rounded to float16, by 2^-11 at most
        expected = (g[own] * (wide_image[own] @ wide_text.T)).sum()
        torch.testing.assert_close(d_scale, expected, rtol=1e-4, atol=1e-4)


class Watched(EqualRanks):
    """Equal ranks that tell what each collective brings: (name, shape, dtype)."""

    def __init__(self, world_size: int):
        super().__init__(world_size)
        self.brought: list[tuple] = []

    def all_gather(self, x: Tensor) -> Tensor:
        out = super().all_gather(x)
        self.brought.append(("all_gather", tuple(out.shape), out.dtype))
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        self.brought.append(("reduce_scatter", tuple(x.shape), x.dtype))
        return super().reduce_scatter(x)

    def all_reduce(self, x: Tensor) -> Tensor:
        self.brought.append(("all_reduce", tuple(x.shape), x.dtype))
        return super().all_reduce(x)


def test_what_travels():
    """The float16 texts, the columns' log-sum-exps, two scalars and the texts' float32 gradient; no image."""
    ranks, n, width = Watched(3), 5, 64
    inputs = [x.requires_grad_() for x in (*unit_pairs(n, width, torch.float32), torch.tensor(20.0))]
    contrastive_loss(*inputs, group=ranks, backend="triton").backward()
    assert ranks.brought == [
        ("all_gather", (3 * n, width), torch.float16),
        ("all_gather", (3, 3 * n), torch.float32),
        ("all_reduce", (), torch.float32),
        ("reduce_scatter", (3 * n, width), torch.float32),
        ("all_reduce", (), torch.float32),
    ]


# Of two ranks of 70: all, and few.
VALID = torch.arange(140) % 5 != 2
VALID[3:68] = False
SCALE = torch.tensor(20.0)


def _rank(rank: int, world_size: int, folder: str, n: int, width: int, masked: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    own = slice(rank * n, rank * n + n)
    features = [x[own] for x in far_pairs(n * world_size, width, torch.float32)]
    inputs = [x.clone().requires_grad_() for x in (*features, SCALE)]
    valid = VALID[own] if masked else None
    loss = contrastive_loss(*inputs, valid=valid, group=dist.group.WORLD, backend="triton")
    loss.backward()
    torch.save([loss.detach(), *(x.grad for x in inputs)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_on_two_ranks(masked: bool, tmp_path):
    """Gradients of float32 features as DDP averages them, against one process in float64."""
    ranks, n, width = 2, 70, 256
    mp.start_processes(_rank, (ranks, str(tmp_path), n, width, masked), nprocs=ranks, start_method="spawn")
    losses, *gradients = zip(*(torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(ranks)))
    assert losses[0] == losses[1]
    ours = [losses[0], *(torch.cat(x) / ranks for x in gradients[:2]), torch.stack(gradients[2]).mean(0)]
    exact = [x.double().requires_grad_() for x in (*far_pairs(n * ranks, width, torch.float32), SCALE)]
    kept = VALID if masked else slice(None)
    loss = reference.contrastive_loss(exact[0][kept], exact[1][kept], exact[2])
    loss.backward()
    assert_known_to_half(ours, [loss.detach(), *(x.grad for x in exact)])


def test_contrastive_extreme_logits():
    """Logits whose exponentials do not exist in float32, in rows and columns that have nothing else."""
    image, text = (x.float() for x in unit_pairs(70, 32, torch.float16))
    scale = torch.tensor(5000.0)
    ours = contrastive_loss(image, -text, scale, backend="triton")
    torch.testing.assert_close(ours, reference.contrastive_loss(image, -text, scale))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's
def test_contrastive_of_features_beyond_float16():
    """They are the caller's to normalise: the loss is not finite, rather than wrong in silence."""
    image, text = unit_pairs(5, 32, torch.float32)
    assert not contrastive_loss(1e6 * image, text, torch.tensor(20.0), backend="triton").isfinite()


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
