"""The training loop of both stages: build or continue, step, record, save, stop.

What a run starts from, in this order (later wins): open_clip's initialisation from the recipe's seed;
the recipe's logit scale; `--init`; the newest sound checkpoint in the run's folder, with its optimizer
state, step and number of samples.  DistributedDataParallel then gives every rank rank 0's parameters.
All other state of a run is a function of (seed, samples): `train/checkpoint.py`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import shutil
import time
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.structure import why_slow
from pipeline.base import files, hardware, machine
from pipeline.base.console import Failed, clock
from train import checkpoint, data
from train import model as models
from train.arithmetic import forward_flops, image_side, peak_flops
from train.cluster.signals import INTERRUPT, NONE, Stop
from train.config import Recipe, to_dict
from train.distributed import World, share_buffers
from train.metrics import LibraryWarnings, Log, Metrics, Window
from train.optim import Optimizer, learning_rate
from train.recipes import open_split
from train.stages.stage1 import PerceptualStage
from train.stages.stage2 import ContrastiveStage

STAGES = {1: PerceptualStage, 2: ContrastiveStage}
PACKAGES = (
    "torch",
    "open_clip_torch",
    "numpy",
    "ffcv",
    "nvidia-dali-cuda120",
    "triton",
    "submitit",
    "safetensors",
)
VALIDATION_BATCH = 256
MAX_REJECTED = 0.01  # share of samples that may fail to decode before the run stops


class TrainingStopped(Failed):
    """The run cannot go on (its numbers are not finite, its data is broken); the message says where."""


@dataclass(frozen=True)
class Outcome:
    """How `train` ended: `step` of `steps` done, `asked` what ended it early, whether it took a step."""

    step: int
    steps: int
    asked: int = NONE
    progressed: bool = False

    @property
    def done(self) -> bool:
        return self.step == self.steps


def prepare_folder(run: Path, recipe: Recipe) -> None:
    """Write what the run is, once; leftovers of checkpoints that were being written are removed."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    for part in (run / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(part)
    if not (run / "recipe.json").is_file():
        files.write(run / "recipe.json", json.dumps(to_dict(recipe), indent=1).encode())
        files.write(run / "versions.json", json.dumps(hardware.versions(PACKAGES), indent=1).encode())


def _alone(run: Path, world: World, stack: ExitStack) -> str:
    """Lock the run's folder until `stack` ends; a note where that cannot be.

    Raises machine.Busy, on every rank, where another run trains into the folder.  A job that was put in the
    queue again waits a little: locks of a node that died take a while to end.
    """
    note, busy = "", None
    if world.main:
        run.mkdir(parents=True, exist_ok=True)
        try:
            file, note = machine.lock(run / "lock", "run", 120 if "SLURM_RESTART_COUNT" in os.environ else 0)
            stack.enter_context(file)
        except machine.Busy as error:
            busy = error
    if world.agree(busy is not None):
        raise busy or machine.Busy(f"{run}: another run is running")
    return note


def frozen_digest(clip: nn.Module) -> int | None:
    """CRC-32 of all parameters that are not trained; None if every one is."""
    frozen = [(n, p) for n, p in clip.named_parameters() if not p.requires_grad]
    value = 0
    for name, parameter in frozen:
        value = zlib.crc32(
            parameter.detach().cpu().contiguous().view(-1).numpy().view("u1"),
            zlib.crc32(name.encode(), value),
        )
    return value if frozen else None


def update(stage: PerceptualStage | ContrastiveStage, optimizer: Optimizer, batch, lr: float) -> list[Tensor]:
    """One optimizer step on this rank's share of a batch.

    Returns, on the device: what the stage measures, gradient norm, logit scale, 1.0 if it was left out.
    """
    optimizer.zero_grad()
    measured = stage.gradients(batch)
    norm, bad = optimizer.step(lr)
    stage.constrain()
    return [measured, norm, stage.clip.logit_scale.exp(), bad]


def train(recipe: Recipe, world: World, stop: Stop, note: str = "") -> Outcome:
    """Run the recipe to its end, or until asked to stop; every way out leaves a sound run folder.

    note: a line for the head of the log.

    Raises ValueError for a user's mistake, TrainingStopped when the run cannot go on, OSError when it
    cannot be written.
    """
    run = recipe.run
    assert run is not None
    with ExitStack() as stack:
        unlocked = _alone(run, world, stack)
        if world.main:
            prepare_folder(run, recipe)
        world.barrier()
        log = Log(run, world.main)
        stack.callback(log.close)
        handler = LibraryWarnings(log)
        logging.getLogger("pipeline").addHandler(handler)
        stack.callback(logging.getLogger("pipeline").removeHandler, handler)
        for line in filter(None, (note, unlocked)):
            log(line)
        try:
            return _Run(recipe, world, stop, log, stack).go()
        except torch.OutOfMemoryError as error:
            ways = "--micro N (the same gradients in parts) or --recompute blocks; see python -m train.plan"
            raise TrainingStopped(f"{world.device}: out of memory; {ways}") from error


class _Run:
    """The objects of one run."""

    def __init__(self, recipe: Recipe, world: World, stop: Stop, log: Log, stack: ExitStack):
        self.recipe, self.world, self.stop, self.log = recipe, world, stop, log
        if recipe.compute.attention == "triton" and world.device.type != "cuda":
            raise ValueError("--attention triton: needs a GPU, and this run is on a CPU")
        self.file = open_split(recipe.data.data, recipe.stage)
        self.val = open_split(recipe.data.val, recipe.stage) if recipe.data.val else None
        self.steps = recipe.total_steps(len(self.file))
        self.clip = models.build(recipe)
        models.set_trainable(self.clip, recipe)
        self.clip.to(world.device, memory_format=torch.channels_last)  # the loaders' layout
        self.optimizer = Optimizer(self.clip, recipe.optim)
        self.state = self._restore()
        self.stage = STAGES[recipe.stage](recipe, self.clip, world)
        self.first = self.state.step
        self.image_size = image_side(self.clip)
        self.skipped = 0
        self.flops = 0  # of a sample, forward and backward; counted when first needed
        if self.done:
            return
        self.loader = stack.enter_context(
            data.stream(recipe, self.file, world, self.image_size, self.state.samples)
        )
        self.saver = self.metrics = None
        if world.main:
            self.saver = checkpoint.Saver(recipe.run, to_dict(recipe), recipe.saving.keep, log)
            stack.callback(self.saver.wait)
            self.metrics = Metrics(recipe.run, self.state.step, recipe.saving.tensorboard)
            stack.callback(self.metrics.close)

    @property
    def done(self) -> bool:
        return self.state.step == self.steps

    def _restore(self) -> checkpoint.State:
        """The newest sound checkpoint, the last of this module's list; every rank reads the same files."""
        folder = checkpoint.latest(self.recipe.run, self.log)
        if folder is None:
            return checkpoint.State(frozen=frozen_digest(self.clip), in_file=len(self.file))
        state = checkpoint.check(folder)
        if state.in_file != len(self.file):
            raise ValueError(
                f"{self.recipe.data.data}: has {len(self.file)} samples, but {self.recipe.run} was trained "
                f"on a file of {state.in_file}; choose another --run"
            )
        self.clip.load_state_dict(checkpoint.weights(folder))
        self.optimizer.load(checkpoint.moments(folder))
        self.log(f"continuing {self.recipe.run} from {folder.name}")
        return state

    # -- steps --------------------------------------------------------------------------

    def go(self) -> Outcome:
        if self.done:
            self.log(f"{self.recipe.run}: complete ({self.steps} steps); nothing to do")
            return Outcome(self.state.step, self.steps)
        self.log(
            f"stage {self.recipe.stage} ({self.recipe.name}), {self.recipe.model}: "
            f"steps {self.state.step} to {self.steps} of {self.recipe.batch} {self.stage.unit} "
            f"on {self.world.size} rank(s), {self.world.device}"
        )
        if slow := why_slow(self.clip.visual):
            self.log(
                f"the image tower of {self.recipe.model} runs as it is, with none of the savings: {slow}"
            )
        self.clip.train()
        self.window = Window((*self.stage.measures, "grad_norm", "logit_scale", "skipped"))
        batches = iter(self.loader)
        asked = NONE
        while not self.done and asked == NONE:
            self._step(batches)
            asked = self.world.agree(self.stop.asked)
            self._after_step(asked != NONE)
        return self._finish(asked)

    def _step(self, batches) -> None:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        lr = learning_rate(self.recipe.optim, self.state.step, self.steps)
        self.window.add(update(self.stage, self.optimizer, batch, lr), waited)
        self.state.step += 1
        self.state.samples += self.recipe.batch

    def _after_step(self, stopping: bool) -> None:
        saving, step = self.recipe.saving, self.state.step
        validating = self.val and (self.done or (saving.val_every and step % saving.val_every == 0))
        if stopping or self.done or validating or step % saving.log_every == 0:
            self._record()
        if validating:
            self._validate()
        keep = self._keeps()
        if stopping or self.done or keep or (saving.save_every and step % saving.save_every == 0):
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
        """Write the mean of the steps since the last line; the only place that reads the device."""
        values = self.window.read().double()
        steps, now = len(values), time.perf_counter()
        bad = values[:, -1] > 0
        self._count_skipped(bad)
        kept = values[~bad] if not bad.all() else values
        measures = len(self.stage.measures)
        sums = self.world.total(torch.cat([kept[:, :measures].mean(0), torch.tensor([self.window.waited])]))
        means = (sums / self.world.size).tolist()
        seconds = now - self.window.start
        rate = steps * self.recipe.batch / seconds
        line = {
            "step": self.state.step,
            "samples": self.state.samples,
            "seconds": seconds,
            **dict(zip(self.stage.measures, means)),
            "lr": learning_rate(self.recipe.optim, self.state.step - 1, self.steps),
            "logit_scale": float(values[-1, -2]),
            "grad_norm": float(kept[:, -3].mean()),
            f"{self.stage.unit}_per_s": rate,
            "data_wait": means[-1] / seconds,
            "epoch": self.state.samples / self.recipe.samples(len(self.file)),
            **self._hardware(rate),
        }
        self._check_rejected()
        if self.world.main:
            self.metrics.write(line)
            left = (self.steps - self.state.step) * seconds / steps
            shown = "  ".join(f"{name} {line[name]:.4f}" for name in self.stage.measures)
            self.log.progress(
                f"step {self.state.step}/{self.steps}  {shown}  {rate:.0f} {self.stage.unit}/s  "
                f"waiting for data {line['data_wait']:.0%}  {clock(left)} left"
            )
        self.window.clear()

    def _hardware(self, rate: float) -> dict[str, float]:
        """Memory of this rank, and on a known GPU the share of its peak that useful arithmetic reaches.

        Useful: forward and backward once; what is computed again to save memory does not count.
        """
        if self.world.device.type != "cuda":
            return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
        found = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9}
        peak = peak_flops(self.world.device)
        if peak is not None:
            if not self.flops:
                tokens = self.file.info.get("captions", {}).get("mean_tokens") or 77
                image, text = forward_flops(self.clip, round(tokens))
                self.flops = 3 * (image * self.stage.images + (text if self.recipe.stage == 2 else 0))
            found["mfu"] = rate * self.flops / (peak * self.world.size)
        return found

    def _count_skipped(self, bad: torch.Tensor) -> None:
        first = self.state.step - len(bad) + 1
        numbers = [first + i for i in torch.nonzero(bad).flatten().tolist()]
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

    def _check_rejected(self) -> None:
        share = float(self.world.total(torch.tensor([float(self.loader.rejected)]))) / self.state.samples
        if share > MAX_REJECTED:
            raise TrainingStopped(
                f"{self.recipe.data.data}: {share:.1%} of the samples do not decode "
                f"(limit {MAX_REJECTED:.0%}); log.txt names them"
            )

    def _validate(self) -> None:
        share_buffers(self.clip, self.world)
        self.clip.eval()
        batches = data.held_out(self.recipe, self.val, self.world, self.image_size, VALIDATION_BATCH)
        found = self.stage.validate(batches)
        self.clip.train()
        if self.world.main:
            self.metrics.write({"step": self.state.step, **found})
            self.log(f"step {self.state.step}: " + "  ".join(f"{k} {v:.4f}" for k, v in found.items()))
        self.window.clear()

    # -- ends ---------------------------------------------------------------------------

    def _save(self, keep: bool) -> None:
        if self.saver is not None:
            state = dataclasses.replace(self.state, steps=self.steps, keep=keep, files={})
            self.saver.save(state, self.clip.state_dict(), self.optimizer.state())

    def _finish(self, asked: int) -> Outcome:
        if self.saver is not None:
            self.saver.wait()
        self.world.barrier()
        if frozen_digest(self.clip) != self.state.frozen:
            raise TrainingStopped(
                "a parameter that must not change did change: this is a mistake of the program"
            )
        asked = NONE if self.done else asked
        outcome = Outcome(self.state.step, self.steps, asked, self.state.step > self.first)
        if not outcome.done:
            why = "interrupted" if asked == INTERRUPT else "asked to make room"
            self.log(f"{why} after step {self.state.step} of {self.steps}; the same command continues")
        return outcome
