"""Sides that take turns, each in a process of its own; one that fails does not stop the others."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from pipeline.base.console import Failed
from pipeline.base.measure import Spent, paired_rounds
from train.bench.worker import Worker

OURS = "ours"
FAILURES = (Failed, ValueError)  # of a worker


class Race:
    """Workers, the time of each of their turns, and a row of figures a side.

    The row of a side that fails says why ("failed"); it has no more turns.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.rows: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, Worker] = {}
        self.spent: dict[str, list[Spent]] = {}

    def start(self, name: str, start: Callable[[], Worker], counted: bool) -> None:
        """Start a side and take its first step; `counted`: have its floating-point operations counted."""
        row = self.rows[name] = {}
        try:
            worker = self._stack.enter_context(start())
            row |= worker("first")
            worker("rest")
            if counted and (flops := worker("flops")):
                row["gflop_a_sample"] = flops / row["batch"] / 1e9
        except FAILURES as error:
            if name == OURS and isinstance(error, ValueError):  # a mistake in the recipe
                raise
            return self._failed(name, error)
        self.workers[name] = worker
        print(f"{name}: first step after {row['first_s']:.1f} s", file=sys.stderr)

    def _failed(self, name: str, error: Exception) -> None:
        self.rows[name]["failed"] = str(error)
        self.workers.pop(name, None)
        print(f"{name}: failed: {error}", file=sys.stderr)

    def run(self, rounds: int) -> None:
        """Every side has its turn in every round; then the rows say how long, and how they compare."""
        turns = {name: lambda name=name: self._turn(name) for name in self.workers}
        paired_rounds(turns, rounds, lambda line: print(line, file=sys.stderr))
        for name in self.workers:
            wall, cpu = (statistics.median(getattr(s, c) for s in self.spent[name]) for c in ("wall", "cpu"))
            rate = self.rows[name]["batch"] / wall
            self.rows[name] |= {"turn_ms": 1e3 * wall, "turn_cpu_ms": 1e3 * cpu, "turn_samples_s": rate}
        for name in self.workers.keys() - {OURS} if OURS in self.workers else ():
            self.rows[name] |= self._comparison(name)

    def _turn(self, name: str) -> None:
        if name not in self.workers:
            return
        try:
            self.spent.setdefault(name, []).append(self.workers[name]("turn"))
        except FAILURES as error:
            self._failed(name, error)

    def _comparison(self, name: str) -> dict[str, Any]:
        """How many times as fast as this peer we are, sample for sample and round by round."""
        ours, theirs = self.rows[OURS], self.rows[name]
        row: dict[str, Any] = {}
        for clock, suffix in (("wall", ""), ("cpu", "_cpu_time")):
            times = ([getattr(s, clock) for s in self.spent[n]] for n in (OURS, name))
            ratios = [b / a * ours["batch"] / theirs["batch"] for a, b in zip(*times)]
            row[f"times_faster{suffix}"] = statistics.median(ratios)
            row[f"times_faster{suffix}_range"] = [min(ratios), max(ratios)]
        if "gflop_a_sample" in ours and "gflop_a_sample" in theirs:
            row["flops_allow"] = theirs["gflop_a_sample"] / ours["gflop_a_sample"]
        return row

    def figures(self, names: Sequence[str]) -> None:
        """Add to our row what these methods return; one that fails is named in it."""
        if OURS not in self.workers:
            return
        for figure in ("wake", *names):
            try:
                self.rows[OURS] |= self.workers[OURS](figure) or {}
            except FAILURES as error:
                self.rows[OURS].setdefault("failed_figures", {})[figure] = str(error)
