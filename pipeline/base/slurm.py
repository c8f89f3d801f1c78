"""Sending jobs to SLURM, for all rooms: the user's sbatch flags, the nodes' GPUs, a clean environment.

submitit is imported only where a job is made.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

YEAR = 60 * 24 * 365  # minutes: submitit wants a limit even where the user sets none

# Variables of an allocation, or of a user's habits, that sbatch, srun and submitit would take for options.
INHERITED = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SINFO_")
# How SLURM itself is reached.
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")

# Flags that say the same thing in several ways: one of them replaces all.
ALTERNATIVES = (
    ("gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket", "gres"),
    ("mem", "mem-per-cpu", "mem-per-gpu"),
    ("cpus-per-task", "cpus-per-gpu"),
    ("requeue", "no-requeue"),
)
TASKS = ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "ntasks-per-socket", "ntasks-per-core")
OURS = ("array", "chdir", "help", "open-mode", "parsable", "quiet", "signal", "test-only", "usage", "version")
NAMED = ("partition", "account", "qos", "constraint", "exclude", "mem", "cpus_per_task", "comment")


@dataclass(frozen=True, kw_only=True)
class SlurmFlags:
    """The user's flags for SLURM; only those that are set are passed on."""

    partition: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    account: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    qos: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    constraint: Annotated[str | None, tyro.conf.arg(metavar="FEATURES")] = None
    exclude: Annotated[str | None, tyro.conf.arg(metavar="NODES")] = None
    mem: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Memory a node, as sbatch reads it (500G)."""
    cpus_per_task: int | None = None
    """Cores a process."""
    comment: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    slurm_arg: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")]] = ()
    """Any other sbatch flag, as often as needed: --slurm-arg mail-type=END. It replaces our own."""

    def __post_init__(self) -> None:
        if self.cpus_per_task is not None and self.cpus_per_task < 1:
            raise ValueError(f"--cpus-per-task {self.cpus_per_task}: at least 1")
        for name in NAMED:
            if "\n" in str(getattr(self, name)):
                raise ValueError(f"--{name.replace('_', '-')}: a line break cannot be part of it")
        for pair in self.slurm_arg:
            key = pair.partition("=")[0]
            if not re.fullmatch(r"[a-z][a-z0-9-]*(=[^\n]*)?", pair):
                raise ValueError(f"--slurm-arg {pair}: expected KEY=VALUE, the key as in sbatch's --KEY")
            if key in TASKS:
                raise ValueError(f"--slurm-arg {pair}: nodes and tasks have flags of this command (--help)")
            if key in OURS:
                raise ValueError(f"--slurm-arg {pair}: this command needs --{key} itself")

    @property
    def given(self) -> dict[str, str | bool]:
        """All that the user set, by sbatch's names; True for a flag without a value."""
        named = {n.replace("_", "-"): str(v) for n in NAMED if (v := getattr(self, n)) is not None}
        pairs = (pair.partition("=") for pair in self.slurm_arg)
        return named | {key: value if mark else True for key, mark, value in pairs}

    def parameters(self, own: dict) -> dict:
        """submitit's parameters: `own` without what the user's flags replace, and these.

        A dependency is added to one of `own`: both must hold.
        """
        given = self.given
        replaced = {other for key, value in given.items() for other in _alternatives(key, str(value))}

        def kept(flags: dict) -> dict:
            return {k: v for k, v in flags.items() if k.replace("_", "-") not in replaced}

        own = kept(own)
        if "dependency" in given and "dependency" in own:
            given["dependency"] = f"{own['dependency']},{given['dependency']}"
        extra = kept(own.get("additional_parameters", {})) | given
        own["additional_parameters"] = {k.replace("-", "_"): v for k, v in extra.items()}
        cores = given.get("cpus-per-task", own.get("cpus_per_task"))
        if cores is not None:  # srun does not inherit it from sbatch
            own["srun_args"] = [*own.get("srun_args", []), f"--cpus-per-task={cores}"]
        return own


def _alternatives(key: str, value: str) -> list[str]:
    """Other flags for the same thing as `key`; gres also names things that are no GPUs."""
    if key == "gres" and not count_gpus(value):
        return []
    return [other for group in ALTERNATIVES if key in group for other in group if other != key]


# -- GPUs -----------------------------------------------------------------------------------


def count_gpus(gres: str) -> int:
    """Number of GPUs that a gres names: gpu:4, gpu:a100:2(S:0,1), gpu:1g.5gb:7, gpu:a100:no_consume:4."""
    total = 0
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, *words = entry.strip().split(":")
        if kind == "gpu":
            total += next((int(word) for word in reversed(words) if word.isdecimal()), 1)
    return total


def gpus_of_nodes(flags: SlurmFlags) -> int | None:
    """The most GPUs that a node of the partition (or of any) has; None where SLURM cannot be asked."""
    partition = flags.given.get("partition")
    command = ["sinfo", "--noheader", "--format=%G", *(["--partition", str(partition)] if partition else [])]
    try:
        with own_environment():
            output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return max(map(count_gpus, output.splitlines()), default=0)


# -- around a job -----------------------------------------------------------------------------


@contextlib.contextmanager
def own_environment(*more: str) -> Iterator[list[str]]:
    """Remove the variables that a surrounding allocation (salloc, a job) or a profile has left, and `more`.

    Yields the names of those that were there; they come back afterwards.  A job that is started within does
    not belong to that allocation, and sbatch gets only the flags of its command line.
    """
    foreign = [n for n in sorted(os.environ) if n in more or (n.startswith(INHERITED) and n not in KEPT)]
    taken = {name: os.environ.pop(name) for name in foreign}
    try:
        yield list(taken)
    finally:
        os.environ.update(taken)


@contextlib.contextmanager
def submitting() -> Iterator[None]:
    """Around a submission: `own_environment`, and ValueError with sbatch's message if it is refused."""
    try:
        with own_environment() as taken, contextlib.redirect_stderr(io.StringIO()):
            yield  # submitit repeats on stderr what its error says
    except RuntimeError as error:
        lines = str(error).splitlines() or ["sbatch failed and did not say why"]
        message = next((line for line in lines if "error:" in line), lines[0])
        raise ValueError(f"not submitted: {message.strip()}") from None
    habits = [name for name in taken if name.startswith("SBATCH_")]
    if habits:
        _say_once(f"note: {', '.join(habits)} had no effect: SLURM is told what the command line says")


def executor(cluster: str, folder: Path, parameters: dict, minutes: int = YEAR, timeouts: int = 3):
    """submitit's executor: for SLURM with its `parameters`, or (`local`) for processes of this machine.

    Without a `time` in `parameters` the batch file of a job (not of an array) sets no time limit.
    minutes: time limit of a local job.  timeouts: how often a job that reaches its limit may be put in the
    queue again.  Call it within `submitting`.
    """
    import submitit

    if cluster != "slurm":
        local = submitit.LocalExecutor(folder)
        local.update_parameters(timeout_min=minutes)
        return local

    class Executor(submitit.SlurmExecutor):
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return batch_file(command, self.folder, self.parameters | {"time": parameters.get("time")})

    chosen = Executor(folder, max_num_timeout=timeouts)
    chosen.update_parameters(**parameters | {"time": parameters.get("time") or YEAR})
    return chosen


def batch_file(command: str, folder: Path, parameters: dict) -> str:
    """What `executor` sends to sbatch; what is None in `parameters` gets no flag, nor does a missing time."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(command=command, folder=folder, **{"time": None, **parameters})


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def check_path(folder: Path, flag: str) -> None:
    """ValueError if a job's files cannot lie in `folder`: SLURM and submitit read patterns in their names."""
    text = str(folder.absolute())
    bad = sorted({c for c in text if c in "%\\" or not c.isprintable()})
    if bad:
        names = " ".join(map(repr, bad))
        raise ValueError(f"{flag} {ascii(text)}: SLURM and submitit take {names} in a path for a pattern")


def with_devices(visible: str | None, function: Callable, *args: object) -> object:
    """function(*args) in a local job that sees the GPUs `visible`; submitit has renumbered them."""
    restore("CUDA_VISIBLE_DEVICES", visible)
    return function(*args)


def restore(name: str, value: str | None) -> None:
    """Set an environment variable, or take it away (None)."""
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
