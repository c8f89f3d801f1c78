"""`--objective views` of stage 1: one step against plain formulas; ranks, parts, repeated images, runs."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import AUGMENTS
from pipeline.batch import Triplet
from pipeline.beton.fields import Beton, triplets_schema
from pipeline.beton.writer import writing
from pipeline.order import Order
from tests.kits import train as kit
from tests.train.test_steps import SIDE, assert_close, recipe_of, triplet_batch
from train import checkpoint, command, data, loop, model, plan, recipes
from train.config import Data, Stage1, Stage2
from train.device import auto, memory
from train.distributed import World
from train.stages import views as views_module
from train.stages.views import ViewsStage, firsts, identities

TRIPLETS = 6  # of a batch, each twice
DRAWN = Data(augment="paper")


def views_recipe(name: str = "debug-ViT", **changes):
    return recipe_of(1, name, objective="views", data=DRAWN, **{"batch": TRIPLETS, **changes})


def views_batch(side: int) -> Triplet:
    """As the loader has it: the views of a triplet one after the other; one view of triplet 4 is broken."""
    batch = triplet_batch(side, 2 * TRIPLETS)
    index, valid = torch.arange(TRIPLETS).repeat_interleave(2), batch.valid.clone()
    valid[9] = False
    return replace(batch, index=index, valid=valid)


# Of the images of the batch's triplets: rows 0 and 5 share one, row 3 has one twice, row 4 does not count.
IDENTITY = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 10], [12, 13, 14], [15, 1, 12]])
COUNTED = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 17]


def reference(clip, batch: Triplet, temperature: float, rows: list[int]) -> tuple[torch.Tensor, float]:
    """Two passes, image after image; then the matrix of similarities."""
    sides = []
    for view in range(2):
        three = [(batch.ref[i], batch.left[i], batch.right[i]) for i in range(view, 2 * TRIPLETS, 2)]
        images = [image for triplet in three for image in triplet]
        sides.append(F.normalize(clip.encode_image(torch.stack(images)), dim=-1)[rows])
    return plain(*sides, temperature)


def plain(first: torch.Tensor, second: torch.Tensor, temperature: float) -> tuple[torch.Tensor, float]:
    """(loss, share of images whose own other view is the nearest)."""
    z, own = first @ second.T / temperature, torch.arange(len(first))
    loss = (F.cross_entropy(z, own) + F.cross_entropy(z.T, own)) / 2
    return loss, float((z.argmax(1) == own).double().mean())


def step(recipe, batch: Triplet, world=World(), identity: torch.Tensor | None = IDENTITY):  # noqa: B008
    """(what the stage measured, gradient of every trainable parameter by name, model)."""
    clip = model.build(recipe).train()
    stage = ViewsStage(recipe, clip, world)
    stage.identity = identity
    measured = stage.gradients(stage.prepare(batch))
    return measured, {n: p.grad for n, p in clip.named_parameters() if p.grad is not None}, clip


@pytest.mark.parametrize("temperature", (0.1, 0.5))
def test_the_loss_is_cross_entropy_over_the_matrix(temperature):
    """In float64, where only the order of sums differs."""
    stage = ViewsStage(recipe := views_recipe(temperature=temperature), model.build(recipe), World())
    first, second = torch.randn(2, 40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    second = (first + second).requires_grad_()
    first.requires_grad_()
    counted = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.7
    measured: dict[str, torch.Tensor] = {}
    loss = stage._loss(first, second, counted, measured)
    expected, top1 = plain(*(F.normalize(x, dim=-1)[counted] for x in (first, second)), temperature)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert float(measured["views_top1"]) == pytest.approx(top1) and 0.1 < top1 < 1
    for got, wanted in zip(*(torch.autograd.grad(x, (first, second)) for x in (loss, expected))):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SIDE)
def test_a_step_is_that_of_the_plain_reference(name, monkeypatch):
    monkeypatch.setattr(views_module, "ROWS", 5)
    recipe, batch = views_recipe(name), views_batch(SIDE[name])
    if name == "debug-RN":  # a broken image still is in the statistics, so the reference has it, too
        batch.valid[:] = True
    rows = COUNTED if name == "debug-ViT" else [*COUNTED[:11], 12, 13, 14, 15]
    measured, grads, _ = step(recipe, batch)
    other = model.build(recipe).train()
    if name == "debug-RN":  # whose statistics are those of one pass
        images = torch.cat([batch.ref, batch.left, batch.right])
        features = F.normalize(other.encode_image(images), dim=-1).view(3, TRIPLETS, 2, -1)
        first, second = features.transpose(0, 1).reshape(3 * TRIPLETS, 2, -1)[rows].unbind(1)
        loss, top1 = plain(first, second, 0.1)
    else:
        loss, top1 = reference(other, batch, 0.1, rows)
    loss.backward()
    assert float(measured["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(measured["views_top1"]) == pytest.approx(top1, abs=1e-6)
    assert all(n.startswith("visual.") for n in grads)
    assert_close(grads, {n: p.grad for n, p in other.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("micro", (1, 2, 3))
def test_a_batch_in_parts_keeps_its_negatives(micro):
    batch = views_batch(16)
    whole, expected, _ = step(views_recipe(), batch)
    parts, grads, _ = step(views_recipe(micro=micro), batch)
    assert parts["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-5)
    assert parts["views_top1"] == whole["views_top1"]
    assert_close(grads, expected)


def test_without_checksums_every_image_counts():
    batch = views_batch(16)
    measured, _, clip = step(views_recipe(), batch, identity=None)
    rows = [i for i in range(18) if i // 3 != 4]
    assert measured["loss"].item() == pytest.approx(reference(clip, batch, 0.1, rows)[0].item(), rel=1e-5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_the_first_valid_one_of_each_kind(items):
    seen, expected = set(), []
    for kind, valid in items:
        expected.append(valid and kind not in seen)
        seen |= {kind} if valid else set()
    kinds, valid = zip(*items)
    assert firsts(torch.tensor(kinds), torch.tensor(valid)).tolist() == expected


# -- ranks ----------------------------------------------------------------------------------

MICROS = (0, 1)


def _ranks(rank: int, size: int, folder) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/world", rank=rank, world_size=size)
    world = World(rank=rank, size=size, control=dist.new_group(backend="gloo"))
    batch, results = views_batch(16), []
    share = len(batch) // size
    own = {name: value[rank * share : (rank + 1) * share] for name, value in vars(batch).items()}
    for micro in MICROS:
        measured, grads, _ = step(views_recipe(micro=micro), Triplet(**own), world)
        results.append((world.mean(measured), grads))
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(tmp_path):
    mp.start_processes(_ranks, (2, tmp_path), nprocs=2, start_method=kit.fork_server())
    expected, gradient, _ = step(views_recipe(), views_batch(16))
    for measured, grads in torch.load(tmp_path / "results.pt", weights_only=True):
        assert measured == pytest.approx({n: float(x) for n, x in expected.items()}, rel=1e-5, abs=1e-6)
        assert_close(grads, gradient, 1e-4)


# -- the stream -----------------------------------------------------------------------------

ORDERS = st.builds(
    Order, kind=st.sampled_from(["random", "block", "file"]), block=st.integers(1, 20),
    window=st.integers(1, 4), turn=st.integers(1, 20),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(order=ORDERS, samples=st.integers(1, 60), views=st.integers(1, 4), first=st.integers(0, 300),
       lanes=st.integers(1, 3))  # fmt: skip
def test_a_stream_of_views_is_the_stream_with_each_sample_repeated(order, samples, views, first, lanes):
    order = replace(order, lanes=lanes if order.kind == "block" else 1)
    several = replace(order, views=views)
    plain_t = first + np.arange(2 * samples)
    epoch, index = order.locate(5, samples, plain_t)
    draws, got = several.locate(5, samples, views * first + np.arange(2 * samples * views))
    assert np.array_equal(got, np.repeat(index, views))
    assert np.array_equal(draws, (epoch[:, None] * views + np.arange(views)).ravel())
    t = views * first + np.arange(samples * views)
    assert several.windows(5, samples, t) == order.windows(5, samples, plain_t[:samples])


def test_a_stream_has_a_view_at_least():
    with pytest.raises(ValueError, match="views 0 must be at least 1"):
        Order(views=0)


def take(loader, count: int) -> dict[str, torch.Tensor]:
    with loader:
        batches = [batch for _, batch in zip(range(count), loader)]
    names = [field.name for field in fields(batches[0])]
    return {name: torch.stack([getattr(batch, name) for batch in batches]) for name in names}


@pytest.mark.parametrize("engine", ["ffcv", pytest.param("dali", marks=pytest.mark.slow)])
def test_the_loader_delivers_two_views_of_the_same_order(engine, triplets, tmp_path):
    file = Beton(triplets)
    changes = dict(batch=8, fraction=0.5, augment="paper", engine=engine)
    recipe = kit.debug(1, triplets, tmp_path, objective="views", **changes)
    whole = take(data.stream(recipe, file, World(), 16, 0), 4)
    usual = take(data.stream(replace(recipe, objective="triplet"), file, World(), 16, 0), 4)
    assert whole["index"].view(4, 8, 2).equal(usual["index"][:, :, None].expand(4, 8, 2))
    for name in ("ref", "left", "right"):
        first, second = whole[name].unflatten(1, (8, 2)).flatten(0, 1).unbind(1)
        assert not (first == second).flatten(1).all(1).any(), "two views have the same draws"
    kit.assert_same(take(data.stream(recipe, file, World(), 16, 8), 3), {n: x[1:] for n, x in whole.items()})
    ranks = [take(data.stream(recipe, file, World(rank=r, size=2), 16, 0), 4) for r in range(2)]
    kit.assert_same({n: torch.cat([y[n] for y in ranks], 1) for n in whole}, whole)


def repeated(path, samples: int = 40):
    """Triplets of eight pictures; returns (the file, which pictures each triplet has)."""
    rng = np.random.default_rng(0)
    pictures = [kit._picture(rng) for _ in range(8)]
    chosen = np.stack([rng.permutation(8)[:3] for _ in range(samples)])
    with writing(path, triplets_schema(), samples) as writer:
        for i, three in enumerate(chosen):
            images = {name: pictures[k] for name, k in zip(("ref", "left", "right"), three)}
            row = {"vote": 1.0, "votes": 1, "key": b"t%d" % i, "luma": np.full(3, 128, np.float32)}
            writer.add({**images, **row})
    return path, chosen


def test_images_are_known_by_their_bytes(tmp_path):
    path, chosen = repeated(tmp_path / "few.beton")
    table = identities(Beton(path))
    for picture in range(8):
        assert len(table[torch.from_numpy(chosen == picture)].unique()) == 1
    assert len(table.unique()) == 8
    recipe = kit.debug(1, path, tmp_path / "run", objective="views", augment="paper", batch=20)
    stage = ViewsStage(recipe, model.build(recipe), World(), Beton(path))
    with data.stream(recipe, Beton(path), World(), 16, 0) as loader:
        parts = stage.prepare(next(iter(loader)))
    assert stage._counted(parts).sum() == 8


# -- runs -----------------------------------------------------------------------------------


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIDE)
def test_a_continued_run_ends_with_the_same_bits(name, triplets, tmp_path):
    changes = dict(model=name, steps=5, augment="paper", objective="views", batch=16, micro=8, val=triplets)
    assert kit.train(kit.debug(1, triplets, tmp_path / "whole", **changes)).done
    recipe = kit.debug(1, triplets, tmp_path / "parts", **changes)
    assert not kit.train(recipe, kit.Asked(2)).done
    command.check(command.complete(recipe), 1)
    assert kit.train(recipe).done
    kit.assert_same(kit.tensors(tmp_path / "whole"), kit.tensors(tmp_path / "parts"))
    *rows, validation = lines(tmp_path / "parts")
    assert [(row["step"], row["samples"]) for row in rows] == [(i, 16 * i) for i in range(1, 6)]
    assert all({"loss", "views_top1", "triplets_per_s"} <= row.keys() for row in rows)
    assert validation.keys() == {"step", "val_loss", "val_twoafc_soft", "val_twoafc"}
    drawn = model.build(recipe).state_dict()
    for key, tensor in checkpoint.weights(tmp_path / "parts").items():
        assert key.startswith("visual.") or tensor.equal(drawn[key]), key


@pytest.mark.slow
def test_it_learns_to_tell_images_apart(triplets, tmp_path):
    """Chance is 1 of 48 images; these are 4 × 4 random colours."""
    recipe = kit.debug(
        1, triplets, tmp_path / "run", objective="views", augment="demo", batch=16, steps=60, lr=3e-3
    )
    kit.train(recipe)
    rows = lines(tmp_path / "run")
    first, last = (
        {name: np.mean([row[name] for row in part]) for name in ("loss", "views_top1")}
        for part in (rows[:5], rows[-5:])
    )
    assert last["views_top1"] > first["views_top1"] + 0.1 and last["loss"] < first["loss"] - 0.5


def test_validation_is_the_triplets(triplets, tmp_path):
    recipe = kit.debug(1, triplets, tmp_path, objective="views", augment="paper")
    clip, file = model.build(recipe), Beton(triplets)
    scores = [
        loop.stage_of(asked)(asked, clip, World(), file).validate(data.held_out(asked, file, World(), 16, 16))
        for asked in (recipe, replace(recipe, objective="triplet"))
    ]
    assert scores[0] == scores[1] and loop.stage_of(recipe) is ViewsStage


def test_a_triplet_that_does_not_decode_is_counted_once(triplets, tmp_path):
    recipe = views_recipe()
    batch = views_batch(16)
    batch.valid[[2, 3]] = False
    _, rejected = loop._prepare(ViewsStage(recipe, model.build(recipe), World()), batch)
    assert rejected == 2  # triplets 1 and 4


# -- plans and mistakes ---------------------------------------------------------------------


@pytest.mark.slow
def test_twice_the_images_are_planned():
    usual = recipes.STAGE1["paper"]
    recipe = replace(usual, objective="views")
    assert (usual.forwarded, recipe.forwarded, recipe.images) == (3, 6, 3)
    assert (recipes.STAGE2["paper"].forwarded, recipes.STAGE2["paper"].views) == (1, 1)
    counts = plan.Counts(1000, 10)
    assert (counts.of(usual), counts.of(recipe)) == (3000, 6000)
    assert auto.passes(recipe, 64, "none", 128) == 4 and auto.passes(recipe, 128, "none", 128) == 3
    assert auto.passes(usual, 64, "none", 128) == 3
    small = replace(usual, model="debug-ViT")
    one, two = (memory.sizes(replace(r, model="debug-ViT"), 0, False) for r in (small, recipe))
    assert two.images == 2 * one.images
    # Of whole kilobytes, but for what a batch has once.
    assert two.kept["none"].whole == pytest.approx(2 * one.kept["none"].whole, rel=0.01)
    clip = model.create("debug-ViT")
    assert model.sample_flops(clip, recipe, 0) == 2 * model.sample_flops(clip, usual, 0)


@pytest.mark.slow
def test_the_plan_of_half_a_batch_is_that_of_the_triplets(triplets, tmp_path, capsys):
    figures = {}
    for objective, batch in (("triplet", 16), ("views", 8)):
        out = tmp_path / f"{objective}.json"
        flags = f"--stage 1 --recipe debug --augment paper --ngpus 1 --objective {objective} --batch {batch}"
        args = [*flags.split(), "--steps", "40", "--data", str(triplets), "--json", str(out)]
        assert plan.main(args) == 0
        figures[objective] = json.loads(out.read_text())["plan"]
    for name in ("gpu_hours", "images_a_second_a_node", "file_gb"):
        assert figures["views"][name] == pytest.approx(figures["triplet"][name]), name


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: Stage1(objective="views", votes="shuffled"), "--votes shuffled: --objective views looks"),
        (lambda: Stage1(objective="views", data=Data(augment="none")), "--augment none: draws nothing"),
        (lambda: Stage1(objective="views", data=Data(augment="eval")), "--augment eval: draws nothing"),
        (lambda: Stage1(temperature=0), "--temperature 0: must be positive"),
        (lambda: Stage1(objective="views", batch=96).total_steps(48), "--batch 96: .* its own negative"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()
    assert Stage1(objective="views", data=Data(augment="none", crop_scale=(0.5, 1.0))).views == 2
    assert Stage2().caches and not Stage1().caches and set(AUGMENTS) >= {"none", "eval"}
