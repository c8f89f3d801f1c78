"""What each rank runs: join the others, train, and report how it ended.

`Job` is the small, picklable object that submitit sends to the ranks, which import torch.
`torchrun --nproc-per-node N -m train.job -- --stage 2 …` starts the same thing with the same flags (the
`--` keeps torchrun from reading `--run` as a flag of its own).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base import console, machine
from pipeline.base.slurm import restore
from train.config import Recipe

if TYPE_CHECKING:
    from train.loop import Outcome

INTERRUPTED = "interrupted; the same command continues from the last checkpoint, if there is one"


@dataclass
class Job:
    """A stage's run, as a function that submitit can call."""

    recipe: Recipe
    environment: dict[str, str | None]
    """Of the ranks; None takes a variable away."""
    profile: int = 0
    """Steps to profile; 0: train."""

    def __call__(self) -> dict:
        """The fields of `loop.Outcome`; raises what ended it otherwise."""
        import submitit

        for name, value in self.environment.items():
            restore(name, value)
        machine.settle()
        job = submitit.JobEnvironment()
        folder = job.paths.folder
        failure = folder / f"failure-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"
        try:
            threading.Thread(target=_leave_with_others, args=(failure,), daemon=True).start()
            return vars(run(self.recipe, self.profile, in_cluster=True))
        except (Exception, KeyboardInterrupt) as error:
            _report(failure, self.recipe.folder, job.global_rank, error)
            raise

    def checkpoint(self) -> object:
        """What submitit puts in the queue again after a preemption: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run(recipe: Recipe, profile: int = 0, in_cluster: bool = False) -> Outcome:
    """Train this rank, or measure `profile` steps.

    in_cluster: when asked to make room, put the job in the queue again (only rank 0 does, once the
    checkpoint is written; the others wait to be ended).
    """
    from train import distributed, loop
    from train.cluster import gpus
    from train.cluster.signals import INTERRUPT, Stop

    stop = Stop()
    with compiled_code(recipe.folder), distributed.join(recipe.compute.threads) as world:
        note = gpus.on_cpu(recipe) if world.device.type == "cpu" else ""
        if profile:
            from train import profiling

            profiling.profile(recipe, world, profile)
            return loop.Outcome(0, 0)
        try:
            outcome = loop.train(recipe, world, stop, note)
        except Exception as error:
            if stop.asked != INTERRUPT or isinstance(error, (*console.USER_ERRORS, console.Failed)):
                raise
            raise KeyboardInterrupt from error  # SIGTERM to a whole job ends --compile's compilers too
        if in_cluster and not outcome.done:
            stop.leave(world.main, outcome.progressed)
        return outcome


@contextlib.contextmanager
def compiled_code(run_folder: Path) -> Iterator[None]:
    """Have torch.compile keep its code in the run's folder, unless TORCHINDUCTOR_CACHE_DIR says where.

    A run that is put in the queue again then compiles nothing anew, on whatever node it starts.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(run_folder.absolute() / "compiled"))
    try:
        yield
    finally:
        restore(name, before)


def _report(failure: Path, run_folder: Path, rank: int, error: BaseException) -> None:
    """Write the first failure where the launcher and the other ranks look; later failures only follow it."""
    text = INTERRUPTED if isinstance(error, KeyboardInterrupt) else console.describe(error)
    report = {"rank": rank, "code": console.exit_code(error), "text": text}
    # It exists already, or cannot be written (a full disk): `error` still is what ends this rank.
    with contextlib.suppress(OSError):
        with open(failure, "x") as file:
            file.write(json.dumps(report))
        if run_folder.is_dir() and not isinstance(error, machine.Busy):  # else the log is another run's
            with open(run_folder / "log.txt", "a") as log:
                log.write(console.log_line(f"rank {rank}: {text}"))


def _leave_with_others(failure: Path) -> None:
    """End this process once another rank has failed, which it may be waiting for in a collective."""
    while not failure.exists():
        time.sleep(1)
    time.sleep(5)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    os.environ.pop("SUBMITIT_EXECUTOR", None)  # torchrun within a submitit job: the ranks are torchrun's
    machine.settle()
    args = [a for a in (sys.argv[1:] if arguments is None else arguments) if a != "--"]
    return console.command(lambda: _run_rank(args), interrupted=INTERRUPTED)


def _run_rank(args: Sequence[str]) -> int:
    from train import command

    recipe = command.parse_stage(args).recipe
    command.check(recipe, int(os.environ.get("WORLD_SIZE", 1)))
    return 0 if run(recipe).done else 130


if __name__ == "__main__":
    sys.exit(main())
