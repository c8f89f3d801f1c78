"""What a run says while it runs: metrics.jsonl, TensorBoard, log.txt, and a line on a terminal.

Values stay on the device until a line is due, and then are read one step later, so that it never runs dry.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base import files
from pipeline.base.console import StatusLine, log_line
from train.device.prefetch import Wait


class Log(logging.Handler):
    """log.txt and the console; ranks other than 0 are silent (their exceptions are not).

    Until it is closed it also receives pipeline's warnings: a sample that does not decode, for example.
    """

    def __init__(self, run: Path, main: bool):
        super().__init__(logging.WARNING)
        self.file = open(run / "log.txt", "a", buffering=1) if main else None  # noqa: SIM115
        self.status = StatusLine()
        logging.getLogger("pipeline").addHandler(self)

    def __call__(self, text: str, progress: bool = False) -> None:
        """progress: on a terminal, the next line may replace this one."""
        if self.file is None:
            return
        self.file.write(log_line(text, progress))
        self.status.show(text, stays=not progress)

    def emit(self, record: logging.LogRecord) -> None:
        self(record.getMessage())

    def close(self) -> None:
        logging.getLogger("pipeline").removeHandler(self)
        if self.file is not None:
            self.status.end()
            self.file.close()
        super().close()


class Metrics:
    """metrics.jsonl and TensorBoard of rank 0; continuing a run drops the lines after its checkpoint."""

    def __init__(self, run: Path, step: int, tensorboard: bool):
        self.path = run / "metrics.jsonl"
        self._drop_after(step)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115
        self.events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Also from step 0 on: a run that was killed before its first checkpoint has left points too.
            self.events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, TypeError, KeyError):  # the line that was being written when it was killed
                continue
        files.write(self.path, "".join(line + "\n" for line in kept).encode())

    def write(self, line: dict[str, float]) -> None:
        """One line; `line` has "step".  What is not finite is left out: JSON has no word for it."""
        line = {k: v for k, v in line.items() if math.isfinite(v)}
        self.file.write(json.dumps({k: round(v, 6) if k != "lr" else v for k, v in line.items()}) + "\n")
        if self.events is not None:
            for name, value in line.items():
                if name != "step":
                    self.events.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.file.close()
        if self.events is not None:
            self.events.close()


class Window:
    """The steps since the last line: values on the device, and how long each waited for its batch."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.waits: list[Wait] = []

    def add(self, values: Mapping[str, Tensor], wait: Wait) -> None:
        """One step; `values` are scalars, by the same names in every step."""
        self.steps.append({name: value.detach().reshape(()) for name, value in values.items()})
        self.waits.append(wait)

    def close(self) -> Reading:
        """What was added, on its way to the host; the window is empty afterwards."""
        names = list(self.steps[0])
        table = torch.stack([step[name].float() for step in self.steps for name in names])
        copied = None
        if table.is_cuda:
            table = torch.empty(table.shape, pin_memory=True).copy_(table, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)
            copied.record()
        reading = Reading(names, table, self.waits, copied)
        self.clear()
        return reading


@dataclass(frozen=True)
class Reading:
    """The values of some steps, which the device may still be computing."""

    names: list[str]
    table: Tensor  # (steps · names,) float32 on the CPU, once it is copied
    waits: list[Wait]
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        """Until the device has come to the end of these steps; what it was given later goes on."""
        if self.copied is not None:
            self.copied.synchronize()

    def values(self) -> dict[str, Tensor]:
        """Each value's course, (steps,) float64 on the CPU."""
        self.wait()
        return dict(zip(self.names, self.table.double().view(-1, len(self.names)).unbind(1)))

    def waited(self) -> float:
        """Seconds for data, of all these steps."""
        self.wait()
        return sum(wait.seconds() for wait in self.waits)
