"""The models a recipe may name: open_clip's, and those of train/model_configs.

Only their JSON descriptions are read, because importing open_clip takes seconds and the command line is
checked first.  `train/model.py` builds the models.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from pathlib import Path

from pipeline.beton.fields import Beton

CONFIGS = Path(__file__).with_name("model_configs")
VOCABULARY, END = 49_408, 49_407  # of CLIP's tokenizer; its end token
MAX_CUT = 0.01  # share of captions that may be longer than the model reads


def model_files() -> dict[str, Path]:
    """The description of every model, by name."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations
    folders = [*(Path(p) / "model_configs" for p in spec.submodule_search_locations), CONFIGS]
    return {file.stem: file for folder in folders for file in folder.glob("*.json")}


def check_model_name(name: str) -> None:
    """ValueError if open_clip and train/model_configs have no such model."""
    if name in model_files():
        return
    own = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
    lower = {n.lower(): n for n in model_files()}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, 2)]
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise ValueError(
        f"--model {name}: neither an open_clip model nor one of train/model_configs ({own}){hint}"
    )


def has_quick_gelu(model: str) -> bool | None:
    """Whether a model of this name has OpenAI's QuickGELU; None for an unknown name."""
    file = model_files().get(model)
    return None if file is None else bool(json.loads(file.read_text()).get("quick_gelu", False))


def may_have_batch_norm(model: str) -> bool:
    """Whether the image tower has batch normalisation, or may have it for all that its description says."""
    vision = json.loads(model_files()[model].read_text()).get("vision_cfg", {})
    return isinstance(vision.get("layers"), list) or "timm_model_name" in vision


def caption_length(model: str) -> int:
    """How many tokens of a caption the model reads.

    ValueError unless its text tower reads CLIP's token ids, which is what a .beton holds.
    """
    text = json.loads(model_files()[model].read_text()).get("text_cfg", {})
    name = f"--model {model}"
    other = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    vocabulary = text.get("vocab_size", VOCABULARY)
    if other or vocabulary < VOCABULARY:
        needs = f"the tokenizer of {other}" if other else f"a vocabulary of {vocabulary}"
        raise ValueError(
            f"{name}: its text tower wants {needs}; a .beton holds the ids of CLIP's {VOCABULARY}"
        )
    pool = text.get("pool_type", "argmax")
    ends = pool == "argmax" or (pool == "eos" and text.get("eos_id") == END)
    if text.get("no_causal_mask") or text.get("embed_cls") or not ends:
        raise ValueError(
            f"{name}: only text towers with a causal mask, pooled at CLIP's end token, are trained"
        )
    return text.get("context_length", 77)


def check_lengths(model: str, context: int, file: Beton) -> str | None:
    """A note if some captions of `file` are longer than `context` tokens; ValueError if many are."""
    lengths = file.info.get("captions", {}).get("lengths", [])  # how many captions have 0, 1, … tokens
    longer, total = sum(lengths[context + 1 :]), sum(lengths)
    if not longer:
        return None
    message = (
        f"{longer:,} of {total:,} captions of {file.path} are longer than the {context} tokens of "
        f"--model {model}"
    )
    if longer > MAX_CUT * total:
        raise ValueError(f"{message}; choose a model that reads them")
    return f"note: {message}, and are cut"
