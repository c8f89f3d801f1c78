"""The trainer's step in its variants, and open_clip's beside it: `train/bench`, a side in each section."""

from __future__ import annotations

import os
import tempfile
import traceback
from functools import partial
from pathlib import Path

from tests.gpu.sections.common import TOY, await_turn, await_turn_once_compiled, cuda
from train.bench.command import Command, read
from train.bench.side import Side
from train.bench.trainer import Trainer
from train.bench.worker import Worker

# section → its flags over the recipe `paper`
STEPS = {
    "step_auto": "",
    "step_max": "--compile max",
    "step_compiled": "--micro 0 --compile yes --recompute pointwise --attention triton",
    "step_gelu": (gelu := "--micro 0 --compile yes --recompute gelu --attention triton"),
    "step_gelu_expandable": gelu,  # with other settings of torch's allocator: session.run_here
    "step_sdpa": "--micro 0 --compile yes --recompute pointwise --attention sdpa",
    "step_none": "--micro 0 --compile yes --recompute none --attention triton",
    "step_halves": "--micro 2560 --compile yes --recompute none --attention triton",
    "step_eager": "--micro 2560 --compile no --recompute none --attention sdpa",
    "step_stage1": "--stage 1",
    "step_rn50": "--model RN50 --batch 2560 --steps 5",
    "step_vit_l_14": "--model ViT-L-14 --batch 640 --steps 3",
}
SMALL = {"RN50": "debug-RN", "2560": "8"} | ({} if cuda() else {"triton": "auto"})  # with --toy


def options(flags: str) -> Command:
    """The benchmark's command line, in bf16; with --toy of a tiny model."""
    words = ["--precision", "bf16", *flags.split()]
    if TOY:
        small = SMALL | {"ViT-L-14": "debug-ViT"}
        words = ["--model", "debug-ViT", "--batch", "16", *(small.get(word, word) for word in words)]
    return read(words, cuda())


def wait(side: Side) -> None:
    """Until this process may have the card for itself; a step that is compiled asks once it is."""
    if side.compiles:
        compile_whole_graphs()
        await_turn_once_compiled()
    else:
        await_turn()


def compile_whole_graphs() -> None:
    """Have the backward graph compiled with the forward one, before this process's turn."""
    from torch._functorch import config

    if hasattr(config, "force_non_lazy_backward_lowering"):
        config.force_non_lazy_backward_lowering = True


def figures(side: Side, *names: str) -> dict:
    """Of a side; one that fails does not take the others with it."""
    row = side.first()
    del row["first_s"]  # it has waited for its turn: `compile_cache` has the time of compiling
    for name in names:
        try:
            row |= getattr(side, name)()
        except Exception:
            row["failed"] = f"{row.get('failed', '')}{name}: {traceback.format_exc()[-1000:]}"
    return row


def make_step(name: str) -> Trainer:
    """The trainer's side of that section, at its turn."""
    chosen = options(STEPS[name])
    side = Trainer(chosen.recipe, chosen.tokens)
    wait(side)
    return side


def trainer_step(name: str) -> dict:
    return figures(make_step(name), "rate", "fed", "memory", "kinds", "products")


globals().update({name: partial(trainer_step, name) for name in STEPS})


def peer(name: str) -> dict:
    from train.bench import peers

    chosen, main = options(""), os.environ.get("OPEN_CLIP_MAIN")
    side = peers.make(name, chosen.recipe, chosen.tokens, Path(main) if main else None)
    wait(side)
    return figures(side, "rate", "memory")


peer_open_clip = partial(peer, "open_clip")
peer_open_clip_compiled = partial(peer, "open_clip_compiled")
peer_main_step = partial(peer, "open_clip_main_compiled")


def compile_cache() -> dict:
    """Seconds of the first step where nothing was compiled before, and in a process that finds that code."""
    chosen, row = options("--compile yes"), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold_s", "warm_s"):
            kept = {"TORCHINDUCTOR_CACHE_DIR": folder}
            with Worker(Trainer, chosen.recipe, chosen.tokens, environment=kept) as worker:
                row[name] = worker("first")["first_s"]
    return row
