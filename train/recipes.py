"""The recipes by name, one table a stage, and reading a recipe from a command line.

Sources: `paper` is section 3 of the paper; what the paper leaves open is taken from the public
configuration of the same laboratory (AdamW 5e-4, weight decay .1, betas .9/.98, warm-up 150 and 2,500
steps, stage-1 batch 768).  `strong` is DeCLIP's CLIP baseline (arXiv 2110.05208), which reaches 32.8 %
on ImageNet with ViT-B/32 on this data.  `pft` is section 3.3 with the learning rate, weight decay and
batch of that public configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from pipeline.beton.fields import Beton
from train.config import MAX_LOGIT_SCALE, Compute, Data, Optim, Recipe, Saving, Stage1, Stage2

T = TypeVar("T")
CONFIGS = Path(__file__).with_name("model_configs")
VOCABULARY, END = 49_408, 49_407  # of CLIP's tokenizer; its end token
MAX_CUT = 0.01  # share of captions that may be longer than the model reads
KINDS = {1: "triplets", 2: "pairs"}

# Where each prior's triplets and the pairs lie unless --data names a file, and what builds them.
PRIOR_DATA = {
    "nights": (Path("data/nights/triplets-train.beton"), "nights --source FOLDER"),
    "bapps": (Path("data/bapps/triplets-train.beton"), "bapps --source FOLDER"),
    "things": (Path("data/things/triplets-train.beton"), "things --source FOLDER"),
    "demo": (Path("data/demo/triplets-train.beton"), "demo"),
}
PAIRS = (Path("data/yfcc15m/pairs-train.beton"), "yfcc15m --source FOLDER")
DEMO_PAIRS = (Path("data/demo/pairs-train.beton"), "demo")

GPUS = {"paper": 6}  # ranks a node where the paper's machine is meant, unless --ngpus says otherwise

_PAPER = Optim(lr=5e-4, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8)
_LONG = Saving(save_every=250, keep=2, keep_epochs=1, log_every=10)
_SHORT = Saving(save_every=0, log_every=10)

STAGE1 = {
    "paper": Stage1(
        name="paper",
        batch=768,
        epochs=32,
        # The paper's text says the augmentations are the same in every stage; the laboratory's public
        # configuration only resizes here: --augment none.
        data=Data(augment="paper"),
        optim=dataclasses.replace(_PAPER, warmup_steps=150),
        saving=dataclasses.replace(_SHORT, val_every=100),
    ),
    "strong": Stage1(
        name="strong",
        batch=768,
        epochs=32,
        data=Data(augment="clip", crop_scale=(0.5, 1.0)),
        optim=dataclasses.replace(_PAPER, warmup_steps=150),
        saving=dataclasses.replace(_SHORT, val_every=100),
    ),
    "pft": Stage1(
        name="pft",
        batch=96,  # 16 a GPU
        epochs=8,
        trainable="qkv",
        data=Data(augment="paper"),
        optim=Optim(lr=1e-5, weight_decay=0.0, betas=(0.9, 0.999)),
        saving=dataclasses.replace(_SHORT, val_every=100),
    ),
    "demo": Stage1(
        name="demo",
        model="demo-RN",
        prior="demo",
        batch=64,
        steps=120,
        data=Data(augment="demo", workers=1),
        optim=Optim(lr=1e-3, warmup_steps=8),
        compute=Compute(precision="fp32"),
        saving=_SHORT,
    ),
    "debug": Stage1(
        name="debug",
        model="debug-ViT",
        prior="demo",
        batch=16,
        steps=4,
        data=Data(augment="none", workers=1),
        compute=Compute(precision="fp32"),
        saving=dataclasses.replace(_SHORT, log_every=1),
    ),
}

STAGE2 = {
    "paper": Stage2(
        name="paper",
        batch=30_720,
        epochs=32,
        scale_init=MAX_LOGIT_SCALE,
        data=Data(augment="paper", workers=12),
        optim=dataclasses.replace(_PAPER, warmup_steps=2_500),
        # For 80 GB (python -m train.plan). --micro 0 --recompute pointwise would save a quarter of the
        # arithmetic and just about fill them; the gradients are the same.
        compute=Compute(micro=2_560),
        saving=_LONG,
    ),
    "strong": Stage2(
        name="strong",
        batch=4_096,
        epochs=32,
        data=Data(augment="clip", crop_scale=(0.5, 1.0), workers=12),
        optim=Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=2_500),
        saving=dataclasses.replace(_LONG, save_every=1_000),
    ),
    "demo": Stage2(
        name="demo",
        model="demo-RN",
        batch=128,
        epochs=40,
        scale_init=math.log(30),
        data=Data(augment="demo", workers=1),
        optim=Optim(lr=1.5e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=50),
        compute=Compute(precision="fp32"),
        saving=_SHORT,
    ),
    "debug": Stage2(
        name="debug",
        model="debug-ViT",
        batch=16,
        steps=4,
        data=Data(augment="none", workers=1),
        compute=Compute(precision="fp32"),
        saving=dataclasses.replace(_SHORT, log_every=1),
    ),
}

RECIPES: dict[int, dict[str, Recipe]] = {1: STAGE1, 2: STAGE2}


def choose(stage: str, name: str) -> Recipe:
    """The named recipe of a stage; ValueError names what there is."""
    if stage not in ("1", "2"):
        raise ValueError(f"--stage {stage}: there are stages 1 (perceptual) and 2 (contrastive)")
    table = RECIPES[int(stage)]
    if name not in table:
        raise ValueError(f"--recipe {name}: stage {stage} has {', '.join(table)}")
    return table[name]


def take(args: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of `--flag VALUE` or `--flag=VALUE` (the last one), and the arguments without it."""
    value, rest, waiting = None, [], False
    for arg in args:
        if waiting:
            value, waiting = arg, False
        elif arg == flag:
            waiting = True
        elif arg.startswith(flag + "="):
            value = arg.split("=", 1)[1]
        else:
            rest.append(arg)
    if waiting:
        raise ValueError(f"{flag}: a value is missing")
    return value, rest


def cli(kind: type[T], default: T, args: Sequence[str], prog: str) -> T:
    """`default`, of the type `kind`, with the command line's changes; a mistake is a one-line ValueError."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, default=default, args=args, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """The first paragraph of tyro's message, which is framed in a terminal's characters or in ASCII."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│| ").strip()
        if text and not set(text) <= set("─╰╯-+"):
            lines.append(text)
        elif lines:
            break
    text = " ".join(lines) or "the command line could not be read (see --help)"
    return re.sub(r"^Error parsing ((recipe(\.\w+)?|machine|launch): )?", "", text)


def _data_source(recipe: Recipe) -> tuple[Path, str]:
    """Where the recipe's data lies by default, and the dataprep command that puts it there."""
    if recipe.stage == 1:
        return PRIOR_DATA[recipe.prior]
    return DEMO_PAIRS if recipe.name in ("demo", "debug") else PAIRS


def locate_data(recipe: Recipe) -> Recipe:
    """The recipe with its training file named, whether or not it is there."""
    chosen = recipe.data.data or _data_source(recipe)[0]
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, data=chosen))


def check_data(recipe: Recipe) -> None:
    """ValueError says which command builds a file that is missing."""
    for file in (recipe.data.data, recipe.data.val):
        if file is not None and not file.is_file():
            command = f"python dataprep/build_ffcv.py {_data_source(recipe)[1]}"
            raise ValueError(f"{file}: no such file; build it with: {command}")


def open_split(path: Path, stage: int) -> Beton:
    """The .beton at `path`; ValueError if it is broken or holds the other stage's kind of sample."""
    file, wanted = Beton(path), KINDS[stage]
    if file.kind != wanted:
        raise ValueError(f"{path}: holds {file.kind}; stage {stage} trains on {wanted}")
    return file


def model_files() -> dict[str, Path]:
    """The description of every model there is, by name; importing open_clip would take seconds."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations
    folders = [*(Path(p) / "model_configs" for p in spec.submodule_search_locations), CONFIGS]
    return {file.stem: file for folder in folders for file in folder.glob("*.json")}


def check_model_name(name: str) -> None:
    """ValueError if open_clip and train/model_configs have no such model."""
    if name not in model_files():
        own = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        known = {n.lower(): n for n in model_files()}
        near = [known[n] for n in difflib.get_close_matches(name.lower(), known, 2)]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ValueError(
            f"--model {name}: neither an open_clip model nor one of train/model_configs ({own}){hint}"
        )


def caption_length(model: str) -> int:
    """How many tokens of a caption the model reads; ValueError unless its text tower reads CLIP's token ids,
    which is what a .beton holds.
    """
    text = json.loads(model_files()[model].read_text()).get("text_cfg", {})
    name = f"--model {model}"
    other = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    vocabulary = text.get("vocab_size", VOCABULARY)
    if other or vocabulary < VOCABULARY:
        whose = f"the tokenizer of {other}" if other else f"a vocabulary of {vocabulary}"
        raise ValueError(
            f"{name}: its text tower wants {whose}; a .beton holds the ids of CLIP's {VOCABULARY}"
        )
    pool = text.get("pool_type", "argmax")
    ends = pool == "argmax" or (pool == "eos" and text.get("eos_id") == END)
    if text.get("no_causal_mask") or text.get("embed_cls") or not ends:
        raise ValueError(
            f"{name}: only text towers with a causal mask, pooled at CLIP's end token, are trained"
        )
    return text.get("context_length", 77)


def check_lengths(model: str, context: int, file: Beton) -> str | None:
    """A line to tell if some captions of `file` are longer than `context` tokens, ValueError if many are."""
    lengths = file.info.get("captions", {}).get("lengths", [])  # how many captions have 0, 1, … tokens
    longer, total = sum(lengths[context + 1 :]), sum(lengths)
    if not longer:
        return None
    said = f"{longer:,} of {total:,} captions of {file.path} are longer than the {context} tokens of"
    said += f" --model {model}"
    if longer > MAX_CUT * total:
        raise ValueError(f"{said}; choose a model that reads them")
    return f"note: {said}, and are cut"
