"""Evaluate a training run's checkpoints as they appear, for the learning and scaling curves.

Each goes to RUN/eval/step-NNNNNN; one that has results there is not evaluated again, so the same
command continues after an interruption.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from eval.results import RESULTS

POLL = 5.0  # seconds between looks at the folder


def pending(run: Path) -> list[Path]:
    """Whole checkpoints (a `state.json` is in them) without results, oldest first."""
    found = [p for p in (run / "checkpoints").glob("step-*") if (p / "state.json").is_file()]
    return [p for p in sorted(found) if not (run / "eval" / p.name / RESULTS).is_file()]


def has_ended(run: Path) -> bool:
    """Whether the newest checkpoint is the run's last step."""
    states = sorted((run / "checkpoints").glob("step-*/state.json"))
    try:
        newest = json.loads(states[-1].read_text())
    except (IndexError, OSError, ValueError):  # none yet, or the trainer has just removed it
        return False
    return 0 < newest.get("steps", 0) <= newest["step"]


def watch(run: Path, patience: float, evaluate: Callable[[str, Path], None], poll: float = POLL) -> int:
    """Call evaluate(checkpoint, folder for its results) for every checkpoint; returns how many.

    Ends after the run's last step, or when nothing new has appeared for `patience` seconds.  A
    checkpoint that the trainer removed meanwhile is passed over.  Raises ValueError when the run has no
    checkpoints folder to begin with.
    """
    if not (run / "checkpoints").is_dir():
        raise ValueError(f"--watch: {run} is no run's folder (it has no checkpoints/)")
    done, last = 0, time.monotonic()
    while True:
        for folder in pending(run):
            try:
                evaluate(str(folder), run / "eval" / folder.name)
            except (ValueError, OSError):
                if folder.is_dir():
                    raise
                print(f"{folder.name}: removed by the trainer before it could be read", flush=True)
            done, last = done + 1, time.monotonic()
        if time.monotonic() - last >= patience or (has_ended(run) and not pending(run)):
            return done
        time.sleep(min(poll, patience))


def submitted(cluster: str, run: Path, function: Callable, options: object) -> Callable[[str, Path], None]:
    """An `evaluate` for `watch` that runs function(options, checkpoint, out) as a submitit job and waits.

    cluster: `slurm` or `local`.  Raises ValueError with the job's own message when it fails.
    """
    import submitit

    executor = submitit.AutoExecutor(run / "eval" / "jobs", cluster=cluster)
    executor.update_parameters(name=f"eval-{run.name}", timeout_min=24 * 60, cpus_per_task=8)
    if cluster == "slurm":
        executor.update_parameters(slurm_gpus_per_node=1)

    def evaluate(checkpoint: str, out: Path) -> None:
        job = executor.submit(function, options, checkpoint, out)
        print(f"{Path(checkpoint).name}: {cluster} job {job.job_id}", flush=True)
        try:
            job.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            said = re.findall(r"^[\w.]*(?:Error|Exit|Interrupt)\b: (.*)$", str(error), re.MULTILINE)
            reason = said[-1] if said else str(error)
            raise ValueError(f"job {job.job_id} for {checkpoint} failed: {reason}") from None

    return evaluate
