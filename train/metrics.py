"""What a run says while it runs: metrics.jsonl, TensorBoard, log.txt, and a line on a terminal.

Values stay on the device until a line is due, so the training loop does not wait for it between lines.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base import files


class Log:
    """log.txt and the console; ranks other than 0 are silent (their exceptions are not)."""

    def __init__(self, run: Path, main: bool):
        self.file = open(run / "log.txt", "a", buffering=1) if main else None  # noqa: SIM115
        self.live = main and sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self.file is None:
            return
        self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} | {text}\n")
        print(f"\r\033[K{text}" if self.live else text, file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        """A line that the next one replaces, on a terminal; a line of log.txt everywhere."""
        if self.file is None:
            return
        self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} | {text}\n")
        if self.live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class LibraryWarnings(logging.Handler):
    """Sends the warnings of pipeline and kernels (a sample that does not decode, …) to the run's log."""

    def __init__(self, say: Log):
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


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
    """The steps since the last line: device values, and host seconds."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.clear()

    def clear(self) -> None:
        self.rows: list[Tensor] = []
        self.start = time.perf_counter()
        self.waited = 0.0

    def add(self, values: list[Tensor], waited: float) -> None:
        self.rows.append(torch.cat([v.detach().reshape(-1).float() for v in values]))
        self.waited += waited

    def read(self) -> Tensor:
        """(steps, names) on the CPU: the one place that waits for the device."""
        return torch.stack(self.rows).cpu()
