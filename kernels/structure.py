"""Which of open_clip's towers `kernels/towers.py` can rewrite, decided by the parts of a tower.

The rewritten tower would leave out any part that is not listed here (a norm of the queries, a gate, register
tokens). So an image tower with such a part runs as it is, and a text tower is refused. The lists cover
open_clip 3, whose blocks hold torch's MultiheadAttention, and 4, whose blocks hold an Attention of
open_clip's own with the same parameters.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_VIT: tuple[str, ...] = ("conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre")
_VIT += ("transformer", "ln_post", "proj")
_RESNET = tuple(f"{part}{n}" for part in ("conv", "bn", "act") for n in (1, 2, 3))
_RESNET += ("avgpool", "layer1", "layer2", "layer3", "layer4", "attnpool")
_POOL = ("positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj")
_TEXT = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
_CLIP = (*_TEXT, "visual", "logit_scale", "logit_bias")  # whose text tower is not a module of its own
_BLOCK = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj", "num_heads")
_MLP = ("c_fc", "gelu", "c_proj")


def text_tower(model: Any) -> Any:
    """The module that holds an open_clip model's text tower: a CLIP itself, a part of a CustomTextCLIP.

    Raises ValueError where the savings would not be exact.
    """
    text = getattr(model, "text", model)
    if reason := _why_not_text(text):
        raise ValueError(
            f"text tower {type(text).__name__}: {reason}; only open_clip's causal transformer pooled at the "
            "end token is supported; use model.encode_text"
        )
    return text


def end_id(text: Any) -> int | None:
    """The token at whose first place a text tower pools; None where that is the highest id of a caption."""
    if _either(text, "pool_type", "text_pool_type") == "argmax":
        return None
    return _either(text, "eos_id", "text_eos_id")


def why_slow(visual: Any) -> str:
    """Why `encode_image` runs this image tower as it is; "" where it rewrites the tower."""
    if hasattr(visual, "class_embedding"):
        return _why_not_vit(visual)
    if hasattr(visual, "stem"):
        return _why_not_resnet(visual)
    return f"a {type(visual).__name__}"


def _why_not_vit(visual: Any) -> str:
    if getattr(visual, "attn_pool", None) is not None:
        return "pooled by attention"
    if getattr(visual, "pool_type", "") != "tok":
        return f"pooled by {getattr(visual, 'pool_type', 'unknown')!r}, not at the class token"
    if getattr(visual, "output_tokens", False):
        return "it returns its tokens too"
    return _other_part("", visual, _VIT) or _why_not_plain(visual.transformer)


def _why_not_resnet(visual: Any) -> str:
    pool: Any = getattr(visual, "attnpool", None)
    if not hasattr(pool, "c_proj"):
        return "not pooled by attention"
    return _other_part("", visual, _RESNET) or _other_part("attnpool.", pool, _POOL)


def _why_not_text(text: Any) -> str:
    pool_type = _either(text, "pool_type", "text_pool_type")
    if not hasattr(getattr(text, "transformer", None), "resblocks"):
        return "it has no transformer of residual blocks"
    if pool_type not in ("argmax", "eos"):
        return f"pooled by {pool_type!r}"
    if getattr(text, "attn_mask", None) is None:
        return "not causal"
    if getattr(text, "cls_emb", None) is not None:
        return "it has a class token"
    if getattr(text, "output_tokens", False):
        return "it returns its tokens too"
    known = _CLIP if hasattr(text, "visual") else _TEXT
    return _other_part("", text, known) or _why_not_plain(text.transformer)


def _why_not_plain(transformer: Any) -> str:
    """What makes a transformer's blocks more than x + attention(norm(x)), x + mlp(norm(x)); "" if nothing."""
    # len(), not bool(): torch 2.11 breaks its graph at the truth value of a list.
    if len(transformer.resblocks) == 0:
        return "it has no blocks"
    reason = _other_part("transformer.", transformer, ("resblocks", "grad_checkpointing"))
    for block in transformer.resblocks:
        reason = reason or _other_part("block.", block, _BLOCK) or _other_part("block.mlp.", block.mlp, _MLP)
        reason = reason or _why_not_attention(block.attn)
    return reason


def _why_not_attention(attention: Any) -> str:
    reason = _other_part("block.attn.", attention, _ATTENTION)
    if reason:
        return reason
    if attention.in_proj_weight is None:
        return "its attention's projections are not stacked"
    if getattr(attention, "dropout", 0) != 0 or getattr(attention, "add_zero_attn", False):
        return "its attention drops out or adds keys"
    scale = (attention.out_proj.in_features // attention.num_heads) ** -0.5
    if getattr(attention, "scale", scale) != scale:
        return f"its attention scales by {attention.scale}"
    return ""


def _other_part(where: str, module: nn.Module, known: tuple[str, ...]) -> str:
    """A known part that `module` lacks, or an unknown one that it has and that does something; else ""."""
    for name in known:
        if not hasattr(module, name):
            return f"it has no {where}{name}"
    for name, part in module._modules.items():
        if name not in known and not (part is None or _is_identity(part)):
            return f"it has {where}{name}"
    for name, parameter in module._parameters.items():
        if name not in known and parameter is not None:
            return f"it has {where}{name}"
    return ""


def _is_identity(part: nn.Module) -> bool:
    return isinstance(part, nn.Identity) or (isinstance(part, nn.Dropout) and part.p == 0)


def _either(module: Any, name: str, other: str) -> Any:
    """An attribute of a text tower, which CLIP itself has under `other`."""
    value = getattr(module, name, None)
    return getattr(module, other, None) if value is None else value
