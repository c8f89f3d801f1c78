"""The engines in training: which one `auto` is, and that either trains on the same samples and draws."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.base import hardware
from pipeline.base.hardware import GPUS
from pipeline.beton.fields import Beton
from tests.kits import train as kit
from train import command, model, plan, recipes
from train import data as train_data
from train.config import Data
from train.device import auto, engine, memory
from train.distributed import World

STEPS = 8
# The engines' pixels differ by less than a level of 255 on average (tests/pipeline/loaders/test_dali.py),
# which a few updates carry on: 0.3 % was the most in eight. Another order or other draws change the loss by
# more.
TOLERANCE = 0.01


def losses(stage: int, data, run, engine: str, seed: int = 0) -> list[float]:
    recipe = kit.debug(stage, data, run, engine=engine, steps=STEPS, log_every=1, augment="paper", seed=seed)
    kit.train(recipe)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_both_engines_give_the_same_losses(stage, tmp_path):
    data = (kit.triplets if stage == 1 else kit.pairs)(tmp_path / "data.beton")
    ffcv, dali = (losses(stage, data, tmp_path / engine, engine) for engine in ("ffcv", "dali"))
    assert len(ffcv) == len(dali) == STEPS
    assert dali == pytest.approx(ffcv, rel=TOLERANCE)
    other = losses(stage, data, tmp_path / "other", "ffcv", seed=1)
    assert other != pytest.approx(ffcv, rel=TOLERANCE)  # so the tolerance tells streams apart


@pytest.mark.slow
def test_a_run_goes_on_with_the_other_engine(split, tmp_path):
    changes = dict(steps=STEPS, log_every=1, augment="paper")
    run = tmp_path / "run"
    assert not kit.train(kit.debug(2, split, run, engine="auto", **changes), kit.Asked(3)).done
    assert f"engine: {engine.ON_CPU}" in (run / "log.txt").read_text()
    other = kit.debug(2, split, run, engine="dali", **changes)
    command.check(other, 1)  # nothing of the run's numbers has changed
    assert kit.train(other).done
    said = (run / "log.txt").read_text()
    assert f"engine: {engine.DALI_ON_CPU}" in said and "continuing" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    whole = losses(2, split, tmp_path / "whole", "ffcv")
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(whole, rel=TOLERANCE)


# -- auto -----------------------------------------------------------------------------------

CARD, NO_JPEG = {"jpeg_engine": True}, {"jpeg_engine": False}


@pytest.mark.parametrize(
    "images, workers, feed, chosen, said",
    [
        (5_000, 12, dict(cores=16, **CARD), "ffcv", "12 workers on 16 cores decode 12,000 (2.40×)"),
        (10_000, 12, dict(cores=16, **CARD), "ffcv", "(1.20×)"),  # the margin itself is enough
        (10_001, 12, dict(cores=16, **CARD), "dali", "less than 1.2×; the GPU's JPEG engine decodes"),
        (10_000, 12, dict(cores=11, **CARD), "dali", "12 workers on 11 cores decode 11,000"),
        (10_000, 8, dict(cores=16, **CARD), "dali", "8 workers on 16 cores decode 8,000 (0.80×)"),
        (400, 4, dict(cores=0.5, **CARD), "ffcv", "4 workers on 0.5 cores decode 500 (1.25×)"),
        (10_000, 8, dict(cores=16, dali=False, **CARD), "ffcv", "12 cores and --workers would do, or pip"),
        (10_000, 8, dict(cores=16, **NO_JPEG), "ffcv", "or --engine dali would decode without a JPEG engine"),
        (10_000, 8, dict(cores=16, dali=False, **NO_JPEG), "ffcv", "which is short"),
        (0, 8, dict(cores=1, **CARD), "ffcv", "how fast this GPU trains is not known"),
        (10_000, 8, dict(cores=0, **CARD), "auto", "ffcv from 12 cores and --workers a GPU, below that dali"),
        (10_000, 8, dict(cores=0, **NO_JPEG), "auto", "too few (the GPU has no JPEG engine for dali)"),
    ],
)  # fmt: skip
def test_the_rule(images, workers, feed, chosen, said):
    choice = engine.choose(images, workers, engine.Feed(decode=1000, **feed))
    assert choice.engine == chosen and said in choice.line
    assert choice.line.startswith("auto" if chosen == "auto" else f"{chosen} (auto)")
    assert not images or f"a GPU takes {images:,} images/s" in choice.line
    assert "\n" not in choice.line


def test_gpus_have_the_jpeg_engine_that_their_makers_list_says():
    without = {name for name, card in GPUS.items() if not card.jpeg_engine}
    assert without == {"a40"} and hardware.gpu("NVIDIA A40") is GPUS["a40"]
    assert hardware.gpu("NVIDIA RTX A4000") is None and hardware.gpu("NVIDIA GeForce RTX 4090") is None
    assert hardware.gpu("NVIDIA A100-SXM4-40GB") is GPUS["a100-40"]


def test_recipes_of_small_towers_name_their_engine():
    """By arithmetic they would take more images than any machine decodes."""
    every = [recipe for table in recipes.RECIPES.values() for recipe in table.values()]
    assert {r.name for r in every if r.data.engine == "ffcv"} == set(recipes.SMALL)
    assert {r.data.engine for r in every if r.name not in recipes.SMALL} == {"auto"}


def test_nothing_is_imported_to_see_what_is_installed():
    assert hardware.installed("pipeline.stream") and not hardware.installed("pipeline.nothing")
    assert not hardware.installed("no_such_package.dali")


def test_dali_that_is_not_installed_is_one_line_before_anything_starts(split, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "installed", lambda module: module != "nvidia.dali")
    with pytest.raises(
        ValueError, match=r"--engine dali: DALI is not installed here: pip install .*\[dali\]"
    ):
        command.check(kit.debug(2, split, tmp_path / "run", engine="dali"), 1)
    command.check(kit.debug(2, split, tmp_path / "run", engine="auto"), 1)


class _Card:
    total_memory = int(85e9)


SIZES = memory.Sizes(
    parameters=151_277_313, trained=151_277_313, blocks=12, images=150_528, batch_norm=False,
    kept={how: memory.Kept(12_000_000, 0) for how in memory.RECOMPUTES},
)  # fmt: skip


def settled(monkeypatch, name: str, installed: bool = True, world=World, **data):
    """`auto.on` for the paper's stage 2 on a GPU of this name, as one of six ranks."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Card())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(hardware, "installed", lambda module: installed)
    monkeypatch.setattr(memory, "sizes", lambda *arguments: SIZES)
    monkeypatch.setattr(model, "sample_flops", lambda *arguments: 9_380_000_000)
    monkeypatch.setattr(auto, "mean_tokens", lambda file: 16)
    recipe = recipes.STAGE2["paper"]
    recipe = replace(
        recipe,
        data=replace(recipe.data, **data),
        compute=replace(recipe.compute, compile="no"),
    )
    return auto.on(world(size=6, device=torch.device("cuda")), recipe, None, None)


@pytest.mark.parametrize(
    "name, cores, installed, data, chosen",
    [
        ("NVIDIA A100-SXM4-80GB", 16, True, {}, "ffcv"),
        ("NVIDIA A100-SXM4-80GB", 4, True, {}, "dali"),
        ("NVIDIA A100-SXM4-80GB", 4, False, {}, "ffcv"),
        ("NVIDIA H100 80GB HBM3", 16, True, {}, "dali"),
        ("NVIDIA H100 80GB HBM3", 32, True, {"workers": 28}, "ffcv"),
        ("NVIDIA H100 80GB HBM3", 16, True, {"engine": "ffcv"}, "ffcv"),
        ("NVIDIA H100 80GB HBM3", 64, True, {"engine": "dali"}, "dali"),
        ("NVIDIA GeForce RTX 4090", 2, True, {}, "ffcv"),
    ],
)
def test_a_run_chooses_and_says_so(name, cores, installed, data, chosen, monkeypatch):
    monkeypatch.setattr(World, "cores", lambda self: cores)
    recipe, (line, _) = settled(monkeypatch, name, installed, **data)
    assert recipe.data.engine == chosen and line.startswith(f"engine: {chosen}")
    assert ("as asked" in line) == ("engine" in data)


def test_the_engines_memory_is_counted(monkeypatch):
    """One pass of 5,120 takes 65.7 of 76.5 usable GB; so a DALI of 20 GB makes it two parts."""
    monkeypatch.setattr(World, "cores", lambda self: 4)
    total = memory.Sizes.total

    def with_dali(sizes, recipe, *arguments):
        assert recipe.data.engine in ("auto", "dali")
        own = replace(recipe, data=replace(recipe.data, engine="ffcv"))
        return total(sizes, own, *arguments) + 20e9 * (recipe.data.engine == "dali")

    monkeypatch.setattr(memory.Sizes, "total", with_dali)
    recipe, lines = settled(monkeypatch, "NVIDIA A100-SXM4-80GB")
    assert recipe.data.engine == "dali" and recipe.compute.micro == 2_560
    assert "a GPU takes 5,544 images/s" in lines[0]  # of the one pass that there was room for


def test_the_plan_and_the_run_say_the_same(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(World, "cores", lambda self: 14)
    _, (line, _) = settled(monkeypatch, "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(plan, "count", lambda *arguments: plan.Counts(8_240_000_000, 1_140_000_000))
    args = ["--stage", "2", "--recipe", "paper", "--gpu", "a100", "--ngpus", "6", "--compile", "no"]
    assert plan.main([*args, "--cores", "84", "--json", str(tmp_path / "plan.json")]) == 0
    assert f"  engine        {line.removeprefix('engine: ')}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())["engine"] == "ffcv"
    assert plan.main(args) == 0
    assert "auto: a GPU takes 5,544 images/s; ffcv from 9 cores" in capsys.readouterr().out


def _rank(rank: int, folder) -> None:
    os.sched_setaffinity(0, {0, 1} if rank == 0 else {1})
    dist.init_process_group("gloo", init_method=f"file://{folder}/world", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cuda"), control=dist.new_group(backend="gloo"))
    with pytest.MonkeyPatch.context() as patch:
        recipe, lines = settled(
            patch, "NVIDIA A40" if rank else "NVIDIA A100", world=lambda **_: world, workers=8
        )
    (folder / f"{rank}.json").write_text(json.dumps([world.cores(), recipe.data.engine, lines]))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_ranks_with_different_cores_and_cards_agree(tmp_path):
    """Rank 0 may use both cores, rank 1 one of them; only rank 0's card has a JPEG engine."""
    mp.start_processes(_rank, (tmp_path,), nprocs=2, start_method=kit.fork_server())
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [cores for cores, *_ in told] == [1.5, 0.5]
    assert told[0][1:] == told[1][1:]
    assert told[0][1] == "ffcv" and "8 workers on 0.5 cores" in told[0][2][0]
    assert "--engine dali would decode without a JPEG engine" in told[0][2][0]


def test_a_cpu_takes_ffcv_unless_told_otherwise(split):
    for asked, taken, lines in (
        ("auto", "ffcv", [f"engine: {engine.ON_CPU}"]),
        ("ffcv", "ffcv", []),
        ("dali", "dali", [f"engine: {engine.DALI_ON_CPU}"]),
    ):
        recipe = replace(recipes.STAGE2["paper"], data=Data(data=split, engine=asked))
        found, said = auto.on(World(), recipe, None, Beton(split))
        assert (found.data.engine, said) == (taken, lines)


@pytest.mark.parametrize(
    "name, device, threads", [("dali", "cuda", 4), ("dali", "cpu", 12), ("ffcv", "cuda", 12)]
)
def test_dali_needs_few_threads_where_the_gpu_decodes(name, device, threads):
    recipe = recipes.STAGE2["paper"]
    recipe = replace(recipe, data=replace(recipe.data, engine=name, workers=12))
    assert train_data._workers(recipe, World(device=torch.device(device))) == threads
