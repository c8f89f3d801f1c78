"""What the towers keep for the backward pass, and what torch.compile makes of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from kernels.towers import TowerSettings, encode_image, encode_packed_text
from tests.kits import kernels as kit


@pytest.mark.parametrize("recompute", ["none", "gelu", "pointwise", "blocks"])
def test_kept_bytes(recompute: str):
    """Of each token a block keeps 16 numbers of its width; 12, 10 and 1 where some are computed again.

    The 16: its input, LayerNorm's output, 3 projections, attention's output, the sum, LayerNorm's output,
    4 + 4 around GELU.  To 8 % (embeddings, statistics, the pruned last block).
    """
    vision = kit.VIT | {"layers": 8, "width": 64, "image_size": 64}
    text = kit.TEXT | {"layers": 8, "width": 64}
    model = kit.model(vision, text).float()
    setting = TowerSettings(recompute=recompute)
    images, packed = kit.images(16, 64).float(), kit.pack(kit.captions([20, 60, 77, 9, 30] * 4), 128)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    numbers = {"none": 16, "gelu": 12, "pointwise": 10, "blocks": 1}[recompute]
    each = numbers * 8 * 64 * 4  # layers, width, float32
    patches = (64 // vision["patch_size"]) ** 2
    stated = {"image": len(images) * (patches + 1) * each, "text": packed[0].numel() * each}
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


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "gelu", "pointwise"])
def test_compiles_in_one_graph(recompute: str):
    """No graph breaks, static shapes; the compiler's own kernels are not needed to see that."""
    model, images, tokens = kit.model(), kit.images(), kit.captions([4, 30, 9])
    packed = kit.pack(tokens, 77)
    setting = TowerSettings(recompute=recompute)

    @torch.compile(fullgraph=True, dynamic=False, backend="eager")
    def towers(images: Tensor, *packed: Tensor) -> tuple[Tensor, Tensor]:
        return encode_image(model, images, setting), encode_packed_text(model, *packed, setting)

    kit.assert_same(model, lambda: torch.cat(towers(images, *packed)), lambda: _both(model, images, tokens))


@pytest.mark.slow
def test_compiled_recompute_leaves_products_alone():
    """LayerNorm and GELU are made again in a compiled backward pass, matrix products only with "blocks"."""
    model, images = kit.model(), kit.images()
    products = {}
    for recompute in ("none", "gelu", "pointwise", "blocks"):
        counts = products[recompute] = []

        def count(graph, _, counts=counts):
            counts.append(sum("mm" in str(node.target) for node in graph.graph.nodes))
            return make_boxed_func(graph)

        backend = aot_autograd(
            fw_compiler=count, bw_compiler=count, partition_fn=min_cut_rematerialization_partition
        )
        encode = partial(encode_image, settings=TowerSettings(recompute=recompute))
        torch.compile(encode, backend=backend, fullgraph=True)(model, images).square().sum().backward()
    assert products["none"] == products["gelu"] == products["pointwise"] and len(products["none"]) == 2
    assert products["blocks"][1] > products["none"][1]


def _both(model, images: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([model.encode_image(images), model.encode_text(tokens)])
