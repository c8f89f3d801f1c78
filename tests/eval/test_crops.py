"""Crops against open_clip's own transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from eval.crops import Preprocess
from tests.kits.eval import pictures

# -- crops ---------------------------------------------------------


def _odd_images():
    rng = np.random.default_rng(1)
    grey = Image.fromarray(rng.integers(0, 256, (50, 31), dtype=np.uint8))
    palette = pictures(1, 3)[0].convert("P", palette=Image.Palette.ADAPTIVE)
    clear = Image.fromarray(rng.integers(0, 256, (20, 64, 4), dtype=np.uint8), "RGBA")
    return [*pictures(3), grey, palette, clear, pictures(1, 4, (500, 334))[0]]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_crops_are_open_clips_transform(mode):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(size=32, resize_mode=mode), is_train=False)
    ours = Preprocess.from_transform(transform)
    for image in _odd_images():
        image = image.convert("RGB")
        expected = transform(image)
        assert torch.equal(ours.tensor(ours.crop(image)[None])[0], expected)


def test_other_transforms_are_refused():
    from torchvision import transforms

    with pytest.raises(ValueError, match="must end in ToTensor, Normalize"):
        Preprocess.from_transform(transforms.Compose([transforms.Resize(8)]))


def test_preprocessing_names_the_cache():
    from open_clip.transform import PreprocessCfg, image_transform_v2

    keys = {
        Preprocess.from_transform(image_transform_v2(PreprocessCfg(size=s), False)).key for s in (32, 32, 48)
    }
    assert len(keys) == 2


# -- the whole suite ---------------------------------------------------------


def test_a_bare_functions_address_is_not_in_the_key():
    from torchvision import transforms

    def key(function):
        steps = [transforms.Resize(8), transforms.CenterCrop(8), function]
        normal = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
        made = Preprocess.from_transform(transforms.Compose([*steps, transforms.ToTensor(), normal]))
        assert "0x" not in str(made.describe())
        return made.key

    def rgb(image):
        return image.convert("RGB")

    first = key(rgb)
    rgb = type(rgb)(rgb.__code__, globals(), "rgb")  # as another process has it: elsewhere in memory
    rgb.__qualname__ = "test_a_bare_functions_address_is_not_in_the_key.<locals>.rgb"
    assert key(rgb) == first
