"""The DALI engine on a GPU against the same graph on the CPU: run where there is a GPU.

Images are of real size and of every subsampling, and batches are larger than the decoder's thresholds and
than a piece.
"""

from __future__ import annotations

import io
import logging
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.augment import AUGMENTS, lookup_table, mean_colour, normalise
from pipeline.blur import blur
from pipeline.dali_graph import Size, decode_whole
from pipeline.dali_loader import PIECE, DALIFailed, DALILoader
from pipeline.screen import Screen
from tests.kits.pipeline import SUBSAMPLINGS, damaged_jpegs, pairs_file, real_file, triplets_file

pytest.importorskip("nvidia.dali")
TOY = os.environ.get("PI_TOY") == "1" and not torch.cuda.is_available()  # tries the tests themselves on a CPU
pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() or TOY), reason="needs a CUDA GPU")
on_gpu_only = pytest.mark.skipif(TOY, reason="needs a CUDA GPU, even as a trial")
GPU = "cpu" if TOY else "gpu"

BATCH = PIECE + 88  # two pieces, both larger than what DALI's decoder does one by one


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """One file of each subsampling, and one of all."""
    folder = tmp_path_factory.mktemp("real")
    kinds = {name: (name,) for name in SUBSAMPLINGS} | {"mixed": SUBSAMPLINGS}
    return {
        name: real_file(folder / f"{i}.beton", BATCH, kind) for i, (name, kind) in enumerate(kinds.items())
    }


def both(file, **options):
    """The batches of the GPU and of the CPU, in pairs."""
    passes = (DALILoader.one_pass(file, device=device, **options) for device in (GPU, "cpu"))
    return zip(*passes, strict=True)


@pytest.mark.parametrize("kind", [*SUBSAMPLINGS, "mixed"])
@pytest.mark.parametrize("preset", ["eval", "paper"])
def test_pixels_are_the_cpu_graphs(real, kind, preset):
    """nvJPEG's transform and chroma upsampling are its own: 2 levels on average are left to it."""
    options = dict(batch_size=BATCH, image_size=224, augment=AUGMENTS[preset], dtype=torch.uint8, workers=2)
    ((a, b),) = both(real[kind], **options)
    assert a.images.is_cuda != TOY and a.images.is_contiguous(memory_format=torch.channels_last)
    assert a.valid.all() and torch.equal(a.index, b.index) and torch.equal(a.tokens, b.tokens)
    error = (a.images.cpu().float() - b.images.float()).abs().flatten(1).mean(1)
    assert error.mean() < 2 and error.max() < 8, (error.mean(), error.max())


@pytest.mark.parametrize("preset", sorted(AUGMENTS))
def test_small_images_of_any_shape(tmp_path, preset):
    file = pairs_file(tmp_path / "p.beton", 20)
    options = dict(batch_size=8, image_size=32, augment=AUGMENTS[preset], dtype=torch.uint8)
    for a, b in both(file, **options):
        assert (a.images.cpu().float() - b.images.float()).abs().mean() < 2


def decoded(jpegs: list[np.ndarray], repeats: int):
    """The engine's decoder over one batch: CPU seconds an image, after a warm-up, and the last result."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=len(jpegs), num_threads=4, device_id=torch.cuda.current_device())
    def pipeline():
        (jpeg,) = fn.external_source(lambda: (jpegs,), num_outputs=1, dtype=types.UINT8, ndim=1, no_copy=True)
        return decode_whole(jpeg, Size(256, 384))

    pipe = pipeline()
    pipe.build()
    for _ in range(4):
        pipe.run()
    start = time.process_time()
    for _ in range(repeats):
        (out,) = pipe.run()
    return (time.process_time() - start) / (repeats * len(jpegs)), out


@on_gpu_only
@pytest.mark.parametrize("kind", SUBSAMPLINGS)
def test_it_is_the_gpu_that_decodes(real, kind):
    """DALI falls back to libjpeg on the CPU without an error, and its pixels are then libjpeg's to the bit.

    An image that the JPEG engine decodes costs a CPU a fifth of what libjpeg takes (docs/benchmarks.md).
    """
    jpegs = [real[kind].jpeg(i % 24) for i in range(PIECE)]
    cpu_seconds, out = decoded(jpegs, 20)
    start = time.process_time()
    references = [np.asarray(Image.open(io.BytesIO(jpeg.tobytes()))) for jpeg in jpegs[:24] * 4]
    libjpeg = (time.process_time() - start) / (24 * 4)
    errors = [np.abs(np.asarray(out[i].as_cpu()).astype(int) - references[i]) for i in range(24)]
    assert max(e.mean() for e in errors) < 2
    assert cpu_seconds < libjpeg / 2, (cpu_seconds, libjpeg)
    print(f"{kind}: {1e3 * cpu_seconds:.3f} ms of CPU an image, libjpeg {1e3 * libjpeg:.3f}; "
          f"levels off {np.mean([e.mean() for e in errors]):.3f}, "
          f"equal to the bit: {sum(not e.any() for e in errors)} of 24")  # fmt: skip


def test_the_blur_is_a_cpus():
    """float16 summed in another order; 0 leaves an image alone."""
    sigma = np.linspace(0, 2, 41, dtype=np.float32)
    images = torch.randint(256, (41, 224, 224, 3), dtype=torch.uint8)
    there = images.to("cpu" if TOY else "cuda", copy=True)
    blur(there, sigma)
    assert torch.equal(there[0].cpu(), images[0])
    blur(images, sigma)
    assert (there.cpu().int() - images.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_floats_are_the_levels_in_the_table(tmp_path, dtype):
    file, augment = triplets_file(tmp_path / "t.beton"), AUGMENTS["paper"]
    options = dict(batch_size=12, image_size=64, device=GPU, augment=augment)
    (levels,) = DALILoader.one_pass(file, dtype=torch.uint8, **options)
    (floats,) = DALILoader.one_pass(file, dtype=dtype, **options)
    table = lookup_table(augment, dtype).to(levels.ref.device)
    for name in ("ref", "left", "right"):
        ours = normalise(getattr(levels, name), table)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours, getattr(floats, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8], ids=str)
def test_faults_and_triplets(tmp_path, dtype):
    file = triplets_file(tmp_path / "t.beton", 12, broken={3: b"nothing"})
    options = dict(batch_size=5, image_size=32, augment=AUGMENTS["paper"], seed=1, dtype=dtype)
    with DALILoader(file, device=GPU, **options) as stream:
        batches = [batch for _, batch in zip(range(6), stream)]
    assert all(b.ref.is_cuda != TOY for b in batches)
    index, valid = torch.cat([b.index for b in batches]), torch.cat([b.valid for b in batches])
    assert torch.equal(valid, index != 3) and stream.rejected == int((index == 3).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_damage_is_judged_as_on_the_cpu(tmp_path, dtype):
    whole = pairs_file(tmp_path / "whole.beton", 120)
    file = pairs_file(tmp_path / "p.beton", 120, broken=damaged_jpegs(whole, 6))
    blank = mean_colour(AUGMENTS["eval"], dtype)[:, None, None]
    for a, b in both(file, batch_size=32, image_size=32, dtype=dtype):
        assert torch.equal(a.valid, b.valid) and (a.images.cpu()[~a.valid] == blank).all()


def test_an_image_that_dali_refuses_costs_its_piece_only(tmp_path, monkeypatch, caplog):
    """As a JPEG that libjpeg reads and DALI does not: here bytes that nothing reads, and a blind screen.

    (A JPEG without its tables would not do: nvJPEG decodes it to something, without a complaint.)
    """
    file = pairs_file(tmp_path / "p.beton", 40, broken={9: b"no image at all " * 40})
    begin = Screen.begin

    def blind(self, plan):
        finish = begin(self, plan)
        return lambda: (*finish()[:2], np.ones(plan.size.T.shape, bool))

    monkeypatch.setattr(Screen, "begin", blind)
    with caplog.at_level(logging.WARNING, "pipeline"):
        loader = DALILoader(file, batch_size=8, image_size=64, augment=AUGMENTS["none"], seed=0, device=GPU)
        with loader as stream:
            batches = [batch for _, batch in zip(range(5), stream)]
    index, valid = torch.cat([b.index for b in batches]), torch.cat([b.valid for b in batches])
    assert stream.repaired == 1 and torch.equal(valid, index != 9)
    assert sum(r.getMessage().startswith("DALI gave up a piece") for r in caplog.records) == 1


@on_gpu_only
def test_a_full_gpu_ends_the_run(real):
    """Out of memory is no fault of an image, and must not become decoding on the CPU."""
    free, _ = torch.cuda.mem_get_info()
    hoard = torch.empty(free - (96 << 20), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises((DALIFailed, torch.OutOfMemoryError), match="--engine ffcv|out of memory"):
            options = dict(image_size=224, augment=AUGMENTS["paper"], dtype=torch.uint8, workers=4)
            next(iter(DALILoader(real["mixed"], batch_size=BATCH, seed=0, device=GPU, **options)))
    finally:
        del hoard
        torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8], ids=str)
def test_outputs_stay_as_they_are(real, dtype):
    options = dict(batch_size=BATCH, image_size=64, augment=AUGMENTS["paper"], seed=1, dtype=dtype)
    with DALILoader(real["mixed"], device=GPU, **options) as stream:
        kept = [batch.images for _, batch in zip(range(8), stream)]
    with DALILoader(real["mixed"], device=GPU, **options) as stream:
        again = [batch.images.clone() for _, batch in zip(range(8), stream)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again))


@on_gpu_only
def test_no_image_is_copied_by_itself(real):
    """On the GPU, from where DALI left it: beside a training step each copy waits for the step's kernels."""
    options = dict(image_size=224, augment=AUGMENTS["paper"], dtype=torch.uint8, workers=4)
    with DALILoader(real["4:2:0"], batch_size=BATCH, seed=0, device=GPU, **options) as stream:
        batches = iter(stream)
        next(batches)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as traced:
            for _ in range(3):
                next(batches)
            torch.cuda.synchronize()
    counts = {event.key: event.count for event in traced.key_averages()}
    kernels = [n for name, n in counts.items() if "ycbcr" in name]  # one an image
    assert sum(kernels) > BATCH, counts
    assert sum(n for name, n in counts.items() if "Device -> Device" in name) < BATCH // 4, counts


@on_gpu_only
def test_memory_does_not_grow_with_the_batch(tmp_path):
    """What DALI takes beside the batch itself: `train.plan` counts one figure for any batch."""
    from train.device.memory import DALI_BYTES

    file = real_file(tmp_path / "large.beton", 4 * PIECE)
    taken = []
    for batch in (PIECE, 4 * PIECE):
        torch.cuda.empty_cache()
        before = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        options = dict(image_size=224, augment=AUGMENTS["paper"], dtype=torch.uint8, workers=4)
        with DALILoader(file, batch_size=batch, seed=0, device=GPU, **options) as stream:
            for _, _batch in zip(range(6), stream):
                pass
            taken.append(before - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved())
    assert max(taken) < DALI_BYTES, taken
