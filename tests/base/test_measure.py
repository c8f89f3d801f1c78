"""The stop-watches of the benchmarks."""

from __future__ import annotations

import subprocess
import sys
import threading

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


def test_threads_that_end_meanwhile_change_nothing():
    ended = threading.Event()

    def start_threads() -> None:
        while not ended.is_set():
            threading.Thread(target=int).start()

    starting = threading.Thread(target=start_threads)
    starting.start()
    try:
        for _ in range(300):
            cpu_seconds()
    finally:
        ended.set()
        starting.join()
