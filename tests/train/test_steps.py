"""One step of each stage against plain formulas and open_clip's own loss; many ranks against one."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.batch import ImageText, Triplet
from tests.kits import train as kit
from train import recipes
from train.device.prefetch import Wait
from train.distributed import World
from train.loop import STAGES, update
from train.metrics import Window
from train.model import build, fit_context
from train.optim import Optimizer
from train.stages.stage1 import PerceptualStage
from train.stages.stage2 import ContrastiveStage

SIDE = {"debug-ViT": 16, "debug-RN": 32}


def pair_batch(side: int, samples: int = 12) -> ImageText:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(samples, 77, dtype=torch.int32)
    for row in tokens:
        length = int(torch.randint(1, 7, (), generator=generator))
        row[0], row[length + 1] = kit.START, kit.END
        row[1 : length + 1] = torch.randint(300, 400, (length,), generator=generator)
    images = torch.randn(samples, 3, side, side, generator=generator)
    return ImageText(images, tokens, torch.arange(samples), torch.ones(samples, dtype=torch.bool))


def triplet_batch(side: int, samples: int = 12) -> Triplet:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(3, samples, 3, side, side, generator=generator)
    vote = torch.tensor([0.0, 1.0, 0.25, 0.5] * (samples // 4))
    return Triplet(*images, vote, torch.arange(samples), torch.ones(samples, dtype=torch.bool))


def recipe_of(stage: int, model: str, **changes):
    recipe = replace(recipes.RECIPES[stage]["debug"], model=model, batch=12)
    compute = {
        k: changes.pop(k) for k in ("micro", "precision", "pack", "recompute", "compile") if k in changes
    }
    return replace(recipe, compute=replace(recipe.compute, **compute), **changes)


def gradients(recipe, batch, world=World()):  # noqa: B008
    """(what the stage measured, gradient of every trainable parameter by name) of one step."""
    clip = build(recipe).train()
    stage = (PerceptualStage if recipe.stage == 1 else ContrastiveStage)(recipe, clip, world)
    measured = stage.gradients(stage.prepare(batch))
    return measured, {n: p.grad for n, p in clip.named_parameters() if p.grad is not None}, clip


def assert_close(left: dict, right: dict, tolerance: float = 2e-5) -> None:
    assert left.keys() == right.keys()
    largest = max(float(g.abs().max()) for g in right.values())
    for name in left:
        scale = float(right[name].abs().max()) + 1e-3 * largest
        worst = float((left[name] - right[name]).abs().max())
        assert worst <= tolerance * scale, f"{name}: off by {worst}, largest {scale}"


@pytest.mark.slow
@pytest.mark.parametrize("model", SIDE)
def test_stage2_is_open_clips_loss(model):
    recipe, batch = recipe_of(2, model), pair_batch(SIDE[model])
    measured, grads, _ = gradients(recipe, batch)
    clip = build(recipe).train()
    image, text, scale = clip(batch.images, batch.tokens.long())
    loss = open_clip.ClipLoss()(image, text, scale)
    loss.backward()
    assert float(measured["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    expected = {n: p.grad for n, p in clip.named_parameters()}
    assert_close(grads, expected)


@pytest.mark.parametrize("model", SIDE)
def test_stage1_is_equations_1_and_2(model):
    recipe, batch = recipe_of(1, model), triplet_batch(SIDE[model])
    measured, grads, clip = gradients(recipe, batch)
    assert all(name.startswith("visual.") for name in grads)
    other = build(recipe).train()
    features = other.encode_image(torch.cat([batch.ref, batch.left, batch.right]))
    ref, left, right = features.chunk(3)
    distance = [1 - torch.cosine_similarity(ref, x) for x in (left, right)]
    delta = distance[0] - distance[1]
    vote = batch.vote
    # A soft vote is that share of people: the mean of both answers' losses.
    both = (0.05 - delta).clamp(min=0) * vote + (0.05 + delta).clamp(min=0) * (1 - vote)
    both.mean().backward()
    assert float(measured["loss"]) == pytest.approx(both.mean().item(), rel=1e-5)
    agree = (delta > 0).float() * vote + (delta < 0).float() * (1 - vote)
    assert float(measured["twoafc_soft"]) == pytest.approx(float(agree.mean()), abs=1e-6)
    assert_close(grads, {n: p.grad for n, p in other.named_parameters() if p.grad is not None})


def test_a_triplet_that_does_not_decode_has_no_effect():
    recipe, batch = recipe_of(1, "debug-ViT"), triplet_batch(16)
    valid = batch.valid.clone()
    valid[3] = False
    _, grads, _ = gradients(recipe, replace(batch, valid=valid))
    _, other, _ = gradients(
        recipe, replace(batch, valid=valid, left=batch.left + 3 * ~valid[:, None, None, None])
    )
    assert_close(grads, other, 1e-6)


@pytest.mark.parametrize("stage", (1, 2))
def test_validation_leaves_out_what_does_not_decode(stage):
    batch = (triplet_batch if stage == 1 else pair_batch)(16)
    recipe = recipe_of(stage, "debug-ViT")
    validate = (PerceptualStage if stage == 1 else ContrastiveStage)(recipe, build(recipe), World()).validate
    batch.valid[[0, 5]] = False
    without = replace(batch, **{name: value[batch.valid] for name, value in vars(batch).items()})
    assert validate([batch]) == pytest.approx(validate([without]), rel=1e-5)
    batch.valid[:] = False
    with pytest.raises(ValueError, match="no sample of it decodes"):
        validate([batch])


@pytest.mark.parametrize("stage", (1, 2))
def test_weights_that_are_not_numbers_have_no_score(stage):
    """Not chance, which a distance that is not a number would give as a tie."""
    recipe = recipe_of(stage, "debug-ViT")
    clip = build(recipe)
    torch.nn.init.constant_(clip.visual.conv1.weight, math.nan)
    stage_of = PerceptualStage if stage == 1 else ContrastiveStage
    scores = stage_of(recipe, clip, World()).validate([(triplet_batch if stage == 1 else pair_batch)(16)])
    assert scores and all(map(math.isnan, scores.values()))


@pytest.mark.parametrize("micro", (0, 2))
def test_a_pair_that_does_not_decode_has_no_effect(micro):
    batch = pair_batch(16)
    valid = torch.ones(len(batch), dtype=torch.bool)
    valid[[1, 4]] = False
    measured, grads, _ = gradients(recipe_of(2, "debug-ViT", micro=micro), replace(batch, valid=valid))
    without = ImageText(*(x[valid] for x in (batch.images, batch.tokens, batch.index, batch.valid)))
    wanted, expected, _ = gradients(recipe_of(2, "debug-ViT"), without)
    torch.testing.assert_close(measured, wanted, rtol=1e-5, atol=0)
    assert_close(grads, expected)


@pytest.mark.parametrize("micro", (1, 3, 6))
def test_gradient_caching_is_exact(micro):
    batch = pair_batch(16)
    whole, expected, _ = gradients(recipe_of(2, "debug-ViT"), batch)
    parts, grads, _ = gradients(recipe_of(2, "debug-ViT", micro=micro), batch)
    assert float(parts["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-5)
    assert_close(grads, expected)


@pytest.mark.slow
@pytest.mark.parametrize("micro", (0, 4))
def test_packed_captions_give_the_same_step(micro):
    batch = pair_batch(16)
    padded, expected, _ = gradients(recipe_of(2, "debug-ViT", pack="no"), batch)
    packed, grads, _ = gradients(recipe_of(2, "debug-ViT", pack="yes", micro=micro), batch)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=0)
    assert_close(grads, expected)


@pytest.mark.parametrize("recompute", ("gelu", "pointwise", "blocks"))
def test_recomputing_changes_nothing(recompute):
    batch = pair_batch(16)
    _, expected, _ = gradients(recipe_of(2, "debug-ViT"), batch)
    _, grads, _ = gradients(recipe_of(2, "debug-ViT", recompute=recompute), batch)
    assert_close(grads, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", (1, 2))
def test_compiled_towers_give_the_same_step(stage, monkeypatch):
    # The compiler's front half: what it makes of the graph, without minutes of C++.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    batch = (triplet_batch if stage == 1 else pair_batch)(16)
    _, expected, _ = gradients(recipe_of(stage, "debug-ViT"), batch)
    _, grads, _ = gradients(recipe_of(stage, "debug-ViT", compile="yes"), batch)
    assert_close(grads, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs the compiler g++")
def test_compiled_code_gives_the_same_step():
    """The whole compiler: its C++, forward and backward, in one graph. (A minute; torch keeps the code.)"""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batch = pair_batch(16)
    loss, expected, _ = gradients(recipe_of(2, "debug-ViT", pack="yes"), batch)
    compiled, grads, _ = gradients(recipe_of(2, "debug-ViT", compile="yes"), batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    # Fused sums round in another order: some of float32's last bits (1e-7 each) in a few hundred additions.
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=0)
    assert_close(grads, expected)


def test_long_captions_end_in_their_end_token():
    tokens = torch.zeros(3, 77, dtype=torch.int32)
    for row, length in zip(tokens, (5, 8, 30)):
        row[:length] = torch.arange(1, length + 1)
        row[length - 1] = kit.END
    short = fit_context(tokens, 8)
    assert short[0].equal(tokens[0, :8]) and short[1].equal(tokens[1, :8])
    assert short[2].tolist() == [1, 2, 3, 4, 5, 6, 7, kit.END]


@pytest.mark.slow
def test_gradient_caching_counts_running_statistics_once():
    batch = pair_batch(32)
    _, _, clip = gradients(recipe_of(2, "debug-RN", micro=6), batch)
    recipe = recipe_of(2, "debug-RN")
    other = build(recipe).train()
    for part in batch.images.split(6):
        other.encode_image(part)
    for (name, left), right in zip(clip.named_buffers(), other.buffers()):
        torch.testing.assert_close(left, right, msg=lambda text, name=name: f"{name}: {text}")


def test_micro_negatives_are_batches_of_their_own():
    batch = pair_batch(16)
    measured, grads, _ = gradients(recipe_of(2, "debug-ViT", micro=4, negatives="micro"), batch)
    clip = build(recipe_of(2, "debug-ViT")).train()
    losses = [
        open_clip.ClipLoss()(*clip(images, tokens.long()))
        for images, tokens in zip(batch.images.split(4), batch.tokens.split(4))
    ]
    mean = torch.stack(losses).mean()
    mean.backward()
    assert float(measured["loss"]) == pytest.approx(mean.item(), rel=1e-5)
    assert_close(grads, {n: p.grad for n, p in clip.named_parameters()})


def test_stage1_accumulation_is_exact():
    batch = triplet_batch(16)
    whole, expected, _ = gradients(recipe_of(1, "debug-ViT"), batch)
    parts, grads, _ = gradients(recipe_of(1, "debug-ViT", micro=4), batch)
    torch.testing.assert_close(parts, whole)
    assert_close(grads, expected)


@pytest.mark.parametrize("stage", (1, 2))
def test_bf16_stays_near_fp32(stage):
    batch = (triplet_batch if stage == 1 else pair_batch)(16)
    exact, _, _ = gradients(recipe_of(stage, "debug-ViT"), batch)
    rounded, grads, _ = gradients(recipe_of(stage, "debug-ViT", precision="bf16"), batch)
    assert rounded["loss"] != exact["loss"]  # it was in fact computed in another precision
    assert float(rounded["loss"]) == pytest.approx(float(exact["loss"]), rel=0.05)
    assert all(g.dtype == torch.float32 for g in grads.values())


@pytest.mark.parametrize(
    "change, names",
    [("image", None), ("qkv", ("in_proj_weight",)), ("qkv+bias", ("in_proj_weight", "in_proj_bias"))],
)
def test_stage1_trains_only_what_it_says(change, names):
    recipe = recipe_of(1, "debug-ViT", trainable=change)
    _, grads, clip = gradients(recipe, triplet_batch(16))
    tower = {n for n, _ in clip.named_parameters() if n.startswith("visual.")}
    expected = tower if names is None else {n for n in tower if n.endswith(tuple(f"attn.{k}" for k in names))}
    assert grads.keys() == expected
    assert names is None or len(grads) == 2 * len(names)  # two blocks


def test_qkv_needs_blocks():
    recipe = recipe_of(1, "debug-RN", trainable="qkv")
    with pytest.raises(ValueError, match="no attention blocks"):
        build(recipe)


# stage, micro, negatives
SPREAD = [(1, 0, None), (1, 3, None), (2, 0, "global"), (2, 3, "global"), (2, 3, "micro")]


def spread_case(stage: int, micro: int, negatives: str | None):
    changes = {"negatives": negatives} if negatives else {}
    batch = (triplet_batch if stage == 1 else pair_batch)(16)
    batch.valid[[1, 7, 8, 11]] = False  # one of the first rank, three of the second
    return recipe_of(stage, "debug-ViT", micro=micro, **changes), batch


def _ranks(rank: int, size: int, folder) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/world", rank=rank, world_size=size)
    world = World(rank=rank, size=size, control=dist.new_group(backend="gloo"))
    results = []
    for case in SPREAD:
        recipe, batch = spread_case(*case)
        share = len(batch) // size
        own = {name: value[rank * share : (rank + 1) * share] for name, value in vars(batch).items()}
        measured, grads, _ = gradients(recipe, replace(batch, **own), world)
        results.append((world.mean(measured), grads))
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_ranks, (2, folder), nprocs=2, start_method=kit.fork_server())
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("number", range(len(SPREAD)))
def test_two_ranks_take_the_step_of_one(number, two_ranks):
    stage, micro, negatives = SPREAD[number]
    recipe, batch = spread_case(stage, 0, negatives)
    if negatives == "micro":  # the micro-batches of both ranks make one batch of negatives
        recipe, _ = spread_case(stage, 2 * micro, negatives)
        order = torch.tensor([0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11])
        batch = ImageText(**{name: value[order] for name, value in vars(batch).items()})
    expected, gradient, _ = gradients(recipe, batch)
    measured, grads = two_ranks[number]
    assert measured == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5, abs=1e-6
    )
    assert_close(grads, gradient, 1e-4)


@pytest.mark.parametrize("stage", (1, 2))
def test_what_steps_measure_is_read_by_name(stage):
    recipe, batch = recipe_of(stage, "debug-ViT"), (triplet_batch if stage == 1 else pair_batch)(16)
    clip = build(recipe)
    objective = STAGES[stage](recipe, clip, World())
    optimizer, window = Optimizer(clip, recipe.optim), Window()
    steps = [update(objective, optimizer, objective.prepare(batch), 1e-3) for _ in range(3)]
    for number, values in enumerate(steps):
        window.add(values, Wait(asked=number, given=number + 0.5))
    reading = window.close()
    assert reading.waited() == 1.5 and not window.steps
    course = reading.values()
    measured = {1: {"loss", "twoafc_soft"}, 2: {"loss"}}[stage]
    assert course.keys() == measured | {"grad_norm", "logit_scale", "skipped"}
    for name, values in course.items():
        assert values.tolist() == [float(step[name]) for step in steps]
