"""The DALI graph on a GPU against the same graph on the CPU: run where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from pipeline.augment import AUGMENTS, lookup_table, mean_colour, normalise
from pipeline.dali_loader import DALILoader
from tests.kits.pipeline import damaged_jpegs, pairs_file, triplets_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("preset", sorted(AUGMENTS))
@pytest.mark.parametrize("side", [32, 224])
def test_pixels_are_the_cpu_graphs(tmp_path, preset, side):
    """nvJPEG's transform and chroma upsampling are its own: 1 level on average is left to it."""
    file = pairs_file(tmp_path / "p.beton", 20)
    options = dict(batch_size=8, image_size=side, augment=AUGMENTS[preset], dtype=torch.uint8)
    errors = []
    for a, b in zip(
        DALILoader.one_pass(file, device="gpu", **options), DALILoader.one_pass(file, device="cpu", **options)
    ):
        assert a.images.is_cuda and a.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.index, b.index) and torch.equal(a.tokens, b.tokens)
        errors.append((a.images.cpu().float() - b.images.float()).abs().flatten())
    assert torch.cat(errors).mean() < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_levels_become_the_graphs_own_floats(tmp_path, dtype):
    """As on the CPU (tests/pipeline/test_levels.py): DALI rounds a few times, the table once."""
    file, augment = triplets_file(tmp_path / "t.beton"), AUGMENTS["paper"]
    options = dict(batch_size=12, image_size=64, device="gpu", augment=augment)
    (levels,) = DALILoader.one_pass(file, dtype=torch.uint8, **options)
    (floats,) = DALILoader.one_pass(file, dtype=dtype, **options)
    table = lookup_table(augment, dtype).cuda()
    for name in ("ref", "left", "right"):
        ours = normalise(getattr(levels, name), table)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        rtol = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(ours, getattr(floats, name), rtol=rtol, atol=6e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8], ids=str)
def test_faults_and_triplets(tmp_path, dtype):
    file = triplets_file(tmp_path / "t.beton", 12, broken={3: b"nothing"})
    options = dict(batch_size=5, image_size=32, augment=AUGMENTS["paper"], seed=1, dtype=dtype)
    with DALILoader(file, device="gpu", **options) as stream:
        batches = [batch for _, batch in zip(range(6), stream)]
    assert all(b.ref.is_cuda for b in batches)
    index, valid = torch.cat([b.index for b in batches]), torch.cat([b.valid for b in batches])
    assert torch.equal(valid, index != 3) and stream.rejected == int((index == 3).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_damage_is_judged_as_on_the_cpu(tmp_path, dtype):
    whole = pairs_file(tmp_path / "whole.beton", 120)
    file = pairs_file(tmp_path / "p.beton", 120, broken=damaged_jpegs(whole, 6))
    options = dict(batch_size=32, image_size=32, dtype=dtype)
    blank = mean_colour(AUGMENTS["eval"], dtype)[:, None, None]
    for a, b in zip(*(DALILoader.one_pass(file, device=d, **options) for d in ("gpu", "cpu"))):
        assert torch.equal(a.valid, b.valid) and (a.images.cpu()[~a.valid] == blank).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8], ids=str)
def test_outputs_stay_as_they_are(tmp_path, dtype):
    file = pairs_file(tmp_path / "p.beton", 20)
    options = dict(batch_size=6, image_size=64, augment=AUGMENTS["paper"], seed=1, dtype=dtype)
    with DALILoader(file, device="gpu", **options) as stream:
        kept = [batch.images for _, batch in zip(range(8), stream)]
    with DALILoader(file, device="gpu", **options) as stream:
        again = [batch.images.clone() for _, batch in zip(range(8), stream)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again))
