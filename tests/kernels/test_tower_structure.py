"""Which of open_clip's towers are rewritten, and what happens with the others."""

from __future__ import annotations

import re

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import nn

from kernels.structure import text_tower, why_slow
from kernels.towers import encode_image, encode_text
from tests.kits import kernels as kit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"pool_type": "avg"}, "pooled by 'avg'"),
        ({"attentional_pool": True}, "pooled by attention"),
        ({"qk_norm": True}, r"it has block\.attn\.ln_q"),
        ({"scaled_cosine_attn": True}, r"it has block\.attn\.logit_scale"),
        ({"scale_heads": True}, r"it has block\.attn\.head_scale"),
        ({"scale_attn_inner": True}, r"it has block\.attn\.ln_inner"),
        ({"scale_attn": True}, r"it has block\.ln_attn"),
        ({"scale_fc": True}, r"it has block\.mlp\.ln"),
        ({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"}, "a TimmModel"),
    ],
)
def test_other_image_towers_run_as_they_are(vision: dict, reason: str):
    """Said once, and the model's own result: never a part left out."""
    side = 224 if "timm_model_name" in vision else 32
    images, model = kit.images(side=side), kit.model(kit.VIT | {"image_size": side} | vision)
    model.eval()
    if "scaled_cosine_attn" in vision:  # open_clip 3.3 cannot run it itself
        assert re.search(reason, why_slow(model.visual))
        return
    with pytest.warns(UserWarning, match=f"none of the savings: {reason}"):
        features = encode_image(model, images)
    expected = model.encode_image(images)
    assert torch.equal(*(x[0] if isinstance(x, tuple) else x for x in (features, expected)))


def _plant(module: nn.Module, name: str) -> nn.Module:
    """Adds a part that nothing here knows: a module or, for a name in capitals, a parameter."""
    value = nn.Parameter(torch.ones(1)) if name.isupper() else nn.LayerNorm(4)
    setattr(module, name, value)
    return module


@pytest.mark.parametrize("name", ["norm_of_tomorrow", "GATE"])
@pytest.mark.parametrize(
    "where", ["", "transformer", "transformer.resblocks.1", "transformer.resblocks.1.attn"]
)
def test_a_part_of_tomorrow_is_not_left_out(where: str, name: str):
    """Whatever a later open_clip adds to a tower, at any depth, is seen."""
    model = kit.model()
    _plant(model.visual.get_submodule(where), name)
    assert name in why_slow(model.visual)
    for cls in (CLIP, CustomTextCLIP):
        model = kit.model(cls=cls)
        _plant(getattr(model, "text", model).get_submodule(where), name)
        with pytest.raises(ValueError, match=f"{name}.*use model.encode_text"):
            text_tower(model)
    _plant((resnet := kit.model(kit.RESNET)).visual.attnpool, name)
    assert name in why_slow(resnet.visual)


@pytest.mark.parametrize(
    "where", ["ln_post", "transformer.resblocks.0.mlp.gelu", "transformer.resblocks.0.ln_1"]
)
def test_a_part_that_is_gone_is_seen(where: str):
    model = kit.model()
    parent, _, name = where.rpartition(".")
    delattr(model.visual.get_submodule(parent), name)
    assert f"it has no {name}" in why_slow(model.visual).replace("block.", "").replace("mlp.", "")


def test_plain_blocks_of_another_class_are_rewritten():
    """open_clip's "custom" blocks with none of their options are the same mathematics."""
    if "block_type" not in CLIPVisionCfg.__dataclass_fields__:
        pytest.skip("this open_clip does not name blocks")
    model = kit.model(kit.VIT | {"block_type": "custom"}, kit.TEXT | {"block_type": "custom"})
    images = kit.images()
    if why_slow(model.visual):  # open_clip 3: its custom blocks hold their projections apart from torch's
        pytest.skip(why_slow(model.visual))
    kit.assert_same(model, lambda: encode_image(model, images), lambda: model.encode_image(images))


def test_unsupported_towers_are_named():
    for text in ({"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}, {"qk_norm": True}):
        model = kit.model(text=kit.TEXT | text, cls=CustomTextCLIP)
        with pytest.raises(ValueError, match="use model.encode_text"):
            encode_text(model, kit.captions([4]))
    model = kit.model()
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="recompute='blocks'"):
        encode_image(model, kit.images())


@pytest.mark.skipif("variable_text" not in CLIPTextCfg.__dataclass_fields__, reason="from open_clip 4 on")
def test_text_towers_of_open_clip_4():
    """Captions cut to the longest, as its variable-length text gives them; its "modern" tower is refused."""
    model = kit.model(text=kit.TEXT | {"variable_text": True}, cls=CustomTextCLIP)
    tokens = kit.captions([4, 30, 9])
    for cut in (tokens, tokens[:, :30]):
        kit.assert_same(model, lambda t=cut: encode_text(model, t), lambda t=cut: model.encode_text(t))
    model = kit.model(text=kit.TEXT | {"text_arch": "modern", "eos_id": kit.END}, cls=CustomTextCLIP)
    with pytest.raises(ValueError, match="ModernTextTransformer: .*use model.encode_text"):
        encode_text(model, tokens)
