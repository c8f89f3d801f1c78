"""The command line of a run: read, filled in, and checked before a file is written or a job submitted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.beton.fields import Beton
from train import recipes
from train.cluster.options import Launch
from train.config import Recipe, differences, to_dict

R = TypeVar("R", bound=Recipe)
PROG = "python -m train.launch"
USAGE = """Start a run: `python -m train.launch --stage 1|2 [--recipe NAME] [options]`.

    --stage 2 --help                 that stage's options, with the recipe's values as defaults
    --recipe paper|strong|pft|demo|debug
    --stages 1,2                     both stages, the second from the first; flags reach both, --stage1.FLAG
                                     and --stage2.FLAG one of them; --prior none leaves stage 1 out
    --cluster auto|slurm|local|debug auto: SLURM where sbatch is, else this machine; debug: this very process
    --dry-run                        print what would be run or submitted

Everything a user can get wrong is checked before a file is written or a job is submitted: one line and
exit code 2.  Ctrl-C saves a checkpoint and ends with 130; the same command continues the run.
A run here uses the GPUs of CUDA_VISIBLE_DEVICES (all without it), and belongs to no SLURM allocation that
surrounds it; without a GPU, only the recipes demo and debug run on the CPU unasked.
"""


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """The command line of one stage."""

    recipe: R
    launch: Launch


# -- reading --------------------------------------------------------------------------------


def parse(args: Sequence[str]) -> list[Command]:
    """One command a stage, in order, with data and run folders filled in; ValueError for a mistake."""
    stages, args = recipes.take(args, "--stages")
    if stages is None:
        return [parse_stage(args)]
    if stages != "1,2":
        raise ValueError(f"--stages {stages}: the chain there is is 1,2")
    return parse_chain(args)


def parse_stage(args: Sequence[str]) -> Command:
    """The command line of a single stage."""
    stage, args = recipes.take(args, "--stage")
    name, args = recipes.take(args, "--recipe")
    if stage is None:
        if {"-h", "--help"} & set(args):
            print(USAGE)
            raise SystemExit(0)
        raise ValueError("--stage 1 (perceptual) or --stage 2 (contrastive) is missing")
    recipe = recipes.choose(stage, name or "paper")
    command = recipes.cli(
        Command[type(recipe)], Command(recipe=recipe, launch=Launch()), args, f"{PROG} --stage {stage}"
    )
    return replace(command, recipe=place(command.recipe))


def parse_chain(args: Sequence[str]) -> list[Command]:
    """Stage 1, and stage 2 that starts from it; with `--prior none` stage 2 alone, from random towers."""
    prior, args = recipes.take(args, "--prior")
    base, args = recipes.take(args, "--run")
    own = {stage: [a for a in args if a.startswith(f"--stage{stage}.")] for stage in "12"}
    if any("=" not in a for flags in own.values() for a in flags):
        raise ValueError("flags of one stage of a chain are written --stage1.FLAG=VALUE")
    shared = [a for a in args if not a.startswith(("--stage1.", "--stage2."))]
    commands = []
    for stage in "2" if prior == "none" else "12":
        flags = [f"--{a.partition('.')[2]}" for a in own[stage]]
        if stage == "1" and prior:
            flags.append(f"--prior={prior}")
        if base:
            flags.append(f"--run={Path(base) / f'stage{stage}'}")
        if commands:
            flags.append(f"--init={commands[0].recipe.run}")
        commands.append(parse_stage(["--stage", stage, *shared, *flags]))
    first, last = commands[0], commands[-1]
    if first.recipe.model != last.recipe.model:
        raise ValueError(f"--model: stage 1 trains {first.recipe.model} and stage 2 {last.recipe.model}")
    return commands


def place(recipe: Recipe) -> Recipe:
    """The recipe with its training file and run folder named."""
    recipe = recipes.locate_data(recipe)
    if recipe.run is None:
        start = "-init" if recipe.init else ""
        folder = f"{recipe.name}-{recipe.model}-stage{recipe.stage}{start}-seed{recipe.seed}"
        recipe = replace(recipe, run=Path("runs") / folder)
    return recipe


# -- checking -------------------------------------------------------------------------------


def check(recipe: Recipe, world_size: int, before: Recipe | None = None) -> None:
    """ValueError for what would make the run fail; imports torch only to look into `--init`.

    before: the run that `--init` names and that will exist by then.
    """
    recipe.rank_batch(world_size)
    recipes.check_data(recipe)
    files = [recipes.open_split(p, recipe.stage) for p in (recipe.data.data, recipe.data.val) if p]
    recipe.total_steps(len(files[0]))
    check_model(recipe, *files)
    _check_folder(recipe)
    partial = recipe.stage == 1 and recipe.trainable != "image"
    if partial and recipe.init is None:
        raise ValueError(
            f"--trainable {recipe.trainable}: fine-tunes a trained model; name it with --init RUN"
        )
    if partial or (recipe.init is not None and before is None):
        from train import model

        model.check(recipe)


def check_model(recipe: Recipe, *files: Beton) -> None:
    """ValueError for an unknown model, or one whose text tower does not read the captions."""
    recipes.check_model_name(recipe.model)
    if recipe.stage == 1:  # no captions
        return
    context = recipes.caption_length(recipe.model)
    for note in filter(None, (recipes.check_lengths(recipe.model, context, file) for file in files)):
        print(note, file=sys.stderr)


def _check_folder(recipe: Recipe) -> None:
    """ValueError if the run's folder holds another run, which could not be continued with these numbers."""
    saved = recipe.run / "recipe.json"
    if not saved.is_file():
        return
    try:
        held = json.loads(saved.read_text())
        if not isinstance(held, dict):
            raise ValueError("it holds no recipe")
        changed = differences(held, to_dict(recipe))
    except ValueError as error:
        raise ValueError(f"{saved}: damaged: {error}; choose another --run") from None
    if changed:
        raise ValueError(f"{recipe.run}: holds another run ({'; '.join(changed)}); choose another --run")
