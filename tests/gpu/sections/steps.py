"""The trainer's step in its variants, and open_clip's beside it.

B pairs, S side.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from kernels.bench.clock import call_ms
from pipeline.base import hardware
from tests.gpu.sections.common import TOY, await_turn, await_turn_once_compiled, cuda, device, mean_ms

USEFUL_FLOP = 28.1e9  # of a ViT-B/32 pair with 16 tokens, by train.plan


def make_step(micro: int, compile: bool, recompute: str = "none", attention: str = "sdpa", batch: int = 0):
    """The trainer's own (stage, optimizer, batch on the device): bf16, captions of 16 tokens on average."""
    from kernels.bench.cases import synthetic_captions, synthetic_lengths
    from pipeline.batch import ImageText
    from train import model as models
    from train import recipes
    from train.distributed import World
    from train.loop import STAGES
    from train.optim import Optimizer

    torch.set_float32_matmul_precision("high")
    compile_whole_graphs()
    size = batch or (16 if TOY else 5120)
    recipe = recipes.choose("2", "paper")
    compute = dict(micro=8 if TOY and micro else micro, compile=compile, recompute=recompute, pack="yes")
    if cuda():  # on a CPU there is only the other
        compute["attention"] = attention
    chosen = dataclasses.replace(recipe.compute, **compute)
    model = "debug-ViT" if TOY else "ViT-B-32"
    recipe = dataclasses.replace(recipe, batch=size, model=model, compute=chosen)
    clip = models.build(recipe).to(device(), memory_format=torch.channels_last).train()
    optimizer = Optimizer(clip, recipe.optim)
    stage = STAGES[2](recipe, clip, World(device=device()))
    side = clip.visual.image_size
    side = side[0] if isinstance(side, (tuple, list)) else side
    g = torch.Generator(device()).manual_seed(0)
    images = torch.randn(size, side, side, 3, generator=g, device=device(), dtype=torch.bfloat16)
    images = images.permute(0, 3, 1, 2)  # the loaders' layout
    tokens = synthetic_captions(synthetic_lengths(size)).int()
    valid = torch.ones(size, dtype=torch.bool)
    data = ImageText(images=images, tokens=tokens, index=torch.arange(size), valid=valid)
    return stage, optimizer, data


STEPS = {
    "step_compiled": dict(micro=0, compile=True, recompute="pointwise", attention="triton"),
    "step_sdpa": dict(micro=0, compile=True, recompute="pointwise"),
    "step_none": dict(micro=0, compile=True, attention="triton"),
    "step_halves": dict(micro=2560, compile=True, attention="triton"),
    "step_eager": dict(micro=2560, compile=False),
}


def compile_whole_graphs() -> None:
    """Have the backward graph compiled with the forward one, before this process's turn."""
    from torch._functorch import config

    if hasattr(config, "force_non_lazy_backward_lowering"):
        config.force_non_lazy_backward_lowering = True


def measure_step(step: Callable[[], object], batch: int, first: float) -> dict:
    """Rate, memory and share of the data sheet of a step that has run once."""
    if cuda():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    ms = mean_ms(step, 3 if TOY else 10)
    rate = batch / ms * 1e3
    row = {"batch": batch, "ms": ms, "pairs_s": rate, "first_s": first}
    if cuda():
        card = hardware.gpu(torch.cuda.get_device_name())
        row |= {"useful_of_sheet": rate * USEFUL_FLOP / card.flops} if card else {}
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return row


def train_step(stage, optimizer, data) -> torch.Tensor:
    """One step of the trainer; its loss."""
    from train.loop import update

    return update(stage, optimizer, data, 1e-7)["loss"]


def trainer_step(name: str) -> dict:
    begun = time.perf_counter()
    stage, optimizer, data = make_step(**STEPS[name])
    losses: list[torch.Tensor] = []

    def step() -> None:
        losses.append(train_step(stage, optimizer, data))

    if STEPS[name]["compile"]:
        await_turn_once_compiled()
    else:
        await_turn()
    step()
    row = STEPS[name] | measure_step(step, len(data.index), time.perf_counter() - begun)
    row["loss"] = [float(x) for x in losses[:3]]
    if cuda():
        row |= profile_step(step)
        pinned = data.images.cpu().pin_memory()
        host = dataclasses.replace(data, images=pinned)
        row["ms_images_from_pinned_host"] = call_ms(lambda: train_step(stage, optimizer, host), 6, 2)
    return row


step_compiled, step_sdpa, step_none, step_halves, step_eager = (partial(trainer_step, n) for n in STEPS)

KINDS = {
    "attention": ("attention_forward_kernel", "attention_backward_kernel", "flash", "fmha", "mem_eff"),
    "loss": ("lse_kernel", "gradient_kernel"),
    "gemm": ("gemm", "cutlass", "xmma", "nvjet", "wgmma", "cublas"),
    "optimizer": ("adam", "multi_tensor", "lpnorm"),
    "norm": ("layer_norm", "layernorm", "gammabeta"),
    "gelu": ("gelu", "erf"),
    "copy": ("memcpy", "copy_", "memset", "fill"),
    "other fused": ("triton_",),
}


def profile_step(step: Callable[[], object]) -> dict:
    """Milliseconds a step by kind of kernel (by its name), and the longest kernels."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    kinds: dict[str, float] = {}
    events = [e for e in traced.key_averages() if e.self_device_time_total]
    for e in events:
        kind = next((k for k, w in KINDS.items() if any(x in e.key.lower() for x in w)), "other")
        kinds[kind] = kinds.get(kind, 0) + e.self_device_time_total / 2e3
    events.sort(key=lambda e: -e.self_device_time_total)
    top = [[e.key[:120], round(e.self_device_time_total / 2e3, 2), e.count // 2] for e in events[:45]]
    kinds = {k: round(v, 2) for k, v in sorted(kinds.items(), key=lambda x: -x[1])}
    return {"ms_by_kind": kinds, "kernels_a_step": sum(e.count for e in events) // 2, "top": top}


# -- peers: open_clip's released and next version -----------------------------------------------


def open_clip_step(compiled: str, main: bool):
    """open_clip's model, ClipLoss and fused AdamW under bf16 autocast; compiled: no, model, step."""
    if main:
        sys.path.insert(0, os.environ["OPEN_CLIP_MAIN"])
    import open_clip

    from kernels.bench.cases import synthetic_captions, synthetic_lengths

    torch.set_float32_matmul_precision("high")
    compile_whole_graphs()
    size = 16 if TOY else 2048
    options = {"force_custom_text": True} if main else {}
    model = open_clip.create_model("ViT-B-32", device=device(), output_dict=True, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    loss_of = open_clip.ClipLoss()
    images = torch.randn(size, 3, 224, 224, device=device()).contiguous(memory_format=torch.channels_last)
    lengths = synthetic_lengths(size)
    tokens = synthetic_captions(lengths).to(device())
    if main:  # its custom text tower takes a batch padded to its longest caption
        tokens = tokens[:, : max(lengths)].contiguous()
    run_model = torch.compile(model) if compiled == "model" else model

    def forward_backward() -> torch.Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            loss = sum(loss_of(**run_model(images, tokens), output_dict=True).values())
        loss.backward()
        return loss

    def whole() -> torch.Tensor:
        loss = forward_backward()
        optimizer.step()
        return loss

    body = torch.compile(whole) if compiled == "step" else whole

    def step() -> None:
        optimizer.zero_grad()
        body()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return step, size, open_clip.__version__


def peer(compiled: str, main: bool) -> dict:
    begun = time.perf_counter()
    step, size, version = open_clip_step(compiled, main)
    if compiled == "no":
        await_turn()
    else:
        await_turn_once_compiled()
    step()
    row = measure_step(step, size, time.perf_counter() - begun)
    return {"open_clip": version, "compiled": compiled, **row}


peer_open_clip = partial(peer, "no", False)
peer_open_clip_compiled = partial(peer, "model", False)
peer_main_step = partial(peer, "step", True)


def nccl_one_rank() -> dict:
    """DDP over NCCL with one rank: one step of the towers, and the loss's collectives."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    backend = "nccl" if cuda() else "gloo"
    dist.init_process_group(backend, init_method="tcp://127.0.0.1:29611", rank=0, world_size=1)
    stage, _, data = make_step(micro=0, compile=False, batch=16 if TOY else 256)
    devices = [0] if cuda() else None
    towers = DistributedDataParallel(stage.towers, device_ids=devices, find_unused_parameters=True)
    image, text = towers(data.images, data.tokens.to(device()))
    loss = image.square().mean() + text.square().mean()
    loss.backward()
    gathered = torch.empty_like(image)
    dist.all_gather_into_tensor(gathered, image.detach().contiguous())
    equal = bool((gathered == image).all())
    dist.destroy_process_group()
    return {"loss": float(loss), "gathered_equal": equal}
