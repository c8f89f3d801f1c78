"""What a job that evaluates a checkpoint asks of SLURM.  Imports nothing heavy: `--help` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from pipeline.base.slurm import SlurmFlags, gpus_of_nodes


@dataclass(frozen=True, kw_only=True)
class Where(SlurmFlags):
    """With `--submit`: what each checkpoint's job gets."""

    timeout: Annotated[int, tyro.conf.arg(metavar="MINUTES")] = 24 * 60
    """Time limit of a job that evaluates one checkpoint."""
    ngpus: int | None = None
    """GPUs of a job, which uses one; by default one where nodes have any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timeout < 1:
            raise ValueError(f"--timeout {self.timeout}: at least 1")
        if self.ngpus is not None and self.ngpus not in (0, 1):
            raise ValueError(f"--ngpus {self.ngpus}: a job uses one GPU or none (0); several: torchrun")

    def slurm_parameters(self, name: str) -> dict:
        """submitit's parameters of one job."""
        wanted = gpus_of_nodes(self) != 0 if self.ngpus is None else self.ngpus
        own = {"job_name": f"eval-{name}", "time": self.timeout, "cpus_per_task": 8, "wckey": None}
        return self.parameters(own | ({"gpus_per_node": 1} if wanted else {}))
