"""Weights that others saved: which of a file's tensors are the model's, and by what names.

Only tensors are read (`weights_only`); nothing else is unpickled.  They must fill the whole model.  Their
names are open_clip's, also with the prefixes of DDP, `torch.compile` and trainers, or OpenAI's.  What else
is in the file, such as an optimizer's state, is passed over.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from train import checkpoint
from train.weights.origin import OURS, Origin

_OPENAI = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's weights have besides
_HINTS = {
    "vision_model.": "the names are transformers', open_clip's are expected",
    "lora": "parts of LoRA are among them; merge them into the weights first",
}


def read(file: Path) -> tuple[dict[str, Tensor], Origin]:
    """(weights by open_clip's names, what these names say of their origin), of .safetensors or torch.save.

    Raises ValueError for other contents, and for a file with more than one set of weights.
    """
    with open(file, "rb") as opened:
        if opened.read(20).startswith(b"version https://git-"):
            raise ValueError("a pointer of Git LFS in the file's place; git lfs pull fetches the file")
    contents = checkpoint.weights(file) if file.suffix == ".safetensors" else _unpickled(file)
    sets = {key: part for key, part in {"": contents, **contents}.items() if _is_weights(part)}
    if len(sets) > 1:
        raise ValueError(
            f"more than one set of weights is in it: {', '.join(sets)}; save the one that is meant"
        )
    if not sets:
        raise ValueError("no weights by name in it")
    state = {name.replace("_orig_mod.", ""): value for name, value in next(iter(sets.values())).items()}
    prefix = next((n.removesuffix("logit_scale") for n in state if n.endswith("logit_scale")), "")
    if all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not all(name in state for name in _OPENAI):
        return state, Origin()
    origin = Origin(True, OURS, f"{file.name}, which has OpenAI's {_OPENAI[0]},")
    return {name: value for name, value in state.items() if name not in _OPENAI}, origin


def _unpickled(file: Path) -> dict:
    if zipfile.is_zipfile(file) and any("/code/" in name for name in zipfile.ZipFile(file).namelist()):
        raise ValueError(
            "a TorchScript archive, as OpenAI's are, which is a program; save its tensors: python -c 'import "
            'sys, torch; torch.save(torch.jit.load(sys.argv[1], "cpu").state_dict(), sys.argv[2])\' IN OUT'
        )
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = next((line for line in str(error).splitlines() if "GLOBAL" in line), "damaged").strip()
        raise ValueError(f"not tensors alone, and nothing else is unpickled ({why})") from None
    except (RuntimeError, OSError) as error:
        raise ValueError(f"not a whole file of torch.save's ({error})") from None
    except EOFError:
        return {}
    return contents if isinstance(contents, dict) else {}


def _is_weights(part: object) -> bool:
    if not isinstance(part, dict) or not part:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in part.items())


def fill(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Put a whole model's weights into `model`, as `open_clip.load_checkpoint` does.

    False: they are the image tower's alone, and the text tower is left as it was.  Raises ValueError for
    positions that it would stretch to fit, RuntimeError for others that do not fit.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    own = model.state_dict()
    tower = {name.removeprefix("visual.") for name in own if name.startswith("visual.")}
    if state.keys() == tower:  # saved from `model.visual`
        state = {f"visual.{name}": value for name, value in state.items()}
    state = convert_state_dict(model, dict(state))
    if "positional_embedding" in state and "positional_embedding" not in own:
        state = convert_to_custom_text_state_dict(state)
    state = {n: v for n, v in state.items() if n in own or not n.endswith(".position_ids")}
    whole = {f"visual.{name}" for name in tower} != state.keys()
    for name in {"logit_scale", "logit_bias"} & own.keys():
        value = state.get(name, torch.zeros(1) if name == "logit_bias" else None)
        if value is not None and value.numel() == 1:
            state[name] = value.reshape(own[name].shape)
    for name, value in state.items():
        mine = own.get(name, value)
        if "pos" in name and mine.shape != value.shape:
            raise ValueError(
                f"{name} is {tuple(value.shape)} there, expected {tuple(mine.shape)}: weights of "
                "another resolution or length of text"
            )
    hint = next((hint for part, hint in _HINTS.items() if any(part in name for name in state)), None)
    if hint and not state.keys() <= own.keys():
        raise ValueError(f"{hint} ({next(name for name in state if name not in own)}, …)")
    model.load_state_dict(state, strict=whole)
    return whole
