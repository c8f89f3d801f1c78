"""The sections of `session.py`: each measures one thing on the current device and returns JSON values.

B pairs, S side, D width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

TOY = False
SCRATCH = Path("/tmp/card")
USEFUL_FLOP = 28.1e9  # of a ViT-B/32 pair with 16 tokens: train.plan
SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def run(name: str, checks: bool) -> dict:
    """The result of the section of that name; what is timed waits for its turn once it has compiled."""
    if not checks and not name.startswith(("step_", "together_", "peer_")):
        await_turn()
    return globals()[name]()


def await_turn() -> None:
    """Wait until the session lets this process have the card for itself."""
    print("READY", flush=True)
    sys.stdin.readline()


def await_turn_once_compiled() -> None:
    """The same when the first compiled graph is about to run."""
    from torch._inductor import output_code

    call = output_code.CompiledFxGraph.__call__

    def first(self, inputs):
        output_code.CompiledFxGraph.__call__ = call
        await_turn()
        return call(self, inputs)

    output_code.CompiledFxGraph.__call__ = first


def cuda() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if cuda() else "cpu")


def out() -> Path:
    return Path(os.environ.get("OUT", SCRATCH / "out"))


def timed(call: Callable[[], object], n: int = 10, warm_up: int = 3) -> float:
    """Median milliseconds of a call: CUDA events, wall clock on a CPU."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(n):
        if cuda():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            begun = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


# -- the card ---------------------------------------------------------------------------------


def limits() -> dict:
    """Copies, and matrix products at 8192³ and at the model's shapes (forward, dgrad, wgrad)."""
    d, result = device(), {}
    if cuda():
        p = torch.cuda.get_device_properties(0)
        result |= {"bytes": p.total_memory, "sms": p.multi_processor_count}
    a = torch.randn(1 << (16 if TOY else 30), device=d, dtype=torch.bfloat16)
    result["copy_gb_s"] = 2 * a.nbytes / timed(lambda: a.clone()) / 1e6
    for pinned in (True, False) if cuda() else ():
        h = torch.randint(0, 255, (1 << 28,), dtype=torch.uint8)
        h = h.pin_memory() if pinned else h
        rate = h.nbytes / timed(lambda h=h: h.to(d, non_blocking=True), 5) / 1e6
        result[f"h2d_{'pinned' if pinned else 'pageable'}_gb_s"] = rate
    result |= limits_again()
    rows = 512 if TOY else 256_000  # 5,120 pictures of 50 tokens
    shapes = [(rows, 768, n) for n in (2304, 768, 3072)] + [(rows, 3072, 768)]
    shapes += [(rows // 3, 512, 2048), (rows // 3, 2048, 512)]
    for m, k, n in shapes:
        x, w, g = (torch.randn(*s, device=d, dtype=torch.bfloat16) for s in ((m, k), (n, k), (m, n)))
        for name, (a, b) in {"fwd": (x, w.T), "dgrad": (g, w), "wgrad": (g.T, x)}.items():
            result[f"tflops_{k}x{n}_{name}"] = 2 * m * k * n / timed(partial(torch.mm, a, b), 5, 2) / 1e9
    return result


def limits_again() -> dict:
    """The product at 8192³ alone: at the end of a session it shows whether the clock has fallen."""
    big = 256 if TOY else 8192
    x, y = (torch.randn(big, big, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return {"tflops_8192": 2 * big**3 / timed(lambda: x @ y) / 1e9}


# -- tests ------------------------------------------------------------------------------------


def pytest(*arguments: str) -> dict:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    log = out() / f"{Path(arguments[0]).stem}.log"
    log.write_text(done.stdout[-400_000:] + done.stderr[-20_000:])
    lines = [ln[:300] for ln in done.stdout.splitlines() if ln.startswith(("FAILED", "ERROR", "E  "))]
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    return {"rc": done.returncode, "last": last, "failures": lines[:40]}


CHOSEN = os.environ.get("CARD_PYTEST", "").split()  # "-k contrastive", say
tests_kernels = partial(pytest, "tests/gpu/test_kernels.py", "-n", "6", *CHOSEN)
tests_dali = partial(pytest, "tests/gpu/test_dali.py", "-n", "4", *CHOSEN)


# -- the trainer's step -----------------------------------------------------------------------


def make_step(micro: int, compile: bool, recompute: str = "none", attention: str = "sdpa", batch: int = 0):
    """(stage, optimizer, batch on the device): the trainer's own, bf16, captions of 16 tokens on average."""
    from kernels.bench import synthetic_captions, synthetic_lengths
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
    recipe = dataclasses.replace(
        recipe, batch=size, model="debug-ViT" if TOY else "ViT-B-32",
        compute=dataclasses.replace(recipe.compute, **compute),
    )  # fmt: skip
    clip = models.build(recipe).to(device(), memory_format=torch.channels_last).train()
    optimizer = Optimizer(clip, recipe.optim)
    stage = STAGES[2](recipe, clip, World(device=device()))
    if cuda():  # the kernel takes half precision and heads of 64 only: debug-ViT on a CPU has neither
        stage.towers.settings = dataclasses.replace(stage.towers.settings, attention=attention)
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
    ms = wall(step, 3 if TOY else 10)  # in a row: the host works on the next step meanwhile, as in training
    rate = batch / ms * 1e3
    row = {"batch": batch, "ms": ms, "pairs_s": rate, "first_s": first}
    if cuda():
        sheet = next((v for k, v in SHEET.items() if k in torch.cuda.get_device_name()), None)
        row |= {"useful_of_sheet": rate * USEFUL_FLOP / sheet} if sheet else {}
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return row


def trainer_step(name: str) -> dict:
    from train.loop import update

    begun = time.perf_counter()
    stage, optimizer, data = make_step(**STEPS[name])
    losses: list[float] = []

    def step() -> None:
        losses.append(update(stage, optimizer, data, 1e-7)[0])

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
        row["ms_images_from_pinned_host"] = timed(lambda: update(stage, optimizer, host, 1e-7), 6, 2)
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

    from kernels.bench import synthetic_captions, synthetic_lengths

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
    image, text = towers(data.images, stage._captions(data.tokens).to(device()))
    loss = image.square().mean() + text.square().mean()
    loss.backward()
    gathered = torch.empty_like(image)
    dist.all_gather_into_tensor(gathered, image.detach().contiguous())
    equal = bool((gathered == image).all())
    dist.destroy_process_group()
    return {"loss": float(loss), "gathered_equal": equal}


# -- kernels beside their peers -----------------------------------------------------------------


def beside(sides: dict, inputs: list, limit_bytes: float = 0, exact: list | None = None) -> dict:
    """Forward and backward of each side: ms, peak memory, error to `exact`; a side that fails says so."""
    rows = {}
    for name, call in sides.items():
        try:
            rows[name] = one_side(call, inputs, limit_bytes, exact)
        except Exception as error:
            rows[name] = f"{type(error).__name__}: {error}"[:300]
    return rows


def one_side(call, inputs: list, moved: float, exact: list | None) -> dict:
    upstream = torch.ones_like(call().detach())

    def both():
        return torch.autograd.grad(call(), inputs, upstream)

    row = {"forward_ms": timed(call), "ms": timed(both)}
    if exact is not None:
        got = [call().detach(), *both()]
        row["errors"] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact)]
    if cuda():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        torch.cuda.synchronize()
        row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    if moved:
        row["gb_s"] = moved / row["ms"] / 1e6
    return row


def infonce() -> dict:
    """A rank's loss of a global batch, collectives left out, beside open_clip's; errors to float64."""
    from kernels.bench_gpu import _rank_loss

    torch.set_float32_matmul_precision("high")
    result = {}
    for n, total in ((64, 256),) if TOY else ((5120, 5120), (5120, 30720), (5120, 65536)):
        g = torch.Generator(device()).manual_seed(0)
        texts = F.normalize(torch.randn(total, 512, device=device(), generator=g), dim=-1)
        images = F.normalize(texts + 0.7 * torch.randn(total, 512, device=device(), generator=g), dim=-1)
        scale = torch.tensor(100.0, device=device(), requires_grad=True)
        labels = torch.arange(n, device=device())

        def clip_loss(images, texts, scale, n=n, labels=labels):
            per_image, per_text = scale * images[:n] @ texts.T, scale * texts[:n] @ images.T
            return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2

        compiled = torch.compile(clip_loss)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, y = (t.to(dtype).requires_grad_() for t in (images, texts))
            sides = {"ClipLoss eager": partial(clip_loss, x, y, scale)}
            if total != 65536:
                sides["ClipLoss compiled"] = partial(compiled, x, y, scale)
            if cuda():
                sides = {"ours": partial(_rank_loss, x, y, scale, n)} | sides
            rows = beside(sides, [x, y, scale])
            result[f"{n}x{total} {str(dtype)[6:]}"] = rows
    result["errors"] = loss_errors()
    return result


def loss_errors() -> dict:
    """Relative errors of loss and gradients against float64 on the same float32 features, 2,048 pairs."""
    from kernels import reference
    from kernels.contrastive import contrastive_loss

    n = 64 if TOY else 2048
    texts = F.normalize(torch.randn(n, 512, device=device()), dim=-1)
    images = F.normalize(texts + 0.7 * torch.randn(n, 512, device=device()), dim=-1)
    wide = [images.double().requires_grad_(), texts.double().requires_grad_()]
    exact = reference.contrastive_loss(*wide, torch.tensor(100.0, device=device(), dtype=torch.float64))
    wanted = [exact.detach(), *torch.autograd.grad(exact, wide)]
    rows = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaves = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        loss = contrastive_loss(*(x.to(dtype) for x in leaves), torch.tensor(100.0, device=device()))
        got = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        rows[str(dtype)[6:]] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, wanted)]
    return rows


def attention() -> dict:
    """Rows of a picture's 50 tokens, and packed captions: ours, every SDPA backend, torch's varlen_attn."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from kernels.attention import attention as ours
    from kernels.bench import synthetic_captions, synthetic_lengths
    from pipeline.packing import pack

    dtype, result = torch.bfloat16, {}
    size = 16 if TOY else 5120
    packed = pack(synthetic_captions(synthetic_lengths(size)).int(), 128)
    segment = packed.segment.to(device())
    ends = caption_ends(packed.segment, size).to(device())
    uniform = torch.arange(0, 50 * size + 1, 50, dtype=torch.int32, device=device())
    shapes = {
        "picture": (size, 50, 12, None, uniform, 50),
        "captions": (len(segment), 128, 8, segment, ends, 77),
    }
    for name, (rows, length, heads, numbers, bounds, longest) in shapes.items():
        qkv = torch.randn(rows, length, 3 * heads * 64, device=device(), dtype=dtype).requires_grad_()
        call = partial(ours, qkv, heads, segment=numbers, causal=numbers is not None)
        sides = {"triton": partial(call, engine="triton")} if cuda() else {}
        for backend in (
            SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
        ):  # fmt: skip

            def one_backend(backend=backend, call=call):
                with sdpa_kernel(backend):
                    return call(engine="sdpa")

            sides[backend.name.lower()] = one_backend
        sides["varlen_attn"] = partial(varlen, qkv, heads, bounds, longest, numbers is not None)
        sides["sdpa, its choice"] = partial(call, engine="sdpa")
        result[name] = beside(sides, [qkv], 11 * qkv.nbytes / 3)
    return result


def caption_ends(segment: torch.Tensor, captions: int) -> torch.Tensor:
    """Bounds of the runs of equal segment in packed rows laid end to end, filler included, int32."""
    flat = segment + (torch.arange(len(segment)) * (captions + 1))[:, None]
    change = torch.nonzero(flat.flatten().diff()).flatten() + 1
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), change, torch.tensor([flat.numel()])])
    return bounds.int()


def varlen(qkv, heads: int, bounds: torch.Tensor, longest: int, causal: bool) -> torch.Tensor:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.view(-1, 3, heads, 64).unbind(1)
    known = inspect.signature(varlen_attn).parameters
    how = {"is_causal": causal} if "is_causal" in known else {"window_size": (-1, 0) if causal else (-1, -1)}
    longest = max(longest, int(bounds.diff().max()) if causal else 0)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, **how)


def triplet() -> dict:
    from kernels import bench_gpu

    found: dict[str, float] = {}
    bench_gpu.bench_limits(found)
    return bench_gpu.bench_triplet(found)


# -- loaders ----------------------------------------------------------------------------------


def photographs() -> dict:
    """A made-up .beton of photographs of real size, 4:2:0, and the CPU engine's code compiled."""
    from pipeline import synthetic

    synthetic.write(PHOTOS(), synthetic.photographs(4 if TOY else 32), 200 if TOY else 20_000)
    with ffcv_loader(1, 64) as loader:
        next(iter(loader))
    return {"bytes": PHOTOS().stat().st_size}


def PHOTOS() -> Path:
    return SCRATCH / "photos.beton"


def ffcv_loader(workers: int, batch: int):
    from pipeline.augment import AUGMENTS
    from pipeline.ffcv_loader import FFCVLoader

    return FFCVLoader(
        PHOTOS(), batch_size=32 if TOY else batch, image_size=224, augment=AUGMENTS["paper"], seed=0,
        workers=workers, dtype=torch.bfloat16, pin=cuda(),
    )  # fmt: skip


def loader_rate(batches, seconds: float) -> dict:
    """images/s, CPU seconds an image, waits for a batch."""
    it = iter(batches)
    begun = time.perf_counter()
    next(it)
    first = time.perf_counter() - begun
    for _ in range(3):
        next(it)
    used, start, n, waits = os.times(), time.perf_counter(), 0, []
    while time.perf_counter() - start < (1 if TOY else seconds):
        begun = time.perf_counter()
        n += len(next(it).index)
        waits.append(1e3 * (time.perf_counter() - begun))
    if cuda():
        torch.cuda.synchronize()
    wall, now = time.perf_counter() - start, os.times()
    spent = now.user + now.system - used.user - used.system
    waits.sort()
    p50, p99 = (waits[int(q * (len(waits) - 1))] for q in (0.5, 0.99))
    row = {"img_s": n / wall, "cores": spent / wall, "cpu_ms_img": 1e3 * spent / n, "first_s": first}
    return row | {"p50_ms": p50, "p99_ms": p99}


def loader_ffcv() -> dict:
    cores, rows = len(os.sched_getaffinity(0)), {}
    for workers in dict.fromkeys((1, max(1, cores // 2), max(1, cores - 2))):
        with ffcv_loader(workers, 512) as loader:
            rows[f"workers_{workers}"] = loader_rate(loader, 5)
    return rows


def together(engine: str) -> dict:
    """A loader in the training process beside the compiled step."""
    from train.loop import update

    stage, optimizer, data = make_step(**STEPS["step_eager" if TOY else "step_compiled"])
    if TOY:
        await_turn()
    else:
        await_turn_once_compiled()
    alone = timed(lambda: update(stage, optimizer, data, 1e-7), 6, 3)
    batch, side = len(data.index), data.images.shape[-1]
    with loader_of(engine, batch, side) as loader:
        it = iter(loader)

        def both() -> None:
            update(stage, optimizer, dataclasses.replace(next(it), tokens=data.tokens), 1e-7)

        loader_alone = wall(lambda: next(it), 6)
        used = os.times()
        together = wall(both, 10)
        spent = os.times().user + os.times().system - used.user - used.system
    slower = together / max(alone, loader_alone)
    row = {"step_ms": alone, "loader_ms": loader_alone, "together_ms": together, "of_the_slower": slower}
    return row | {"pairs_s": batch / together * 1e3, "cores": spent / (10 * together / 1e3)}


def loader_of(engine: str, batch: int, side: int):
    from pipeline.augment import AUGMENTS
    from pipeline.dali_loader import DALILoader
    from pipeline.ffcv_loader import FFCVLoader

    cores = len(os.sched_getaffinity(0))
    how = dict(batch_size=batch, image_size=side, augment=AUGMENTS["paper"], seed=0)
    if engine == "dali":
        return DALILoader(PHOTOS(), **how, workers=4, dtype=torch.float16)
    return FFCVLoader(PHOTOS(), **how, workers=max(1, cores - 2), dtype=torch.bfloat16, pin=cuda())


def wall(call: Callable[[], object], n: int) -> float:
    """Milliseconds of a call, mean of `n` in a row after two more."""
    for _ in range(2):
        call()
    if cuda():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(n):
        call()
    if cuda():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun) / n


together_ffcv, together_dali = partial(together, "ffcv"), partial(together, "dali")


def jpeg_torchvision() -> dict:
    """torchvision's batched decoder: whole 256 × 384 pictures, 4:2:0, from one thread."""
    import torchvision

    from pipeline import synthetic

    jpegs = [torch.frombuffer(bytearray(j), dtype=torch.uint8) for j in synthetic.photographs(32)]
    row: dict = {"torchvision": torchvision.__version__, "bytes": sum(map(len, jpegs)) / len(jpegs)}
    for n in (16,) if TOY else (128, 512, 2048):
        batch = list(itertools.islice(itertools.cycle(jpegs), n))
        used = os.times()
        ms = timed(lambda batch=batch: torchvision.io.decode_jpeg(batch, device=str(device())), 5, 2)
        spent = os.times().user - used.user
        row[f"batch_{n}"] = {"img_s": n / ms * 1e3, "cpu_ms_img": 1e3 * spent / (7 * n)}
    return row


def dali_rate(roi: bool, hw: float, batch: int, threads: int = 4, fancy: bool = True) -> dict:
    """Decode and resize alone: stock DALI operators on made-up boxes."""
    import numpy as np
    import nvidia.dali as dali
    from nvidia.dali import fn, types

    from pipeline import synthetic

    jpegs = [np.frombuffer(j, np.uint8) for j in synthetic.photographs(32)]
    rng = np.random.default_rng(0)

    def feed():
        while True:
            side = rng.integers(100, 250, (batch, 2)).astype(np.int32)
            corner = (rng.random((batch, 2)) * (np.array([256, 384]) - side)).astype(np.int32)
            yield [jpegs[i % 32] for i in range(batch)], corner, side

    @dali.pipeline_def
    def pipe():
        kinds = [types.UINT8, types.INT32, types.INT32]
        j, c, s = fn.external_source(feed(), num_outputs=3, dtype=kinds, ndim=[1, 1, 1], no_copy=True)
        how = dict(
            device="mixed" if cuda() else "cpu", output_type=types.RGB, adjust_orientation=False,
            jpeg_fancy_upsampling=fancy,
        ) | ({"hw_decoder_load": hw} if cuda() else {})  # fmt: skip
        box = dict(axis_names="HW", normalized_anchor=False, normalized_shape=False)
        if roi:
            x = fn.decoders.image_slice(j, c, s, **box, **how)
        else:
            x = fn.slice(fn.decoders.image(j, **how), c, s, **box)
        return fn.resize(x, size=(224, 224), interp_type=types.INTERP_CUBIC, antialias=True)

    p = pipe(
        batch_size=batch, num_threads=threads, device_id=0 if cuda() else None, prefetch_queue_depth=2
    )  # fmt: skip
    p.build()
    for _ in range(3):
        p.run()
    used, start, n = os.times(), time.perf_counter(), 0
    while time.perf_counter() - start < (1 if TOY else 3):
        p.run()
        n += batch
    wall, now = time.perf_counter() - start, os.times()
    spent = now.user + now.system - used.user - used.system
    return {"img_s": n / wall, "cores": spent / wall, "cpu_ms_img": 1e3 * spent / n}


def dali_decodes(roi: bool) -> dict:
    cases = ((0.65, 16, True),) if TOY else (
        (1.0, 512, True), (0.9, 512, True), (0.65, 512, True), (0.0, 512, True), (1.0, 512, False),
        (1.0, 128, True),
    )  # fmt: skip
    rows = {}
    for hw, batch, fancy in cases:
        name = f"hw {hw} batch {batch}{'' if fancy else ' plain upsampling'}"
        try:
            rows[name] = dali_rate(roi, hw, batch, fancy=fancy)
        except Exception as error:
            rows[name] = f"{type(error).__name__}: {error}"[:400]
    return rows


dali_whole = partial(dali_decodes, False)
dali_roi = partial(dali_decodes, True)  # may end the process: nvImageCodec issue 55


def dali_engine() -> dict:
    """The project's DALI loader, full `paper`."""
    from pipeline.augment import AUGMENTS
    from pipeline.dali_loader import DALILoader

    rows = {}
    for batch in (16,) if TOY else (512, 5120):
        with DALILoader(
            PHOTOS(), batch_size=batch, image_size=224, augment=AUGMENTS["paper"], seed=0, workers=4,
            dtype=torch.float16,
        ) as loader:  # fmt: skip
            rows[f"batch_{batch}"] = loader_rate(loader, 5)
            if cuda():
                free, total = torch.cuda.mem_get_info()
                rows[f"batch_{batch}"]["device_gb_used"] = (total - free) / 1e9
    return rows


# -- whole runs -------------------------------------------------------------------------------


def job(run_folder: Path, *arguments: str) -> list[str]:
    """One rank without a launcher between, so that a signal reaches it."""
    return [sys.executable, "-m", "train.job", "--", *arguments, "--run", str(run_folder)]


def losses(run_folder: Path) -> list[float]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def resume() -> dict:
    """A run killed after a checkpoint and started again, beside one that was not: the last losses."""
    data = SCRATCH / "demo"
    build = [sys.executable, "dataprep/build_ffcv.py", "demo", "--out", str(data)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode:
        return {"failed": f"the build: {built.stderr[-1500:]}"}
    common = [
        "--stage", "2", "--recipe", "debug", "--data", str(data / "pairs-train.beton"),
        "--steps", "200", "--save-every", "20", "--log-every", "10",
    ]  # fmt: skip
    whole, killed = SCRATCH / "whole", SCRATCH / "killed"
    subprocess.run(job(whole, *common), check=True, capture_output=True)
    process = subprocess.Popen(
        job(killed, *common), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    time.sleep(1)
    reached = len(losses(killed)) if (killed / "metrics.jsonl").exists() else 0
    done = subprocess.run(job(killed, *common), capture_output=True, text=True)
    a, b = losses(whole), losses(killed)
    row = {"rc": done.returncode, "lines_when_killed": reached, "whole": a[-3:], "killed": b[-3:]}
    return row | {"largest_difference": max(abs(x - y) for x, y in zip(a, b))}


def demo() -> dict:
    """The short demo on this device; its runs come back for a comparison with a CPU's."""
    runs = SCRATCH / "runs"
    command = [sys.executable, "-m", "train.demo", "--short", "--data", str(SCRATCH / "demo-data")]
    done = subprocess.run([*command, "--out", str(runs)], capture_output=True, text=True)
    short = runs.with_name("runs-short")
    with tarfile.open(out() / "demo.tar.gz", "w:gz") as tar:
        for path in [*short.rglob("metrics.jsonl"), *short.rglob("summary.json"), *short.rglob("log.txt")]:
            tar.add(path, path.relative_to(short))
    row: dict = {"rc": done.returncode, "said": (done.stdout + done.stderr)[-1500:]}
    if (short / "summary.json").exists():
        row |= json.loads((short / "summary.json").read_text())
        row["losses"] = {stage: losses(short / stage) for stage in ("stage1", "pi", "baseline")}
    return row
