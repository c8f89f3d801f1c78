"""Models: open_clip's, by name, with the parameters a recipe asks for; and reading a run's weights.

Where a parameter's value comes from, later lines win:

1. open_clip's own initialisation, drawn from the recipe's seed alone: the same on every rank, for every
   batch size, and for the text tower the same whatever becomes of the image tower;
2. the recipe's initial logit scale (stage 2);
3. `--init`: stage 2 takes the image tower from another run, stage 1 takes the whole model; of the tower,
   `--init-lengths` and `--init-norms` may leave some as it is by 1 (`weights/carried.py`);
4. a checkpoint in the run's own folder (`train/loop.py`): the run is continued, 1–3 have no effect.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels.flops import flop_counter
from kernels.structure import text_tower
from kernels.towers import TowerSettings, encode_image, encode_packed_text, encode_text
from pipeline.augment import lookup_table, normalise
from pipeline.packing import Packed
from train import checkpoint, data
from train.architectures import CONFIGS, check_model_name, has_quick_gelu
from train.config import Recipe, Stage1, Stage2
from train.weights import foreign, origin
from train.weights.carried import renewed

QKV = ("attn.in_proj_weight",)  # open_clip keeps a block's W_q, W_k, W_v stacked in one parameter
QKV_BIAS = ("attn.in_proj_weight", "attn.in_proj_bias")


@contextmanager
def _without_warning() -> Iterator[None]:
    """open_clip warns that a model without pretrained weights is random, as it is meant to be."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or "open_clip" not in Path(record.pathname).parts

    logging.root.addFilter(passes)
    try:
        yield
    finally:
        logging.root.removeFilter(passes)


def create(name: str, device: str | torch.device = "cpu", quick_gelu: bool = False) -> Any:
    """An open_clip model, fp32, with open_clip's random initialisation; ValueError for an unknown name.

    quick_gelu: OpenAI's activation also where the model of that name has another.
    """
    check_model_name(name)
    import open_clip

    if name not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS)
    with _without_warning(), torch.device(device):
        return open_clip.create_model(name, device=device, pretrained_text=False, force_quick_gelu=quick_gelu)


def build(recipe: Recipe) -> Any:
    """The recipe's model at its first step (1–3 of this module's list), on the CPU; see `set_trainable`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = create(recipe.model)
    if isinstance(recipe, Stage2):
        nn.init.constant_(model.logit_scale, recipe.scale_init)
    if recipe.init is not None:
        weights = renewed(_fitting_weights(model, recipe), model, recipe)
        model.load_state_dict(weights, strict=recipe.stage == 1)
    set_trainable(model, recipe)
    return model


def _fitting_weights(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Of `recipe.init`: the image tower's (stage 2) or all (stage 1); ValueError if they do not fit."""
    assert recipe.init is not None
    part = "visual." if recipe.stage == 2 else ""
    _check_activation(recipe.init, recipe.model)
    weights = {n: value for n, value in checkpoint.weights(recipe.init).items() if n.startswith(part)}
    _check_fit(model.state_dict(), weights, part, f"--init {recipe.init}: not a {recipe.model}")
    return weights


def _check_activation(init: Path, model: str) -> None:
    source, own = origin.of_weights(checkpoint.weights_file(init)), bool(has_quick_gelu(model))
    if source.quick_gelu is not None and source.quick_gelu != own:
        names = {True: "QuickGELU", False: "GELU"}
        raise ValueError(
            f"--init {init}: trained with {names[source.quick_gelu]} (says {source.says}), {model} "
            f"has {names[own]}; the --model names with and without -quickgelu differ in this alone"
        )


def _check_fit(own: Mapping[str, Tensor], other: Mapping[str, Tensor], part: str, complaint: str) -> None:
    for name in sorted(own.keys() | other.keys()):
        if not name.startswith(part):
            continue
        shapes = [tuple(side[name].shape) if name in side else "absent" for side in (own, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{complaint}: {name} is {shapes[1]} there, expected {shapes[0]}")


def check(recipe: Recipe) -> None:
    """ValueError unless `--init` holds a model that fits, its towers can be run, and something is trained."""
    skeleton = create(recipe.model, "meta")
    if recipe.stage == 2:
        try:
            text_tower(skeleton)
        except ValueError as error:
            raise ValueError(f"--model {recipe.model}: {error}") from None
    set_trainable(skeleton, recipe)
    if recipe.init is not None:
        _fitting_weights(skeleton, recipe)


def load_run(path: Path | str, device: str | torch.device = "cpu") -> tuple[nn.Module, dict]:
    """(open_clip model in eval mode, recipe as a dict) of a run's newest checkpoint, or of a checkpoint.

    Raises ValueError if there is none or it is damaged.
    """
    folder = checkpoint.find(path)
    config = json.loads((folder / "recipe.json").read_text())
    model = create(config["model"])
    weights = checkpoint.weights(folder)
    _check_fit(model.state_dict(), weights, "", f"{folder}: not a {config['model']}")
    model.load_state_dict(weights)
    return model.to(device).eval(), config


def load_file(name: str, file: Path) -> tuple[nn.Module, origin.Origin]:
    """(open_clip model of this name with a file's weights, what is known of these).

    The activation is the one that the weights were trained with, else the name's.  Where they are the image
    tower's alone (`whole` is false), the text tower is random.  Raises ValueError or RuntimeError for weights
    that do not fit; no code is unpickled.
    """
    source = origin.of_weights(file)
    state: dict[str, Tensor] = {}
    if file.suffix not in (".npz", ".npy"):
        state, by_names = foreign.read(file)
        source = by_names.over(source) if by_names.says else source
    if source.quick_gelu is False and has_quick_gelu(name):
        raise ValueError(f"trained with GELU (says {source.says}), {name} has QuickGELU")
    model = create(name, quick_gelu=bool(source.quick_gelu))
    if state:
        source = replace(source, whole=foreign.fill(model, state))
    else:  # big_vision's arrays
        import open_clip

        open_clip.load_checkpoint(model, str(file))
    return model, source


def tensors(file: Path) -> dict[str, Tensor]:
    """The weights by name of a .safetensors file, or of one of torch.save's, with the names that are there.

    Raises ValueError for other contents; no code is unpickled.
    """
    return foreign.read(file)[0]


def set_trainable(model: nn.Module, recipe: Recipe) -> list[str]:
    """Freeze what the stage does not train; returns the names of the trainable parameters.

    Stage 2 trains everything.  Stage 1 trains the image tower, or with `trainable="qkv"` the stacked
    query, key and value matrices of its blocks (`qkv+bias`: their biases too).
    ValueError for an image tower without such blocks.
    """

    trained = [name for name, _ in model.named_parameters()]
    if isinstance(recipe, Stage1):
        ends = {"image": ("",), "qkv": QKV, "qkv+bias": QKV_BIAS}[recipe.trainable]
        trained = [name for name in trained if name.startswith("visual.") and name.endswith(ends)]
        if not trained:
            raise ValueError(
                f"--trainable {recipe.trainable}: the image tower of {recipe.model} has no attention blocks"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return trained


# -- sizes ----------------------------------------------------------------------------------


def image_side(clip: Any) -> int:
    """The side of the square images that the image tower takes."""
    side = clip.visual.image_size
    return int(side[0] if isinstance(side, (tuple, list)) else side)


def example(clip: Any, samples: int, tokens: int) -> tuple[Tensor, Tensor]:
    """(images, captions of `tokens` tokens) on the CPU that fit the model."""
    side = image_side(clip)
    length = max(2, min(tokens, clip.context_length))
    captions = torch.zeros(samples, clip.context_length, dtype=torch.int64)
    captions[:, :length] = 320
    captions[:, length - 1] = clip.vocab_size - 1  # the end token is the largest
    return torch.rand(samples, 3, side, side), captions


def forward_flops(clip: Any, tokens: int) -> tuple[int, int]:
    """(of an image, of a caption of `tokens` tokens), 2 × multiply-adds, forward pass; counted by torch.

    Leaves the model as it is, its running statistics too.
    """
    images, captions = (x.to(clip.logit_scale.device) for x in example(clip, 1, tokens))
    training = clip.training
    clip.eval()
    flops = []
    for encode, inputs in ((encode_image, images), (encode_text, captions)):
        with flop_counter() as counter, torch.no_grad():
            encode(clip, inputs)
        flops.append(counter.get_total_flops())
    clip.train(training)
    return flops[0], flops[1]


def sample_flops(clip: Any, recipe: Recipe, tokens: int) -> int:
    """Of a sample, images and captions together: forward pass, as `forward_flops` counts."""
    image, text = forward_flops(clip, tokens)
    return recipe.forwarded * image + recipe.captions * text


# -- the towers as they are trained ---------------------------------------------------------


def fit_context(tokens: Tensor, length: int) -> Tensor:
    """tokens (B, T) for a tower of `length` positions: longer captions end early, in their end token."""
    if tokens.shape[1] <= length:
        return tokens
    last = torch.where(tokens[:, length] != 0, tokens.amax(1), tokens[:, length - 1])
    return torch.cat([tokens[:, : length - 1], last[:, None]], 1)


def check_compiler() -> None:
    """ValueError where `--compile` would find no compiler, half a minute later and with a traceback.

    Inductor compiles C++ on the CPU; for a GPU Triton compiles a launcher in C.
    """
    if torch.cuda.is_available():
        names, variable = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"], "CC"
    else:
        names, variable = [os.environ.get("CXX", "g++")], "CXX"
    if not any(map(shutil.which, names)):
        raise ValueError(
            f"--compile: {' or '.join(names)} is not found; install it, name a compiler with {variable}, "
            "or say --compile no"
        )


class Towers(nn.Module):
    """The features a stage asks for, in one forward pass that DistributedDataParallel can wrap."""

    table: Tensor  # (3, 256): the normalised value of each level

    def __init__(self, clip: nn.Module, recipe: Recipe):
        super().__init__()
        self.clip, compute = clip, recipe.compute
        recompute = "none" if compute.recompute == "auto" else compute.recompute
        self.settings = TowerSettings(recompute=recompute, attention=compute.attention)
        self.dtype = torch.bfloat16 if compute.precision == "bf16" else None
        # In bf16 the towers' first operation would round the images anyway.
        table = lookup_table(data.augmentation(recipe), self.dtype or torch.float32)
        device = next(clip.parameters()).device
        self.register_buffer("table", table.to(device), persistent=False)
        self.compiled = self.plain
        if compute.compiles:
            check_compiler()
            # One graph under DistributedDataParallel too: torch would cut it at every 25 MB of gradients, to
            # send these earlier (a hundredth of the paper's step), and fuse only within each piece.
            torch._dynamo.config.optimize_ddp = False
            # Static: a rare longer batch is compiled once more, instead of making every later one slower.
            mode = "max-autotune-no-cudagraphs" if compute.compile == "max" else None
            self.compiled = torch.compile(self.plain, dynamic=False, mode=mode)

    def forward(
        self, images: Tensor, captions: Tensor | Packed | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """images (B, 3, S, S), captions (C, T) or packed → fp32 features (B, D), (C, D), not normalised.

        Images are levels in uint8 or normalised values.
        """
        # Validation has batches of all shapes, and little to do.
        encode = self.compiled if self.clip.training else self.plain
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            image, text = encode(images, captions)
        return image.float(), None if text is None else text.float()

    def plain(self, images: Tensor, captions: Tensor | Packed | None) -> tuple[Tensor, Tensor | None]:
        """`forward` without autocast and compiler, in the features' own dtype."""
        if images.dtype == torch.uint8:
            images = normalise(images, self.table)
        image = encode_image(self.clip, images, self.settings)
        if captions is None:
            return image, None
        if isinstance(captions, Packed):
            return image, encode_packed_text(self.clip, *captions, self.settings)
        return image, encode_text(self.clip, captions, self.settings)
