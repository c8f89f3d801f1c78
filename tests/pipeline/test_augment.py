"""Draws: pure functions of (seed, epoch, index), distributed as torchvision's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.augment import AUGMENTS, Augment, lookup_table, sample_draws

PAPER = AUGMENTS["paper"]


def draw(augment, count=1, height=100, width=150, *, seed=3, epoch=0, first=0, views=1, luma=120.0):
    shape = (count, views)
    return sample_draws(augment, seed, epoch, first + np.arange(count), np.full(shape, height),
                        np.full(shape, width), np.full(shape, luma))  # fmt: skip


def same(a, b):
    return all(map(np.array_equal, a, b))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**31), first=st.integers(0, 2**33))
def test_a_sample_is_drawn_alike_in_every_batch(seed, epoch, first):
    whole = draw(PAPER, 9, seed=seed, epoch=epoch, first=first)
    for i in range(9):
        alone = draw(PAPER, 1, seed=seed, epoch=epoch, first=first + i)
        row = whole._replace(**{n: a[i : i + 1] for n, a in whole._asdict().items() if n != "covers"})
        assert same(alone, row)
    assert not same(whole, draw(PAPER, 9, seed=seed, epoch=epoch + 1, first=first))
    assert not same(whole, draw(PAPER, 9, seed=seed ^ 1, epoch=epoch, first=first))


def test_a_triplet_shares_one_set():
    d = draw(PAPER, 50, views=3)
    assert (d.box == d.box[:, :1]).all() and (d.matrix == d.matrix[:, :1]).all()


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), name=st.sampled_from(sorted(AUGMENTS)))
def test_boxes_lie_inside(height, width, name):
    top, left, h, w = draw(AUGMENTS[name], 20, height, width).box[:, 0].T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(256, 256), (100, 300), (300, 100), (256, 20), (30, 45)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0)])
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    transform = v2.RandomResizedCrop(10, scale=scale)
    theirs = [transform.make_params([image]) for _ in range(3000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    ours = draw(Augment(crop="random", scale=scale), 3000, height, width).box[:, 0]
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-4


def test_rates_and_ranges():
    d = draw(PAPER, 20_000)
    assert abs(d.flip.mean() - 0.5) < 0.02
    assert abs((d.sigma > 0).mean() - 0.5) < 0.02
    assert abs(d.coloured.mean() - (1 - 0.2 * 0.8)) < 0.02
    sigma = d.sigma[d.sigma > 0]
    assert 0.1 <= sigma.min() < 0.12 and 1.98 < sigma.max() <= 2 and abs(sigma.mean() - 1.05) < 0.02
    assert abs(d.choice.mean() - 0.5) < 0.01 and d.choice.min() >= 0 and d.choice.max() < 1
    gray = (d.matrix[:, 0, :, :3] == d.matrix[:, 0, :1, :3]).all((1, 2))
    assert abs(gray.mean() - 0.2) < 0.02
    for a, b in ((d.flip, d.sigma > 0), (d.flip, gray), (d.choice, d.sigma), (d.box[:, 0, 0], d.flip)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def jittered(**strengths):
    return Augment(jitter_p=1.0, **strengths)


@pytest.mark.parametrize(
    "strengths, expected",
    [
        ({"brightness": 0.4}, lambda x, m: F.adjust_brightness(x, m[0, 0])),
        ({"contrast": 0.4}, lambda x, m: F.adjust_contrast(x, m[0, 0])),
        ({"saturation": 0.4}, lambda x, m: F.adjust_saturation(x, (m[0, 0] - 0.299) / 0.701)),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_matrix_equals_torchvisions_operation(strengths, expected):
    """On colours that no operation clamps, in float."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.uniform(90, 150, (3, 32, 32)))
    luma = float((pixels * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(0).mean())
    for m in draw(jittered(**strengths), 20, luma=luma).matrix[:, 0].astype(np.float64):
        ours = torch.einsum("rc,chw->rhw", torch.from_numpy(m[:, :3]), pixels) + torch.from_numpy(
            m[:, 3:, None]
        )
        theirs = expected(pixels / 255, m) * 255
        assert (ours - theirs).abs().max() < 0.1  # torchvision's grey weights have four digits


def test_hue_turns_about_grey_and_keeps_it():
    d = draw(jittered(hue=0.5), 300)
    rotations = d.matrix[:, 0, :, :3].astype(np.float64)
    assert np.abs(rotations @ np.swapaxes(rotations, 1, 2) - np.eye(3)).max() < 1e-6
    assert np.abs(rotations.sum(2) - 1).max() < 1e-6
    # A third of a turn sends red to green, as HSV's hue does.
    third = draw(jittered(hue=1 / 3), 4000).matrix[:, 0, :, :3]
    assert np.abs(third - np.roll(np.eye(3), 1, 0)).reshape(4000, -1).max(1).min() < 2e-3


def test_whole_colour_stage_is_near_torchvisions(shared_data):
    """The folded matrix against ColorJitter's four operations one after the other, on photographs."""
    files = sorted((shared_data / "photos").glob("*.jpg"))[:12]
    d = draw(dataclasses.replace(PAPER, crop="resize"), len(files))
    errors = []
    for i, path in enumerate(files):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((96, 96)))
        luma = float((pixels @ [0.299, 0.587, 0.114]).mean())
        strengths = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        m = draw(jittered(**strengths), 1, first=i, luma=luma).matrix[0, 0].astype(np.float64)
        ours = np.clip(pixels @ m[:, :3].T + m[:, 3], 0, 255)
        u = _factors(i, strengths)
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        x = F.adjust_contrast(F.adjust_brightness(x, u[0]), u[1])
        x = F.adjust_hue(F.adjust_saturation(x, u[2]), u[3])
        errors.append(np.abs(ours - x.permute(1, 2, 0).numpy()).mean())
    assert d.coloured.any()
    assert np.mean(errors) < 6, f"mean error {np.mean(errors):.2f} of 255 levels"


def _factors(index, strengths):
    from pipeline.philox import philox

    u = np.array(philox(np.uint64(3), index, 0, 0, 0)) / 2**32
    b, c, s = (1 - a + 2 * a * v for a, v in zip((0.4, 0.4, 0.4), u))
    return b, c, s, (2 * u[3] - 1) * strengths["hue"]


def test_presets():
    none = draw(AUGMENTS["none"], 3, 50, 70)
    assert (none.box[:, 0] == [0, 0, 50, 70]).all() and not none.coloured.any() and not none.flip.any()
    centre = draw(AUGMENTS["eval"], 3, 50, 70)
    assert (centre.box[:, 0] == [0, 0, 50, 70]).all() and not centre.sigma.any()
    assert centre.covers and not none.covers
    clip = draw(AUGMENTS["clip"], 500)
    assert not clip.coloured.any() and not clip.flip.any() and not clip.sigma.any()
    area = clip.box[:, 0, 2] * clip.box[:, 0, 3] / 15000
    assert area.min() > 0.88 and area.max() <= 1


def test_table_is_the_formula_rounded_once():
    table = lookup_table(PAPER, torch.float64)
    assert table.shape == (3, 256)
    assert torch.allclose(table[1, 255], torch.tensor((1 - 0.4578275) / 0.26130258).double())
    assert torch.equal(lookup_table(PAPER, torch.bfloat16), table.to(torch.bfloat16))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"crop": "middle"}, "crop 'middle' is none of"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"ratio": (0, 1)}, "ratio"),
        ({"jitter_p": 1.5}, "jitter_p 1.5 is no probability"),
        ({"hue": 0.7}, "hue 0.7"),
        ({"brightness": -1}, "brightness -1"),
        ({"blur_sigma": (0.0, 1)}, "blur_sigma"),
        ({"std": (0, 1, 1)}, "std"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augment(**wrong)
