"""Parts that take turns, each in a process of its own; one that fails or crashes is a row, the others go on.

A process is frozen (SIGSTOP) while others have their turns: it neither takes their cores nor works ahead.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from pipeline.base.console import Failed
from pipeline.base.measure import paired_rounds
from pipeline.throughput.settings import Case

COMMAND = (sys.executable, "-m", "pipeline.throughput.measuring")
LIMIT = 300.0  # seconds that a turn may take, the start of its process and compilation included


class Process:
    """A new process that measures a case; one thread for each of its numerical libraries."""

    def __init__(self, case: Case):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`close` does)
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment,
            process_group=0,
        )  # fmt: skip
        self._request = pickle.dumps(case)

    def turn(self) -> dict[str, Any]:
        """What `measuring.turns` says of its next turn; Failed where the part did."""
        self._signal(signal.SIGCONT)
        limit = threading.Timer(LIMIT, self._signal, [signal.SIGKILL])
        limit.daemon = True  # Ctrl-C while it starts: nobody must wait for it
        try:
            limit.start()
            reply = self._reply()
        finally:
            limit.cancel()
        self._signal(signal.SIGSTOP)
        if not reply:
            raise Failed(self._ending())
        figures = json.loads(reply)
        if "failed" in figures:
            raise Failed(figures["failed"])
        return figures

    def _reply(self) -> bytes:
        """The line that it answers the next request with; b"" if it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(self._request)
            self._process.stdin.flush()
        self._request = b"\n"
        return self._process.stdout.readline()

    def _ending(self) -> str:
        """How it ended without a reply, in words."""
        self._signal(signal.SIGCONT)
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return f"killed: out of memory, or no batches within {LIMIT:.0f} s"
        self._errors.seek(0)
        last = (self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {last}"[:400]

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:  # afterwards the number may be another's
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)  # its children too

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._errors.close()


def race(cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """For each case its turns ({"turns": [...]}, one a round), or why it has none ({"failed": "…"}).

    In a round every case has one turn, in an order drawn for the round.  Cold cases are started anew in
    each round: processes that live on would keep the file's pages in memory.
    """
    results: list[dict[str, Any]] = [{"turns": []} for _ in cases]
    running: dict[int, Process] = {}

    def turn(number: int) -> None:
        if "failed" in results[number]:
            return
        if number not in running:
            running[number] = Process(cases[number])
            stack.callback(running[number].close)
        try:
            results[number]["turns"].append(running[number].turn())
        except Failed as error:
            results[number] = {"failed": str(error)}
            print(f"{cases[number].part}: failed: {error}", file=sys.stderr, flush=True)
        if cases[number].cold or "failed" in results[number]:
            running.pop(number).close()

    with ExitStack() as stack:
        sides = {f"{case.part} ({case.workers})": partial(turn, i) for i, case in enumerate(cases)}
        paired_rounds(sides, rounds, lambda line: print(line, file=sys.stderr, flush=True))
    return results
