"""What is assumed about weights that do not say how they were trained, in words for the results.

Weights load wherever their shapes fit.  With another activation or other pixel values the figures are wrong
and nothing fails.  So the results name whatever neither the weights nor a file beside them tells.
"""

from __future__ import annotations

from open_clip import get_pretrained_cfg, list_models, list_pretrained_tags_by_model
from torch import nn

FIELDS = ("mean", "std", "interpolation", "resize_mode")


def activation(model: nn.Module) -> str:
    """QuickGELU if any part of the model has it, else GELU; `neither` for a tower of timm's without both."""
    layers = {type(m).__name__ for m in model.modules()}
    return next((name for name in ("QuickGELU", "GELU") if name in layers), "neither QuickGELU nor GELU")


def preprocessing(name: str) -> tuple[dict, str]:
    """(what to lay over open_clip's default, a note) for weights that do not tell their preprocessing."""
    first: dict[str, dict] = {}  # each different preprocessing under the first pretrained tag that has it
    for tag in list_pretrained_tags_by_model(name):
        told = get_pretrained_cfg(name, tag)
        config = {field: told[field] for field in FIELDS if told.get(field) is not None}
        if config not in first.values():
            first[tag] = config
    if len(first) == 1:
        config = next(iter(first.values()))
        return config, f"preprocessing as all published weights of {name} have it: {_shown(config)}"
    if not first:
        return {}, "preprocessing: CLIP's mean, std and resizing"
    others = "; ".join(f"{tag}: {_shown(config)}" for tag, config in first.items())
    return {}, f"preprocessing: CLIP's mean, std and resizing (published weights of {name} have {others})"


def _shown(config: dict) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in config.items())


def _number(value: object) -> str:
    return "/".join(f"{v:.3g}" for v in value) if isinstance(value, (tuple, list)) else str(value)


def notes(
    name: str, model: nn.Module, quick_gelu: bool | None, preprocess: dict | None
) -> tuple[dict, list[str]]:
    """(preprocessing to lay over open_clip's default, what is assumed) for weights from a file.

    quick_gelu, preprocess: what a file tells of them; None where none does.
    """
    out = []
    if quick_gelu is None:
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        doubt = f" ({other} has the same shapes and another activation)" if other in list_models() else ""
        out.append(f"activation {activation(model)}, as {name} has it{doubt}")
    if preprocess is None:
        preprocess, note = preprocessing(name)
        out.append(note)
    return preprocess, [f"assumed, since no file tells: {line}" for line in out]
