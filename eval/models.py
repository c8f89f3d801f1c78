"""A model ready for evaluation, with its own pixels and tokens: open_clip's by tag, hub or folder.

Weights from a training run or a file are `eval/run.py`'s business, which hands them over as `Loaded`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.encode import Encoders

CONFIG = "open_clip_config.json"
NO_MODEL = (RuntimeError, OSError, ValueError, ImportError, KeyError)


@dataclass(frozen=True)
class Loaded:
    """A model ready for `encode.from_open_clip`, and what results.json says about it."""

    model: object
    name: str
    about: dict
    recipe: dict | None = None
    run: Path | None = None
    preprocess: dict = field(default_factory=dict)  # over open_clip's default for the model
    assumed: tuple[str, ...] = ()
    tokenizer: str = ""  # open_clip's name of it, where that is not the model's


def refused(what: str, error: Exception, hint: str = "") -> ValueError:
    return ValueError(f"--checkpoint {what}: {' '.join(str(error).split())[:300]}{hint}")


def marked(name: str, place: Path) -> str:
    """A name with a mark of where the weights lie: there are others of that name elsewhere."""
    digest = hashlib.blake2b(os.fsencode(place.resolve()), digest_size=4)
    return f"{name}-{digest.hexdigest()}"


def from_tag(name: str, tag: str):
    """open_clip's published weights, with the activation they were trained with whatever the name says."""
    from open_clip import create_model
    from open_clip.pretrained import get_pretrained_cfg

    quick = bool(get_pretrained_cfg(name, tag).get("quick_gelu"))
    return create_model(name, pretrained=tag, force_quick_gelu=quick)


def from_schema(what: str, name: str) -> Loaded:
    """open_clip's `hf-hub:ORG/NAME` and `local-dir:FOLDER`: architecture, weights, preprocessing in one.

    name: what the results call it.
    """
    from open_clip import create_model

    kind, _, place = what.partition(":")
    try:
        model = create_model(what, require_pretrained=True)
    except NO_MODEL as error:
        hint = "; without a network: local-dir:FOLDER, or NAME,FILE.safetensors" if kind == "hf-hub" else ""
        raise refused(what, error, hint) from None
    pretrained = marked(kind, Path(place)) if kind == "local-dir" else kind
    about = {"source": what, "model": name, "pretrained": pretrained}
    return Loaded(model, name, about, assumed=_untold(kind, place), tokenizer=what)


def _untold(kind: str, place: str) -> tuple[str, ...]:
    """What the model's configuration leaves to open_clip's defaults."""
    from open_clip.pretrained import download_pretrained_from_hf

    config = Path(place) / CONFIG
    if kind == "hf-hub":
        config = Path(download_pretrained_from_hf(place, filename=CONFIG))
    if json.loads(config.read_text(encoding="utf-8")).get("preprocess_cfg"):
        return ()
    return (f"assumed, since {CONFIG} does not tell: CLIP's mean, std and resizing",)


def open_clip_folder(path: Path) -> Path | None:
    """Where open_clip_config.json lies: the folder itself, or the snapshot of a Hugging Face cache folder."""
    head = path / "refs" / "main"
    places = [path, *([path / "snapshots" / head.read_text().strip()] if head.is_file() else [])]
    return next((p for p in places if (p / CONFIG).is_file()), None)


def tokenizer_of(name: str) -> Callable:
    """open_clip's tokenizer of this model, or ours where it is CLIP's own (same ids, faster)."""
    import torch
    from open_clip import get_tokenizer
    from open_clip.tokenizer import SimpleTokenizer

    from pipeline import text

    try:
        theirs = get_tokenizer(name)
    except ImportError as error:
        package = error.name or "transformers"
        raise ValueError(
            f"--checkpoint {name}: its tokenizer needs {package}: pip install {package}"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise refused(name, error, "; its tokenizer's files must be on this machine") from None
    plain = type(theirs) is SimpleTokenizer and theirs.reduction_fn is None
    if plain and theirs.context_length == 77 and theirs.clean_fn.__name__ == "_clean_lower":
        return lambda texts: torch.from_numpy(text.tokenize(texts)).to(torch.int64)
    return theirs


def encoders_for(loaded: Loaded, device, precision: str) -> Encoders:
    """The model's functions with its own evaluation transform and tokenizer."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    from eval.encode import from_open_clip

    visual = loaded.model.visual
    config = getattr(visual, "preprocess_cfg", {"size": visual.image_size})
    config = PreprocessCfg(**merge_preprocess_dict(config, loaded.preprocess))
    sizes = [
        {*size} if isinstance(size, (tuple, list)) else {size} for size in (config.size, visual.image_size)
    ]
    if sizes[0] != sizes[1]:
        told = loaded.about.get("told_by", "its config")
        raise ValueError(
            f"--checkpoint {loaded.about['source']}: {told} tells of pictures of {config.size} pixels, "
            f"{loaded.name} sees {visual.image_size}; weights or config are another model's"
        )
    try:
        transform = image_transform_v2(config, is_train=False)
    except AssertionError:
        raise ValueError(
            f"--checkpoint {loaded.about['source']}: open_clip has no resizing {config.resize_mode!r} with "
            f"{config.interpolation!r}, of which {loaded.about.get('told_by', 'its config')} tells"
        ) from None
    tokenizer = tokenizer_of(loaded.tokenizer or loaded.name)
    return from_open_clip(loaded.model, tokenizer, transform, device, precision)
