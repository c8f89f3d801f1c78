"""A model ready for evaluation, with its own pixels and tokens: a run's, a file's, or open_clip's.

The only file of this room that knows a trainer's run folder.  What is taken for granted about weights that
do not say how they were trained is `eval/assumptions.py`'s.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

from eval import assumptions, towers
from eval.encode import Encoders, from_open_clip
from eval.sets.catalog import snapshot
from pipeline import text
from train import checkpoint
from train.model import create, load_file, load_run, tensors

CONFIG = "open_clip_config.json"
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")  # suffixes of files of weights
# Of open_clip, for a bad name or file.
LOAD_ERRORS = (RuntimeError, OSError, ValueError, ImportError, KeyError)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready for `encode.from_open_clip`, and what results.json says about it."""

    model: torch.nn.Module
    about: dict
    recipe: dict | None = None
    run: Path | None = None
    preprocess: dict = field(default_factory=dict)  # over open_clip's default for the model
    assumed: tuple[str, ...] = ()
    tokenizer: str = ""  # open_clip's name of it, where that is not the model's

    @property
    def name(self) -> str:
        """What the results call the architecture."""
        return self.about["model"]


def load(what: str, seed: int = 0) -> Loaded:
    """A run, a checkpoint, open_clip's NAME[,WEIGHTS], or timm:NAME[,WEIGHTS]; ValueError for anything else.

    seed: of a bare name's random weights.
    """
    path = Path(what)
    schema, _, address = what.partition(":")
    if schema == "timm":
        return _from_timm(what, address, seed)
    if schema == "hf-hub":
        return _from_schema(what, address.replace("/", "-"))
    if schema == "local-dir":
        return _from_schema(what, Path(address).resolve().name)
    if path.is_dir():
        folder = _open_clip_folder(path)
        return _from_schema(f"local-dir:{folder}", path.resolve().name) if folder else _from_run(path)
    if (path.suffix in WEIGHTS or path.is_file()) and "," not in what:
        raise ValueError(
            f"--checkpoint {what}: a file; say which architecture: NAME,{what}, or name the run's folder"
        )
    name, _, weights = what.partition(",")
    if os.sep in name or name.startswith("."):
        raise ValueError(f"--checkpoint {what}: no such folder{_similar_name(name)}")
    file = _file(what, weights)
    return _from_file(name, file) if file else _from_name(name, weights, seed)


def _file(what: str, weights: str) -> Path | None:
    """The file that stands after the comma; None where that is a pretrained tag, or nothing."""
    file = Path(weights).expanduser()  # which the shell does not do after a comma
    if not weights or not (file.suffix in WEIGHTS or file.exists()):
        return None
    if not file.is_file():
        what_it_is = "a folder; name the file in it" if file.is_dir() else "no such file"
        raise ValueError(f"--checkpoint {what}: {what_it_is}")
    return file


def _similar_name(name: str) -> str:
    similar = difflib.get_close_matches(name.replace("/", "-"), open_clip.list_models(), 1, 0.9)
    return f", and open_clip's name is {similar[0]}" if similar else ""


def _refused(what: str, error: Exception, hint: str = "") -> ValueError:
    return ValueError(f"--checkpoint {what}: {' '.join(str(error).split())[:300]}{hint}")


def _marked(name: str, path: Path) -> str:
    """A name with a mark of where the weights lie: there are others of that name elsewhere."""
    digest = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=4)
    return f"{name}-{digest.hexdigest()}"


# -- of a run, a file, a name ---------------------------------------------------------------------


def _from_run(path: Path) -> Loaded:
    notes: list[str] = []
    folder = checkpoint.find(os.path.abspath(path), notes.append)
    model, recipe = load_run(folder)
    if recipe.get("stage") == 1 and not recipe.get("init"):
        notes.append("a stage-1 checkpoint: its text tower is random, so only its 2AFC means anything")
    state = json.loads((folder / checkpoint.STATE).read_text())
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    about = {
        "source": str(folder.resolve()),
        "run": str(run.resolve()),
        "step": state["step"],
        "samples": state["samples"],
        "model": recipe["model"],
        "pretrained": f"{run.absolute().name}-{folder.name}",
    }
    return Loaded(model=model, about=about, recipe=recipe, run=run, assumed=tuple(notes))


def _from_file(name: str, file: Path) -> Loaded:
    try:
        model, origin = load_file(name, file)
    except LOAD_ERRORS as error:
        raise _refused(f"{name},{file}", error) from None
    preprocess, notes = assumptions.notes(name, model, origin.quick_gelu, origin.preprocess)
    about = {"source": str(file), "model": name, "pretrained": _marked(file.stem, file)}
    about |= {"told_by": origin.says} if origin.says else {}
    if not origin.whole:
        visual: Any = model.visual
        model = towers.Tower(visual, f"{name},{file}")
        notes.append("the image tower alone is in the file")
    return Loaded(model=model, about=about, preprocess=preprocess, assumed=tuple(notes))


def _from_name(name: str, tag: str, seed: int) -> Loaded:
    """open_clip's model of this name with the weights of a pretrained tag, or random ones."""
    try:
        if tag:
            model = from_tag(name, tag)
        else:
            torch.manual_seed(seed)
            model = create(name)
    except LOAD_ERRORS as error:
        what = f"{name},{tag}" if tag else f"{name}: no such folder, and no model either"
        raise _refused(what, error) from None
    about = {"source": tag or "random weights", "model": name, "pretrained": tag or f"random-{seed}"}
    return Loaded(model=model, about=about)


def from_tag(name: str, tag: str) -> torch.nn.Module:
    """open_clip's published weights, with the activation they were trained with whatever the name says."""
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    return open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick)


def _from_timm(what: str, address: str, seed: int) -> Loaded:
    """timm's `NAME[,WEIGHTS]`; with a file, NAME may end in .TAG, the configuration that tells its pixels."""
    name, _, weights = address.partition(",")
    file = _file(what, weights)
    tag = "" if file else weights
    if "." in name and not file:
        stem, _, own = name.partition(".")
        raise ValueError(f"--checkpoint {what}: the pretrained tag stands after a comma: timm:{stem},{own}")
    try:
        tower = towers.from_timm(name, tag, tensors(file) if file else None, seed, what)
    except LOAD_ERRORS as error:
        hint = f"; without a network: timm:{name},FILE.safetensors" if tag else ""
        raise _refused(what, error, hint) from None
    pretrained = _marked(file.stem, file) if file else tag or f"random-{seed}"
    source = str(file or tag or "random weights")
    about = {"source": source, "model": f"timm-{name}", "pretrained": pretrained}
    notes = [f"assumed, since no file tells: pixels as timm has them for {name}"] if file else []
    notes += [] if weights else ["random weights: no pretrained tag and no file stands after the name"]
    return Loaded(model=tower, about=about, assumed=tuple(notes))


# -- of open_clip's hub and folders ---------------------------------------------------------------


def _from_schema(what: str, name: str) -> Loaded:
    """open_clip's `hf-hub:ORG/NAME` and `local-dir:FOLDER`: architecture, weights, preprocessing in one.

    name: what the results call it.
    """
    schema, _, address = what.partition(":")
    try:
        model = open_clip.create_model(what, require_pretrained=True)
    except LOAD_ERRORS as error:
        hint = "; without a network: local-dir:FOLDER, or NAME,FILE.safetensors" if schema == "hf-hub" else ""
        raise _refused(what, error, hint) from None
    pretrained = _marked(schema, Path(address)) if schema == "local-dir" else schema
    about = {"source": what, "model": name, "pretrained": pretrained}
    return Loaded(model=model, about=about, assumed=_left_to_defaults(schema, address), tokenizer=what)


def _left_to_defaults(schema: str, address: str) -> tuple[str, ...]:
    """What the model's configuration leaves to open_clip's defaults, as notes."""
    config = Path(address) / CONFIG
    if schema == "hf-hub":
        config = Path(download_pretrained_from_hf(address, filename=CONFIG))
    if json.loads(config.read_text(encoding="utf-8")).get("preprocess_cfg"):
        return ()
    return (f"assumed, since {CONFIG} does not tell: CLIP's mean, std and resizing",)


def _open_clip_folder(path: Path) -> Path | None:
    """Where open_clip_config.json lies: the folder itself, or the snapshot of a Hugging Face cache folder."""
    return next((folder for folder in (path, snapshot(path)) if (folder / CONFIG).is_file()), None)


# -- pixels and tokens ----------------------------------------------------------------------------


def encoders_for(loaded: Loaded, device: torch.device, precision: str) -> Encoders:
    """The model's functions with its own evaluation transform and tokenizer."""
    tower = loaded.model if isinstance(loaded.model, towers.Tower) else None
    if tower and tower.transform:
        return from_open_clip(tower, tower.tokenize, tower.transform, device, precision)
    visual: Any = loaded.model.visual  # open_clip's towers tell image_size
    config = getattr(visual, "preprocess_cfg", {"size": visual.image_size})
    config = PreprocessCfg(**merge_preprocess_dict(config, loaded.preprocess))
    told_by = loaded.about.get("told_by", "its config")
    if _sides(config.size) != _sides(visual.image_size):
        raise ValueError(
            f"--checkpoint {loaded.about['source']}: {told_by} tells of images of {config.size} pixels, "
            f"{loaded.name} sees {visual.image_size}; weights or config are another model's"
        )
    try:
        transform = image_transform_v2(config, is_train=False)
    except AssertionError:
        raise ValueError(
            f"--checkpoint {loaded.about['source']}: open_clip has no resizing {config.resize_mode!r} with "
            f"{config.interpolation!r}, of which {told_by} tells"
        ) from None
    tokenizer = tower.tokenize if tower else tokenizer_of(loaded.tokenizer or loaded.name)
    return from_open_clip(loaded.model, tokenizer, transform, device, precision)


def _sides(size: int | tuple[int, int] | list[int]) -> set[int]:
    return {*size} if isinstance(size, (tuple, list)) else {size}


def tokenizer_of(name: str) -> Callable:
    """open_clip's tokenizer of this model, or ours where it is CLIP's own (same ids, faster)."""
    try:
        theirs = open_clip.get_tokenizer(name)
    except ImportError as error:
        package = error.name or "transformers"
        raise ValueError(
            f"--checkpoint {name}: its tokenizer needs {package}: pip install {package}"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise _refused(name, error, "; its tokenizer's files must be on this machine") from None
    plain = type(theirs) is open_clip.SimpleTokenizer and theirs.reduction_fn is None
    if plain and theirs.context_length == 77 and theirs.clean_fn.__name__ == "_clean_lower":
        return lambda texts: torch.from_numpy(text.tokenize(texts)).to(torch.int64)
    return theirs
