"""Plans: figures that can be checked by hand or against others' numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.hardware import GPUS
from tests.kits import train as kit
from train import model, plan, recipes
from train.device import auto, memory


def test_flops_are_the_towers_own_sum():
    """Every matrix product of debug-ViT counted by hand."""
    clip = model.create("debug-ViT")
    image, text = model.forward_flops(clip, 6)

    def tower(tokens: int, width: int, layers: int, patches: int = 0) -> int:
        block = 2 * tokens * width * 3 * width + 4 * tokens * tokens * width  # projections, attention
        after = 2 * width * width + 2 * 2 * width * 4 * width  # output projection and MLP of a token
        full, pooled = (layers - 1) * (block + tokens * after), block + after
        embedding = 2 * patches * 3 * 8 * 8 * width
        return full + pooled + embedding + 2 * width * 16

    # The last block's query is projected for the pooled token alone.
    assert image == tower(5, 32, 2, patches=4) - 2 * 4 * 32 * 32
    assert text == tower(6, 16, 2) - 2 * 5 * 16 * 16


def test_flops_of_a_resnet_are_its_convolutions_and_one_query():
    clip = model.create("debug-RN").train()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    image, _ = model.forward_flops(clip, 6)
    kit.assert_same(clip.state_dict(), before)
    assert clip.training
    visual, (images, _) = clip.eval().visual, model.example(clip, 1, 6)
    with FlopCounterMode(display=False) as convolutions:
        x = visual.stem(images)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
    width, places, heads = x.shape[1], 1 + x[0, 0].numel(), visual.attnpool.num_heads
    # Query, it through the keys' matrix, values and output of one token; scores and means in every head.
    pool = 2 * width * (3 * width + visual.output_dim) + 4 * heads * places * width
    assert image == convolutions.get_total_flops() + pool


SIZES = memory.Sizes(
    parameters=151_277_313, trained=151_277_313, blocks=12, images=150_528, batch_norm=False,
    kept={"none": memory.Kept(20_000_000, 0), "gelu": memory.Kept(15_000_000, 0),
          "pointwise": memory.Kept(12_000_000, 0), "blocks": memory.Kept(2_000_000, 0)},
)  # fmt: skip


def test_the_plan_of_the_paper_adds_up(monkeypatch):
    monkeypatch.setattr(memory, "sizes", lambda *arguments: SIZES)
    recipe, machine = recipes.STAGE2["paper"], plan.Machine(tokens=16)
    settled = auto.settle(recipe, 5_120, 16, GPUS["a100"].memory)
    counts = plan.Counts(image_flops=8_150_000_000, text_flops=1_130_000_000)
    figures = plan.plan(settled, machine, counts, 5_120, 15_061_515, 4e11)
    assert figures.steps == math.ceil(32 * 15_061_515 / 30_720)
    assert figures.gflop_a_sample == pytest.approx(3 * (8.15 + 1.13))  # one pass: forward and backward
    assert figures.samples_a_second_a_gpu == pytest.approx(312e12 / 2 / (figures.gflop_a_sample * 1e9))
    assert figures.gpu_hours == pytest.approx(6 * figures.hours)
    assert figures.hours * 3600 * 6 * figures.samples_a_second_a_gpu == pytest.approx(figures.steps * 30_720)
    assert figures.checkpoint_gb == pytest.approx(12 * 0.151277313)
    # float32 and half parameters, moments; two batches of levels; what is kept.
    by_hand = 151_277_313 * 14 + 2 * 5_120 * 150_528 + 5_120 * 12_000_000
    assert figures.memory_gb == pytest.approx(by_hand / 1e9) and figures.fits
    faster = plan.plan(settled, replace(machine, measured=5_000), counts, 5_120, 15_061_515, 4e11)
    assert faster.samples_a_second_a_gpu == 5_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, said",
    [
        (["--gpu", "v100"], "--gpu v100: known are a100"),
        (["--ngpus", "7"], "--batch 30720: not divisible by 7 ranks"),
        (["--efficiency", "1.5"], "--efficiency 1.5"),
        (["--model", "ViT-Q"], "--model ViT-Q"),
        (["--measured", "nan"], "--measured nan: must be finite"),
        (["--json", "/dev/null/x"], "/dev/null"),
    ],
)
def test_a_mistake_in_a_plan_is_one_line(args, said, capsys, monkeypatch):
    monkeypatch.setattr(plan, "count", lambda *arguments: plan.Counts(1, 1))
    monkeypatch.setattr(memory, "sizes", lambda *arguments: SIZES)
    assert plan.main(["--stage", "2", *args]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and said in told and "\n" not in told


@pytest.mark.slow
@pytest.mark.parametrize("stage", (1, 2))
def test_a_plan_is_printed_and_saved(stage, split, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no data lies that the recipe would find by itself
    out = tmp_path / "plan.json"
    args = ["--stage", str(stage), "--recipe", "debug", "--ngpus", "2", "--json", str(out)]
    args += ["--samples", "1000"] if stage == 1 else ["--data", str(split), "--model", "debug-RN"]
    assert plan.main(args) == 0
    told = capsys.readouterr().out
    for word in ("parameters", "loader", "memory a GPU", "checkpoint", "(chosen)"):
        assert word in told
    assert ("read from" in told) == (stage == 2)
    values = json.loads(out.read_text())
    assert values["plan"]["share"] == 8 and values["plan"]["steps"] == 4
    kept = {how: whole for how, (whole, _) in values["sizes"]["kept"].items()}
    assert kept["none"] >= kept["pointwise"] >= kept["blocks"] > 0
    assert values["compute"]["micro"] == 8
