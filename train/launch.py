"""`python -m train.launch`: checks every stage, then runs or submits them (usage: train/command.py)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence

from pipeline.base import console, machine
from pipeline.base.slurm import check_path, gpus_of_nodes, own_environment
from train import recipes
from train.cluster import gpus
from train.cluster.options import Launch
from train.cluster.scheduler import preview, run_local, submit
from train.command import Command, check, check_model, parse
from train.config import Recipe, to_dict
from train.device import engine
from train.job import run

# What a surrounding torchrun or submitit job sets for its own ranks; --cluster debug is none of them.
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SUBMITIT_EXECUTOR")


def launch(commands: Sequence[Command]) -> int:
    """Check every stage, then run or submit them; the exit code."""
    options = commands[0].launch
    cluster = options.cluster
    if cluster == "auto":
        cluster = "slurm" if shutil.which("sbatch") else "local"
    stages = [command.recipe for command in commands]
    for recipe in stages if cluster != "debug" else ():
        check_path(recipe.folder, "--run")
    ranks = _ranks(commands[0], cluster)
    before = None
    for command in commands:
        if options.dry_run and not command.recipe.data.data.is_file():
            command.recipe.rank_batch(ranks * options.nodes)
            engine.check(command.recipe)
            check_model(command.recipe)
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
        requested = options.gpus
        if requested and options.ngpus and requested < options.ngpus:
            raise ValueError(f"--ngpus {options.ngpus}: --slurm-arg asks for {requested} GPUs a node")
        ranks = options.ngpus or requested or recipes.GPUS.get(command.recipe.name)
        return ranks or gpus_of_nodes(options) or 1
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
            print(f"would run {ranks} rank(s) on this machine in {recipe.folder}")
            if not gpus.here():
                print("note: no GPU found here")
    return 0


def _submit(stages: Sequence[Recipe], options: Launch, ranks: int) -> int:
    after = None
    for recipe in stages:
        job = submit(recipe, options, ranks, after)
        waiting = f", after {after}" if after else ""
        folder = recipe.folder
        print(f"job {job}: stage {recipe.stage} on {options.nodes} × {ranks} ranks{waiting}, run {folder}")
        print(f"  follow it: tail -F {folder / 'log.txt'}    its output: {folder / 'jobs' / job}")
        after = job
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    machine.settle()
    return console.command(lambda: launch(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
