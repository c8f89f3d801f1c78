"""The fast towers against open_clip's forward and backward pass in float64."""

from __future__ import annotations

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, CustomTextCLIP

from kernels.structure import why_slow
from kernels.towers import DEFAULT, TowerSettings, encode_image, encode_packed_text, encode_text
from tests.kits import kernels as kit

SETTINGS = {
    "all": DEFAULT,
    "none": TowerSettings(trim=False, prune=False, patch_gemm=False),
    "trim": TowerSettings(prune=False, patch_gemm=False),
    "prune": TowerSettings(trim=False, patch_gemm=False),
    "patch_gemm": TowerSettings(trim=False, prune=False),
    "gelu": TowerSettings(recompute="gelu"),
    "pointwise": TowerSettings(recompute="pointwise"),
    "blocks": TowerSettings(recompute="blocks"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_image_tower(name: str):
    model, images = kit.model(), kit.images()
    assert not why_slow(model.visual)
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = images.contiguous(memory_format=layout)
        kit.assert_same(
            model, lambda b=batch: encode_image(model, b, SETTINGS[name]), lambda: model.encode_image(images)
        )


@pytest.mark.parametrize("name", SETTINGS)
def test_text_tower(name: str):
    model, tokens = kit.model(), kit.captions([2, 77, 9, 3, 20])
    kit.assert_same(
        model, lambda: encode_text(model, tokens, SETTINGS[name]), lambda: model.encode_text(tokens)
    )


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(2, 77), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    filler=st.integers(0, 9),
)
@settings(max_examples=15, deadline=None)
def test_text_tower_lengths(lengths: list[int], dtype: torch.dtype, filler: int):
    model, tokens = kit.model(), kit.captions(lengths, dtype)
    expected = model.encode_text(tokens)
    torch.testing.assert_close(encode_text(model, tokens), expected)
    packed = kit.pack(tokens, 80, filler)
    torch.testing.assert_close(encode_packed_text(model, *packed), expected)


@pytest.mark.parametrize("name", ["all", "trim", "pointwise", "blocks"])
@pytest.mark.parametrize("length", [77, 128])
def test_packed_text_tower(name: str, length: int):
    model, tokens = kit.model(), kit.captions([2, 77, 9, 3, 20, 40, 40, 2])
    packed = kit.pack(tokens, length)
    kit.assert_same(
        model, lambda: encode_packed_text(model, *packed, SETTINGS[name]), lambda: model.encode_text(tokens)
    )


@pytest.mark.slow
def test_real_captions(shared_data):
    rows = json.loads((shared_data / "coco36" / "captions.json").read_text())
    tokens = open_clip.tokenize([caption for row in rows[:4] for caption in row["captions"]])
    model = kit.model(text=kit.TEXT | {"vocab_size": 49408})
    kit.assert_same(model, lambda: encode_text(model, tokens), lambda: model.encode_text(tokens))
    packed = kit.pack(tokens, 128)
    kit.assert_same(model, lambda: encode_packed_text(model, *packed), lambda: model.encode_text(tokens))


@pytest.mark.parametrize(
    ("vision", "text", "options"),
    [
        (kit.VIT | {"ls_init_value": 0.1}, kit.TEXT | {"ls_init_value": 0.2}, {"quick_gelu": True}),
        (kit.VIT | {"no_ln_pre": True, "final_ln_after_pool": True}, kit.TEXT | {"proj_bias": True}, {}),
        (kit.VIT | {"image_size": [32, 16], "patch_size": 4}, kit.TEXT | {"context_length": 12}, {}),
        (kit.VIT | {"layers": 1}, kit.TEXT | {"pool_type": "eos", "eos_id": kit.END, "layers": 1}, {}),
    ],
)
@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
def test_variants(vision: dict, text: dict, options: dict, cls: type):
    model = kit.model(vision, text, cls, **options)
    side = vision["image_size"]
    images = torch.randn(2, 3, *(side if isinstance(side, list) else [side, side]), dtype=torch.float64)
    tokens = kit.captions([5, 2, 12], context=text.get("context_length", 77))
    kit.assert_same(model, lambda: encode_image(model, images), lambda: model.encode_image(images))
    kit.assert_same(model, lambda: encode_text(model, tokens), lambda: model.encode_text(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "trim", "blocks"])
@pytest.mark.parametrize("side", [32, 96])  # one place of the feature map, nine of them
@pytest.mark.parametrize("training", [False, True])
def test_resnet(name: str, side: int, training: bool):
    model, images = kit.model(kit.RESNET | {"image_size": side}).train(training), kit.images(4, side)
    assert not why_slow(model.visual)
    keys = list(model.state_dict())
    kit.assert_same(
        model, lambda: encode_image(model, images, SETTINGS[name]), lambda: model.encode_image(images)
    )
    assert list(model.state_dict()) == keys


def test_nothing_is_kept():
    model = kit.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encode_image(model, kit.images()).sum().backward()
    encode_text(model, kit.captions([4, 9])).sum().backward()
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_parts_get_no_gradient():
    model = kit.model()
    model.visual.lock(unlocked_groups=2)
    encode_image(model, kit.images()).sum().backward()
    trained = {name for name, p in model.visual.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.visual.named_parameters() if p.requires_grad} != set()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: encode_image(m, torch.zeros(0, 3, 32, 32)), "B > 0"),
        (lambda m: encode_image(m, torch.zeros(2, 1, 32, 32)), "expected images"),
        (lambda m: encode_image(m, torch.zeros(2, 3, 40, 32)), "this tower takes"),
        (lambda m: encode_image(kit.model(kit.RESNET), torch.zeros(2, 3, 64, 64)), "this tower takes"),
        (lambda m: encode_text(m, torch.zeros(0, 77, dtype=torch.int32)), "B > 0"),
        (lambda m: encode_text(m, torch.zeros(2, 78, dtype=torch.int32)), "context is 77"),
        (lambda m: encode_text(m, torch.zeros(2, 77)), "int32 or int64"),
        (lambda m: encode_text(m, torch.full((2, 77), kit.VOCABULARY)), "vocabulary has 1000"),
        (lambda m: encode_text(m, torch.full((2, 77), -1)), "from -1"),
        (
            lambda m: encode_packed_text(
                m, *[torch.zeros(1, 8, dtype=torch.int64)] * 2, torch.zeros(1, 9), None
            ),
            "one shape",
        ),
        (
            lambda m: encode_packed_text(m, *[torch.zeros(1, 8, dtype=torch.int64)] * 3, torch.zeros(2)),
            "pool is integers",
        ),
        (lambda m: replace(DEFAULT, recompute="all"), "recompute is one of"),
    ],
)
def test_errors(call, words: str):
    with pytest.raises(ValueError, match=words):
        call(kit.model())
