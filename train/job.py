"""What each rank runs: join the others, train, and say how it ended.

`Job` is the small, picklable object that submitit sends to the ranks; torch is imported on the other side.
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
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config import Recipe

USER_ERRORS = (ValueError, OSError)


@dataclass
class Job:
    """A recipe with its run folder; `folder` is where the ranks tell each other of a failure."""

    recipe: Recipe
    folder: Path
    environment: dict[str, str]

    def __call__(self) -> dict:
        """{"step", "steps", "asked"}: how it ended; raises what ended it otherwise."""
        os.environ.update(self.environment)
        self.folder.mkdir(parents=True, exist_ok=True)
        failure = self.folder / f"failure-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"
        threading.Thread(target=_leave_with_others, args=(failure,), daemon=True).start()
        try:
            outcome = run(self.recipe, in_cluster=True)
        except (Exception, KeyboardInterrupt) as error:
            _tell(failure, error)
            raise
        return vars(outcome)

    def checkpoint(self) -> object:
        """What submitit puts in the queue again after a preemption: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run(recipe: Recipe, in_cluster: bool = False):
    """Train this rank; returns `train.loop.Outcome`.

    in_cluster: when asked to make room, put the job in the queue again (only rank 0 does, once the
    checkpoint is written; the others wait to be ended).
    """
    from train import distributed, loop
    from train.signals import PREEMPT, Stop

    stop = Stop()
    with distributed.join(recipe.compute.threads) as world:
        outcome = loop.train(recipe, world, stop)
        if outcome.asked == PREEMPT and in_cluster:
            stop.requeue_job(world.main)
        return outcome


def _tell(failure: Path, error: BaseException) -> None:
    """Write the first rank's failure where the launcher and the other ranks look; later ones are its echo."""
    rank = (
        os.environ.get("RANK")
        or os.environ.get("SLURM_PROCID")
        or os.environ.get("SUBMITIT_LOCAL_GLOBALID", "0")
    )
    text = describe(error)
    report = {"rank": int(rank), "code": exit_code(error), "text": text}
    part = failure.with_name(f"{failure.name}.{rank}")
    part.write_text(json.dumps(report))
    with contextlib.suppress(FileExistsError):
        os.link(part, failure)  # whole, and only if there is none
    part.unlink()


def _leave_with_others(failure: Path) -> None:
    """End this process once another rank has failed: it may wait for that rank in a collective for ever."""
    while not failure.exists():
        time.sleep(1)
    time.sleep(5)
    os._exit(1)


def exit_code(error: BaseException) -> int:
    """2 for a user's mistake or a full disk, 130 for Ctrl-C, 1 for everything else."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, USER_ERRORS) else 1


def describe(error: BaseException) -> str:
    """One line for what a user can understand, the traceback for the rest."""
    from train.loop import TrainingStopped

    if isinstance(error, (*USER_ERRORS, TrainingStopped)):
        return f"error: {error}"
    return "".join(traceback.format_exception(error))


def main(args: Sequence[str]) -> int:
    from train import launch

    try:
        recipe = launch.parse([a for a in args if a != "--"]).recipe
        launch.check(recipe, int(os.environ.get("WORLD_SIZE", 1)))
        outcome = run(recipe)
    except (Exception, KeyboardInterrupt) as error:
        print(describe(error), file=sys.stderr)
        return exit_code(error)
    return 0 if outcome.done else 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
