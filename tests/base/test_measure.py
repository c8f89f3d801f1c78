"""The stop-watches of the benchmarks."""

from __future__ import annotations

import subprocess
import sys

from pipeline.base.measure import cpu_seconds


def test_cpu_seconds_count_children():
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while cpu_seconds() - before < 0.1:
            pass
    finally:
        child.kill()
        child.wait()
