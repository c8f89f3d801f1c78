"""The training step on a GPU: against float32, beside the plan's memory, over NCCL, fed by a thread, resumed.

Skipped without a GPU. With PI_TOY=1 it runs on a CPU, with small models, to see that these tests work.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed as dist

from kernels.bench.cases import synthetic_captions, synthetic_lengths
from pipeline.batch import ImageText, Triplet
from tests.kits import train as kit
from train import checkpoint, loop, model, recipes
from train.device import auto, memory
from train.device.prefetch import Prefetcher
from train.distributed import World, data_parallel
from train.optim import Optimizer

CUDA, TOY = torch.cuda.is_available(), "PI_TOY" in os.environ
if not (CUDA or TOY):
    pytest.skip("needs a CUDA device", allow_module_level=True)

DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
WORLD = World(device=DEVICE)
MODEL = "ViT-B-32" if CUDA else "debug-ViT"
needs_card = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def exact_products():
    """float32 as a reference is float32: no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.compiler.reset()
    yield
    torch.set_float32_matmul_precision(before)


def recipe_of(stage: int, samples: int, name: str = MODEL, views: bool = False, **compute):
    recipe = replace(recipes.choose(str(stage), "paper"), model=name, batch=samples)
    if views:
        recipe = replace(recipe, objective="views")
    return replace(recipe, compute=replace(recipe.compute, **compute))


def batch_of(stage: int, samples: int, side: int, seed: int = 0) -> ImageText | Triplet:
    """Random levels, never all alike: a card is faster on zeros."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, samples, side, side, 3), dtype=torch.uint8, generator=generator)
    ref, left, right = images.permute(0, 1, 4, 2, 3)
    index, valid = torch.arange(samples), torch.ones(samples, dtype=torch.bool)
    valid[3] = False
    if stage == 1:
        vote = torch.rand(samples, generator=generator)
        return Triplet(ref=ref, left=left, right=right, vote=vote, index=index, valid=valid)
    tokens = synthetic_captions(synthetic_lengths(samples)).int()
    return ImageText(images=ref, tokens=tokens, index=index, valid=valid)


def prepared(recipe, batch, blocks: int = 12):
    """(stage, its parts of the batch on the device) of a model with at most so many blocks a tower."""
    clip = model.build(recipe)
    for transformer in (clip.transformer, clip.visual.transformer) if blocks < 12 else ():
        transformer.resblocks = transformer.resblocks[:blocks]
    clip.to(DEVICE, memory_format=torch.channels_last).train()
    stage = loop.stage_of(recipe)(recipe, clip, WORLD)
    with Prefetcher([batch], stage.prepare, DEVICE) as batches:
        parts, _ = next(batches)
    return stage, parts


def gradients(recipe, blocks: int) -> tuple[float, torch.Tensor]:
    """(loss, all gradients in one vector, float64) of one step on 64 samples."""
    side = 224 if CUDA else 16
    stage, parts = prepared(recipe, batch_of(recipe.stage, 64 * recipe.views, side), blocks)
    loss = stage.gradients(parts)["loss"]
    rows = [p.grad.double().flatten() for p in stage.clip.parameters() if p.grad is not None]
    return float(loss), torch.cat(rows).cpu()


@cache
def exact(stage: int, views: bool, blocks: int) -> tuple[float, torch.Tensor]:
    """The step in float32, eager, nothing recomputed, with torch's own attention."""
    plain = dict(precision="fp32", compile="no", recompute="none", micro=0, attention="sdpa")
    return gradients(recipe_of(stage, 64, views=views, **plain), blocks)


WAYS = {
    "eager": dict(compile="no"),
    "eager, torch's attention": dict(compile="no", attention="sdpa"),
    "compiled": dict(compile="yes"),
    "compiled, GELU again": dict(compile="yes", recompute="gelu"),
    "compiled, LayerNorm and GELU again": dict(compile="yes", recompute="pointwise"),
    "compiled, blocks again": dict(compile="yes", recompute="blocks"),
    "compiled, in parts": dict(compile="yes", micro=16),
    "compiled, float32": dict(compile="yes", precision="fp32"),
}


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # they are off on purpose
@pytest.mark.parametrize("stage, views", [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_float32s(way, stage, views):
    """bfloat16 has 8 bits: a loss to 2^-8, of gradients the direction.

    The whole model eager and compiled; three blocks of it the other ways, which would compile for minutes.
    """
    settings, blocks = (
        {"recompute": "none", "micro": 0, **WAYS[way]},
        12 if way in ("eager", "compiled") else 3,
    )
    if not CUDA and settings["compile"] == "yes":
        pytest.skip("a CPU would compile for minutes; tests/train/test_steps.py has this")
    loss, gradient = gradients(recipe_of(stage, 64, views=views, **settings), blocks)
    expected, reference = exact(stage, views, blocks)
    half = settings.get("precision") != "fp32"
    cosine = torch.cosine_similarity(gradient, reference, dim=0).item()
    if TOY:  # with features of 16 numbers nothing averages out
        assert loss == pytest.approx(expected, rel=0.05) and cosine > 0.98
        return
    assert loss == pytest.approx(expected, rel=2**-8 if half else 1e-5)
    # InfoNCE multiplies float32 features as float16 on a card: 4.4e-4 of the gradient's norm.
    assert cosine > (0.999 if half else 0.999999)


@needs_card
@pytest.mark.parametrize("name, share", [("ViT-B-32", 1024), ("RN50", 128), ("ViT-L-14", 64)])
@pytest.mark.parametrize("recompute", memory.RECOMPUTES)
def test_memory_is_the_plans(name, share, recompute):
    """Eager; the compiled steps of `train.bench` have the plan's figure beside theirs."""
    recipe = recipe_of(2, share, name, compile="no", recompute=recompute, micro=0)
    gc.collect()  # another test's model would be freed during this one
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    stage, parts = prepared(recipe, batch_of(2, share, 224))
    optimizer = Optimizer(stage.clip, recipe.optim)
    torch.set_float32_matmul_precision("high")
    for _ in range(3):
        loop.update(stage, optimizer, parts, 1e-6)
    torch.cuda.reset_peak_memory_stats()
    loop.update(stage, optimizer, parts, 1e-6)
    taken = torch.cuda.max_memory_allocated() - before
    sizes = memory.sizes(recipe, 16, False)
    planned = sizes.total(recipe, share, recompute, share) - share * sizes.images  # one batch is here
    print(f"{name} {recompute}: {taken / 1e9:.2f} GB, planned {planned / 1e9:.2f}")
    assert 0.97 < planned / taken < (1.18 if recompute == "blocks" else 1.07)


def test_what_is_settled_runs(tmp_path):
    """From `auto` for all, on this device, to a checkpoint."""
    split = kit.pairs(tmp_path / "pairs.beton")
    recipe = kit.debug(2, split, tmp_path / "run", steps=3, log_every=1, precision="bf16", save_every=0)
    recipe = replace(recipe, compute=recipes.Compute())
    assert loop.train(recipe, WORLD, kit.Asked()).done
    log = (tmp_path / "run" / "log.txt").read_text()
    assert ("settings: compile yes, attention auto, recompute none, micro 16" in log) == CUDA
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3  # each, though a card's are written one step later
    settled, _ = auto.on(WORLD, recipe, model.build(recipe), loop.open_split(split, recipe))
    assert "auto" not in (settled.compute.compile, settled.compute.recompute, settled.compute.micro)


@pytest.mark.parametrize("stage", (1, 2))
def test_a_run_goes_on(stage, tmp_path):
    """Not to the bit: a card adds up embeddings' gradients in any order."""
    split = (kit.triplets if stage == 1 else kit.pairs)(tmp_path / "split.beton")
    options = dict(steps=8, log_every=1, save_every=2, compile="no")
    whole = kit.debug(stage, split, tmp_path / "whole", **options)
    parts = kit.debug(stage, split, tmp_path / "parts", **options)
    assert loop.train(whole, WORLD, kit.Asked()).done
    assert not loop.train(parts, WORLD, kit.Asked(4)).done
    assert loop.train(parts, WORLD, kit.Asked()).done
    left, right = (checkpoint.weights(checkpoint.find(tmp_path / run)) for run in ("whole", "parts"))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-5, msg=name)


def test_batches_are_whole_while_others_are_copied():
    """Each batch is read by a slow stream of kernels while the thread copies the next ones."""
    shape = (64, 3, 224, 224) if CUDA else (4, 3, 16, 16)
    batches = [torch.full(shape, number, dtype=torch.uint8) for number in range(40)]
    sums = []
    with Prefetcher(batches, lambda batch: [batch], DEVICE) as prefetcher:
        for (batch,), _ in prefetcher:
            if CUDA:
                torch.cuda._sleep(2_000_000)  # cycles: about a millisecond
            sums.append(batch.float().mean())
            del batch
    assert [round(float(value)) for value in sums] == list(range(40))


@needs_card
def test_waiting_is_what_the_card_stood_still():
    """A host that runs ahead of its card does not wait for data, however long it stands at the queue."""
    import time

    def slow(batch):
        time.sleep(0.02)
        return batch

    waits = {}
    for name, cycles in (("hidden", 200_000_000), ("late", 0)):  # some 100 ms, and none
        with Prefetcher([torch.zeros(8)] * 10, slow, DEVICE) as batches:
            rows = []
            for _, wait in batches:
                torch.cuda._sleep(cycles)
                rows.append(wait)
            torch.cuda.synchronize()
            waits[name] = sum(wait.seconds() for wait in rows[2:])
    assert waits["hidden"] < 0.02 < 0.1 < waits["late"]


def test_ddp_over_a_group_of_one_rank():
    """NCCL's communicator, DDP's hooks and buckets: the gradients are those without."""
    recipe = recipe_of(2, 16, compile="no", recompute="none", micro=0)
    batch = batch_of(2, 16, 224 if CUDA else 16)
    stage, parts = prepared(recipe, batch)
    expected = float(stage.gradients(parts)["loss"])
    plain = {n: p.grad.clone() for n, p in stage.clip.named_parameters()}
    device = {"device_id": DEVICE} if CUDA else {}
    address = f"tcp://127.0.0.1:{kit.free_port()}"
    dist.init_process_group("nccl" if CUDA else "gloo", init_method=address, rank=0, world_size=1, **device)
    try:
        stage, parts = prepared(recipe, batch)
        stage.replica = data_parallel(stage.towers, DEVICE)
        assert float(stage.gradients(parts)["loss"]) == pytest.approx(expected, rel=1e-4)
        for name, parameter in stage.clip.named_parameters():
            scale = float(plain[name].abs().max())
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-2, atol=1e-2 * scale, msg=name)
        gathered = [torch.empty(4, device=DEVICE)]
        dist.all_gather(gathered, torch.arange(4.0, device=DEVICE))
        assert gathered[0].tolist() == [0, 1, 2, 3]
    finally:
        dist.destroy_process_group()
