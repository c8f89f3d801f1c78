"""What makes a step fast changes none of its numbers: levels, static shapes, lines read late, parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.debugging import aot_eager

from pipeline.augment import AUGMENTS, lookup_table
from pipeline.packing import pack
from tests.kits import train as kit
from tests.train.test_steps import SIDE, assert_close, gradients, pair_batch, recipe_of, triplet_batch
from train import command, loop, model
from train.distributed import World
from train.stages.stage2 import ContrastiveStage, enough_rows


def levels_of(batch, side: int):
    """The batch with random levels for images, channels_last as loaders deliver them; and it normalised."""
    generator = torch.Generator().manual_seed(3)
    names = [name for name, value in vars(batch).items() if value.ndim == 4]
    shape = (len(batch), side, side, 3)
    levels = {
        name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        for name in names
    }
    mean, std = (torch.tensor(getattr(AUGMENTS["none"], n), dtype=torch.float64) for n in ("mean", "std"))
    values = {
        name: ((x / 255.0).double() - mean[:, None, None]) / std[:, None, None] for name, x in levels.items()
    }
    return replace(batch, **levels), replace(batch, **values)


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("name", SIDE)
@pytest.mark.parametrize("stage", (1, 2))
def test_levels_are_normalised_where_they_are_used(stage, name, precision):
    """To the bit of the table that the loaders use themselves."""
    batch = (triplet_batch if stage == 1 else pair_batch)(SIDE[name])
    levels, _ = levels_of(batch, SIDE[name])
    recipe = recipe_of(stage, name, precision=precision)
    table = lookup_table(AUGMENTS["none"], torch.bfloat16 if precision == "bf16" else torch.float32)
    red, green, blue = (torch.arange(3) == i for i in range(3))
    assert red.any() and green.any() and blue.any()

    def normalised(x):
        channels = [table[c][x[:, c].long()] for c in range(3)]
        return torch.stack(channels, 1).contiguous(memory_format=torch.channels_last)

    images = {n: normalised(x) for n, x in vars(levels).items() if x.dtype == torch.uint8}
    measured, grads, _ = gradients(recipe, levels)
    expected, reference, _ = gradients(recipe, replace(levels, **images))
    assert {n: float(v) for n, v in measured.items()} == {n: float(v) for n, v in expected.items()}
    kit.assert_same(grads, reference)


def test_levels_stand_for_normalised_values():
    levels, values = levels_of(pair_batch(16), 16)
    _, grads, _ = gradients(recipe_of(2, "debug-ViT"), levels)
    _, expected, _ = gradients(recipe_of(2, "debug-ViT"), replace(values, images=values.images.float()))
    assert_close(grads, expected)


@pytest.mark.slow
def test_a_longer_batch_makes_no_dimension_dynamic(monkeypatch):
    """It is compiled for its own shape; the code of the others stays theirs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([x.shape for x in inputs if isinstance(x, torch.Tensor)])
        assert not any(isinstance(n, torch.SymInt) for shape in graphs[-1] for n in shape)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    recipe = recipe_of(2, "debug-ViT", compile="yes", pack="yes")
    stage = ContrastiveStage(recipe, model.build(recipe).train(), World())
    for rows in (2, 3, 2, 4, 3):
        stage.rows = rows
        stage.gradients(stage.prepare(pair_batch(16)))
    assert len(graphs) == 3


@pytest.mark.parametrize("compile, mode", [("yes", None), ("max", "max-autotune-no-cudagraphs")])
def test_what_the_compiler_is_asked_for(compile, mode, monkeypatch):
    """No CUDA graphs: captions of a rare longer batch have another shape."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    recipe = recipe_of(2, "debug-ViT", compile=compile)
    stage = ContrastiveStage(recipe, model.build(recipe), World())
    assert asked == [{"dynamic": False, "mode": mode}] and stage.packs


def test_validation_is_not_compiled(monkeypatch):
    def compile(function, **options):
        def refuse(*arguments):
            raise AssertionError("compiled for a shape that comes once")

        return refuse

    monkeypatch.setattr(torch, "compile", compile)
    recipe = recipe_of(2, "debug-ViT", compile="yes")
    stage = ContrastiveStage(recipe, model.build(recipe).eval(), World())
    assert stage.validate([pair_batch(16)])["val_loss"] > 0


def _compiled_ranks(rank: int, folder) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/world", rank=rank, world_size=2)
    world = World(rank=rank, size=2, control=dist.new_group(backend="gloo"))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch.compile = partial(torch.compile, backend=backend)
    batch = pair_batch(16)
    own = {name: value[6 * rank : 6 * rank + 6] for name, value in vars(batch).items()}
    recipe = recipe_of(2, "debug-ViT", compile="yes", pack="yes", recompute="pointwise")
    loss, grads, _ = gradients(recipe, replace(batch, **own), world)
    if rank == 0:
        torch.save((loss, grads, len(graphs)), folder / "results.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_compiled_ranks_take_the_step_of_one_in_one_graph(tmp_path):
    """The model has 3 MB of gradients; DDP's first bucket, where torch would cut the graph, ends after 1."""
    mp.start_processes(_compiled_ranks, (tmp_path,), nprocs=2, start_method=kit.fork_server())
    loss, grads, graphs = torch.load(tmp_path / "results.pt", weights_only=True)
    expected, reference, _ = gradients(recipe_of(2, "debug-ViT"), pair_batch(16))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_close(grads, reference, 1e-4)
    assert graphs == 1


@given(
    mean=st.floats(4, 40),
    spread=st.floats(0, 0.8),
    captions=st.integers(1, 3000),
    context=st.sampled_from((16, 77)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_rows_of_a_file_hold_its_batches(mean, spread, captions, context, seed):
    """Lengths of log-normal distributions, as captions have them."""
    generator = np.random.default_rng(seed)
    file = np.clip(generator.lognormal(np.log(mean), spread, 20_000).round(), 2, 77).astype(int)
    drawn = generator.choice(file, captions)
    tokens = torch.zeros(captions, 77, dtype=torch.int32)
    tokens[torch.arange(77) < torch.from_numpy(drawn)[:, None]] = 9
    needed = len(pack(model.fit_context(tokens, context)).tokens)
    rows = enough_rows(np.bincount(file, minlength=78).tolist(), captions, context)
    assert needed <= rows <= 2 + needed * (1 + 20 / captions**0.5)


def test_a_file_that_counts_its_captions_decides_the_rows():
    recipe = recipe_of(2, "debug-ViT", pack="yes")
    counts = [0, 0, 0, 50, 30]
    file = SimpleNamespace(info={"captions": {"lengths": counts}})
    stage = ContrastiveStage(recipe, model.build(recipe), World(), file)
    (part,) = stage.prepare(pair_batch(16))
    assert len(part.captions.tokens) == stage.rows == enough_rows(counts, 12, 77)


@pytest.mark.slow
def test_lines_that_are_read_late_say_the_same(split, tmp_path, monkeypatch):
    """As on a GPU: one step later, but at once before a validation, a checkpoint and the end."""
    at_once = kit.debug(
        2, split, tmp_path / "once", steps=7, log_every=2, val=split, val_every=3, save_every=5
    )
    kit.train(at_once)
    order = []
    write, step = loop.Metrics.write, loop._Run._step

    def written(self, line):
        order.append(("line", line["step"]))
        write(self, line)

    def stepped(self):
        step(self)
        order.append(("step", self.state.step))

    monkeypatch.setattr(loop.Metrics, "write", written)
    monkeypatch.setattr(loop._Run, "_step", stepped)
    monkeypatch.setattr(loop._Run, "reads_late", True)
    kit.train(replace(at_once, run=tmp_path / "late"))
    assert order[:3] == [("step", 1), ("step", 2), ("step", 3)]
    lines = [[json.loads(x) for x in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
             for run in ("once", "late")]  # fmt: skip
    timed = ("seconds", "pairs_per_s", "data_wait", "memory_gb")
    for line in (*lines[0], *lines[1]):
        for name in timed:
            line.pop(name, None)
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [2, 3, 3, 4, 6, 6, 7, 7]


def test_only_rejected_samples_that_were_trained_on_count(split, tmp_path, monkeypatch):
    """The loader is some batches ahead; a run that stops in time has not met their samples."""
    prepare = loop._prepare
    batches = iter(range(100))

    def damaged(stage, batch):
        parts, rejected = prepare(stage, batch)
        return parts, rejected + (len(batch) if next(batches) >= 2 else 0)

    monkeypatch.setattr(loop, "_prepare", damaged)
    kit.train(kit.debug(2, split, tmp_path / "run", steps=2, log_every=1))
    batches = iter(range(100))
    with pytest.raises(loop.TrainingStopped, match="33.3% of the samples are damaged"):
        kit.train(kit.debug(2, split, tmp_path / "more", steps=3, log_every=1))


@pytest.mark.slow
def test_a_run_may_go_on_in_other_parts_where_they_decide_nothing(split, tmp_path):
    recipe = kit.debug(2, split, tmp_path / "run", batch=16)
    kit.train(recipe, kit.Asked(2))
    parts = replace(recipe, compute=replace(recipe.compute, micro=4, recompute="blocks"))
    command.check(parts, 1)
    assert kit.train(parts).done
    for name, negatives in (("debug-RN", "global"), ("debug-ViT", "micro")):
        compute = replace(recipe.compute, micro=8)
        first = replace(recipe, model=name, negatives=negatives, compute=compute, run=tmp_path / name)
        kit.train(first, kit.Asked(1))
        other = replace(first, compute=replace(compute, micro=4))
        with pytest.raises(ValueError, match="micro was 8, now 4"):
            command.check(other, 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs the compiler g++")
def test_a_run_that_starts_again_finds_its_compiled_code(triplets, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    run, code = tmp_path / "run", []
    args = ["--stage", 1, "--recipe", "debug", "--data", triplets, "--run", run, "--cluster", "local"]
    args += ["--no-tensorboard", "--compile", "yes", "--steps", 2]
    for _ in range(2):
        ended, output = kit.launch(*args)
        assert ended == 0, output
        code.append({p: p.stat().st_mtime_ns for p in (run / "compiled").rglob("*.so")})
        for part in ("checkpoints", "latest"):
            shutil.move(run / part, tmp_path / f"{part}-{len(code)}")
    assert code[0] and code[0] == code[1]
