"""Evaluate a training run's checkpoints as they appear, for the learning and scaling curves.

Results go to RUN/eval/step-NNNNNN.  A checkpoint that has results there is not evaluated again, so the same
command continues after an interruption.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from eval.options import Where
from eval.results import RESULTS
from pipeline.base import slurm
from pipeline.base.console import say
from pipeline.base.slurm import check_path, submitting, with_devices

POLL = 5.0  # seconds between looks at the folder


def _checkpoints(run: Path) -> list[Path]:
    """The whole ones (with a `state.json`), oldest first; a copy with another kind of name does not count."""
    folders = [path.parent for path in (run / "checkpoints").glob("step-*/state.json")]
    whole = [f for f in folders if re.fullmatch(r"step-([0-9]{6}|[1-9][0-9]{6,})", f.name)]
    return sorted(whole, key=lambda folder: int(folder.name.removeprefix("step-")))


def pending(run: Path) -> list[Path]:
    """Whole checkpoints without results, oldest first."""
    return [p for p in _checkpoints(run) if not (run / "eval" / p.name / RESULTS).is_file()]


def has_ended(run: Path) -> bool:
    """Whether the newest checkpoint is the run's last step."""
    try:
        newest = json.loads((_checkpoints(run)[-1] / "state.json").read_text())
    except (IndexError, OSError, ValueError):  # none yet, or the trainer has just removed it
        return False
    return 0 < newest.get("steps", 0) <= newest["step"]


def watch(run: Path, patience: float, evaluate: Callable[[str, Path], None], poll: float = POLL) -> int:
    """Call evaluate(checkpoint, folder for its results) for every checkpoint; returns how many.

    Ends after the run's last step, or when nothing new has appeared for `patience` seconds.  Passes over a
    checkpoint that the trainer removed meanwhile.  Raises ValueError when the run has no checkpoints folder
    to begin with.
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
                say(f"{folder.name}: removed by the trainer before it could be read")
            done, last = done + 1, time.monotonic()
        if time.monotonic() - last >= patience or (has_ended(run) and not pending(run)):
            return done
        time.sleep(min(poll, patience))


def submitted(
    cluster: str, run: Path, function: Callable, options: object, where: Where
) -> Callable[[str, Path], None]:
    """An `evaluate` for `watch` that runs function(options, checkpoint, out) as a submitit job and waits.

    cluster: `slurm` or `local`.  Raises ValueError with sbatch's message when it refuses the job, and with
    the job's own message when the job fails.
    """
    import submitit

    check_path(run, "--checkpoint")
    with submitting():
        parameters = where.slurm_parameters(run.name) if cluster == "slurm" else {}
        executor = slurm.executor(cluster, run / "eval" / "jobs", parameters, where.timeout)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    task = partial(with_devices, visible, function) if cluster == "local" else function

    def evaluate(checkpoint: str, out: Path) -> None:
        with submitting():
            job = executor.submit(task, options, checkpoint, out)
        say(f"{Path(checkpoint).name}: {cluster} job {job.job_id}")
        try:
            job.result()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
            messages = re.findall(r"^[\w.]*(?:Error|Exit|Interrupt)\b: (.*)$", str(error), re.MULTILINE)
            reason = messages[-1] if messages else str(error)
            raise ValueError(f"job {job.job_id} for {checkpoint} failed: {reason}") from None

    return evaluate
