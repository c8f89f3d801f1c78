"""Which code attention runs, by what it is given; its values are tested in tests/interpreter.

Tensors that are fake have a device, a dtype and a shape, but no values: so CUDA's are here without a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.attention import attention, triton_takes
from kernels.flops import flop_counter

OURS = torch.ops.perceptual_initialization.attention.default
HEADS = 12


class Operators(TorchDispatchMode):
    """The operators that run while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[object] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ran.append(function)
        return function(*args, **(kwargs or {}))


def projections(
    length: int = 50, width: int = 64, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> Tensor:
    return torch.empty(2, length, 3 * HEADS * width, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("shape", "segments", "causal", "triton"),
    [
        ({}, False, False, True),  # ViT-B/32's pictures
        ({"dtype": torch.float16}, False, True, True),
        ({"length": 128}, True, True, True),  # packed captions
        ({"length": 129}, False, False, False),
        ({"length": 257}, False, False, False),  # ViT-L/14's pictures
        ({"width": 32}, False, False, False),
        ({"dtype": torch.float32}, False, False, False),
        ({}, True, False, False),  # segments that are not causal
        ({"device": "cpu"}, False, False, False),
    ],
)
def test_auto_is_triton_where_it_can_run(shape: dict, segments: bool, causal: bool, triton: bool):
    with FakeTensorMode():
        qkv = projections(**shape)
        segment = torch.zeros(qkv.shape[:2], dtype=torch.int64, device=qkv.device) if segments else None
        with Operators() as operators:
            out = attention(qkv, HEADS, segment=segment, causal=causal)
        assert (OURS in operators.ran) == triton
        assert out.shape == (2, qkv.shape[1], qkv.shape[2] // 3) and out.dtype == qkv.dtype
        if qkv.is_cuda:
            assert triton_takes(qkv, HEADS, segment, causal) == triton
        if not triton_takes(qkv, HEADS, segment, causal):
            with pytest.raises(ValueError, match="'triton' takes .* use backend='sdpa'"):
                attention(qkv, HEADS, segment=segment, causal=causal, backend="triton")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_auto_is_decided_while_it_is_traced(dynamic: bool):
    """For each call by its own rows, in one graph."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=keep, fullgraph=True, dynamic=dynamic)
    def towers(pictures: Tensor, captions: Tensor) -> Tensor:
        return attention(pictures, HEADS).sum() + attention(captions, HEADS, causal=True).sum()

    with FakeTensorMode():
        towers(projections(257), projections(77))
    called = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert [called.count(f) for f in (OURS, torch.nn.functional.scaled_dot_product_attention)] == [1, 1]


@pytest.mark.parametrize("backward", [False, True])
def test_its_flops_are_counted_as_those_of_sdpa(backward: bool):
    counts = []
    for backend, device in (("triton", "meta"), ("sdpa", "cpu")):
        qkv = torch.zeros(2, 50, 3 * HEADS * 64, dtype=torch.bfloat16, device=device, requires_grad=True)
        with flop_counter() as counter:
            out = attention(qkv, HEADS, backend=backend)
            if backward:
                out.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


class Products(TorchDispatchMode):
    """The dtypes that torch's fused attention is given, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(function):
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("segments", "causal"), [(False, False), (False, True), (True, False), (True, True)])
def test_training_in_half_precision_on_a_cpu_attends_in_float32(
    dtype: torch.dtype, segments: bool, causal: bool
):
    qkv = torch.randn(2, 37, 3 * 4 * 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    segment = torch.arange(37).expand(2, -1) // 9 if segments else None

    def result(x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        out = attention(x, 4, segment=segment, causal=causal, backend="sdpa")
        (gradient,) = torch.autograd.grad((out.double() ** 2).sum(), x)
        return out.double(), gradient.double()

    with torch.autocast("cpu", dtype), Products() as products:
        out, gradient = result(qkv.clone())
    with Products() as wide:
        expected_out, expected_gradient = result(qkv.double())
    assert products.dtypes == [torch.float32] * 2 and wide.dtypes[0] == torch.float64
    # Only the result and its gradient are rounded, by half a unit each; the gradient is of the rounded one.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected_out, rtol=unit / 2, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2 * unit, atol=2 * unit)
