"""open_clip's towers without the work whose result nobody reads: same parameters, features and gradients.

Each saving is exact, and each is a setting:

* The tokens after a caption's end token are not computed: the mask is causal, and the end token is pooled.
* In the last block only the pooled token is read: query, output projection and MLP run for it alone.
* The same holds for a ModifiedResNet's attention pool: all four projections run once an image.
* The patch embedding is one matrix product.
* The outputs of LayerNorm and GELU can be computed again in the backward pass instead of being stored.

Image towers: open_clip's VisionTransformer pooled at its class token is rewritten, and of ModifiedResNet the
pooling; any other tower (timm) runs as it is, and a warning says why. Text towers: the causal transformer of
CLIP and CustomTextCLIP, pooled at the end token, is rewritten; any other is refused. `kernels/structure.py`
tells them apart.

The functions read a model and change nothing in it: its `state_dict` stays open_clip's. They do not call
`model.forward`, so under DistributedDataParallel call them inside the wrapped module's forward.

B images or captions, T tokens, W width, R packed rows, L tokens in a row, D width of the features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.attention import AttentionBackend, attention
from kernels.backend import check_choice
from kernels.structure import end_id, text_tower, why_slow

Recompute = Literal["none", "gelu", "pointwise", "blocks"]


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """What the towers leave out. No choice changes the mathematics, only time and memory."""

    trim: bool = True  # padded captions: do not compute what follows the end token
    prune: bool = True  # last block and attention pool: compute only what the pooled token needs
    patch_gemm: bool = True  # patch embedding as one matrix product instead of a convolution
    attention: AttentionBackend = "auto"  # "triton" takes half precision and short rows: kernels.attention
    recompute: Recompute = "none"  # in the backward pass: nothing, GELU, LayerNorm too, or whole blocks

    def __post_init__(self) -> None:
        check_choice("recompute", self.recompute, Recompute)
        check_choice("attention", self.attention, AttentionBackend)


DEFAULT = TowerSettings()


def encode_image(model: nn.Module, images: Tensor, settings: TowerSettings = DEFAULT) -> Tensor:
    """Image features, not normalised: images (B, 3, S, S) → (B, D), equal to `model.encode_image(images)`.

    Raises ValueError for images that do not fit the tower.
    """
    visual: Any = model.visual
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"encode_image: expected images (B, 3, S, S) with B > 0, got {tuple(images.shape)}")
    if slow := why_slow(visual):
        if not torch.compiler.is_compiling():
            warnings.warn(f"the image tower runs as it is, with none of the savings: {slow}", stacklevel=2)
        return visual(images)
    size = visual.image_size if isinstance(visual.image_size, (tuple, list)) else [visual.image_size] * 2
    if tuple(images.shape[2:]) != tuple(size):
        raise ValueError(f"encode_image: this tower takes {tuple(size)}, got {tuple(images.shape[2:])}")
    if hasattr(visual, "stem"):
        return _resnet(visual, images) if settings.prune else visual(images)
    x = _embed_image(visual, images, settings)
    class_token = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)
    attend = partial(attention, backend=settings.attention)
    x = _transformer(visual.transformer, x, attend, class_token, settings)
    x = visual.ln_post(x)
    return x if visual.proj is None else x @ visual.proj


def encode_text(model: nn.Module, tokens: Tensor, settings: TowerSettings = DEFAULT) -> Tensor:
    """Caption features, not normalised: tokens (B, T ≤ context) → (B, D), equal to `model.encode_text`.

    Tokens are integers padded after the end token. With `trim` the shapes inside depend on the captions'
    lengths, and on a GPU this waits for the device. Where shapes must be static, use `encode_packed_text`.
    Raises ValueError for tokens that do not fit the tower.
    """
    tower = text_tower(model)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"encode_text: expected tokens (B, T) with B > 0, got {tuple(tokens.shape)}")
    _check_tokens("encode_text", tower, tokens, tokens.shape[1])
    eos = end_id(tower)
    end = tokens.argmax(-1) if eos is None else (tokens == eos).int().argmax(-1)
    captions = (_trimmed if settings.trim else _padded)(tokens, end, settings.attention)
    return _encode_captions(tower, captions, settings)


def encode_packed_text(
    model: nn.Module,
    tokens: Tensor,
    segment: Tensor,
    position: Tensor,
    pool: Tensor,
    settings: TowerSettings = DEFAULT,
) -> Tensor:
    """Features of captions laid one after another in fixed-length rows; static shapes.

    tokens (R, L): ids; outside of captions any id of the vocabulary.
    segment (R, L): each caption's number, unique within its row; filler has a number of its own.
    position (R, L): 0, 1, 2 … within each caption; in filler anything below the context length.
    pool (B,): index r·L + l of each caption's end token, in the batch's order.

    Returns (B, D), equal to `model.encode_text` of the same captions padded. Raises ValueError for arrays
    that do not fit each other or the tower.
    """
    tower = text_tower(model)
    if tokens.ndim != 2 or 0 in tokens.shape or not tokens.shape == segment.shape == position.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (tokens, segment, position))
        raise ValueError(f"encode_packed_text: tokens, segment, position of one shape (R, L), got {shapes}")
    if pool.ndim != 1 or len(pool) == 0 or pool.is_floating_point():
        actual = f"{tuple(pool.shape)} {pool.dtype}"
        raise ValueError(f"encode_packed_text: pool is integers (B,) with B > 0, got {actual}")
    _check_tokens("encode_packed_text", tower, tokens, 1)

    attend = partial(attention, segment=segment, causal=True, backend=settings.attention)
    return _encode_captions(tower, _Captions(tokens, position, pool, attend), settings)


Attend = Callable[[Tensor, int], Tensor]  # packed projections (…, 3W), heads → (…, W)


class _Captions(NamedTuple):
    tokens: Tensor  # (…) ids of the computed tokens, in whatever layout
    position: Tensor  # (…) of each within its caption
    pool: Tensor  # (B,) flat index of each end token
    attend: Attend


def _check_tokens(name: str, tower: Any, tokens: Tensor, length: int) -> None:
    context, vocabulary = len(tower.positional_embedding), tower.token_embedding.num_embeddings
    if tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: tokens are int32 or int64, got {tokens.dtype}")
    if length > context:
        raise ValueError(f"{name}: captions of {length} tokens, but the model's context is {context}")
    # On a GPU the check would wait for the device.
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(x) for x in tokens.aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"{name}: token ids from {low} to {high}, but the vocabulary has {vocabulary}")


def _padded(tokens: Tensor, end: Tensor, backend: AttentionBackend) -> _Captions:
    batch, length = tokens.shape
    position = torch.arange(length, device=tokens.device)
    pool = torch.arange(0, batch * length, length, device=tokens.device) + end
    attend = partial(attention, causal=True, backend=backend)
    return _Captions(tokens, position.expand(batch, length), pool, attend)


def _trimmed(tokens: Tensor, end: Tensor, backend: AttentionBackend) -> _Captions:
    """The captions' tokens up to their ends in one row (T,); only attention pads them, to the longest."""
    batch, longest = len(tokens), int(end.max()) + 1
    live = torch.arange(longest, device=tokens.device) <= end[:, None]
    slots = live.flatten().nonzero().squeeze(1)  # (T,) indices into (B, longest)

    def attend(qkv: Tensor, heads: int) -> Tensor:
        padded = qkv.new_zeros(batch * longest, qkv.shape[-1]).index_copy(0, slots, qkv)
        x = attention(padded.unflatten(0, (batch, longest)), heads, causal=True, backend=backend)
        return x.flatten(0, 1).index_select(0, slots)

    flat = tokens[:, :longest].flatten().index_select(0, slots)
    return _Captions(flat, slots % longest, (end + 1).cumsum(0) - 1, attend)


def _encode_captions(tower: Any, captions: _Captions, settings: TowerSettings) -> Tensor:
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(captions.tokens).to(dtype)
    x = x + F.embedding(captions.position, tower.positional_embedding.to(dtype))
    x = _transformer(tower.transformer, x, captions.attend, captions.pool, settings)
    x = tower.ln_final(x)
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _embed_image(visual: Any, images: Tensor, settings: TowerSettings) -> Tensor:
    """Class token and patches with their positions, normalised: (B, 3, S, S) → (B, T, W)."""
    x = _patches(visual, images) if settings.patch_gemm else visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype)
    return visual.ln_pre(visual.patch_dropout(x))


def _patches(visual: Any, images: Tensor) -> Tensor:
    """The strided convolution as a matrix product over the pixels in their order in memory: → (B, T, W)."""
    rows, columns = visual.grid_size
    height, width = visual.patch_size
    pixels = (
        images[:, :, : rows * height, : columns * width]
        .unflatten(3, (columns, width))
        .unflatten(2, (rows, height))
    )
    weight = visual.conv1.weight
    if images.is_contiguous(memory_format=torch.channels_last):
        pixels, weight = pixels.permute(0, 2, 4, 3, 5, 1), weight.permute(0, 2, 3, 1)
    else:
        pixels = pixels.permute(0, 2, 4, 1, 3, 5)
    return F.linear(pixels.flatten(3).flatten(1, 2), weight.flatten(1), visual.conv1.bias)


def _resnet(visual: Any, images: Tensor) -> Tensor:
    x = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return _attention_pool(visual.attnpool, x)


def _attention_pool(pool: Any, x: Tensor) -> Tensor:
    """Attention of a feature map's mean over the mean and the map (B, W, rows, columns): → (B, D).

    There is one query an image, so keys and values are never made: q·(K x) = (Kᵀ q)·x and
    Σ p (V x) = V (Σ p x), head by head (h heads, e wide). The keys' bias adds the same to every score, which
    the softmax cancels; it is added all the same, so that its parameter gets a gradient.
    """
    x = x.flatten(2).transpose(1, 2)  # (B, T, W)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding.to(x.dtype)
    heads = (pool.num_heads, -1)
    query = pool.q_proj(x[:, 0]).unflatten(-1, heads)  # (B, h, e)
    query = query * query.shape[-1] ** -0.5
    query_k = torch.einsum("bhe,hew->bhw", query, pool.k_proj.weight.unflatten(0, heads))
    bias = (query * pool.k_proj.bias.unflatten(0, heads)).sum(-1, keepdim=True)
    mean = (query_k @ x.transpose(1, 2) + bias).softmax(-1).to(x.dtype) @ x  # (B, h, W)
    value = torch.einsum("bhw,hew->bhe", mean, pool.v_proj.weight.unflatten(0, heads)).flatten(1)
    return pool.c_proj(value + pool.v_proj.bias)


def _transformer(
    transformer: Any, x: Tensor, attend: Attend, pool: Tensor, settings: TowerSettings
) -> Tensor:
    """x (…, W) through all blocks; the pooled tokens (B, W) of the result."""
    if transformer.grad_checkpointing:
        raise ValueError("the model has grad checkpointing on: turn it off and set recompute='blocks'")
    run: Callable[..., Tensor] = _block
    if settings.recompute == "blocks" and torch.is_grad_enabled():
        run = partial(_checkpoint, _block)  # only the arguments are kept for the backward pass
    *blocks, last = transformer.resblocks
    for block in blocks:
        x = run(block, x, attend, settings)
    if settings.prune:
        return run(last, x, attend, settings, pool)
    return _select(run(last, x, attend, settings), pool)


def _block(
    block: Any, x: Tensor, attend: Attend, settings: TowerSettings, pool: Tensor | None = None
) -> Tensor:
    """x (…, W) through a block; with `pool` only those tokens (B, W), computing only what they need."""
    norms_again = settings.recompute == "pointwise"
    gelu_again = settings.recompute in ("gelu", "pointwise")
    qkv = _product(norms_again, block.ln_1, partial(_project, block.attn, pool), x)
    attended = attend(qkv, block.attn.num_heads)
    if pool is not None:
        attended, x = _select(attended, pool), _select(x, pool)
    x = x + block.ls_1(block.attn.out_proj(attended))
    hidden = _product(norms_again, block.ln_2, block.mlp.c_fc, x)
    return x + block.ls_2(_product(gelu_again, block.mlp.gelu, block.mlp.c_proj, hidden))


def _project(projection: Any, pool: Tensor | None, x: Tensor) -> Tensor:
    """Queries, keys and values (…, 3W) of x (…, W).

    With `pool` the queries of all other tokens are zero; their attention, which is cheap, is computed and not
    read.
    """
    weight, bias, width = projection.in_proj_weight, projection.in_proj_bias, x.shape[-1]
    if pool is None:
        return F.linear(x, weight, bias)
    q_weight, kv_weight = weight.split([width, 2 * width])
    q_bias, kv_bias = (None, None) if bias is None else bias.split([width, 2 * width])
    q = F.linear(_select(x, pool), q_weight, q_bias)
    kv = F.linear(x, kv_weight, kv_bias)
    q = q.new_zeros(x.shape[:-1].numel(), width).index_copy(0, pool, q)
    return torch.cat([q.view(x.shape), kv], dim=-1)


def _product(again: bool, before: Callable, product: Callable, x: Tensor) -> Tensor:
    """product(before(x)): a matrix product after LayerNorm or GELU; `again` does not keep what is between.

    Eager autograd would keep `before`'s output as the product's input, so both are checkpointed; the
    recomputation stops as soon as that input exists. A compiled backward pass would not stop: it would
    compute the product again too, a fifth of a step's matrix products. So there only `before` is.
    """
    if not again or not torch.is_grad_enabled():
        return product(before(x))
    if torch.compiler.is_compiling():
        return product(_checkpoint(before, x))
    return _checkpoint(lambda x: product(before(x)), x)


def _checkpoint(function: Callable, *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def _select(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, W) at flat indices (B,) of x (…, W)."""
    return x.reshape(-1, x.shape[-1]).index_select(0, index)
