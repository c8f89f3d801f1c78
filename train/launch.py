"""Start a run: `python -m train.launch --stage 1|2 [--recipe NAME] [options]`.

    --stage 2 --help                 that stage's options, with the recipe's values as defaults
    --recipe paper|strong|pft|demo|debug
    --cluster auto|slurm|local|debug auto: SLURM where sbatch is, else local; debug: in this very process

Everything a user can get wrong is checked before a file is written or a job is submitted: one line and
exit code 2.  Ctrl-C saves a checkpoint and ends with 130; the same command continues the run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from train import recipes
from train.config import Recipe, differences, to_dict
from train.job import Job, describe, exit_code, run

R = TypeVar("R", bound=Recipe)
PROG = "python -m train.launch"
YEAR = 60 * 24 * 365  # minutes: submitit's local executor wants a limit


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where the run runs."""

    cluster: Literal["auto", "slurm", "local", "debug"] = "auto"
    """auto: SLURM where sbatch is found, else this machine."""
    nodes: int = 1
    """Nodes of the job."""
    ngpus: int = 0
    """Ranks a node, one a GPU; without GPUs they share its cores. 0: as many as the node has GPUs."""
    dry_run: bool = False
    """Only print what would be run or submitted."""

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"--nodes {self.nodes}: at least 1")
        if self.ngpus < 0:
            raise ValueError(f"--ngpus {self.ngpus}: must not be negative")


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """A whole command line."""

    recipe: R
    launch: Launch


# -- reading and checking -------------------------------------------------------------------


def parse(args: Sequence[str]) -> Command:
    """The command line, with the recipe's data and run folder filled in; ValueError for a mistake."""
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


def place(recipe: Recipe) -> Recipe:
    """The recipe with its training file and run folder named."""
    recipe = recipes.resolve_data(recipe)
    if recipe.run is None:
        start = "-init" if recipe.init else ""
        folder = f"{recipe.name}-{recipe.model}-stage{recipe.stage}{start}-seed{recipe.seed}"
        recipe = replace(recipe, run=Path("runs") / folder)
    return recipe


def check(recipe: Recipe, world_size: int) -> None:
    """ValueError for what would make the run fail; imports torch only to look into `--init`."""
    recipe.rank_batch(world_size)
    recipe.total_steps(len(recipes.open_split(recipe.data.data, recipe.stage)))
    if recipe.data.val:
        recipes.open_split(recipe.data.val, recipe.stage)
    if recipe.data.engine == "dali" and not gpus_here():
        raise ValueError("--engine dali: decodes on a GPU, and this machine shows none; use --engine ffcv")
    recipes.check_model_name(recipe.model)
    _check_folder(recipe)
    partial = recipe.stage == 1 and recipe.trainable != "image"
    if partial and recipe.init is None:
        raise ValueError(
            f"--trainable {recipe.trainable}: fine-tunes a trained model; name it with --init RUN"
        )
    if partial or recipe.init is not None:
        from train import model

        model.check(recipe)


def _check_folder(recipe: Recipe) -> None:
    """ValueError if the run's folder holds another run, which could not be continued with these numbers."""
    saved = recipe.run / "recipe.json"
    if not saved.is_file():
        return
    changed = differences(json.loads(saved.read_text()), to_dict(recipe))
    if changed:
        raise ValueError(f"{recipe.run}: holds another run ({'; '.join(changed)}); choose another --run")


def gpus_here() -> int:
    """GPUs this machine shows, without importing torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


# -- running --------------------------------------------------------------------------------


def launch(command: Command) -> int:
    """Check, then run or submit; the exit code."""
    cluster = command.launch.cluster
    if cluster == "auto":
        cluster = "slurm" if shutil.which("sbatch") else "local"
    recipe, ranks = command.recipe, command.launch.ngpus or gpus_here() or 1
    if cluster != "slurm" and command.launch.nodes > 1:
        raise ValueError(f"--nodes {command.launch.nodes}: --cluster {cluster} is this machine alone")
    if cluster == "debug" and ranks > 1:
        raise ValueError(f"--ngpus {ranks}: --cluster debug is one process")
    check(recipe, ranks * command.launch.nodes)
    if command.launch.dry_run:
        print(json.dumps(to_dict(recipe), indent=1))
        return 0
    if command.launch.cluster == "auto":
        print(f"--cluster auto: {cluster}", file=sys.stderr)
    if cluster == "debug":
        return 0 if run(recipe).done else 130
    return run_local(recipe, ranks)


def run_local(recipe: Recipe, ranks: int) -> int:
    """`ranks` processes on this machine through submitit, followed until they end; the exit code."""
    import submitit

    folder = recipe.run / "jobs" / time.strftime("%Y%m%d-%H%M%S")
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(tasks_per_node=ranks, gpus_per_node=gpus_here(), timeout_min=YEAR)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    job = Job(recipe, folder, environment)
    asked: list[int] = []
    # submitit's controller would kill the ranks one second after a Ctrl-C; it inherits "ignore" from here
    # and the ranks, which install handlers of their own, save first.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        submitted = executor.submit(job)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: asked.append(number))
        _follow(submitted, recipe.run / "log.txt", asked)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return _verdict(folder, submitted)


def _follow(job, log: Path, asked: list[int]) -> None:
    """Show the run's log until the job ends; pass a request to stop on until it is heard."""
    place, live = log.stat().st_size if log.exists() else 0, sys.stderr.isatty()
    last = 0.0
    ended = False
    while True:
        if log.exists():
            with open(log) as file:
                file.seek(place)
                for line in file:
                    _show(line[20:].rstrip("\n"), live)
                place = file.tell()
        if ended:
            return
        ended = job._process.poll() is not None  # one more look at the log after the end
        if asked and time.monotonic() - last > 1:
            job._process.send_signal(signal.SIGTERM)
            last = time.monotonic()
        time.sleep(0 if ended else 0.1)


def _show(line: str, live: bool) -> None:
    if live:
        print(
            f"\r\033[K{line}",
            end="" if line.startswith("step ") and "left" in line else "\n",
            file=sys.stderr,
        )
        sys.stderr.flush()
    else:
        print(line, file=sys.stderr, flush=True)


def _verdict(folder: Path, job) -> int:
    """The exit code of a job that has ended, after saying what ended it."""
    for failure in folder.glob("failure-*.json"):
        report = json.loads(failure.read_text())
        print(report["text"], file=sys.stderr)
        return report["code"]
    if not all(task.paths.result_pickle.exists() for task in (job._sub_jobs or [job])):
        print(f"error: a rank was ended from outside; its output is in {folder}", file=sys.stderr)
        return 1
    outcome = job.results()[0]
    return 0 if outcome["step"] == outcome["steps"] else 130


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main(args: Sequence[str]) -> int:
    try:
        return launch(parse(args))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(describe(error), file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1:]))
