"""The fast towers against open_clip's forward and backward pass in float64."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import open_clip
import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from kernels.structure import is_vit, text_tower, why_slow
from kernels.towers import (
    DEFAULT,
    TowerSettings,
    encode_image,
    encode_packed_text,
    encode_text,
    kept_bytes,
)

START, END, VOCABULARY = 998, 999, 1000
VIT = {"image_size": 32, "layers": 3, "width": 48, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEXT = {"width": 32, "heads": 2, "layers": 2, "vocab_size": VOCABULARY}

SETTINGS = {
    "all": DEFAULT,
    "none": TowerSettings(trim=False, prune=False, patch_gemm=False),
    "trim": TowerSettings(prune=False, patch_gemm=False),
    "prune": TowerSettings(trim=False, patch_gemm=False),
    "patch_gemm": TowerSettings(trim=False, prune=False),
    "pointwise": TowerSettings(recompute="pointwise"),
    "blocks": TowerSettings(recompute="blocks"),
}


def _model(vision: dict = VIT, text: dict = TEXT, cls: type = CLIP, **options) -> nn.Module:
    torch.manual_seed(0)
    model = cls(24, vision, text, **options).double()
    for parameter in model.parameters():  # no zero and no one among norms and biases
        nn.init.normal_(parameter, std=0.1 + 0.9 * (parameter.ndim < 2))
    return model


def _captions(lengths: list[int], dtype: torch.dtype = torch.int32, context: int = 77) -> Tensor:
    """Padded captions of the given lengths, start and end token counted in."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.zeros(len(lengths), context, dtype=dtype)
    for row, length in zip(tokens, lengths):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def _images(batch: int = 3, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _pack(tokens: Tensor, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First-fit packing into rows of `length`, with a filler row and filler tokens that are not zero."""
    rows: list[list[int]] = []
    lengths = (tokens.argmax(-1) + 1).tolist()
    for caption, n in enumerate(lengths):
        row = next((r for r in rows if sum(lengths[c] for c in r) + n <= length), None)
        if row is None:
            rows.append(row := [])
        row.append(caption)
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, VOCABULARY, (len(rows) + 1, length), generator=generator, dtype=tokens.dtype)
    segment, position = torch.zeros_like(packed), torch.zeros_like(packed)
    pool = torch.zeros(len(tokens), dtype=torch.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, caption in enumerate(row, 1):
            stop = start + lengths[caption]
            packed[r, start:stop] = tokens[caption, : lengths[caption]]
            segment[r, start:stop] = number
            position[r, start:stop] = torch.arange(stop - start)
            pool[caption] = r * length + stop - 1
            start = stop
    return packed, segment, position, pool


def _assert_same(model: nn.Module, ours, theirs) -> None:
    """Features and the gradient of every parameter agree to rounding."""
    results = []
    for encode in (ours, theirs):
        model.zero_grad()
        features = encode()
        upstream = torch.randn(
            features.shape, generator=torch.Generator().manual_seed(2), dtype=features.dtype
        )
        features.backward(upstream)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((features.detach(), gradients))
    (features, gradients), (wanted, wanted_gradients) = results
    torch.testing.assert_close(features, wanted, rtol=1e-11, atol=1e-11)
    assert gradients.keys() == wanted_gradients.keys() and gradients
    for name, gradient in wanted_gradients.items():
        error = (gradients[name] - gradient).norm()
        # A softmax leaves the keys' bias out: its gradient is nothing but rounding.
        size = wanted_gradients[name.replace("k_proj.bias", "k_proj.weight")].norm()
        assert error <= 1e-11 * size, f"{name}: {error} of {size}"


@pytest.mark.parametrize("name", SETTINGS)
def test_image_tower(name: str):
    model, images = _model(), _images()
    assert is_vit(model.visual) and not why_slow(model.visual)
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = images.contiguous(memory_format=layout)
        _assert_same(
            model, lambda b=batch: encode_image(model, b, SETTINGS[name]), lambda: model.encode_image(images)
        )


@pytest.mark.parametrize("name", SETTINGS)
def test_text_tower(name: str):
    model, tokens = _model(), _captions([2, 77, 9, 3, 20])
    _assert_same(model, lambda: encode_text(model, tokens, SETTINGS[name]), lambda: model.encode_text(tokens))


@given(
    lengths=st.lists(st.integers(2, 77), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    filler=st.integers(0, 9),
)
@settings(max_examples=15, deadline=None)
def test_text_tower_lengths(lengths: list[int], dtype: torch.dtype, filler: int):
    model, tokens = _model(), _captions(lengths, dtype)
    wanted = model.encode_text(tokens)
    torch.testing.assert_close(encode_text(model, tokens), wanted)
    packed = _pack(tokens, 80, filler)
    torch.testing.assert_close(encode_packed_text(model, *packed), wanted)


@pytest.mark.parametrize("name", ["all", "trim", "pointwise", "blocks"])
@pytest.mark.parametrize("length", [77, 128])
def test_packed_text_tower(name: str, length: int):
    model, tokens = _model(), _captions([2, 77, 9, 3, 20, 40, 40, 2])
    packed = _pack(tokens, length)
    _assert_same(
        model, lambda: encode_packed_text(model, *packed, SETTINGS[name]), lambda: model.encode_text(tokens)
    )


def test_real_captions(shared_data):
    rows = json.loads((shared_data / "coco36" / "captions.json").read_text())
    tokens = open_clip.tokenize([caption for row in rows[:4] for caption in row["captions"]])
    model = _model(text=TEXT | {"vocab_size": 49408})
    _assert_same(model, lambda: encode_text(model, tokens), lambda: model.encode_text(tokens))
    packed = _pack(tokens, 128)
    _assert_same(model, lambda: encode_packed_text(model, *packed), lambda: model.encode_text(tokens))


@pytest.mark.parametrize(
    ("vision", "text", "options"),
    [
        (VIT | {"ls_init_value": 0.1}, TEXT | {"ls_init_value": 0.2}, {"quick_gelu": True}),
        (VIT | {"no_ln_pre": True, "final_ln_after_pool": True}, TEXT | {"proj_bias": True}, {}),
        (VIT | {"image_size": [32, 16], "patch_size": 4}, TEXT | {"context_length": 12}, {}),
        (VIT | {"layers": 1}, TEXT | {"pool_type": "eos", "eos_id": END, "layers": 1}, {}),
    ],
)
@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
def test_variants(vision: dict, text: dict, options: dict, cls: type):
    model = _model(vision, text, cls, **options)
    side = vision["image_size"]
    images = torch.randn(2, 3, *(side if isinstance(side, list) else [side, side]), dtype=torch.float64)
    tokens = _captions([5, 2, 12], context=text.get("context_length", 77))
    _assert_same(model, lambda: encode_image(model, images), lambda: model.encode_image(images))
    _assert_same(model, lambda: encode_text(model, tokens), lambda: model.encode_text(tokens))


@pytest.mark.parametrize("name", ["all", "trim", "blocks"])
@pytest.mark.parametrize("side", [32, 96])  # one place of the feature map, nine of them
@pytest.mark.parametrize("training", [False, True])
def test_resnet(name: str, side: int, training: bool):
    model, images = _model(RESNET | {"image_size": side}).train(training), _images(4, side)
    assert not why_slow(model.visual) and not is_vit(model.visual)
    keys = list(model.state_dict())
    _assert_same(
        model, lambda: encode_image(model, images, SETTINGS[name]), lambda: model.encode_image(images)
    )
    assert list(model.state_dict()) == keys


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
    images, model = _images(side=side), _model(VIT | {"image_size": side} | vision)
    model.eval()
    assert not is_vit(model.visual)
    if "scaled_cosine_attn" in vision:  # open_clip 3.3 cannot run it itself
        assert re.search(reason, why_slow(model.visual))
        return
    with pytest.warns(UserWarning, match=f"none of the savings: {reason}"):
        features = encode_image(model, images)
    wanted = model.encode_image(images)
    assert torch.equal(*(x[0] if isinstance(x, tuple) else x for x in (features, wanted)))


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
    model = _model()
    _plant(model.visual.get_submodule(where), name)
    assert name in why_slow(model.visual)
    for cls in (CLIP, CustomTextCLIP):
        model = _model(cls=cls)
        _plant(getattr(model, "text", model).get_submodule(where), name)
        with pytest.raises(ValueError, match=f"{name}.*use model.encode_text"):
            text_tower(model)
    _plant((resnet := _model(RESNET)).visual.attnpool, name)
    assert name in why_slow(resnet.visual)


@pytest.mark.parametrize(
    "where", ["ln_post", "transformer.resblocks.0.mlp.gelu", "transformer.resblocks.0.ln_1"]
)
def test_a_part_that_is_gone_is_seen(where: str):
    model = _model()
    parent, _, name = where.rpartition(".")
    delattr(model.visual.get_submodule(parent), name)
    assert f"it has no {name}" in why_slow(model.visual).replace("block.", "").replace("mlp.", "")


def test_plain_blocks_of_another_class_are_rewritten():
    """open_clip's "custom" blocks with none of their options are the same mathematics."""
    if "block_type" not in CLIPVisionCfg.__dataclass_fields__:
        pytest.skip("this open_clip does not name blocks")
    model, images = _model(VIT | {"block_type": "custom"}, TEXT | {"block_type": "custom"}), _images()
    if why_slow(model.visual):  # open_clip 3: its custom blocks hold their projections apart from torch's
        pytest.skip(why_slow(model.visual))
    _assert_same(model, lambda: encode_image(model, images), lambda: model.encode_image(images))


def test_nothing_is_kept():
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encode_image(model, _images()).sum().backward()
    encode_text(model, _captions([4, 9])).sum().backward()
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_parts_get_no_gradient():
    model = _model()
    model.visual.lock(unlocked_groups=2)
    encode_image(model, _images()).sum().backward()
    got = {name for name, p in model.visual.named_parameters() if p.grad is not None}
    assert got == {name for name, p in model.visual.named_parameters() if p.requires_grad} != set()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: encode_image(m, torch.zeros(0, 3, 32, 32)), "B > 0"),
        (lambda m: encode_image(m, torch.zeros(2, 1, 32, 32)), "expected images"),
        (lambda m: encode_image(m, torch.zeros(2, 3, 40, 32)), "this tower takes"),
        (lambda m: encode_image(_model(RESNET), torch.zeros(2, 3, 64, 64)), "this tower takes"),
        (lambda m: encode_text(m, torch.zeros(0, 77, dtype=torch.int32)), "B > 0"),
        (lambda m: encode_text(m, torch.zeros(2, 78, dtype=torch.int32)), "context is 77"),
        (lambda m: encode_text(m, torch.zeros(2, 77)), "int32 or int64"),
        (lambda m: encode_text(m, torch.full((2, 77), VOCABULARY)), "vocabulary has 1000"),
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
        call(_model())


def test_unsupported_towers_are_named():
    for text in ({"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}, {"qk_norm": True}):
        model = _model(text=TEXT | text, cls=CustomTextCLIP)
        with pytest.raises(ValueError, match="use model.encode_text"):
            encode_text(model, _captions([4]))
    model = _model()
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="recompute='blocks'"):
        encode_image(model, _images())


@pytest.mark.skipif("variable_text" not in CLIPTextCfg.__dataclass_fields__, reason="from open_clip 4 on")
def test_text_towers_of_open_clip_4():
    """Captions cut to the longest, as its variable-length text gives them; its "modern" tower is refused."""
    model, tokens = _model(text=TEXT | {"variable_text": True}, cls=CustomTextCLIP), _captions([4, 30, 9])
    for cut in (tokens, tokens[:, :30]):
        _assert_same(model, lambda t=cut: encode_text(model, t), lambda t=cut: model.encode_text(t))
    model = _model(text=TEXT | {"text_arch": "modern", "eos_id": END}, cls=CustomTextCLIP)
    with pytest.raises(ValueError, match="ModernTextTransformer: .*use model.encode_text"):
        encode_text(model, tokens)


@pytest.mark.parametrize("recompute", ["none", "pointwise", "blocks"])
def test_kept_bytes(recompute: str):
    """The stated bytes are what autograd keeps, to 8 % (embeddings, statistics, the pruned last block)."""
    vision, text = VIT | {"layers": 8, "width": 64, "image_size": 64}, TEXT | {"layers": 8, "width": 64}
    model = _model(vision, text).float()
    setting = TowerSettings(recompute=recompute)
    images, packed = _images(16, 64).float(), _pack(_captions([20, 60, 77, 9, 30] * 4), 128)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    stated = kept_bytes(model, len(images), packed[0].numel(), setting, itemsize=4)
    for name, encode in (
        ("image", lambda: encode_image(model, images, setting)),
        ("text", lambda: encode_packed_text(model, *packed, setting)),
    ):
        kept = {}

        def keep(x: Tensor, kept: dict = kept) -> Tensor:
            kept[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            features = encode()
        measured = sum(storage.nbytes() for key, storage in kept.items() if key not in parameters)
        mask = 8 * packed[0].numel() * 128 * 4 if name == "text" else 0  # SDPA keeps one in each of 8 layers
        embeddings = 1 << 20 if recompute == "blocks" else 0  # otherwise too little to see
        slack = 0.08 * stated[name] + mask + embeddings
        assert abs(measured - stated[name]) <= slack, f"{name}: {measured} kept, {stated[name]} stated"
        del features


@pytest.mark.parametrize("recompute", ["none", "pointwise"])
def test_compiles_in_one_graph(recompute: str):
    """No graph breaks, static shapes; the compiler's own kernels are not needed to see that."""
    model, images, tokens = _model(), _images(), _captions([4, 30, 9])
    packed = _pack(tokens, 77)
    setting = TowerSettings(recompute=recompute)

    @torch.compile(fullgraph=True, dynamic=False, backend="eager")
    def towers(images: Tensor, *packed: Tensor) -> tuple[Tensor, Tensor]:
        return encode_image(model, images, setting), encode_packed_text(model, *packed, setting)

    _assert_same(model, lambda: torch.cat(towers(images, *packed)), lambda: _both(model, images, tokens))


def test_compiled_recompute_leaves_products_alone():
    """LayerNorm and GELU are made again in a compiled backward pass, matrix products only with "blocks"."""
    model, images = _model(), _images()
    products = {}
    for recompute in ("none", "pointwise", "blocks"):
        found = products[recompute] = []

        def count(graph, _, found=found):
            found.append(sum("mm" in str(node.target) for node in graph.graph.nodes))
            return make_boxed_func(graph)

        backend = aot_autograd(
            fw_compiler=count, bw_compiler=count, partition_fn=min_cut_rematerialization_partition
        )
        encode = partial(encode_image, settings=TowerSettings(recompute=recompute))
        torch.compile(encode, backend=backend, fullgraph=True)(model, images).square().sum().backward()
    assert products["none"] == products["pointwise"] and len(products["none"]) == 2
    assert products["blocks"][1] > products["none"][1]


def _both(model, images: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([model.encode_image(images), model.encode_text(tokens)])
