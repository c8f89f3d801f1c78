"""The Triton kernels and the fast towers on a GPU, in bfloat16 too; skipped where torch sees none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.attention import attention
from kernels.contrastive import contrastive_loss
from kernels.triplet import triplet_loss
from pipeline.packing import pack
from tests.kits.kernels import assert_norm_as_good

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

HALF = [torch.bfloat16, torch.float16]


def results(sides: dict, inputs: list[Tensor], upstream: float = 0.7) -> list[list[Tensor]]:
    """Output and gradients of each side (function, dtype) on copies of the inputs."""
    rows = []
    for function, dtype in sides.values():
        copies = [x.detach().to(dtype, copy=True).requires_grad_() for x in inputs]
        out = function(*copies)
        out.backward(torch.full_like(out, upstream))
        rows.append([out.detach(), *(x.grad for x in copies)])
    return list(zip(*rows))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize(("batch", "width"), [(1, 96), (65, 1000), (4096, 512)])
def test_triplet(dtype: torch.dtype, batch: int, width: int):
    features = [torch.randn(batch, width, device="cuda").to(dtype) for _ in range(3)]
    vote = torch.rand(batch, device="cuda")
    sides = {
        name: (lambda *x, e=backend: triplet_loss(*x, vote, reduction="sum", backend=e)[0], kind)
        for name, backend, kind in (
            ("triton", "triton", dtype),
            ("torch", "torch", dtype),
            ("exact", "torch", torch.float64),
        )
    }
    for what, values in zip(("loss", "ref", "left", "right"), results(sides, features)):
        assert_norm_as_good(*values, what)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize(("n", "width"), [(1, 96), (65, 1000), (1500, 512), (3000, 640)])
def test_contrastive(dtype: torch.dtype, n: int, width: int):
    image = F.normalize(torch.randn(n, width, device="cuda"), dim=-1)
    # A pair's cosine is about 1/6: with nearer ones the loss would be exactly 0, which no error relates to.
    text = F.normalize(image + 6 * torch.randn(n, width, device="cuda") / width**0.5, dim=-1)
    scale = torch.tensor(100.0, device="cuda")
    sides = {
        "triton": (lambda a, b: contrastive_loss(a, b, scale, backend="triton"), dtype),
        "torch": (lambda a, b: reference.contrastive_loss(a, b, scale.to(a.dtype)), dtype),
        "exact": (lambda a, b: reference.contrastive_loss(a, b, scale.double()), torch.float64),
    }
    if n == 1:  # nothing to tell apart: loss and gradients are zero
        assert contrastive_loss(image.to(dtype), text.to(dtype), scale, backend="triton").abs() < 1e-3
        return
    rounded = [image.to(dtype), text.to(dtype)]
    # A logit is known to scale · |cosine| · ε, which is the relative error of its exponential in a gradient.
    # (H200: 1.9e-6 where plain torch had 0.7e-6, at cosines of 1/6.)
    # float32 is multiplied as float16: that moves a logit by some 5e-4 (tests/interpreter); twice is allowed.
    more = 1e-3 if dtype == torch.float32 else 100 / 6 * torch.finfo(torch.float32).eps
    for what, values in zip(("loss", "image", "text"), results(sides, rounded)):
        assert_norm_as_good(*values, what, more)


def test_contrastive_without_invalid_pairs():
    """The mask gives what the batch without these pairs gives: half of them, and a whole tile."""
    valid = torch.rand(1500, device="cuda") < 0.5
    valid[512:768] = False
    features = [F.normalize(torch.randn(1500, 512, device="cuda"), dim=-1).bfloat16() for _ in range(2)]
    scale = torch.tensor(100.0, device="cuda")
    whole, few = ([x.detach().clone().requires_grad_() for x in features] for _ in range(2))
    loss = contrastive_loss(*whole, scale, valid=valid, backend="triton")
    expected = contrastive_loss(*(x[valid] for x in few), scale, backend="triton")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, x in zip(whole, few):
        torch.testing.assert_close(ours.grad, x.grad, rtol=2e-2, atol=1e-4)
        assert (ours.grad[~valid] == 0).all()


def test_contrastive_scale_gradient():
    image, text = (F.normalize(torch.randn(700, 512, device="cuda"), dim=-1).bfloat16() for _ in range(2))
    gradients = []
    for kind, backend in ((torch.bfloat16, "triton"), (torch.float64, "torch")):
        scale = torch.tensor(100.0, device="cuda", dtype=torch.float64, requires_grad=True)
        contrastive_loss(image.to(kind), text.to(kind), scale, backend=backend).backward()
        gradients.append(scale.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("mask", ["full", "causal", "segments"])
@pytest.mark.parametrize("length", [1, 50, 64, 77, 128])
def test_attention(dtype: torch.dtype, mask: str, length: int):
    rows, heads, causal = 7, 12, mask != "full"
    qkv = torch.randn(rows, length, 3 * heads * 64, device="cuda").to(dtype)
    segment = (
        torch.randint(0, 4, (rows, length), device="cuda").sort(-1).values if mask == "segments" else None
    )
    sides = {
        "triton": (lambda x: attention(x, heads, segment=segment, causal=causal, backend="triton"), dtype),
        "sdpa": (lambda x: attention(x, heads, segment=segment, causal=causal, backend="sdpa"), dtype),
        "exact": (lambda x: reference.attention(x, heads, segment, causal), torch.float64),
    }
    for what, values in zip(("out", "qkv"), results(sides, [qkv])):
        assert_norm_as_good(*values, what)


@pytest.mark.parametrize("compiled", [False, True])
def test_towers(compiled: bool):
    """bfloat16 towers with the kernel's attention, against open_clip's own in float32 and in bfloat16."""
    from open_clip.model import CLIP

    from kernels.bench.cases import synthetic_captions
    from kernels.towers import TowerSettings, encode_image, encode_packed_text

    torch.manual_seed(0)
    vision = {"image_size": 224, "layers": 3, "width": 192, "patch_size": 32}
    model = CLIP(64, vision, {"width": 128, "heads": 2, "layers": 3}).cuda()
    images = torch.randn(9, 3, 224, 224, device="cuda")
    tokens = synthetic_captions([3, 77, 20, 5, 16, 16, 40, 9, 12]).cuda()
    packed = pack(tokens.cpu(), 128).to("cuda")
    settings = TowerSettings(attention="triton", recompute="pointwise")

    def ours(images: Tensor, *packed: Tensor) -> Tensor:
        image = encode_image(model, images, settings)
        return torch.cat([image, encode_packed_text(model, *packed, settings=settings)])

    def theirs() -> Tensor:
        return torch.cat([model.encode_image(images), model.encode_text(tokens)])

    run = torch.compile(ours, fullgraph=True, dynamic=False) if compiled else ours
    sides = []
    for encode, half in ((lambda: run(images, *packed), True), (theirs, True), (theirs, False)):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            out = encode()
        (out.float() ** 2).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        sides.append((out.detach().float(), gradient))
    for what, ours_, plain, exact in zip(("features", "gradient"), *sides):
        error, allowed = (ours_ - exact).norm() / exact.norm(), (plain - exact).norm() / exact.norm()
        assert error <= 1.5 * allowed + 1e-3, f"{what}: {error:.3g}, open_clip in bfloat16 {allowed:.3g}"
