"""Stop-watches of the benchmarks: time with children's time, memory, disk, and rounds in pairs.

Needs the standard library alone; Linux.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Spent:
    """Seconds by the clock on the wall, and of processors (with those of children)."""

    wall: float = 0.0
    cpu: float = 0.0


@contextlib.contextmanager
def stopwatch() -> Iterator[Spent]:
    """The time that the block takes; filled in when it ends."""
    spent = Spent()
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield spent
    spent.wall, spent.cpu = time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """User and system time of this process, of children that have ended, and of living descendants."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    fields = [text.rsplit(")", 1)[1].split() for text in _descendants("stat")]
    ticks = sum(int(number) for f in fields for number in f[11:15])  # its own, and of its ended children
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def _descendants(name: str) -> Iterator[str]:
    """/proc/PID/`name` of each living descendant of this process."""
    waiting = _children(os.getpid())
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            text = Path(f"/proc/{process}/{name}").read_text()
            waiting += _children(process)
            yield text


def _children(process: int) -> list[int]:
    folder = Path(f"/proc/{process}/task")
    while True:
        try:
            return [
                int(child) for task in folder.iterdir() for child in (task / "children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):  # a thread has ended, and another has its children
            if not folder.exists():
                raise


def disk_bytes() -> int:
    """Bytes that the disk delivered to this process and its living descendants."""
    texts = [Path("/proc/self/io").read_text(), *_descendants("io")]
    return sum(int(text.split("\nread_bytes: ")[1].split()[0]) for text in texts)


def anonymous_memory() -> int:
    """Bytes of this process's memory that no file backs (mapped files belong to the page cache)."""
    return int(Path("/proc/self/status").read_text().split("\nRssAnon:")[1].split()[0]) * 1024


def forget(path: Path) -> None:
    """Drop a file from the page cache, except for pages that are mapped."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def paired_rounds(
    sides: Mapping[str, Callable[[], object]], rounds: int, told: Callable[[str], object] = lambda line: None
) -> dict[str, list[Spent]]:
    """The time each side takes in each round; a round calls every side once, in an order drawn for it.

    So a machine that is busy for a while is busy for all sides, and no side always follows the same other.
    told: called with a line after each call.
    """
    times: dict[str, list[Spent]] = {name: [] for name in sides}
    chance = random.Random(0)
    for turn in range(rounds):
        for name in chance.sample(list(sides), len(sides)):
            with stopwatch() as spent:
                sides[name]()
            times[name].append(spent)
            told(f"round {turn + 1}/{rounds} {name}: {spent.wall:.2f} s")
    return times
