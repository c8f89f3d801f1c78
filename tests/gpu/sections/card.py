"""What the card itself reaches, and the tests that need it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from tests.gpu.sections.common import TOY, cuda, out
from train.bench import ceilings


def limits() -> dict:
    """Large copies and products; the model's own products stand beside its step (step_auto)."""
    if not cuda():
        return ceilings.large(TOY)
    p = torch.cuda.get_device_properties(0)
    return {"bytes": p.total_memory, "sms": p.multi_processor_count} | ceilings.large(TOY) | ceilings.sent()


# At the end of a session: whether the clock has fallen.
limits_again = partial(ceilings.large, TOY)


def pytest(*arguments: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    log = out() / f"{Path(arguments[0]).stem}.log"
    log.write_text(done.stdout[-400_000:] + done.stderr[-20_000:])
    lines = [ln[:300] for ln in done.stdout.splitlines() if ln.startswith(("FAILED", "ERROR", "E  "))]
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    return {"rc": done.returncode, "last": last, "failures": lines[:40]}


CHOSEN = os.environ.get("CARD_PYTEST", "").split()  # more arguments
# They fill the GPU, read its free memory, or time it: nothing may run beside them.
ALONE = "full_gpu or does_not_grow or gpu_that_decodes or stood_still"
BESIDE = ("-k", f"not ({ALONE})", *CHOSEN)
tests_kernels = partial(pytest, "tests/gpu/test_kernels.py", "-n", "5", *CHOSEN)
tests_training = partial(pytest, "tests/gpu/test_training.py", "-rP", "-n", "5", *BESIDE)
tests_dali = partial(pytest, "tests/gpu/test_dali.py", "-n", "3", *BESIDE)
tests_launching = partial(pytest, "tests/gpu/test_launching.py", *CHOSEN)
tests_alone = partial(pytest, "tests/gpu", "-rP", "-k", ALONE, *CHOSEN)
