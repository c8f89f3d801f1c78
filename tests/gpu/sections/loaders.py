"""The loaders alone and beside the step, and the decoders under them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pipeline.base.measure import stopwatch
from tests.gpu.sections.common import SCRATCH, TOY, cuda, device, mean_ms
from tests.gpu.sections.steps import make_step
from train.bench.trainer import Trainer


def photographs() -> dict:
    """A made-up .beton of photographs of real size, 4:2:0; and the CPU loader's code, compiled."""
    from pipeline.throughput import synthetic

    synthetic.write(photos(), synthetic.photographs(4 if TOY else 32), 200 if TOY else 20_000)
    with ffcv_loader(1, 64) as loader:
        next(iter(loader))
    return {"bytes": photos().stat().st_size}


def photos() -> Path:
    return SCRATCH / "photos.beton"


def ffcv_loader(workers: int, batch: int):
    from pipeline.augment import AUGMENTS
    from pipeline.ffcv_loader import FFCVLoader

    options = dict(batch_size=32 if TOY else batch, image_size=224, augment=AUGMENTS["paper"], seed=0)
    return FFCVLoader(photos(), **options, workers=workers, dtype=torch.uint8, pin=cuda())


def measured(parts: Sequence[str], toy: Sequence[str], **settings) -> dict:
    """What `python -m pipeline.throughput` measures of these parts; of `toy` where there is no GPU."""
    from pipeline.throughput.command import measure
    from pipeline.throughput.settings import Settings

    if TOY:
        small = dict(rounds=1, seconds=0.1, batch_size=8, gpu_batch=16)
        settings |= small | ({"workers": (1, 2)} if "workers" in settings else {"workers": (1,)})
    return measure(Settings(file=photos(), parts=tuple(parts if cuda() else toy), **settings))


def failed(*found: dict) -> dict:
    """What makes the section a failed one: parts of ours that failed. A peer's failure is a row."""
    rows = [row for each in found for row in each["parts"] if "failed" in row]
    ours = {row["part"]: row["failed"] for row in rows if not row["part"].startswith("peer")}
    return {"failed": ours} if ours else {}


def dali_engine() -> dict:
    """The project's DALI loader, full `paper`, beside DALI's own random graph and decoding alone."""
    from pipeline.throughput.parts import LIMITS

    parts = ("dali_gpu", "peer_dali_gpu", "peer_dali_gpu_whole", LIMITS[True])
    toy = ("dali_cpu", "peer_dali_cpu", "decode")
    rows = {"batch_512": measured(parts, toy, rounds=2, gpu_batch=512)}
    if not TOY:
        rows["batch_5120"] = measured(parts[:1], toy[:1], rounds=2, gpu_batch=5120)
    return rows | failed(*rows.values())


def dali_whole() -> dict:
    """Decoding alone, by the JPEG engine's share of a batch, beside torchvision's and torchcodec's."""
    from pipeline.throughput.parts import PARTS

    sweep = [name for name in PARTS if name.startswith("gpu_decode")]
    found = measured([*sweep, "peer_torchvision_gpu", "peer_torchcodec_gpu"], ["decode"], rounds=2)
    return found | failed(found)


def jpeg_torchvision() -> dict:
    """The two that are called with a list, by its length."""
    parts = ("peer_torchvision_gpu", "peer_torchcodec_gpu")
    lengths = (16,) if TOY else (128, 2048)
    return {f"batch_{n}": measured(parts, ["decode"], rounds=2, gpu_batch=n) for n in lengths}


def loader_ffcv() -> dict:
    """The FFCV engine by its threads, beside decoding alone."""
    cores = len(os.sched_getaffinity(0))
    workers = tuple(dict.fromkeys((1, max(1, cores // 2), max(1, cores - 2))))
    parts = ("ffcv_uint8", "decode")
    found = measured(parts, parts, rounds=2, batch_size=512, workers=workers)
    return found | failed(found)


# (images of a piece, graphs): of the DALI loader beside the step
DALI_WAYS = ((256, 8), (512, 1), (256, 4))


def together_ffcv() -> dict:
    """The FFCV loader in the training process beside the compiled step."""
    return beside(*step_alone(), "ffcv")


def together_dali() -> dict:
    """The DALI loader there, by how large its pieces are and how many graphs share them."""
    from pipeline import dali_loader

    trainer, alone = step_alone()
    rows: dict[str, dict] = {}
    for piece, graphs in DALI_WAYS:
        dali_loader.PIECE, dali_loader.GRAPHS["gpu"] = piece, graphs
        try:
            rows[f"{piece} images x {graphs}"] = beside(trainer, alone, "dali")
        except Exception as error:
            rows[f"{piece} images x {graphs}"] = {"failed": f"{type(error).__name__}: {error}"[:600]}
        print(json.dumps(rows), flush=True)  # in case the time runs out
    return {"step_ms": alone, **rows}


def together_dali_apart() -> dict:
    """The same while some multiprocessors are kept from the step, so that DALI's kernels find them free."""
    trainer, alone = step_alone()
    rows: dict[str, dict | float] = {"step_ms": alone}
    for kept in (8, 16):
        with torch.cuda.stream(stream_without(kept)) if cuda() else contextlib.nullcontext():
            slower = 1e3 * trainer.in_a_row(trainer.step, 6).wall
            rows[f"{kept} kept"] = {"step_ms": slower, **beside(trainer, slower, "dali")}
        print(json.dumps(rows), flush=True)
    return rows


def stream_without(kept: int) -> torch.cuda.ExternalStream:
    """A stream whose kernels run on all but `kept` of the GPU's multiprocessors (a "green context")."""
    from cuda.bindings import driver

    def of(returned: tuple):
        assert not int(returned[0]), returned[0]
        return returned[1] if len(returned) == 2 else returned[1:]

    gpu = of(driver.cuDeviceGet(0))
    all_ = of(driver.cuDeviceGetDevResource(gpu, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM))
    _, _, others = of(driver.cuDevSmResourceSplitByCount(1, all_, 0, kept))
    described = of(driver.cuDevResourceGenerateDesc([others], 1))
    flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = of(driver.cuGreenCtxCreate(described, gpu, flags))
    flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    return torch.cuda.ExternalStream(int(of(driver.cuGreenCtxStreamCreate(context, flags, 0))))


def step_alone() -> tuple[Trainer, float]:
    """The compiled step, and its milliseconds."""
    trainer = make_step("step_eager" if TOY else "step_compiled")
    trainer.first()
    return trainer, 1e3 * trainer.in_a_row(trainer.step, 6).wall


def beside(trainer: Trainer, alone: float, engine: str) -> dict:
    """Loader and step alone, on each other's batches (through the trainer's prefetcher), and unconnected."""
    from train.device.prefetch import Prefetcher

    batch, side = len(trainer.host), trainer.host.images.shape[-1]
    with loader_of(engine, batch, side) as loader:
        it = iter(loader)
        row = {"loader_ms": mean_ms(lambda: next(it), 6), "kernels": kernels_of(lambda: next(it), 3)}
        row |= unconnected(trainer, it)
        batches = (dataclasses.replace(ready, tokens=trainer.host.tokens) for ready in it)
        waits = []
        with Prefetcher(batches, trainer.stage.prepare, device()) as prepared:

            def step():
                parts, wait = next(prepared)
                waits.append(wait)
                trainer.update(parts)

            with stopwatch() as spent:
                together = mean_ms(step, 10)
        row["waited_ms"] = 1e3 * statistics.fmean(wait.seconds() for wait in waits[2:])
    row |= {"together_ms": together, "of_the_slower": together / max(alone, row["loader_ms"])}
    return row | {"pairs_s": batch / together * 1e3, "cores": spent.cpu / spent.wall}


def unconnected(trainer: Trainer, it: Iterator) -> dict:
    """The step on one batch again and again, while a thread takes the loader's as fast as they come."""
    taken, stop = 0, threading.Event()

    def drain() -> None:
        nonlocal taken
        with torch.cuda.stream(torch.cuda.Stream()) if cuda() else contextlib.nullcontext():
            while not stop.is_set():
                next(it)
                taken += 1

    thread = threading.Thread(target=drain)
    thread.start()
    first, begun = taken, time.perf_counter()
    step = 1e3 * trainer.in_a_row(trainer.step, 8).wall
    loader = 1e3 * (time.perf_counter() - begun) / max(1, taken - first)
    stop.set()
    thread.join()
    return {"step_beside_ms": step, "loader_beside_ms": loader}


def kernels_of(call: Callable[[], object], n: int) -> dict:
    """What a call runs on the GPU: milliseconds, how many, and the longest [name, milliseconds, how many]."""
    if not cuda():
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as traced:
        for _ in range(n):
            call()
        torch.cuda.synchronize()
    events = sorted(traced.key_averages(), key=lambda e: -e.self_device_time_total)
    rows = [[e.key[:90], e.self_device_time_total / n / 1e3, e.count // n] for e in events]
    return {"ms": sum(r[1] for r in rows), "count": sum(r[2] for r in rows), "longest": rows[:14]}


def loader_of(engine: str, batch: int, side: int):
    from pipeline.augment import AUGMENTS
    from pipeline.dali_loader import DALILoader
    from pipeline.ffcv_loader import FFCVLoader

    cores = len(os.sched_getaffinity(0))
    options = dict(batch_size=batch, image_size=side, augment=AUGMENTS["paper"], seed=0, dtype=torch.uint8)
    if engine == "dali":
        return DALILoader(photos(), **options, workers=4)
    return FFCVLoader(photos(), **options, workers=max(1, cores - 2), pin=cuda())


def dali_rate(hw: float, batch: int, fancy: bool) -> dict:
    """Regions decoded and resized: stock DALI operators on made-up boxes."""
    import numpy as np
    import nvidia.dali as dali
    from nvidia.dali import fn, types

    from pipeline.throughput import synthetic

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
        options = dict(output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=fancy)
        options |= dict(device="mixed", hw_decoder_load=hw) if cuda() else dict(device="cpu")
        box = dict(axis_names="HW", normalized_anchor=False, normalized_shape=False)
        x = fn.decoders.image_slice(j, c, s, **box, **options)
        return fn.resize(x, size=(224, 224), interp_type=types.INTERP_CUBIC, antialias=True)

    options = dict(batch_size=batch, num_threads=4, prefetch_queue_depth=2)
    p = pipe(**options, device_id=0 if cuda() else None)
    p.build()
    for _ in range(3):
        p.run()
    images = 0
    with stopwatch() as spent:
        start = time.perf_counter()
        while time.perf_counter() - start < (1 if TOY else 3):
            p.run()
            images += batch
    return {
        "img_s": images / spent.wall,
        "cores": spent.cpu / spent.wall,
        "cpu_ms_img": 1e3 * spent.cpu / images,
    }


def dali_roi() -> dict:
    """Regions: may end the process (nvImageCodec issue 55)."""
    cases = [(hw, 512, True) for hw in (1.0, 0.9, 0.65, 0.0)] + [(1.0, 512, False), (1.0, 128, True)]
    rows: dict[str, dict | str] = {}
    for hw, batch, fancy in [(0.65, 16, True)] if TOY else cases:
        name = f"hw {hw} batch {batch}{'' if fancy else ' plain upsampling'}"
        try:
            rows[name] = dali_rate(hw, batch, fancy)
        except Exception as error:
            rows[name] = f"{type(error).__name__}: {error}"[:400]
    return rows
