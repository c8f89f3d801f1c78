"""What `python -m eval.run` takes.  Imports nothing heavy: `--help` shows it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

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


@dataclass(frozen=True, kw_only=True)
class OneModel:
    """What every command takes that evaluates one model."""

    checkpoint: Annotated[str, tyro.conf.arg(metavar="RUN|NAME[,WEIGHTS]")]
    """A run's folder (its newest checkpoint), one of its checkpoints/step-*, an open_clip model name with a
    pretrained tag or a .safetensors file after a comma, open_clip's hf-hub:ORG/NAME or local-dir:FOLDER, or
    timm:NAME[,WEIGHTS] where no texts are needed; a name alone has random weights."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the results go; RUN/eval for a run, else ./eval-results/NAME-WEIGHTS (weights from a file or a
    folder: with a mark of where it lies)."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where crops and embeddings are kept; ROOT/.cache if not given."""
    no_cache: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep nothing."""
    batch_size: int = 256
    """Images a forward pass."""
    workers: int = field(default_factory=lambda: min(16, len(os.sched_getaffinity(0))))
    """Threads that decode."""
    device: str = "auto"
    """auto: CUDA where there is one."""
    precision: Literal["fp32", "amp"] = "fp32"
    """amp: autocast, as clip-benchmark does by default."""
    seed: int = 0
    """Of the random weights of a bare model name."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 1:
            raise ValueError("--batch-size and --workers: at least 1")

    def cache_beside(self, data: Path) -> Path | None:
        """--cache, else beside the data; None with --no-cache."""
        if self.no_cache or self.cache is not None:
            return None if self.no_cache else self.cache
        return (data if data.is_dir() else data.parent) / ".cache"


@dataclass(frozen=True, kw_only=True)
class Evaluate(OneModel):
    """Evaluate a checkpoint on every set found under a folder."""

    data: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the sets: clip-benchmark's wds_* folders, raw torchvision sets, class folders, captions."""
    triplets: Annotated[Path | None, tyro.conf.arg(metavar="FILE|DIR")] = None
    """2AFC: a triplet .beton, a folder of triplets-*.beton, or a folder laid out as NIGHTS."""
    alignment: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the sets of human similarity, as python -m eval.alignment takes it; scored as well."""
    downstream: Annotated[Path | None, tyro.conf.arg(metavar="ROOT")] = None
    """Folder of the downstream sets, as python -m eval.downstream takes it, to be scored as well."""
    triplet_splits: tuple[str, ...] = ("val", "test")
    """Which splits of a folder of triplets (of these two one may be missing); a .beton is taken whole."""
    datasets: tuple[str, ...] = ()
    """Only these sets; one that is not there is an error."""
    families: tuple[str, ...] = ()
    """Only these families of the catalog (ImageNet, "ImageNet OOD", VTAB, …, Retrieval, Demo)."""
    prompts: Literal["auto", "datacomp", "clip_benchmark"] = "auto"
    """auto: class names and templates beside the data where they are, else datacomp's."""
    max_unreadable: float = 0.0
    """Share of a set's images that may be unreadable and left out; 0 refuses such a set."""
    watch: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Evaluate every checkpoint of the run, each into RUN/eval/step-*, and new ones as they appear; stop
    after the run's last step, or when none has appeared for this long (0: only those that are there)."""
    submit: Literal["here", "slurm", "local"] = "here"
    """With --watch: evaluate in this process, or each checkpoint in a job of its own."""
    where: tyro.conf.OmitArgPrefixes[Where] = field(default_factory=Where)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None and self.triplets is None:
            alone = "; python -m eval.alignment and eval.downstream need neither"
            alone = alone if self.alignment or self.downstream else ""
            raise ValueError(f"--data or --triplets: one is needed, else there is nothing to evaluate{alone}")
        if not 0 <= self.max_unreadable < 1:
            raise ValueError(f"--max-unreadable {self.max_unreadable}: must lie in [0, 1)")
        if self.submit != "slurm" and self.where != Where():
            raise ValueError("--partition and the other flags for SLURM: only with --submit slurm")
        if self.submit != "here" and self.watch is None:
            raise ValueError("--submit: only with --watch")
        if self.watch is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "--watch: not under torchrun, whose processes would not see the same checkpoints"
            )

    @property
    def cache_folder(self) -> Path | None:
        """Of the sets and triplets."""
        base = self.data or self.triplets
        assert base is not None  # __post_init__ asks for one
        return self.cache_beside(base)
