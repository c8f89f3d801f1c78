"""What a run is: two frozen dataclasses, one a stage, and the checks across their fields.

A recipe says everything that decides the numbers of a run, and nothing about machines: those are
`train/launch.py`'s options.  Values live in `train/recipes.py`.  Nothing here imports torch, so that
`--help`, `--dry-run` and every message about a wrong field come at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

Augmentation = Literal["none", "eval", "clip", "paper", "demo"]
Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "gelu", "pointwise", "blocks"]
Prior = Literal[
    "nights", "bapps", "things", "alignet", "tpips", "pieapp", "kadid", "pipal", "tid2013", "demo"
]

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's clamp of the log scale


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Finite:
    """Refuses nan and inf in any field: no run means them, and JSON, where recipes are kept, has no words
    for them."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            numbers = value if isinstance(value, tuple) else (value,)
            good = all(math.isfinite(number) for number in numbers if isinstance(number, float))
            _require(good, f"--{entry.name.replace('_', '-')} {value}: must be finite")

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            value, complaint = getattr(self, name), f"at least {least}" if least else "must not be negative"
            _require(value >= least, f"--{name.replace('_', '-')} {value}: {complaint}")


@dataclass(frozen=True, kw_only=True)
class Data(Finite):
    """Which file, and what is done to its images."""

    data: Path | None = None
    """The training split, a .beton."""
    val: Path | None = None
    """A held-out split of the same kind; it is never augmented."""
    augment: Augmentation = "paper"
    """Name of a set of draws in pipeline.augment."""
    fraction: float = 1.0
    """Train on this share of the samples (a fixed draw by the seed; smaller ones lie inside larger ones)."""
    crop_scale: tuple[float, float] | None = None
    """Replaces the range of crop areas that --augment has."""
    order: Literal["random", "block"] = "random"
    """Shuffle an epoch completely, or by blocks (for network storage and slow disks)."""
    lanes: int = 1
    """With --order block: every batch is put together from so many sequences of blocks. As many as there are
    nodes (or a multiple), and each node reads only its own share of the file; the order stays what it is when
    the run goes on with other nodes."""
    engine: Literal["auto", "ffcv", "dali"] = "auto"
    """Decode on the CPU or on the GPU; both deliver the same batches. auto: ffcv where the cores can feed the
    step, else dali (train/device/engine.py)."""
    workers: int = 4
    """Decoding threads a process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.fraction <= 1, f"--fraction {self.fraction}: must lie in (0, 1]")
        low, high = self.crop_scale or (1.0, 1.0)
        _require(0 < low <= high <= 1, f"--crop-scale {low} {high}: must be 0 < LOW <= HIGH <= 1")
        self._at_least(1, "workers", "lanes")
        _require(self.lanes == 1 or self.order == "block", f"--lanes {self.lanes}: needs --order block")


@dataclass(frozen=True, kw_only=True)
class Optim(Finite):
    """AdamW; the schedule counts optimizer steps, never micro-batches."""

    lr: float = 5e-4
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Of matrices and convolutions; gains, biases and the logit scale are never decayed."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine to 0 at the last step, or the peak."""
    clip: float = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.lr > 0, f"--lr {self.lr}: must be positive")
        _require(all(0 <= b < 1 for b in self.betas), f"--betas {self.betas}: both must lie in [0, 1)")
        _require(self.eps > 0, f"--eps {self.eps}: must be positive")
        self._at_least(0, "weight_decay", "warmup_steps", "clip")


@dataclass(frozen=True, kw_only=True)
class Compute(Finite):
    """How the same mathematics is computed.

    Each `auto` is settled when a run starts, for the GPU that is there, and logged: `train/device/auto.py`.
    """

    precision: Precision = "bf16"
    """bf16: autocast with fp32 parameters and fp32 losses."""
    compile: Literal["auto", "yes", "max", "no"] = "auto"
    """torch.compile of the towers; auto: yes on a GPU, for towers that kernels/ rewrites. max: products, and
    what is fused into them, are tuned on the device, which takes minutes at the first start."""
    attention: Literal["auto", "sdpa", "triton"] = "auto"
    """triton: our kernel for rows of up to 128 tokens; needs a GPU, bf16 and heads of 64. auto: where it
    can be used."""
    recompute: Recompute | Literal["auto"] = "auto"
    """What the backward pass computes again instead of keeping it: GELU, LayerNorm too (pointwise), or whole
    blocks. auto: as little as fits the GPU."""
    micro: int | Literal["auto"] = "auto"
    """Samples a rank forwards at once; 0: its whole share of the batch. Smaller: gradients accumulate.
    auto: the largest that fits the GPU."""
    pack: Literal["auto", "yes", "no"] = "auto"
    """Captions in rows of one length, so that shapes are static; auto: on a GPU, and with --compile."""
    threads: int = 0
    """torch threads a process on a CPU; 0: the machine's cores shared among its ranks."""
    nonfinite: int = 0
    """How many updates with a non-finite gradient may be skipped before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "threads", "nonfinite")
        if self.micro != "auto":
            self._at_least(0, "micro")
        half = self.precision == "bf16"
        _require(self.attention != "triton" or half, "--attention triton: needs --precision bf16")

    @property
    def compiles(self) -> bool:
        """Whether towers are compiled; not while `auto` is not settled."""
        return self.compile in ("yes", "max")


@dataclass(frozen=True, kw_only=True)
class Saving(Finite):
    """What the run folder records, and how often (in optimizer steps)."""

    save_every: int = 1000
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    keep_epochs: int = 0
    """Also keep, for good, the first checkpoint after every this many epochs; 0: none."""
    log_every: int = 20
    """Steps a line of metrics.jsonl stands for."""
    val_every: int = 0
    """Steps between validations; 0: only at the end (if --val is given)."""
    tensorboard: bool = True
    """Write TensorBoard events too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "save_every", "keep_epochs", "val_every")
        self._at_least(1, "keep", "log_every")


@dataclass(frozen=True, kw_only=True)
class Recipe(Finite):
    """What both stages have; only `Stage1` and `Stage2` are run."""

    unit: ClassVar[str]  # the kind of its samples, as a .beton calls it
    images: ClassVar[int]  # of a sample, in the file
    captions: ClassVar[int]  # of a sample

    name: tyro.conf.Fixed[str] = "debug"
    stage: tyro.conf.Fixed[int] = 0
    model: str = "ViT-B-32"
    """An open_clip model, or one of train/model_configs."""
    init: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Warm start from this run's (or checkpoint's) weights."""
    init_lengths: Literal["keep", "fresh"] = "keep"
    """fresh: of the image tower's matrices and convolutions --init gives the direction, the seed the norm."""
    init_norms: Literal["keep", "fresh"] = "keep"
    """fresh: the image tower's normalisations begin as the seed has them."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run's folder; an unfinished run there is continued."""
    seed: int = 0
    """Of everything: parameters, order of samples, augmentation."""
    batch: int = 256
    """Samples an optimizer step, over all ranks."""
    epochs: float = 32
    """Length in passes over the data."""
    steps: int = 0
    """Length in optimizer steps; if given, it replaces --epochs."""
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    compute: Compute = field(default_factory=Compute)
    saving: Saving = field(default_factory=Saving)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "seed", "steps")
        self._at_least(1, "batch")
        for name, value in (("lengths", self.init_lengths), ("norms", self.init_norms)):
            _require(value == "keep" or self.init is not None, f"--init-{name} {value}: needs --init RUN")
        lanes = self.data.lanes
        _require(self.batch % lanes == 0, f"--batch {self.batch}: not divisible by --lanes {lanes}")
        _require(self.steps > 0 or self.epochs > 0, "--epochs and --steps: one of them must be positive")
        if self.steps:
            self._check_warmup(self.steps)

    def _check_warmup(self, steps: int) -> None:
        warmup = self.optim.warmup_steps
        _require(warmup < steps, f"--warmup-steps {warmup}: must be below the {steps} steps of the run")

    @property
    def folder(self) -> Path:
        """The run's; a recipe from a command line has one."""
        assert self.run is not None
        return self.run

    def samples(self, in_file: int) -> int:
        """How many of the file's samples the run uses."""
        used = max(1, round(in_file * self.data.fraction))
        _require(
            used >= self.batch or (self.stage == 1 and self.views == 1),  # whose triplets see no other
            f"--batch {self.batch}: larger than the {used} samples of {self.data.data} that are used, and a "
            "sample must not be its own negative",
        )
        return used

    @property
    def views(self) -> int:
        """How often a step sees each sample, each time with draws of its own."""
        return 1

    @property
    def forwarded(self) -> int:
        """Images of a sample that a step forwards."""
        return self.views * self.images

    @property
    def caches(self) -> bool:
        """Whether the loss is one of the whole batch, whose parts are therefore forwarded twice."""
        return False

    def total_steps(self, in_file: int) -> int:
        """Optimizer steps of the run over a file of `in_file` samples (the last epoch is rounded up)."""
        used = self.samples(in_file)
        steps = self.steps or math.ceil(self.epochs * used / self.batch)
        self._check_warmup(steps)
        return steps

    def rank_batch(self, world_size: int) -> int:
        """Samples a rank takes a step; ValueError if the batch does not divide evenly."""
        _require(self.batch % world_size == 0, f"--batch {self.batch}: not divisible by {world_size} ranks")
        share = self.batch // world_size
        micro = self.micro_batch(share)
        _require(
            share % micro == 0,
            f"--micro {micro}: does not divide a rank's {share} samples "
            f"(--batch {self.batch} over {world_size} ranks)",
        )
        return share

    def micro_batch(self, share: int) -> int:
        """Samples forwarded at once, of a rank's `share`; all of them while `auto` is not settled."""
        micro = self.compute.micro
        return share if micro == "auto" or micro == 0 else micro


@dataclass(frozen=True, kw_only=True)
class Stage1(Recipe):
    """Perceptual stage: triplets train the image tower with the paper's equations (1) and (2)."""

    unit: ClassVar[str] = "triplets"
    images: ClassVar[int] = 3
    captions: ClassVar[int] = 0
    stage: tyro.conf.Fixed[int] = 1
    prior: Prior = "nights"
    """Whose judgements: decides only where the data is looked for when --data is not given."""
    objective: Literal["triplet", "views"] = "triplet"
    """triplet: the paper's. views: without votes, two views of each image are told from all other images."""
    margin: float = 0.05
    """The hinge's margin m."""
    temperature: float = 0.1
    """Of the similarities of --objective views."""
    trainable: Literal["image", "qkv", "qkv+bias"] = "image"
    """The whole image tower, or only its blocks' query, key and value projections."""
    votes: Annotated[str, tyro.conf.arg(metavar="human|shuffled|FILE")] = "human"
    """human: the file's own. shuffled: these, permuted over all its triplets by the seed. Or a .npy of a
    number in [0, 1] for each of its triplets. Validation keeps the file's own."""
    votes_sha256: tyro.conf.Fixed[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "margin")
        known = self.votes in ("human", "shuffled") or self.votes.endswith(".npy")
        _require(known, f"--votes {self.votes}: human, shuffled, or the name of a .npy file")
        _require(self.temperature > 0, f"--temperature {self.temperature}: must be positive")
        triplet, name = self.objective == "triplet", self.data.augment
        _require(triplet or self.votes == "human", f"--votes {self.votes}: --objective views looks at none")
        draws = name not in ("none", "eval") or self.data.crop_scale is not None
        _require(triplet or draws, f"--augment {name}: draws nothing, and --objective views needs two views")

    @property
    def views(self) -> int:
        return 2 if self.objective == "views" else 1

    @property
    def caches(self) -> bool:
        return self.objective == "views"

    @property
    def votes_file(self) -> Path | None:
        """Where the votes come from, if not from the training file."""
        return Path(self.votes) if self.votes.endswith(".npy") else None


@dataclass(frozen=True, kw_only=True)
class Stage2(Recipe):
    """Contrastive stage: pairs train both towers and the logit scale with equation (3)."""

    unit: ClassVar[str] = "pairs"
    images: ClassVar[int] = 1
    captions: ClassVar[int] = 1
    stage: tyro.conf.Fixed[int] = 2
    negatives: Literal["global", "micro"] = "global"
    """global: the whole batch, exactly, however it is split. micro: only the micro-batch over all ranks."""
    scale_init: float = math.log(1 / 0.07)
    """Initial log of the logit scale."""
    scale_max: float = MAX_LOGIT_SCALE
    """The log scale is clamped to [0, this] after every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.scale_init <= self.scale_max + 1e-6,
            f"--scale-init {self.scale_init:.4f}: must lie in [0, --scale-max {self.scale_max:.4f}]",
        )
        _require(
            self.negatives == "global" or self.compute.micro != "auto",
            "--negatives micro: needs --micro N, which decides each pair's negatives",
        )

    @property
    def caches(self) -> bool:
        return self.negatives == "global"


# What may differ when a run is continued: it changes where, how fast and how often, not the numbers.  The
# micro-batch may, too, unless it decides negatives or batch statistics: train/command.py.
FREE_TO_CHANGE = {
    "run", "data.data", "data.val", "data.engine", "data.workers",
    "compute.compile", "compute.attention", "compute.pack", "compute.recompute", "compute.threads",
    "compute.nonfinite",
    "saving.save_every", "saving.keep", "saving.keep_epochs", "saving.log_every", "saving.val_every",
    "saving.tensorboard",
}  # fmt: skip
# What a recipe.json meant that is older than these fields.
ADDED = {
    "init_lengths": "keep", "init_norms": "keep",
    "votes": "human", "votes_sha256": "", "objective": "triplet", "temperature": 0.1,
}  # fmt: skip


def to_dict(recipe: Recipe) -> dict:
    """The recipe as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))


def differences(saved: dict, wanted: dict, free: Set[str] = FREE_TO_CHANGE, prefix: str = "") -> list[str]:
    """`field was saved, now wanted` for each field that differs and decides a run's numbers (is not `free`).

    A recipe that was saved before there was such a field had what `ADDED` says.
    """
    changed = []
    for key in sorted(saved.keys() | wanted.keys()):
        old, new, name = saved.get(key, ADDED.get(key)), wanted.get(key), prefix + key
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differences(old, new, free, name + ".")
        elif key in ("init", "votes") and old and new and os.path.abspath(old) == os.path.abspath(new):
            continue
        elif old != new and name not in free:
            changed.append(f"{key} was {old}, now {new}")
    return changed
