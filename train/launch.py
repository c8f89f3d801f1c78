"""Start a run: `python -m train.launch --stage 1|2 [--recipe NAME] [options]`.

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

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.base import machine
from pipeline.base.slurm import check_path, gpus_of_nodes, own_environment
from pipeline.beton.fields import Beton
from train import recipes
from train.cluster import gpus
from train.cluster.scheduler import Launch, preview, run_local, submit
from train.config import Recipe, differences, to_dict
from train.job import describe, exit_code, run

R = TypeVar("R", bound=Recipe)
PROG = "python -m train.launch"
# What a surrounding torchrun or submitit job tells its own ranks; one process is not of them.
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SUBMITIT_EXECUTOR")


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
            print(__doc__)
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
    _check_model(recipe, *files)
    _check_folder(recipe)
    partial = recipe.stage == 1 and recipe.trainable != "image"
    if partial and recipe.init is None:
        raise ValueError(
            f"--trainable {recipe.trainable}: fine-tunes a trained model; name it with --init RUN"
        )
    if partial or (recipe.init is not None and before is None):
        from train import model

        model.check(recipe)


def _check_model(recipe: Recipe, *files: Beton) -> None:
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


# -- running --------------------------------------------------------------------------------


def launch(commands: Sequence[Command]) -> int:
    """Check every stage, then run or submit them; the exit code."""
    options = commands[0].launch
    cluster = options.cluster
    if cluster == "auto":
        cluster = "slurm" if shutil.which("sbatch") else "local"
    stages = [command.recipe for command in commands]
    for recipe in stages if cluster != "debug" else ():
        check_path(recipe.run, "--run")
    ranks = _ranks(commands[0], cluster)
    before = None
    for command in commands:
        if options.dry_run and not command.recipe.data.data.is_file():
            command.recipe.rank_batch(ranks * options.nodes)
            _check_model(command.recipe)
            print(f"note: {command.recipe.data.data} is not there yet; nothing in it was checked")
        else:
            check(command.recipe, ranks * options.nodes, before)
        before = command.recipe
    if options.cluster == "auto":
        print(f"--cluster auto: {cluster}", file=sys.stderr)
    if options.dry_run:
        return _dry_run(stages, options, cluster, ranks)
    if cluster == "slurm":
        return _submit(stages, options, ranks)
    if not gpus.here():
        for recipe in stages:
            gpus.on_cpu(recipe)
    return _run_here(stages, options, cluster, ranks)


def _run_here(stages: Sequence[Recipe], options: Launch, cluster: str, ranks: int) -> int:
    """One stage after the other on this machine; the exit code of the first that does not end well."""
    for recipe in stages:
        if cluster == "debug":
            with own_environment(*RANKS):
                code = 0 if run(recipe, profile=options.profile).done else 130
        else:
            code = run_local(recipe, ranks, options.profile)
        if code:
            return code
    return 0


def _ranks(command: Command, cluster: str) -> int:
    """Ranks a node."""
    options = command.launch
    if cluster != "slurm" and options.nodes > 1:
        raise ValueError(f"--nodes {options.nodes}: --cluster {cluster} is this machine alone")
    if cluster == "slurm":
        asked = options.gpus
        if asked and options.ngpus and asked < options.ngpus:
            raise ValueError(f"--ngpus {options.ngpus}: --slurm-arg asks for {asked} GPUs a node")
        known = options.ngpus or asked or recipes.GPUS.get(command.recipe.name)
        return known or gpus_of_nodes(options) or 1
    if cluster == "debug" and options.ngpus > 1:
        raise ValueError(f"--ngpus {options.ngpus}: --cluster debug is one process")
    return options.ngpus or (gpus.here() if cluster == "local" else 0) or 1


def _dry_run(stages: Sequence[Recipe], options: Launch, cluster: str, ranks: int) -> int:
    after = None
    for recipe in stages:
        print(json.dumps(to_dict(recipe), indent=1))
        if cluster == "slurm":
            print(preview(options, ranks, recipe, after))
            after = "JOB_OF_STAGE_1"
        else:
            print(f"would run {ranks} rank(s) on this machine in {recipe.run}")
            if not gpus.here():
                print("note: no GPU found here")
    return 0


def _submit(stages: Sequence[Recipe], options: Launch, ranks: int) -> int:
    after = None
    for recipe in stages:
        job = submit(recipe, options, ranks, after)
        waiting = f", after {after}" if after else ""
        print(
            f"job {job}: stage {recipe.stage} on {options.nodes} × {ranks} ranks{waiting}, run {recipe.run}"
        )
        print(f"  follow it: tail -F {recipe.run / 'log.txt'}    its output: {recipe.run / 'jobs' / job}")
        after = job
    return 0


def main(args: Sequence[str]) -> int:
    machine.settle()
    try:
        return launch(parse(args))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(describe(error), file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
