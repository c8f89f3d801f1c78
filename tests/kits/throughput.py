"""Parts that fail in each way a part can, for tests of `pipeline.throughput`; run in place of `measuring`."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import threading
import time
from pathlib import Path

from pipeline.augment import AUGMENTS
from pipeline.throughput import measuring
from pipeline.throughput.parts import PARTS, Part
from pipeline.throughput.settings import Case


def steady(file, case):
    print("what a library says")  # to stdout: no reply
    while True:
        time.sleep(0.001)
        yield


def busy(file, case):
    """Its thread works whether batches are asked for or not."""
    threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(int, 1)], daemon=True).start()
    yield from steady(file, case)


def raises(file, case):
    yield
    raise RuntimeError("the decoder\ngave up")


def fails_later(file, case):
    for _ in range(9):  # one, three to warm up, three or four of a turn
        time.sleep(0.005)
        yield
    raise ValueError("no more")


def crashes(file, case):
    yield
    ctypes.string_at(0)


def exits(file, case):
    yield
    os.write(2, b"terminate called\nwhat(): a message\n")
    os._exit(3)


def missing(file, case):
    yield
    raise ModuleNotFoundError("No module named 'spdl'", name="spdl")


def hangs(file, case):
    yield
    time.sleep(100)


FAULTS = {f.__name__: Part(f.__name__, f) for f in
          (steady, busy, raises, fails_later, crashes, exits, missing, hangs)}  # fmt: skip


def case_of(part: str, file: Path = Path(), **changes) -> Case:
    """A small case with these changes."""
    usual = Case(part=part, file=file, workers=1, batch_size=4, image_size=32, augment=AUGMENTS["paper"],
                 seconds=0.01)  # fmt: skip
    return dataclasses.replace(usual, **changes)


def runs(process: int) -> bool:
    """Whether it is there, and more than a row of the process table."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(process: int) -> list[int]:
    texts = [p.read_text() for p in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(child) for text in texts for child in text.split()]


if __name__ == "__main__":
    PARTS.update(FAULTS)
    measuring.main()
