"""The loaders alone and beside the step, and the decoders under them."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from functools import partial
from pathlib import Path

import torch

from kernels.bench.clock import call_ms
from pipeline.base.measure import Spent, stopwatch
from tests.gpu.sections.common import SCRATCH, TOY, cuda, device, mean_ms
from tests.gpu.sections.steps import make_step


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


def rates(spent: Spent, images: int) -> dict:
    """images/s, cores kept busy, CPU time an image."""
    return {
        "img_s": images / spent.wall,
        "cores": spent.cpu / spent.wall,
        "cpu_ms_img": 1e3 * spent.cpu / images,
    }


def loader_rate(batches, seconds: float) -> dict:
    """`rates` of a loader, seconds to its first batch, and the waits for the later ones."""
    it = iter(batches)
    with stopwatch() as first:
        next(it)
    for _ in range(3):
        next(it)
    images, waits = 0, []
    with stopwatch() as spent:
        start = time.perf_counter()
        while time.perf_counter() - start < (1 if TOY else seconds):
            begun = time.perf_counter()
            images += len(next(it).index)
            waits.append(1e3 * (time.perf_counter() - begun))
        if cuda():
            torch.cuda.synchronize()
    waits.sort()
    p50, p99 = (waits[int(q * (len(waits) - 1))] for q in (0.5, 0.99))
    return rates(spent, images) | {"first_s": first.wall, "p50_ms": p50, "p99_ms": p99}


def loader_ffcv() -> dict:
    cores, rows = len(os.sched_getaffinity(0)), {}
    for workers in dict.fromkeys((1, max(1, cores // 2), max(1, cores - 2))):
        with ffcv_loader(workers, 512) as loader:
            rows[f"workers_{workers}"] = loader_rate(loader, 5)
    return rows


def together(engine: str) -> dict:
    """A loader in the training process beside the compiled step, through the trainer's prefetcher."""
    from train.device.prefetch import Prefetcher

    trainer = make_step("step_eager" if TOY else "step_compiled")
    trainer.first()
    alone = 1e3 * trainer.in_a_row(trainer.step, 6).wall
    batch, side = len(trainer.host), trainer.host.images.shape[-1]
    with loader_of(engine, batch, side) as loader:
        it = iter(loader)
        loader_alone = mean_ms(lambda: next(it), 6)
        batches = (dataclasses.replace(ready, tokens=trainer.host.tokens) for ready in it)
        with Prefetcher(batches, trainer.stage.prepare, device()) as prepared:
            with stopwatch() as spent:
                together = mean_ms(lambda: trainer.fed_step(prepared), 10)
    slower = together / max(alone, loader_alone)
    row = {"step_ms": alone, "loader_ms": loader_alone, "together_ms": together, "of_the_slower": slower}
    return row | {"pairs_s": batch / together * 1e3, "cores": spent.cpu / spent.wall}


def loader_of(engine: str, batch: int, side: int):
    from pipeline.augment import AUGMENTS
    from pipeline.dali_loader import DALILoader
    from pipeline.ffcv_loader import FFCVLoader

    cores = len(os.sched_getaffinity(0))
    options = dict(batch_size=batch, image_size=side, augment=AUGMENTS["paper"], seed=0, dtype=torch.uint8)
    if engine == "dali":
        return DALILoader(photos(), **options, workers=4)
    return FFCVLoader(photos(), **options, workers=max(1, cores - 2), pin=cuda())


together_ffcv, together_dali = partial(together, "ffcv"), partial(together, "dali")


def jpeg_torchvision() -> dict:
    """torchvision's batched decoder: whole 256 × 384 images, 4:2:0, from one thread."""
    import torchvision

    from pipeline.throughput import synthetic

    jpegs = [torch.frombuffer(bytearray(j), dtype=torch.uint8) for j in synthetic.photographs(32)]
    row: dict = {"torchvision": torchvision.__version__, "bytes": sum(map(len, jpegs)) / len(jpegs)}
    for n in (16,) if TOY else (128, 512, 2048):
        batch = list(itertools.islice(itertools.cycle(jpegs), n))
        with stopwatch() as spent:
            ms = call_ms(lambda batch=batch: torchvision.io.decode_jpeg(batch, device=str(device())), 5, 2)
        row[f"batch_{n}"] = {"img_s": n / ms * 1e3, "cpu_ms_img": 1e3 * spent.cpu / (7 * n)}
    return row


def dali_rate(roi: bool, hw: float, batch: int, threads: int = 4, fancy: bool = True) -> dict:
    """Decode and resize alone: stock DALI operators on made-up boxes."""
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
        if roi:
            x = fn.decoders.image_slice(j, c, s, **box, **options)
        else:
            x = fn.slice(fn.decoders.image(j, **options), c, s, **box)
        return fn.resize(x, size=(224, 224), interp_type=types.INTERP_CUBIC, antialias=True)

    options = dict(batch_size=batch, num_threads=threads, prefetch_queue_depth=2)
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
    return rates(spent, images)


def dali_decodes(roi: bool) -> dict:
    cases = [(hw, 512, True) for hw in (1.0, 0.9, 0.65, 0.0)] + [(1.0, 512, False), (1.0, 128, True)]
    rows: dict[str, dict | str] = {}
    for hw, batch, fancy in [(0.65, 16, True)] if TOY else cases:
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
    rows = {}
    for batch in (16,) if TOY else (512, 5120):
        with loader_of("dali", batch, 224) as loader:
            rows[f"batch_{batch}"] = loader_rate(loader, 5)
            if cuda():
                free, total = torch.cuda.mem_get_info()
                rows[f"batch_{batch}"]["device_gb_used"] = (total - free) / 1e9
    return rows
