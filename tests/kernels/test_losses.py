"""The losses against the paper's formulas, torch's functions and open_clip's ClipLoss, on 1 and 4 ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss

from kernels import reference
from kernels.contrastive import contrastive_loss
from kernels.triplet import triplet_loss
from tests.kits.kernels import unit_pairs


def _triplets(batch: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, batch, width, generator=generator, dtype=torch.float64)
    vote = torch.randint(0, 5, (batch,), generator=generator) / 4
    return (*features.to(dtype), vote)


def test_triplet_by_hand():
    ref = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    left = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])  # distances 0, 1, 1 − √½
    right = torch.tensor([[0.0, 3.0], [5.0, 0.0], [1.0, 1.0]])  # distances 1, 0, 1 − √½
    loss, hits = triplet_loss(ref, left, right, torch.tensor([1.0, 0.75, 0.0]), margin=0.05, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([1.05, 0.25 * 1.05, 0.05]))
    assert hits.tolist() == [0.0, 0.75, 0.5]


@given(batch=st.integers(1, 9), width=st.integers(3, 20), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_triplet_is_the_mean_over_answers(batch: int, width: int, seed: int):
    """A vote of k/4 costs what four rows with single answers cost, by torch's margin loss."""
    ref, left, right, vote = _triplets(batch, width, seed=seed)
    loss, hits = triplet_loss(ref, left, right, vote, margin=0.1)
    answers = (torch.arange(4) < 4 * vote[:, None]).double() * 2 - 1  # (B, 4) ±1
    to_left, to_right = F.cosine_similarity(ref, left), F.cosine_similarity(ref, right)
    expected = F.margin_ranking_loss(
        to_right.repeat_interleave(4), to_left.repeat_interleave(4), answers.flatten(), 0.1
    )
    torch.testing.assert_close(loss, expected)
    right_nearer = (to_right > to_left)[:, None]
    torch.testing.assert_close(hits, ((answers > 0) == right_nearer).double().mean(1))


def test_triplet_gradients():
    ref, left, right, vote = _triplets(4, 5)
    inputs = [x.requires_grad_() for x in (ref, left, right)]
    assert torch.autograd.gradcheck(lambda *x: triplet_loss(*x, vote, reduction="sum")[0], inputs)
    zero = torch.zeros_like(ref, requires_grad=True)
    triplet_loss(zero, left.detach(), right.detach(), vote)[0].backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left": torch.zeros(3, 4)}, "one shape"),
        ({"ref": torch.zeros(0, 4), "left": torch.zeros(0, 4), "right": torch.zeros(0, 4)}, "non-empty"),
        ({"vote": torch.zeros(3)}, "expected votes"),
        ({"vote": torch.zeros(2, dtype=torch.int64)}, "fractions"),
        ({"right": torch.zeros(2, 4, dtype=torch.float64)}, "one floating dtype"),
        ({"right": torch.zeros(2, 4, device="meta")}, "one device"),
        ({"reduction": "max"}, "reduction"),
    ],
)
def test_triplet_errors(change: dict, words: str):
    good = {
        "ref": torch.zeros(2, 4),
        "left": torch.zeros(2, 4),
        "right": torch.zeros(2, 4),
        "vote": torch.zeros(2),
    }
    with pytest.raises(ValueError, match=words):
        triplet_loss(**(good | change))


@pytest.mark.parametrize("batch", [1, 3, 65])
@pytest.mark.parametrize("chunk", [1, 150, 1 << 22])
def test_contrastive_equals_open_clip(batch: int, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kernels.contrastive._CHUNK_ELEMENTS", chunk)
    ours = [*unit_pairs(batch, 7), torch.tensor(14.0, dtype=torch.float64)]
    theirs = [x.clone() for x in ours]
    for x in (*ours, *theirs):
        x.requires_grad_()
    loss, expected = contrastive_loss(*ours), ClipLoss()(*theirs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(reference.contrastive_loss(*ours), expected)
    (3 * loss).backward()
    (3 * expected).backward()
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 30, 1 << 22])
@pytest.mark.parametrize("which", [[0], [4, 5, 8], range(8)])
def test_contrastive_without_invalid_pairs_equals_open_clip(which, chunk: int, monkeypatch):
    monkeypatch.setattr("kernels.contrastive._CHUNK_ELEMENTS", chunk)
    valid = torch.ones(9, dtype=torch.bool)
    valid[list(which)] = False
    ours = [*unit_pairs(9, 7), torch.tensor(14.0, dtype=torch.float64)]
    ours[0][~valid], ours[1][~valid] = ours[1][~valid], -ours[1][~valid]  # they would matter
    theirs = [x.clone() for x in ours]
    for x in (*ours, *theirs):
        x.requires_grad_()
    loss = contrastive_loss(*ours, valid=valid)
    expected = ClipLoss()(theirs[0][valid], theirs[1][valid], theirs[2])
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=1e-9)


def test_contrastive_of_nothing_valid_is_zero():
    inputs = [*unit_pairs(3, 4), torch.tensor(14.0, dtype=torch.float64)]
    for x in inputs:
        x.requires_grad_()
    loss = contrastive_loss(*inputs, valid=torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and all((x.grad == 0).all() for x in inputs)


def test_contrastive_gradients():
    image, text = unit_pairs(5, 3)
    inputs = [
        image.requires_grad_(),
        text.requires_grad_(),
        torch.tensor([2.0], dtype=torch.float64).requires_grad_(),
    ]
    assert torch.autograd.gradcheck(contrastive_loss, inputs)
    only_text = contrastive_loss(image.detach(), text, torch.tensor(2.0))
    assert [g is not None for g in torch.autograd.grad(only_text, [text])] == [True]


def test_contrastive_is_not_changed_by_autocast():
    image, text = unit_pairs(9, 8, torch.float32)
    scale = torch.tensor(20.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(image, text, scale)
    assert torch.equal(inside, contrastive_loss(image, text, scale))
    half = contrastive_loss(image.bfloat16(), text.bfloat16(), scale)
    exact = reference.contrastive_loss(image.bfloat16().double(), text.bfloat16().double(), scale.double())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": torch.zeros(3, 4)}, "one shape"),
        ({"image": torch.zeros(0, 4), "text": torch.zeros(0, 4)}, "non-empty"),
        ({"text": torch.zeros(2, 4, dtype=torch.float64)}, "one floating dtype"),
        ({"logit_scale": torch.ones(2)}, "one element"),
        ({"logit_scale": 100.0}, "one element"),
        ({"logit_scale": torch.ones((), device="meta")}, "one device"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, "each of the 2 pairs"),
        ({"valid": torch.ones(2)}, "a bool for"),
    ],
)
def test_contrastive_errors(change: dict, words: str):
    good = {"image": torch.zeros(2, 4), "text": torch.zeros(2, 4), "logit_scale": torch.ones(())}
    with pytest.raises(ValueError, match=words):
        contrastive_loss(**(good | change))


# Of four ranks of three: all, none, two and one.
VALID = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0], dtype=torch.bool)


def _rank(rank: int, world_size: int, folder: str, batch: int, width: int) -> None:
    """Gradients on one of several ranks: ours, and open_clip's with its local loss and gathered gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    image, text = (x[rank * batch : (rank + 1) * batch] for x in unit_pairs(batch * world_size, width))
    results = {}
    for name in ("ours", "open_clip", "without", "nothing"):
        inputs = [x.clone().requires_grad_() for x in (image, text, torch.tensor(10.0, dtype=torch.float64))]
        if name == "ours":
            loss = contrastive_loss(*inputs, group=dist.group.WORLD)
        elif name in ("without", "nothing"):
            valid = VALID[rank * batch : (rank + 1) * batch] & (name == "without")
            loss = contrastive_loss(*inputs, valid=valid, group=dist.group.WORLD)
        else:
            loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)(*inputs)
        loss.backward()
        results[name] = [loss.detach(), *(x.grad for x in inputs)]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_contrastive_on_four_ranks(tmp_path):
    ranks, batch, width = 4, 3, 5
    mp.start_processes(_rank, (ranks, str(tmp_path), batch, width), nprocs=ranks, start_method="spawn")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]

    inputs = [
        x.requires_grad_()
        for x in (*unit_pairs(ranks * batch, width), torch.tensor(10.0, dtype=torch.float64))
    ]
    loss = reference.contrastive_loss(*inputs)
    loss.backward()
    for result in results:
        torch.testing.assert_close(result["ours"][0], loss.detach())
        for ours, theirs in zip(result["ours"][1:3], result["open_clip"][1:3]):
            torch.testing.assert_close(ours, theirs)
    for place in (1, 2):  # what DDP's mean makes of the features' gradients
        gathered = torch.cat([result["ours"][place] for result in results]) / ranks
        torch.testing.assert_close(gathered, inputs[place - 1].grad)
    for name in ("ours", "open_clip"):
        scale = torch.stack([result[name][3] for result in results]).mean(0)
        torch.testing.assert_close(scale, inputs[2].grad)

    few = [x.detach().clone().requires_grad_() for x in inputs]
    loss = reference.contrastive_loss(few[0][VALID], few[1][VALID], few[2])
    loss.backward()
    parts = [torch.stack(x) for x in zip(*(result["without"] for result in results))]
    torch.testing.assert_close(parts[0], loss.detach().expand(ranks))
    torch.testing.assert_close(parts[1].flatten(0, 1) / ranks, few[0].grad)
    torch.testing.assert_close(parts[2].flatten(0, 1) / ranks, few[1].grad)
    torch.testing.assert_close(parts[3].mean(0), few[2].grad)
    assert all((x == 0).all() for result in results for x in result["nothing"])
