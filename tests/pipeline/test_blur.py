"""The blur that the DALI engine takes on a GPU, here on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import pixels
from pipeline.blur import blur


@pytest.mark.parametrize("side", [1, 2, 5, 33, 100])
def test_it_is_the_cpu_engines(side):
    """Windows larger than the image too, and noise, where every tap counts."""
    sigma = np.array([0.5, 0.0, 2.0, 0.1, 9.9, 1.0], np.float32)
    images = np.random.default_rng(side).integers(256, size=(len(sigma), side, side, 3), dtype=np.uint8)
    images[2, : side // 2] = 255
    scratch = np.empty(pixels.scratch_size(side, side, side), np.float32)
    expected, ours = images.copy(), torch.from_numpy(images.copy())
    for image, own in zip(expected, sigma):
        if own:
            pixels.blur(image, own, scratch)
    blur(ours, sigma)
    apart = np.abs(ours.numpy().astype(int) - expected)
    assert apart.max() <= 1 and apart.mean() < 0.1, (apart.max(), apart.mean())
    assert np.array_equal(ours[1].numpy(), images[1])


@given(level=st.integers(0, 255), sigma=st.floats(0.1, 10), side=st.integers(1, 40))
def test_a_plain_image_stays_as_it_is(level, sigma, side):
    """The weights add up to 1, also where they are reflected."""
    images = torch.full((1, side, side, 3), level, dtype=torch.uint8)
    blur(images, np.array([sigma], np.float32))
    assert (images == level).all()


def test_each_image_has_its_own_sigma_and_without_any_nothing_happens():
    images = torch.randint(256, (3, 20, 20, 3), dtype=torch.uint8)
    before = images.clone()
    blur(images, np.zeros(3, np.float32))
    assert torch.equal(images, before)
    blur(images, np.array([0, 1.5, 0.7], np.float32))
    for i, own in ((1, 1.5), (2, 0.7)):
        alone = before[i : i + 1].clone()
        blur(alone, np.array([own], np.float32))
        assert torch.equal(images[i : i + 1], alone)
