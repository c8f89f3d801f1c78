"""Memory of a step counted without a GPU, and the settings that are chosen by it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.hardware import GPUS
from pipeline.beton.fields import Beton
from pipeline.packing import ROW, pack
from tests.kits import train as kit
from train import model, recipes
from train.device import auto, memory
from train.distributed import World

pytestmark = pytest.mark.slow  # models are counted, seconds each

MEASURED = kit.REPOSITORY / "tests" / "gpu" / "measured"
GB = 1e9


def of_model(name: str, stage: int = 2, **compute):
    recipe = replace(recipes.choose(str(stage), "paper"), model=name)
    return replace(recipe, compute=replace(recipe.compute, **compute))


@pytest.fixture(scope="module")
def sizes():
    """Of the paper's model, 16 tokens a caption, by whether it is compiled."""
    return {compiled: memory.sizes(of_model("ViT-B-32"), 16, compiled) for compiled in (True, False)}


# -- memory ---------------------------------------------------------------------------------


def peak(file: str, section: str) -> float:
    """Bytes that a step of 5,120 pairs took on an H200."""
    rows = map(json.loads, (MEASURED / file).read_text().splitlines())
    return next(row for row in rows if row["section"] == section)["peak_gb"] * GB


@pytest.mark.parametrize(
    "file, section, compiled, micro, recompute",
    [
        ("2026-11-26-h200-2.jsonl", "step_none", True, 5120, "none"),
        ("2026-11-27-h200-1.jsonl", "step_auto", True, 5120, "none"),
        ("2026-11-26-h200-2.jsonl", "step_compiled", True, 5120, "pointwise"),
        ("2026-11-26-h200-2.jsonl", "step_halves", True, 2560, "none"),
        ("2026-11-26-h200-1.jsonl", "step_eager", False, 2560, "none"),
    ],
)
def test_memory_is_what_a_card_measured(file, section, compiled, micro, recompute, sizes):
    """The first batches that were on the card had 2 bytes a value, as two of levels have together."""
    counted = sizes[compiled].total(of_model("ViT-B-32"), 5120, recompute, micro)
    if file.startswith("2026-11-27"):
        counted -= 5120 * sizes[compiled].images  # the next one was not there
    assert counted == pytest.approx(peak(file, section), rel=0.03)


@pytest.mark.parametrize("name, share", [("ViT-B-32", 1024), ("RN50", 128), ("ViT-L-14", 64)])
def test_other_models_take_what_a_card_measured(name, share):
    """Eager, the next batch not there.  Too much is counted where blocks are made again, never too little."""
    rows = map(json.loads, (MEASURED / "2026-11-27-h200-3.jsonl").read_text().splitlines())
    measured = next(row for row in rows if row["section"] == "memory_eager")
    recipe = of_model(name)
    sizes = memory.sizes(recipe, 16, False)
    hows = [how for how in memory.RECOMPUTES if f"{name} {how}" in measured]
    assert len(hows) == 3
    for how in hows:
        counted = sizes.total(recipe, share, how, share) - share * sizes.images
        most = 1.16 if how == "blocks" else 1.05
        assert 1 <= counted / (measured[f"{name} {how}"]["peak_gb"] * GB) < most


@pytest.mark.parametrize("name", ("debug-ViT", "debug-RN"))
@pytest.mark.parametrize("recompute", memory.RECOMPUTES)
def test_fake_tensors_keep_what_real_ones_keep(name, recompute):
    """In float32, where a GPU's and a CPU's autograd keep the same; by the difference of two batches."""
    recipe = of_model(name, precision="fp32")
    counted = memory.sizes(recipe, 16, False).kept[recompute].whole
    compute = replace(recipe.compute, recompute=recompute)
    clip = model.create(name)
    towers = model.Towers(clip, replace(recipe, compute=compute))
    parameters = {p.untyped_storage()._cdata for p in clip.parameters()}
    totals, side = [], model.image_side(clip)
    for samples in (64, 128):
        tokens = torch.randint(1, 300, (samples, 16), dtype=torch.int32)
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = towers(torch.rand(samples, 3, side, side), pack(tokens, rows=samples // 8))
        totals.append(sum(s.nbytes() for at, s in storages.items() if at not in parameters))
        del outputs
    # A CPU's attention keeps a mask for packed captions in every block.
    masks = 0 if recompute == "blocks" else len(clip.transformer.resblocks) * 16 * ROW * 4
    assert counted == pytest.approx((totals[1] - totals[0]) / 64 - masks, rel=0.02)


def test_autocast_is_that_of_a_gpu(sizes):
    """LayerNorm's input in float32: eager autograd keeps it, compiled code makes it again from bfloat16."""
    copies = sizes[False].kept["none"].whole - sizes[True].kept["none"].whole
    assert copies == pytest.approx(24 * 50 * 768 * 2, rel=0.05)  # text's stream is float32 in both
    assert sizes[True].parameters == 151_277_313 == sizes[True].trained


def test_what_a_stage_freezes_has_no_moments():
    perceptual = memory.sizes(of_model("ViT-B-32", stage=1), 16, True)
    assert perceptual.trained == 87_849_216 and perceptual.images == 3 * 3 * 224 * 224
    assert perceptual.total(of_model("ViT-B-32", 1), 0, "none", 0) == 6 * 151_277_313 + 8 * 87_849_216


def test_an_engine_on_the_card_counts(sizes):
    recipe = of_model("ViT-B-32")
    on_card = replace(recipe, data=replace(recipe.data, engine="dali"))
    for share in (512, 5120):
        totals = [sizes[True].total(r, share, "none", share) for r in (on_card, recipe)]
        assert totals[0] - totals[1] == memory.DALI_BYTES + share * sizes[True].images


# -- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gpu, recompute, micro, passes",
    [
        ("a100", "pointwise", 5120, 3),
        ("h100", "pointwise", 5120, 3),
        ("h200", "none", 5120, 3),
        ("a100-40", "none", 1280, 4),
    ],
)
def test_the_paper_on_each_card(gpu, recompute, micro, passes, sizes, monkeypatch):
    monkeypatch.setattr(memory, "sizes", lambda recipe, tokens, compiled: sizes[compiled])
    settled = auto.settle(of_model("ViT-B-32"), 5120, 16, GPUS[gpu].memory)
    assert (settled.way.recompute, settled.way.micro, settled.way.passes) == (recompute, micro, passes)
    assert settled.fits and settled.recipe.compute.compile == "yes"


@given(
    share=st.integers(1, 6000),
    gb=st.floats(0.1, 400),
    micro=st.one_of(st.just("auto"), st.just(0)),
    recompute=st.sampled_from(("auto", *memory.RECOMPUTES)),
    batch_norm=st.booleans(),
)
def test_the_fastest_way_that_fits_is_taken(share, gb, micro, recompute, batch_norm, sizes):
    recipe = of_model("ViT-B-32", micro=micro, recompute=recompute, compile="yes")
    counted = replace(sizes[True], batch_norm=batch_norm)
    ways = auto.ways(recipe, counted, share)
    assert len({(w.micro, w.recompute) for w in ways}) == len(ways)
    assert all(share % w.micro == 0 for w in ways)
    assert [w.passes for w in ways] == sorted(w.passes for w in ways)
    if micro == 0:
        assert {w.micro for w in ways} == {share}
    if recompute != "auto":
        assert {w.recompute for w in ways} == {recompute}
    for way in ways:  # one pass is one pass, and computing again or caching costs another
        cached = way.micro < share
        assert way.passes == 3 + cached + (way.recompute == "blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "sizes", lambda *arguments: counted)
        settled = auto.settle(recipe, share, 16, gb * GB)
    fitting = [w for w in ways if w.bytes <= auto.USABLE * gb * GB]
    assert settled.fits == bool(fitting)
    assert settled.way == (fitting[0] if fitting else min(ways, key=lambda w: w.bytes))
    assert settled.recipe.rank_batch(recipe.batch // share) if recipe.batch % share == 0 else True


def test_batch_normalisation_keeps_its_micro_batch(monkeypatch):
    counted = memory.sizes(of_model("RN50"), 16, True)
    assert counted.batch_norm
    monkeypatch.setattr(memory, "sizes", lambda *arguments: counted)
    recipe = of_model("RN50")
    assert auto.settle(recipe, 5120, 16, 85 * GB).way.micro == 1280
    assert auto.settle(recipe, 5120, 16, 150 * GB, begun=640).way.micro == 640
    assert auto.settle(recipe, 2560, 16, 85 * GB, begun=2560).fits is False  # said, not changed
    monkeypatch.setattr(memory, "sizes", lambda *arguments: replace(counted, batch_norm=False))
    assert auto.settle(recipe, 5120, 16, 400 * GB, begun=640).way.micro == 5120


@pytest.mark.parametrize("model_name", ("ViT-L-14", "RN50"))
@pytest.mark.parametrize("stage", (1, 2))
def test_other_towers_have_settings_that_fit(model_name, stage):
    recipe = of_model(model_name, stage)
    settled = auto.settle(recipe, recipe.batch // 6, 16, GPUS["a100"].memory)
    assert settled.fits and settled.way.recompute == "none"
    assert settled.way.passes == (4 if stage == 2 else 3)


def test_a_compiler_that_is_missing_is_said(sizes, monkeypatch):
    monkeypatch.setattr(memory, "sizes", lambda recipe, tokens, compiled: sizes[compiled])
    monkeypatch.setenv("CC", "/nonexistent/gcc")
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    settled = auto.settle(of_model("ViT-B-32"), 5120, 16, GPUS["h200"].memory)
    assert settled.recipe.compute.compile == "no" and "is not found" in auto.describe(settled)
    assert settled.way.bytes > 100 * GB  # of the eager towers, which keep more


def test_towers_that_run_as_they_are_are_not_compiled():
    settled = auto.settle(of_model("coca_ViT-B-32", stage=1), 128, 16, GPUS["a100"].memory)
    assert settled.recipe.compute.compile == "no" and "pooled by attention" in auto.describe(settled)


def test_a_run_settles_for_the_smallest_card_of_its_ranks(split, monkeypatch, sizes):
    monkeypatch.setattr(memory, "sizes", lambda recipe, tokens, compiled: sizes[compiled])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Card())
    agreed = []

    class Ranks(World):
        def agree(self, value):
            agreed.append(value)
            return max(value, int(-85e9))  # another rank has less

    ranks, asked = Ranks(size=6, device=torch.device("cuda")), of_model("ViT-B-32")
    asked = replace(asked, data=replace(asked.data, engine="ffcv"))
    recipe, (_, line) = auto.on(ranks, asked, None, Beton(split))
    assert agreed == [-150e9] and recipe.compute.recompute == "pointwise" and recipe.compute.micro == 5120
    assert "recompute pointwise, micro 5120 (one pass)" in line and "of the GPU's 85.0 GB" in line
    assert "more than it can hold" not in line


class _Card:
    total_memory = int(150e9)


def test_a_cpu_computes_nothing_twice(split):
    recipe, _ = auto.on(World(), of_model("ViT-B-32"), None, Beton(split))
    compute = recipe.compute
    assert (compute.compile, compute.recompute, compute.micro) == ("no", "none", recipe.batch)
    asked = of_model("ViT-B-32", compile="yes", recompute="blocks", micro=16)
    assert auto.on(World(), asked, None, Beton(split))[0].compute == asked.compute
