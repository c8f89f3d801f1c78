"""Evaluate a checkpoint: zero-shot classification, retrieval, 2AFC.

    python -m eval.run --checkpoint runs/demo/pi --data data/demo/eval
    python -m eval.run --checkpoint ViT-B-32,openai --data ~/datasets --families VTAB
    python -m eval.run --checkpoint runs/pi --data ~/datasets --watch 3600 --submit slurm
    torchrun --nproc-per-node 8 -m eval.run --checkpoint RUN --data ROOT

The only file of this room that knows a trainer's run folder.  Everything is offline.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from eval.jobs import Where
from eval.models import (
    NO_MODEL,
    Loaded,
    encoders_for,
    from_schema,
    from_tag,
    marked,
    open_clip_folder,
    refused,
)
from pipeline.base import console, hardware, machine

if TYPE_CHECKING:
    import torch

    from eval.encode import Encoders
    from eval.metrics.perceptual import Triplets
    from eval.sets.evalset import EvalSet


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a checkpoint on every set found under a folder."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="RUN|NAME[,WEIGHTS]")]
    """A run's folder (its newest checkpoint), one of its checkpoints/step-*, an open_clip model name with a
    pretrained tag or a .safetensors file after a comma, open_clip's hf-hub:ORG/NAME or local-dir:FOLDER; a
    name alone has random weights."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the sets: clip-benchmark's wds_* folders, raw torchvision sets, class folders, captions."""
    triplets: Annotated[Path | None, tyro.conf.arg(metavar="FILE|DIR")] = None
    """2AFC: a triplet .beton, a folder of triplets-*.beton, or a folder laid out as NIGHTS."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the results go; RUN/eval for a run, ./eval-results/NAME-WEIGHTS else (weights from a file or a
    folder: with a mark of where it lies)."""
    triplet_splits: tuple[str, ...] = ("val", "test")
    """Which splits of a folder of triplets (of these two one may be missing); a .beton is taken whole."""
    datasets: tuple[str, ...] = ()
    """Only these sets; one that is not there is an error."""
    families: tuple[str, ...] = ()
    """Only these families of the catalog (ImageNet, "ImageNet OOD", VTAB, …, Retrieval, Demo)."""
    prompts: Literal["auto", "datacomp", "clip_benchmark"] = "auto"
    """auto: class names and templates beside the data where they are, else datacomp's."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where crops and embeddings are kept; ROOT/.cache if not given."""
    no_cache: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep nothing."""
    batch_size: int = 256
    """Images a forward pass."""
    workers: int = field(default_factory=lambda: min(16, len(os.sched_getaffinity(0))))
    """Threads that decode."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    precision: Literal["fp32", "amp"] = "fp32"
    """amp: autocast, as clip-benchmark does by default."""
    max_unreadable: float = 0.0
    """Share of a set's images that may be unreadable and left out; 0 refuses such a set."""
    seed: int = 0
    """Of the random weights of a bare model name."""
    watch: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Evaluate every checkpoint of the run, each into RUN/eval/step-*, and new ones as they appear; stop
    after the run's last step, or when none has appeared for this long (0: only those that are there)."""
    submit: Literal["here", "slurm", "local"] = "here"
    """With --watch: evaluate in this process, or each checkpoint in a job of its own."""
    where: tyro.conf.OmitArgPrefixes[Where] = field(default_factory=Where)

    def __post_init__(self) -> None:
        if self.data is None and self.triplets is None:
            raise ValueError("--data or --triplets: one is needed, else there is nothing to evaluate")
        if self.batch_size < 1 or self.workers < 1:
            raise ValueError("--batch-size and --workers: at least 1")
        if not 0 <= self.max_unreadable < 1:
            raise ValueError(f"--max-unreadable {self.max_unreadable}: must lie in [0, 1)")
        if self.submit != "slurm" and self.where != Where():
            raise ValueError("--partition and what else SLURM is told: only with --submit slurm")
        if self.submit != "here" and self.watch is None:
            raise ValueError("--submit: only with --watch")
        if self.watch is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "--watch: not under torchrun, whose processes would not see the same checkpoints"
            )


WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")  # suffixes of files of weights


# -- the model ------------------------------------------------------------------------------------


def _from_run(path: Path) -> Loaded:
    from train import checkpoint
    from train.model import load_run

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
    return Loaded(model, recipe["model"], about, recipe, run, assumed=tuple(notes))


def _from_name(name: str, weights: str, seed: int) -> Loaded:
    """open_clip's model of this name with random weights, or those of a pretrained tag or a file."""
    import torch

    from train.model import create

    file = Path(weights).expanduser()  # which the shell does not do after a comma
    if weights and (file.suffix in WEIGHTS or file.exists()):
        if not file.is_file():
            what = "a folder; name the file in it" if file.is_dir() else "no such file"
            raise ValueError(f"--checkpoint {name},{weights}: {what}")
        return _from_file(name, file)
    try:
        if weights:
            model = from_tag(name, weights)
        else:
            torch.manual_seed(seed)
            model = create(name)
    except NO_MODEL as error:
        where = f"{name},{weights}" if weights else f"{name}: no such folder, and no model either"
        raise refused(where, error) from None
    pretrained = weights or f"random-{seed}"
    about = {"source": weights or "random weights", "model": name, "pretrained": pretrained}
    return Loaded(model, name, about)


def _from_file(name: str, file: Path) -> Loaded:
    from eval import assumed
    from train.model import load_file

    try:
        model, origin = load_file(name, file)
    except NO_MODEL as error:
        raise refused(f"{name},{file}", error) from None
    preprocess, notes = assumed.notes(name, model, origin.quick_gelu, origin.preprocess)
    about = {"source": str(file), "model": name, "pretrained": marked(file.stem, file)}
    about |= {"told_by": origin.says} if origin.says else {}
    return Loaded(model, name, about, preprocess=preprocess, assumed=tuple(notes))


def load(what: str, seed: int = 0) -> Loaded:
    """A run, a checkpoint, or open_clip's NAME[,WEIGHTS]; ValueError for anything else."""
    path = Path(what)
    kind, _, place = what.partition(":")
    if kind == "hf-hub":
        return from_schema(what, place.replace("/", "-"))
    if kind == "local-dir":
        return from_schema(what, Path(place).resolve().name)
    if path.is_dir():
        folder = open_clip_folder(path)
        return from_schema(f"local-dir:{folder}", path.resolve().name) if folder else _from_run(path)
    if (path.suffix in WEIGHTS or path.is_file()) and "," not in what:
        raise ValueError(
            f"--checkpoint {what}: a file; say which architecture: NAME,{what}, or name the run's folder"
        )
    name, _, weights = what.partition(",")
    if os.sep in name or name.startswith("."):
        from open_clip import list_models

        model = difflib.get_close_matches(name.replace("/", "-"), list_models(), 1, 0.9)
        hint = f", and open_clip's name is {model[0]}" if model else ""
        raise ValueError(f"--checkpoint {what}: no such folder{hint}")
    return _from_name(name, weights, seed)


# -- one evaluation ---------------------------------------------------------------------------------


def _cache_folder(options: Evaluate) -> Path | None:
    if options.no_cache:
        return None
    if options.cache is not None:
        return options.cache
    base = options.data if options.data is not None else options.triplets
    return (base if base.is_dir() else base.parent) / ".cache"


@dataclass(frozen=True)
class Prepared:
    """The sets and triplets of the options, read once for any number of checkpoints."""

    options: Evaluate
    sets: list[EvalSet]
    triplets: Triplets | None
    began: float
    notes: tuple[str, ...] = ()


def prepare(options: Evaluate) -> Prepared:
    """Raises ValueError for data that are missing, damaged, or not what their name says."""
    from eval.crops import Cache
    from eval.metrics import perceptual
    from eval.sets import sources
    from eval.sets.catalog import check_found, select
    from eval.sets.evalset import shown
    from eval.sets.prompts import NO_TEMPLATES

    began = time.perf_counter()
    if options.triplets is not None and not options.triplets.exists():
        raise ValueError(f"--triplets {options.triplets}: no such file or folder")
    cache = Cache(_cache_folder(options))
    wanted = select(options.datasets, options.families)
    profile = None if options.prompts == "auto" else options.prompts
    sets, notes = [], []
    if options.data is not None:
        sets = sources.discover(options.data, wanted, profile, cache, notes.append)
        check_found(options.datasets, options.families, [s.entry for s in sets], options.data)
    elif wanted is not None:
        raise ValueError("--datasets and --families choose among the sets under --data, which is not given")
    triplets = None
    if options.triplets is not None:
        triplets = perceptual.read(options.triplets, options.triplet_splits)
        absent = [s for s in options.triplet_splits if s not in triplets.split]
        if absent and options.triplet_splits != perceptual.SPLITS:
            here = ", ".join(sorted({*triplets.split.tolist()}))
            raise ValueError(
                f"--triplet-splits {absent[0]}: {options.triplets} has no such split, but {here}"
            )
        notes += [f"triplets: {note}" for note in triplets.notes]
    notes += [f"{s.entry.key}: {note}" for s in sets for note in s.notes]
    if general := [s.entry.key for s in sets if s.prompts and NO_TEMPLATES in s.prompts.profile]:
        notes.append(f"ImageNet's 80 templates, since no others are known, for {shown(general)}")
    return Prepared(options, sets, triplets, began, tuple(notes))


PACKAGES = ("torch", "open_clip_torch", "numpy", "pillow", "torchvision")  # that figures depend on


def _about(loaded: Loaded, encoders: Encoders, options: Evaluate, ranks: int) -> dict:
    from eval.assumed import activation

    settings = {
        "device": str(encoders.device),
        "precision": options.precision,
        "prompts": options.prompts,
        "batch_size": options.batch_size,
        "ranks": ranks,
        "preprocess": encoders.preprocess.describe(),
    }
    return {
        "checkpoint": {
            **loaded.about,
            "weights": encoders.identity,
            "activation": activation(loaded.model),
            "assumed": loaded.assumed,
        },
        "recipe": loaded.recipe,
        "settings": settings,
        "versions": hardware.versions(PACKAGES),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _device(name: str) -> torch.device:
    import torch

    cuda = torch.cuda.is_available()
    if cuda:  # before anything is put there: this rank's card, not the first for all
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        device = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0][:200]
        raise ValueError(f"--device {name}: PyTorch has none of that name here ({why})") from None
    return device


def _out(loaded: Loaded, given: Path | None) -> Path:
    """Where the results go.  ValueError where they could not be written once everything is computed."""
    usual = Path("eval-results") / "-".join(dict.fromkeys((loaded.name, loaded.about["pretrained"])))
    out = given or (loaded.run / "eval" if loaded.run else usual)
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {place} is no folder that can be written to")
    return out


def evaluate(prepared: Prepared, checkpoint: str, out: Path | None) -> None:
    """Evaluate one checkpoint and write its folder of results (rank 0).  Raises ValueError for bad input."""

    from eval import ranks, results, suite
    from eval.crops import Cache

    options = prepared.options
    device = _device(options.device)
    loaded = load(checkpoint, options.seed)
    out = _out(loaded, out or options.out)
    team = ranks.start(device)

    say = console.say if team.rank == 0 else lambda line: None

    encoders = encoders_for(loaded, device, options.precision)
    cache = Cache(_cache_folder(options))
    settings = suite.Settings(
        batch_size=options.batch_size, workers=options.workers, max_unreadable=options.max_unreadable
    )
    name = f"{loaded.name} ({loaded.about['pretrained']})"
    say(f"{name}: {len(prepared.sets)} sets, {device}, {options.precision}")
    if "told_by" in loaded.about:  # a file beside the weights may be another's
        say(f"weights used as {loaded.about['told_by']} tells")
    for note in (*loaded.assumed, *prepared.notes):
        say(f"note: {note}")
    outcome = suite.evaluate(encoders, prepared.sets, prepared.triplets, cache, settings, team, say)
    for note in cache.notes:
        say(f"note: {note}")
    if team.rank:
        return
    outcome.seconds["all"] = time.perf_counter() - prepared.began
    contents = results.write(out, outcome, _about(loaded, encoders, options, team.world_size))
    if 0 < len(contents["missing"]) < 31:
        say(f"of the paper's sets not evaluated: {', '.join(contents['missing'])}")
    say(f"{out / results.RESULTS} ({outcome.seconds['all']:.1f} s)")


def evaluate_alone(options: Evaluate, checkpoint: str, out: Path) -> None:
    """All of it in one call, for a job of its own."""
    evaluate(prepare(options), checkpoint, out)


def main(arguments: list[str] | None = None) -> None:
    machine.settle()
    options = tyro.cli(Evaluate, args=arguments)
    if options.watch is None:
        evaluate(prepare(options), options.checkpoint, None)
        return
    from eval.watch import watch

    run = Path(options.checkpoint)
    if options.submit == "here":
        prepared = prepare(options)
        watch(run, options.watch, lambda checkpoint, out: evaluate(prepared, checkpoint, out))
    else:
        from eval.watch import submitted

        alone = replace(options, watch=None, submit="here", where=Where())
        watch(run, options.watch, submitted(options.submit, run, evaluate_alone, alone, options.where))


if __name__ == "__main__":
    from pipeline.base.console import command

    raise SystemExit(command(main))
