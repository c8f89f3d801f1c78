"""The training loop of both stages: build or continue, step, record, save, stop.

What a run starts from, in this order (later wins): open_clip's initialisation from the recipe's seed;
the recipe's logit scale; `--init`; the newest sound checkpoint in the run's folder, with its optimizer
state, step and number of samples.  DistributedDataParallel then gives every rank rank 0's parameters.
All other state of a run is a function of (seed, samples): `train/checkpoint.py`.

The way of a step:

 1. The prefetcher hands over this rank's share of the batch (`data.stream`), prepared by the stage and on the
    device (`device/prefetch.py`); how long the training stood still for it is noted.
 2. `optim.learning_rate` gives the rate, a function of the step's number.
 3. `update` zeroes the gradients and asks the stage to add this step's (`stages/`: stage1, stage2, views).
 4. The stage forwards each micro-batch (`stages/stage.py`) through the towers (`model.Towers`).  Where each
    sample is every other's negative, several are forwarded twice: for the loss, then for gradients.
 5. Only the last micro-batch's backward pass communicates: DDP averages the gradients over the ranks.
 6. `optim.Optimizer.step` takes the gradient's norm, clips, and updates.  If the norm is not finite, the
    device itself leaves the update out: parameters, moments and running statistics stay as they were.
 7. `Stage.constrain`: stage 2 clamps the logit scale.
 8. `metrics.Window` keeps what was measured as tensors on the device; the host has not waited for them.
 9. The ranks agree, on the CPU, whether one of them was asked to stop (`cluster/signals.py`).
10. Every `--log-every` steps, before a validation, and at the end, `_record` reads the window.  It names the
    updates left out, ends the run if they are too many, and writes metrics.jsonl and the log.  On a GPU it
    does so one step later, while the next step runs, unless the device is waited for anyway.
11. Every `--val-every` steps, and at the end, the held-out split is validated.
12. Every `--save-every` steps, at epochs to keep, and at the end, rank 0 copies the tensors to the CPU and
    writes the checkpoint in the background.
13. A run that was asked to stop ends here, after its checkpoint: `cluster/signals.py` says how the job ends.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.structure import why_slow
from pipeline.base import hardware
from pipeline.base.console import Failed, clock
from pipeline.beton.fields import Beton
from train import checkpoint, data
from train import model as models
from train.cluster.signals import INTERRUPT, NONE, Stop
from train.config import Recipe, to_dict
from train.device import auto
from train.device.prefetch import Prefetcher
from train.distributed import World, lock_run, share_buffers
from train.metrics import Log, Metrics, Reading, Window
from train.optim import Optimizer, learning_rate
from train.splits import mean_tokens, open_split
from train.stages import votes
from train.stages.stage import Stage
from train.stages.stage1 import PerceptualStage
from train.stages.stage2 import ContrastiveStage
from train.stages.views import ViewsStage

STAGES: dict[int, type[Stage]] = {1: PerceptualStage, 2: ContrastiveStage}
PACKAGES = ("torch", "open_clip_torch", "numpy", "ffcv", "nvidia-dali-cuda120", "triton", "submitit",
            "safetensors")  # fmt: skip
VALIDATION_BATCH = 256
MAX_REJECTED = 0.01  # share of samples that may fail to decode before the run stops


class TrainingStopped(Failed):
    """The run cannot go on (its numbers are not finite, its data is broken); the message says where."""


@dataclass(frozen=True)
class Outcome:
    """How `train` ended: `step` of `steps` done, and whether it took a step."""

    step: int
    steps: int
    progressed: bool = False

    @property
    def done(self) -> bool:
        return self.step == self.steps


def stage_of(recipe: Recipe) -> type[Stage]:
    """The objective that the recipe asks for."""
    return ViewsStage if recipe.views > 1 else STAGES[recipe.stage]


def update(stage: Stage, optimizer: Optimizer, parts: list[Any], lr: float) -> dict[str, Tensor]:
    """One optimizer step on this rank's share of a batch, as `Stage.prepare` makes it.

    Returns scalars on the device: what the stage measured, "grad_norm" before clipping, "logit_scale", and
    "skipped", 1.0 if the update was left out.
    """
    optimizer.zero_grad()
    measured = stage.gradients(parts)
    norm, skipped = optimizer.step(lr)
    stage.constrain()
    scale = stage.clip.logit_scale.detach().exp()
    return {**measured, "grad_norm": norm, "logit_scale": scale, "skipped": skipped}


# -- a run, from its folder to its end ------------------------------------------------------


def train(recipe: Recipe, world: World, stop: Stop, note: str = "") -> Outcome:
    """Run the recipe to its end, or until asked to stop; every way out leaves a sound run folder.

    note: a line for the head of the log.

    Raises ValueError for a user's mistake, TrainingStopped when the run cannot go on, OSError when it
    cannot be written.
    """
    recipe, run = votes.named(recipe), recipe.folder
    with ExitStack() as stack:
        unlocked = lock_run(run, world, stack)
        if world.main:
            checkpoint.prepare(run, to_dict(recipe), partial(hardware.versions, PACKAGES))
        world.barrier()
        log = stack.enter_context(closing(Log(run, world.main)))
        for line in filter(None, (note, unlocked)):
            log(line)
        try:
            return _train(recipe, world, stop, log, stack)
        except torch.OutOfMemoryError as error:
            ways = "--micro N (the same gradients in parts) or --recompute blocks; see python -m train.plan"
            raise TrainingStopped(f"{world.device}: out of memory; {ways}") from error


def _train(recipe: Recipe, world: World, stop: Stop, log: Log, stack: ExitStack) -> Outcome:
    """Read the newest checkpoint, build the rest of the run, and take its steps; what needs closing goes to
    `stack`."""
    run = recipe.folder
    assert recipe.data.data is not None
    if recipe.compute.attention == "triton" and world.device.type != "cuda":
        raise ValueError("--attention triton: needs a GPU, and this run is on a CPU")
    file = open_split(recipe.data.data, recipe)
    val = open_split(recipe.data.val, recipe) if recipe.data.val else None
    steps = recipe.total_steps(len(file))
    folder = checkpoint.latest(run, log)
    state = checkpoint.read_state(folder) if folder else checkpoint.State(in_file=len(file))
    if state.in_file != len(file):
        raise ValueError(
            f"{recipe.data.data}: has {len(file)} samples, but {run} was trained on a file of "
            f"{state.in_file}; choose another --run"
        )
    if state.step == steps:
        log(f"{run}: complete ({steps} steps); nothing to do")
        return Outcome(state.step, steps)

    asked = to_dict(recipe)
    clip = models.build(recipe)
    recipe, settings = auto.on(world, recipe, clip, file, state.micro)
    for line in [*settings, *votes.told(recipe)]:
        log(line)
    state.micro = recipe.micro_batch(recipe.rank_batch(world.size))
    clip.to(world.device, memory_format=torch.channels_last)  # the loaders' layout
    optimizer = Optimizer(clip, recipe.optim)
    if folder:
        clip.load_state_dict(checkpoint.weights(folder))
        optimizer.load(checkpoint.moments(folder))
        log(f"continuing {run} from {folder.name}")
    else:
        state.frozen = checkpoint.frozen_digest(clip)
    stage = stage_of(recipe)(recipe, clip, world, file)
    loader = stack.enter_context(data.stream(recipe, file, world, models.image_side(clip), state.samples))
    batches = stack.enter_context(Prefetcher(loader, partial(_prepare, stage), world.device))
    saver = metrics = None
    if world.main:
        saver = checkpoint.Saver(run, asked, recipe.saving.keep, log)
        stack.callback(saver.wait)
        metrics = stack.enter_context(closing(Metrics(run, state.step, recipe.saving.tensorboard)))
    return _Run(
        recipe=recipe, world=world, stop=stop, log=log, file=file, val=val, steps=steps, state=state,
        stage=stage, optimizer=optimizer, batches=batches, saver=saver, metrics=metrics,
    ).go()  # fmt: skip


def _prepare(stage: Stage, batch: Any) -> tuple[list[Any], int]:
    """(what the stage trains on, how many samples of the batch did not decode)."""
    return stage.prepare(batch), int((~batch.valid).view(-1, stage.recipe.views).any(1).sum())


class _Due(NamedTuple):
    """A line that is due, of steps which the device may not have done yet."""

    reading: Reading
    at: checkpoint.State  # after its last step
    rejected: int  # samples until then


@dataclass(kw_only=True)
class _Run:
    """A run that has steps to take."""

    recipe: Recipe
    world: World
    stop: Stop
    log: Log
    file: Beton
    val: Beton | None
    steps: int
    state: checkpoint.State
    stage: Stage
    optimizer: Optimizer
    batches: Prefetcher
    saver: checkpoint.Saver | None  # rank 0's
    metrics: Metrics | None  # rank 0's
    window: Window = field(default_factory=Window)
    due: _Due | None = None  # a line to be written
    since: float = 0.0  # when the last line's steps had ended
    skipped: int = 0  # updates left out so far
    rejected: int = 0  # samples that did not decode, of this rank

    def __post_init__(self) -> None:
        self.clip, self.first = self.stage.clip, self.state.step

    @property
    def done(self) -> bool:
        return self.state.step == self.steps

    @property
    def reads_late(self) -> bool:
        """Whether a line is written one step later: a CPU has computed its values when the step returns."""
        return self.world.device.type != "cpu"

    # -- steps --------------------------------------------------------------------------

    def go(self) -> Outcome:
        self.log(
            f"stage {self.recipe.stage} ({self.recipe.name}), {self.recipe.model}: "
            f"steps {self.state.step} to {self.steps} of {self.recipe.batch} {self.recipe.unit} "
            f"on {self.world.size} rank(s), {self.world.device}"
        )
        if slow := why_slow(self.clip.visual):
            self.log(
                f"the image tower of {self.recipe.model} runs as it is, with none of the savings: {slow}"
            )
        self.clip.train()
        self.since = time.perf_counter()
        asked = NONE
        while not self.done and asked == NONE:
            self._step()
            asked = self.world.agree(self.stop.asked)
            self._after_step(asked != NONE)
        return self._finish(asked)

    def _step(self) -> None:
        (parts, rejected), wait = next(self.batches)
        lr = learning_rate(self.recipe.optim, self.state.step, self.steps)
        self.window.add(update(self.stage, self.optimizer, parts, lr), wait)
        self.rejected += rejected
        self.state.step += 1
        self.state.samples += self.recipe.batch

    def _after_step(self, stopping: bool) -> None:
        saving, step = self.recipe.saving, self.state.step
        validating = self.val and (self.done or (saving.val_every and step % saving.val_every == 0))
        keep = self._keeps()
        save = stopping or self.done or keep or (saving.save_every and step % saving.save_every == 0)
        self._record()
        if stopping or self.done or validating or step % saving.log_every == 0:
            self.due = _Due(self.window.close(), dataclasses.replace(self.state), self.rejected)
        if save or validating or not self.reads_late:
            self._record()
        if validating:
            self._validate()
        if save:
            self._save(keep)

    def _keeps(self) -> bool:
        """Whether this step is the first at or after another `keep_epochs` epochs."""
        if not self.recipe.saving.keep_epochs:
            return False
        span = self.recipe.saving.keep_epochs * self.recipe.samples(len(self.file))
        before = self.state.samples - self.recipe.batch
        return self.state.samples // span > before // span

    # -- records ------------------------------------------------------------------------

    def _record(self) -> None:
        """Write the line that is due, if one is: the mean of its steps."""
        if self.due is None:
            return
        (reading, at, rejected), self.due = self.due, None
        values = reading.values()
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        skipped = values.pop("skipped") > 0
        self._count_skipped(skipped, at.step)
        kept = skipped if skipped.all() else ~skipped
        logit_scale, norm = values.pop("logit_scale")[-1], values.pop("grad_norm")[kept].mean()
        # What is left was measured by the stage.
        means = {name: float(course[kept].mean()) for name, course in values.items()}
        means = self.world.mean({**means, "waited": reading.waited()})
        waited = means.pop("waited")
        rate = len(kept) * self.recipe.batch / seconds
        line = {
            "step": at.step,
            "samples": at.samples,
            "seconds": seconds,
            **means,
            "lr": learning_rate(self.recipe.optim, at.step - 1, self.steps),
            "logit_scale": float(logit_scale),
            "grad_norm": float(norm),
            f"{self.recipe.unit}_per_s": rate,
            "data_wait": waited / seconds,
            "epoch": at.samples / self.recipe.samples(len(self.file)),
            **self._hardware(rate),
        }
        self._check_rejected(rejected, at.samples)
        if self.metrics is not None:
            self.metrics.write(line)
        left = (self.steps - at.step) * seconds / len(kept)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.log(
            f"step {at.step}/{self.steps}  {shown}  {rate:.0f} {self.recipe.unit}/s  "
            f"waiting for data {line['data_wait']:.0%}  {clock(left)} left",
            progress=True,
        )

    def _hardware(self, rate: float) -> dict[str, float]:
        """Memory of this rank, and on a known GPU the share of its peak that useful arithmetic reaches."""
        if self.world.device.type != "cuda":
            return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
        memory = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9}
        card = hardware.gpu(torch.cuda.get_device_name(self.world.device))
        if card is None:
            return memory
        return memory | {"mfu": rate * self._sample_flops / (card.flops * self.world.size)}

    @cached_property
    def _sample_flops(self) -> int:
        """Of a sample, forward and backward once; what is computed again to save memory does not count."""
        return 3 * models.sample_flops(self.clip, self.recipe, round(mean_tokens(self.file)))

    def _count_skipped(self, skipped: Tensor, last: int) -> None:
        """skipped: (steps,) bool, of the steps up to `last`."""
        first = last - len(skipped) + 1
        numbers = [first + i for i in torch.nonzero(skipped).flatten().tolist()]
        if not numbers:
            return
        self.skipped += len(numbers)
        limit = self.recipe.compute.nonfinite
        named = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        text = (
            f"step {named}: the gradient is not finite, update left out ({self.skipped} of at most {limit})"
        )
        if self.skipped > limit:
            raise TrainingStopped(f"{text}; lower --lr or set --clip, or allow more with --nonfinite")
        self.log(text)

    def _check_rejected(self, rejected: int, samples: int) -> None:
        share = float(self.world.total(torch.tensor([float(rejected)]))) / samples
        if share > MAX_REJECTED:
            raise TrainingStopped(
                f"{self.recipe.data.data}: {share:.1%} of the samples are damaged "
                f"(limit {MAX_REJECTED:.0%}); log.txt names them"
            )

    def _validate(self) -> None:
        assert self.val is not None
        share_buffers(self.clip, self.world)
        self.clip.eval()
        side = models.image_side(self.clip)
        scores = self.stage.validate(data.held_out(self.recipe, self.val, self.world, side, VALIDATION_BATCH))
        self.clip.train()
        if self.metrics is not None:
            self.metrics.write({"step": self.state.step, **scores})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.log(f"step {self.state.step}: {shown}")
        self.since = time.perf_counter()

    # -- ends ---------------------------------------------------------------------------

    def _save(self, keep: bool) -> None:
        if self.saver is not None:
            state = dataclasses.replace(self.state, steps=self.steps, keep=keep, files={})
            self.saver.save(state, self.clip.state_dict(), self.optimizer.state())

    def _finish(self, asked: int) -> Outcome:
        if self.saver is not None:
            self.saver.wait()
        self.world.barrier()
        if checkpoint.frozen_digest(self.clip) != self.state.frozen:
            raise TrainingStopped("a parameter that must not change did change: this is a bug in the program")
        outcome = Outcome(self.state.step, self.steps, self.state.step > self.first)
        if not outcome.done:
            why = "interrupted" if asked == INTERRUPT else "asked to make room"
            self.log(f"{why} after step {self.state.step} of {self.steps}; the same command continues")
        return outcome
