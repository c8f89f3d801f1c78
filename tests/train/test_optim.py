"""The optimizer: schedule, groups, clipping, updates that are not finite, state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from train.config import Optim
from train.model import create
from train.optim import Optimizer, decays, learning_rate, total_norm


@given(warmup=st.integers(0, 20), steps=st.integers(21, 200))
def test_schedule(warmup, steps):
    settings = Optim(lr=0.5, warmup_steps=warmup)
    rates = [learning_rate(settings, step, steps) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([0.5 * (i + 1) / warmup for i in range(warmup)])
    assert max(rates) == pytest.approx(0.5) and min(rates) > 0
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    # The cosine is torch's, counted in optimizer steps from the end of the warm-up.
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
    for step in range(warmup, steps):
        assert rates[step] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        cosine.step()


def test_decay_follows_open_clip():
    model = create("debug-RN")
    for name, parameter in model.named_parameters():
        # open_clip_train/main.py: exclude = p.ndim < 2 or "bn", "ln", "bias" or "logit_scale" in the name
        excluded = parameter.ndim < 2 or any(k in name for k in ("bn", "ln", "bias", "logit_scale"))
        assert decays(name, parameter) == (not excluded)


class Small(nn.Module):
    """No parameter has a gradient of zero: AdamW would blow its rounding up to a full step."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(self.bn(x)).square().sum()


def pair(settings: Optim) -> tuple[Small, Optimizer]:
    torch.manual_seed(0)
    model = Small()
    return model, Optimizer(model, settings)


def advance(model: Small, optimizer: Optimizer, batches, lr: float = 0.1) -> list[tuple[float, float]]:
    said = []
    for x in batches:
        optimizer.zero_grad()
        model(x).backward()
        norm, bad = optimizer.step(lr)
        said.append((float(norm), float(bad)))
    return said


def test_equals_torch_adamw_with_clipping():
    settings = Optim(lr=0.1, weight_decay=0.3, betas=(0.8, 0.95), clip=0.5)
    model, optimizer = pair(settings)
    torch.manual_seed(0)
    other = Small()
    plain = torch.optim.AdamW(
        [
            {"params": [other.layer.weight], "weight_decay": 0.3},
            {"params": [other.layer.bias, other.bn.weight, other.bn.bias], "weight_decay": 0.0},
        ],
        lr=0.1, betas=(0.8, 0.95), eps=settings.eps,
    )  # fmt: skip
    batches = torch.randn(5, 4, 3)
    said = advance(model, optimizer, batches)
    for x, (norm, _) in zip(batches, said):
        plain.zero_grad()
        other(x).backward()
        expected = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        assert norm == pytest.approx(float(expected), rel=1e-5)
        plain.step()
    for left, right in zip(model.state_dict().values(), other.state_dict().values()):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("clip", (0.0, 0.5))
def test_an_update_that_is_not_finite_leaves_no_trace(value, clip):
    batches = list(torch.randn(4, 4, 3))
    broken = batches[1].clone()
    broken[2, 1] = value
    model, optimizer = pair(Optim(clip=clip))
    other, untouched = pair(Optim(clip=clip))
    said = advance(model, optimizer, [batches[0], broken, *batches[2:]])
    advance(other, untouched, [batches[0], *batches[2:]])
    assert [bad for _, bad in said] == [0, 1, 0, 0]
    for (name, left), right in zip(model.state_dict().items(), other.state_dict().values()):
        if not name.endswith("num_batches_tracked"):  # a counter that only momentum=None reads
            assert left.equal(right), name
    for name, tensor in untouched.state().items():
        assert tensor.equal(optimizer.state()[name]), name


def test_state_round_trip_is_exact():
    batches = torch.randn(6, 4, 3)
    model, optimizer = pair(Optim())
    advance(model, optimizer, batches[:3])
    second, restored = pair(Optim())
    second.load_state_dict(model.state_dict())
    restored.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    advance(model, optimizer, batches[3:])
    advance(second, restored, batches[3:])
    for left, right in zip(model.state_dict().values(), second.state_dict().values()):
        assert left.equal(right)


def test_state_of_other_parameters_is_refused():
    model, optimizer = pair(Optim())
    advance(model, optimizer, torch.randn(1, 4, 3))
    state = optimizer.state()
    state.pop("bn.bias.exp_avg")
    with pytest.raises(ValueError, match="bn.bias.exp_avg"):
        optimizer.load(state)


@pytest.mark.slow
def test_the_norm_is_exact_for_many_numbers():
    """To a part in ten thousand; torch's own norm on a CPU is 1.6e-3 off."""
    generator = torch.Generator().manual_seed(0)
    gradients = [1e-3 * torch.randn(n, generator=generator) for n in (1, 30_000_000, 7)]
    gradients.append(torch.randn(8, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last))
    exact = torch.cat([g.double().flatten() for g in gradients]).norm()
    assert float(total_norm(gradients)) == pytest.approx(float(exact), rel=1e-4)
