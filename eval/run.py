"""Evaluate a checkpoint: zero-shot classification, retrieval, 2AFC.

    python -m eval.run --checkpoint runs/demo/pi --data data/demo/eval
    python -m eval.run --checkpoint ViT-B-32,openai --data ~/datasets --families VTAB
    torchrun --nproc-per-node 8 -m eval.run --checkpoint RUN --data ROOT

The only file of this room that knows a trainer's run folder.  Everything is offline.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a checkpoint on every set found under a folder."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="RUN|NAME[,WEIGHTS]")]
    """A run's folder (its newest checkpoint), one of its checkpoints/step-*, an open_clip model name with a
    pretrained tag or a .safetensors file after a comma; a name alone has random weights."""
    data: Path | None = None
    """Folder of the sets: clip-benchmark's wds_* folders, raw torchvision sets, class folders, captions."""
    triplets: Path | None = None
    """2AFC: a triplet .beton, or a folder laid out as NIGHTS."""
    out: Path | None = None
    """Where the results go; RUN/eval for a run, ./eval-results/NAME else."""
    datasets: tuple[str, ...] = ()
    """Only these sets."""
    families: tuple[str, ...] = ()
    """Only these families of the catalog (ImageNet, "ImageNet OOD", VTAB, …, Retrieval, Demo)."""
    prompts: Literal["auto", "datacomp", "clip_benchmark"] = "auto"
    """auto: class names and templates beside the data where they are, else datacomp's."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where crops and embeddings are kept; DATA/.cache if not given."""
    no_cache: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep nothing."""
    batch_size: int = 256
    """Images a forward pass."""
    workers: int = field(default_factory=lambda: min(16, os.cpu_count() or 1))
    """Threads that decode."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    precision: Literal["fp32", "amp"] = "fp32"
    """amp: autocast, as clip-benchmark does by default."""
    max_unreadable: float = 0.0
    """Share of a set's images that may be unreadable and left out; 0 refuses such a set."""
    seed: int = 0
    """Of the random weights of a bare model name."""

    def __post_init__(self) -> None:
        if self.data is None and self.triplets is None:
            raise ValueError(
                "--data or --triplets: at least one is needed, else there is nothing to evaluate"
            )
        if self.batch_size < 1 or self.workers < 1:
            raise ValueError("--batch-size and --workers: at least 1")
        if not 0 <= self.max_unreadable < 1:
            raise ValueError(f"--max-unreadable {self.max_unreadable}: must lie in [0, 1)")


@dataclass(frozen=True)
class Loaded:
    """A model ready for `encode.from_open_clip`, and what results.json says about it."""

    model: object
    name: str
    about: dict
    recipe: dict | None
    run: Path | None


def _from_run(path: Path) -> Loaded:
    from train import checkpoint
    from train.model import load_run

    folder = checkpoint.find(path)
    model, recipe = load_run(folder)
    state = json.loads((folder / checkpoint.STATE).read_text())
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    about = {
        "source": str(folder.resolve()),
        "run": str(run.resolve()),
        "step": state["step"],
        "samples": state["samples"],
        "model": recipe["model"],
        "pretrained": f"{run.name}-{folder.name}",
    }
    return Loaded(model, recipe["model"], about, recipe, run)


def _from_name(name: str, weights: str, seed: int) -> Loaded:
    import torch
    from open_clip import create_model

    from train import checkpoint
    from train.model import create

    if weights and not weights.endswith(".safetensors"):
        try:
            model = create_model(name, pretrained=weights)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"--checkpoint {name},{weights}: {error}") from None
    else:
        torch.manual_seed(seed)
        try:
            model = create(name)
        except ValueError as error:
            raise ValueError(
                f"--checkpoint {name}: no such folder, and no model of that name ({error})"
            ) from None
        if weights:
            try:
                model.load_state_dict(checkpoint.weights(weights))
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
                raise ValueError(f"--checkpoint: {weights} does not fit {name}: {first}") from None
    pretrained = Path(weights).stem if weights.endswith(".safetensors") else weights or f"random-{seed}"
    about = {"source": weights or f"random weights, seed {seed}", "model": name, "pretrained": pretrained}
    return Loaded(model, name, about, None, None)


def load(what: str, seed: int = 0) -> Loaded:
    """A run, a checkpoint, or open_clip's NAME[,WEIGHTS]; ValueError for anything else."""
    path = Path(what)
    if path.is_dir():
        return _from_run(path)
    if path.suffix == ".safetensors" and "," not in what:
        raise ValueError(f"--checkpoint {what}: say which architecture: NAME,{what}")
    name, _, weights = what.partition(",")
    if "/" in name or name.startswith("."):
        raise ValueError(f"--checkpoint {what}: no such folder")
    return _from_name(name, weights, seed)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "open_clip_torch", "numpy", "pillow", "torchvision")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


def encoders_for(loaded: Loaded, device, precision: str):
    """The model's functions with its own evaluation transform and tokenizer."""
    from open_clip import get_tokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from eval.encode import from_open_clip

    config = PreprocessCfg(
        **getattr(loaded.model.visual, "preprocess_cfg", {"size": loaded.model.visual.image_size})
    )
    transform = image_transform_v2(config, is_train=False)
    return from_open_clip(loaded.model, get_tokenizer(loaded.name), transform, device, precision)


def evaluate(options: Evaluate) -> Path | None:
    """Run it; the folder with results.json (None on ranks other than 0).  Raises ValueError for bad input."""
    import torch

    from eval import perceptual, results, sources, suite
    from eval.catalog import select
    from eval.crops import Cache
    from eval.ranks import start

    began = time.perf_counter()
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    )
    wanted = select(options.datasets, options.families)
    profile = None if options.prompts == "auto" else options.prompts
    sets = sources.discover(options.data, wanted, profile) if options.data is not None else []
    triplets = perceptual.read(options.triplets) if options.triplets is not None else None
    loaded = load(options.checkpoint, options.seed)
    ranks = start(device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))

    def say(line: str) -> None:
        if ranks.rank == 0:
            print(line, flush=True)

    encoders = encoders_for(loaded, device, options.precision)
    cache = Cache(None if options.no_cache else _cache_folder(options))
    settings = suite.Settings(
        batch_size=options.batch_size, workers=options.workers, max_unreadable=options.max_unreadable
    )
    say(f"{loaded.name} ({loaded.about['pretrained']}) on {len(sets)} sets, {device}, {options.precision}")
    outcome = suite.evaluate(encoders, sets, triplets, cache, settings, ranks, say)
    for note in cache.notes:
        say(f"note: {note}")
    if ranks.rank:
        return None
    outcome.seconds["all"] = time.perf_counter() - began
    about = {
        "checkpoint": {**loaded.about, "weights": encoders.identity},
        "recipe": loaded.recipe,
        "settings": {
            "device": str(device), "precision": options.precision, "prompts": options.prompts,
            "preprocess": encoders.preprocess.describe(), "batch_size": options.batch_size,
            "ranks": ranks.world_size,
        },
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    out = options.out or (loaded.run / "eval" if loaded.run else Path("eval-results") / loaded.name)
    contents = results.write(out, outcome, about)
    if contents["missing"] and wanted is None and len(contents["missing"]) < len(sets) + 31:
        say(f"not here, so not evaluated: {len(contents['missing'])} of the paper's 31 sets")
    say(f"{out / results.RESULTS} ({outcome.seconds['all']:.1f} s)")
    return out


def _cache_folder(options: Evaluate) -> Path:
    if options.cache is not None:
        return options.cache
    base = options.data if options.data is not None else options.triplets
    folder = base / ".cache" if base.is_dir() else base.parent / ".cache"
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise ValueError(f"{folder}: not writable; name another folder with --cache, or use --no-cache")
    return folder


def main(arguments: list[str] | None = None) -> None:
    evaluate(tyro.cli(Evaluate, args=arguments))


if __name__ == "__main__":
    from eval.cli import command

    raise SystemExit(command(main))
