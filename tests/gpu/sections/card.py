"""What the card itself reaches, and the tests that need it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from kernels.bench.clock import call_ms
from tests.gpu.sections.common import TOY, cuda, device, out


def limits() -> dict:
    """Copies, and matrix products at 8192³ and at the model's shapes (forward, dgrad, wgrad)."""
    d, result = device(), {}
    if cuda():
        p = torch.cuda.get_device_properties(0)
        result |= {"bytes": p.total_memory, "sms": p.multi_processor_count}
    a = torch.randn(1 << (16 if TOY else 30), device=d, dtype=torch.bfloat16)
    result["copy_gb_s"] = 2 * a.nbytes / call_ms(lambda: a.clone()) / 1e6
    for pinned in (True, False) if cuda() else ():
        h = torch.randint(0, 255, (1 << 28,), dtype=torch.uint8)
        h = h.pin_memory() if pinned else h
        rate = h.nbytes / call_ms(lambda h=h: h.to(d, non_blocking=True), 5) / 1e6
        result[f"h2d_{'pinned' if pinned else 'pageable'}_gb_s"] = rate
    result |= limits_again()
    rows = 512 if TOY else 256_000  # 5,120 images of 50 tokens
    shapes = [(rows, 768, n) for n in (2304, 768, 3072)] + [(rows, 3072, 768)]
    shapes += [(rows // 3, 512, 2048), (rows // 3, 2048, 512)]
    for m, k, n in shapes:
        x, w, g = (torch.randn(*s, device=d, dtype=torch.bfloat16) for s in ((m, k), (n, k), (m, n)))
        for name, (a, b) in {"fwd": (x, w.T), "dgrad": (g, w), "wgrad": (g.T, x)}.items():
            result[f"tflops_{k}x{n}_{name}"] = 2 * m * k * n / call_ms(partial(torch.mm, a, b), 5, 2) / 1e9
    return result


def limits_again() -> dict:
    """The product at 8192³ alone: at the end of a session it shows whether the clock has fallen."""
    big = 256 if TOY else 8192
    x, y = (torch.randn(big, big, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return {"tflops_8192": 2 * big**3 / call_ms(lambda: x @ y) / 1e9}


def pytest(*arguments: str) -> dict:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    log = out() / f"{Path(arguments[0]).stem}.log"
    log.write_text(done.stdout[-400_000:] + done.stderr[-20_000:])
    lines = [ln[:300] for ln in done.stdout.splitlines() if ln.startswith(("FAILED", "ERROR", "E  "))]
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    return {"rc": done.returncode, "last": last, "failures": lines[:40]}


CHOSEN = os.environ.get("CARD_PYTEST", "").split()  # "-k contrastive", say
tests_kernels = partial(pytest, "tests/gpu/test_kernels.py", "-n", "6", *CHOSEN)
tests_training = partial(pytest, "tests/gpu/test_training.py", "-rP", *CHOSEN)
tests_dali = partial(pytest, "tests/gpu/test_dali.py", "-n", "4", *CHOSEN)
