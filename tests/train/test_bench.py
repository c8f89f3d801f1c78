"""The benchmark on tiny models: its step is the trainer's, its peer does the same work, failures are rows."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.kits import train as kit
from train import model as models
from train import recipes
from train.bench import ceilings, command, kinds, peers, synthetic
from train.bench.forms import FORMS, USUAL
from train.bench.race import OURS, Race
from train.bench.side import Side
from train.bench.trainer import FIGURES, Trainer
from train.bench.worker import Worker
from train.distributed import World
from train.loop import STAGES, update
from train.optim import Optimizer


def recipe_of(stage: int, **changes):
    compute = replace(recipes.RECIPES[stage]["debug"].compute, threads=1)
    return replace(recipes.RECIPES[stage]["debug"], batch=6, steps=1, compute=compute, **changes)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Also where there is a GPU: figures are compared to the bit."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of workers


# -- sides ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", (1, 2))
def test_a_step_is_the_trainers(stage):
    """`loop.update` on the same batch ends with the very same parameters."""
    recipe = recipe_of(stage)
    side = Trainer(recipe, 8)
    loss = side.first()["loss"]
    clip = models.build(recipe).train()
    batch = synthetic.batch(recipe, 16, 8)
    plain = STAGES[stage](recipe, clip, World(), synthetic.file(batch))
    expected = update(plain, Optimizer(clip, recipe.optim), plain.prepare(batch), recipe.optim.lr * 1e-6)
    assert loss == float(expected["loss"])
    kit.assert_same(side.stage.clip.state_dict(), clip.state_dict())


@pytest.mark.parametrize("stage", (1, 2))
@pytest.mark.parametrize("model", ("debug-ViT", "debug-RN"))
def test_the_peer_does_the_same_work(stage, model):
    """open_clip's loss from the same weights and samples; float32 sums in another order."""
    recipe = recipe_of(stage, model=model)
    ours, peer = Trainer(recipe, 8), peers.make("open_clip", recipe, 8, None)
    assert peer.first()["loss"] == pytest.approx(ours.first()["loss"], rel=1e-5)
    assert peer.flops() > ours.flops() > 0


def test_a_side_that_has_rested_goes_on_as_before():
    """Its memory is given away meanwhile."""
    sides = [Trainer(recipe_of(2), 8) for _ in range(2)]
    losses = []
    for side, rests in zip(sides, (True, False)):
        side.step()
        if rests:
            held = sum(storage.nbytes() for storage in side.storages())
            side.put_away()
            assert held > 0 == sum(storage.nbytes() for storage in side.storages())
            side.wake()
        losses.append(float(side.step()))
    assert losses[0] == losses[1]
    kit.assert_same(*(side.stage.clip.state_dict() for side in sides))


def test_images_and_captions_look_like_data():
    recipe = replace(recipe_of(2), batch=64)
    batch = synthetic.batch(recipe, 16, 12)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (64, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert 120 < batch.images.float().mean() < 135 and batch.images.float().std() > 70
    captions = synthetic.file(batch).info["captions"]
    assert sum(captions["lengths"]) == 64 and captions["mean_tokens"] == pytest.approx(12, abs=0.3)


def test_the_prefetcher_feeds_the_step():
    side = Trainer(recipe_of(2), 8)
    row = side.fed()
    assert row["together_pairs_s"] == pytest.approx(6e3 / row["together_ms"])


@pytest.mark.slow
def test_every_figure():
    side = Trainer(recipe_of(2), 8)
    row: dict = {}
    for name in FIGURES:
        row |= getattr(side, name)()
    json.dumps(row)
    assert row["compute"]["compile"] == "no" and row["compute"]["micro"] == 6
    assert row["useful_tflops"] == pytest.approx(row["useful_gflop"] * 6 / row["ms"])
    assert row["ms_by_kind"]["gemm"] > 0 and row["products_ms"] > 0 and not {"peak_gb", "card"} & row.keys()


# -- ceilings -------------------------------------------------------------------------------


def counted(found: list[ceilings.Product]) -> Counter[str]:
    return sum((Counter({product.name: product.count}) for product in found), Counter())


def sums(found: list[ceilings.Product]) -> int:
    return sum(product.flops * product.count for product in found)


@pytest.mark.parametrize("stage", (1, 2))
def test_products_are_what_a_step_multiplies(stage):
    """From shapes alone the same as from a real step, which has those of the loss too (stage 2)."""
    compute = replace(recipe_of(stage).compute, pack="yes")
    side = Trainer(replace(recipe_of(stage), compute=compute), 8)
    real, shapes = ceilings.recorded(side.step), ceilings.products(side.recipe, side.given[0])
    assert shapes and counted(shapes) <= counted(real)
    assert stage == 2 or sums(real) == sums(shapes)
    row = ceilings.measure(shapes, "fp32", torch.device("cpu"))[0]
    assert row["ms"] > 0 and row["tflops"] > 0


def test_products_by_hand():
    """A block's MLP: forward, and twice as much backward."""
    recipe = recipe_of(1)
    part = tree_map_only(Tensor, lambda x: x, Trainer(recipe, 8).given[0])
    counts = {p.name: (p.count, p.flops) for p in ceilings.products(recipe, part)}
    rows = 18 * 5  # images of a class token and four patches; the last block's are pooled
    assert counts[f"addmm 128 {rows}×32 32×128"] == (1, 2 * rows * 32 * 128)
    assert counts[f"mm {rows}×32 32×128"] == (1, 2 * rows * 32 * 128)


def test_kernels_have_kinds():
    names = {
        "attention_forward_kernel": "attention",
        "lse_kernel": "loss",
        "nvjet_tst_128x256_64x6": "gemm",
        "void at::native::multi_tensor_apply_kernel<FusedAdam>": "optimizer",
        "triton_per_fused__to_copy_native_layer_norm_4": "norm",
        "triton_poi_fused_gelu_backward_2": "gelu",
        "Memcpy HtoD (Pinned -> Device)": "copy",
        "triton_poi_fused_add_3": "other fused",
        "something": "other",
    }
    assert {name: kinds.kind(name) for name in names} == names


# -- workers and races ----------------------------------------------------------------------


class Fake(Side):
    """Fails at its step number `fails`, or ends its process."""

    def __init__(self, fails: int = 0, exits: bool = False):
        super().__init__()
        self.recipe, self.device = recipe_of(2), torch.device("cpu")
        self.fails, self.exits, self.taken = fails, exits, 0

    compiles = False

    def step(self) -> Tensor:
        self.taken += 1
        if self.taken == self.fails:
            if self.exits:
                os._exit(7)
            raise RuntimeError("out of luck\nand more")
        return torch.zeros(())

    def figure(self) -> dict:
        return {"figure": 1}


class Inline:
    """A worker in this process."""

    def __init__(self, side: Fake):
        self.side = side

    def __call__(self, method: str):
        try:
            return getattr(self.side, method)()
        except RuntimeError as error:
            raise command.console.Failed(str(error)) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def raced(sides: dict[str, Fake], rounds: int = 3) -> Race:
    race = Race(ExitStack())
    for name, side in sides.items():
        race.start(name, lambda side=side: Inline(side), counted=False)
    race.run(rounds)
    race.figures(["figure"])
    return race


@pytest.mark.parametrize("fails", (1, 3))
def test_a_peer_that_fails_is_a_row(fails):
    rows = raced({OURS: Fake(), "good": Fake(), "bad": Fake(fails)}).rows
    assert "out of luck" in rows["bad"]["failed"] and "times_faster" not in rows["bad"]
    assert rows["good"]["times_faster"] > 0 and rows[OURS]["figure"] == 1
    low, high = rows["good"]["times_faster_range"]
    assert low <= rows["good"]["times_faster"] <= high


def test_when_ours_fails_the_peers_are_still_measured():
    rows = raced({OURS: Fake(2), "good": Fake()}).rows
    assert "failed" in rows[OURS] and rows["good"]["turn_ms"] > 0 and "times_faster" not in rows["good"]


def test_the_main_branch_is_its_best_form():
    rows = {"open_clip_main": {"times_faster": 1.3}, "open_clip_main_compiled": {"times_faster": 1.2}}
    rows |= {"open_clip": {"times_faster": 1.6}, "open_clip_compiled": {"failed": "why"}}
    assert command.verdicts(rows) == {"step_vs_open_clip_main": 1.2, "step_vs_open_clip": 1.6}
    assert set(rows) == set(FORMS) and {n for names in USUAL.values() for n in names} == set(FORMS)


def test_shares_of_what_was_measured():
    assert command.shares({"failed": "why"}) == {}
    ours = {"ms": 10, "products_ms": 6, "useful_tflops": 400, "card": {"tflops_8192": 800}}
    assert command.shares(ours) == {"products_of_step": 0.6, "useful_of_8192": 0.5}


@pytest.mark.slow
def test_a_process_that_ends_says_so(capfd):
    with Worker(Fake, 2) as worker:
        assert worker("first")["loss"] == 0
        with pytest.raises(command.console.Failed, match="^out of luck$"):
            worker("turn")
        assert worker("figure") == {"figure": 1}  # an error is not the end
    with Worker(Fake, 1, True) as worker, pytest.raises(command.console.Failed, match="ended with 7"):
        worker("first")
    assert "out of luck\nand more" in capfd.readouterr().err


# -- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--micro", "5"], "--micro 5: does not divide"),
        (["--open-clip-main", "nowhere"], "--open-clip-main nowhere"),
        (["--peers", "somebody"], "--peers"),
        (["--rounds", "0"], "--rounds 0"),
        (["--tokens", "90"], "--tokens 90"),
        (["--model", "ViT-Q"], "--model ViT-Q"),
        (["--attention", "triton", "--precision", "bf16"], "--attention triton: needs a GPU"),
        (["--stage", "3"], "--stage 3"),
    ],
)
def test_a_mistake_is_one_line(args, said, capsys):
    assert command.main(args) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and said in told and "\n" not in told


def test_defaults_are_this_machines():
    small = command.read([], cuda=False).recipe
    assert (small.batch, small.compute.precision, small.compute.threads) == (16, "fp32", 2)
    told = command.read(["--batch", "8", "--precision", "bf16", "--steps", "3"], cuda=False).recipe
    assert (told.batch, told.compute.precision, told.steps) == (8, "bf16", 3)
    card = command.read(["--stage", "2"], cuda=True).recipe
    assert (card.batch, card.compute.precision, card.compute.compile) == (5_120, "bf16", "auto")
    assert command.read(["--stage", "1"], cuda=True).recipe.batch == 128


@pytest.mark.slow
def test_the_command_beside_the_real_open_clip(tmp_path, capfd):
    """Whole, each side in its process: open_clip as installed, and a main branch that is not there."""
    out = tmp_path / "bench.json"
    args = ["--model", "debug-ViT", "--batch", "4", "--threads", "1", "--rounds", "2", "--tokens", "8"]
    assert command.main([*args, "--out", str(out)]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    ours, theirs = result["ours"], result["peers"]["open_clip"]
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert theirs["times_faster"] == result["step_vs_open_clip"] > 0
    assert theirs["flops_allow"] > 1 and ours["together_ms"] > 0 and "failed_figures" not in ours
    assert "--open-clip-main" in result["peers"]["open_clip_main"]["failed"]
    assert "step_vs_open_clip_main" not in result and result["goals"]["step_vs_open_clip"] == 1.5
