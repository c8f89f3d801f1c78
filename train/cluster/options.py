"""The command line's flags for where a run runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pipeline.base.slurm import SlurmFlags, count_gpus


@dataclass(frozen=True, kw_only=True)
class Launch(SlurmFlags):
    """Where the run runs; SLURM gets only the flags that are set."""

    cluster: Literal["auto", "slurm", "local", "debug"] = "auto"
    """auto: SLURM where sbatch is found, else this machine; debug: in this very process."""
    nodes: int = 1
    """Nodes of the job."""
    ngpus: int = 0
    """Ranks a node, one a GPU; without GPUs they share its cores. 0: as many as the node has GPUs."""
    timeout: Annotated[int | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Time limit of an allocation; a run that reaches it is put in the queue again."""
    signal_delay: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 120
    """How long before the time limit the run is warned, to save and be put in the queue again."""
    profile: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 0
    """Time so many steps of loader, step and both, and say what the run waits for; nothing is trained."""
    dry_run: bool = False
    """Only print what would be run or submitted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nodes", "timeout", "signal_delay"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1")
        for name in ("ngpus", "profile"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: must not be negative")

    @property
    def gpus(self) -> int | None:
        """GPUs a node that the user asked for by sbatch's flags; None if these do not say."""
        flags = self.given
        kinds = flags.get("gpus-per-node") or (flags.get("gpus") if self.nodes == 1 else None)
        if kinds:  # 4, a100:4, volta:3,kepler:5
            return sum(count_gpus(f"gpu:{kind}") for kind in str(kinds).split(","))
        return count_gpus(str(flags.get("gres", ""))) or None
