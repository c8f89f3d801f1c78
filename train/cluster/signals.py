"""Asking a running job to stop: a flag that the training loop reads once a step.

Handlers only set the flag: a handler that saved a checkpoint itself could run in the middle of an
update, or while another rank waits in a collective.  The ranks agree on the flag in every step
(`World.agree`), so that all of them stop after the same update.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

_PATIENCE = 20.0  # seconds
NONE, INTERRUPT, PREEMPT = 0, 1, 2  # what was asked for; the larger wins


class Stop:
    """Installs the handlers; `asked` is NONE, INTERRUPT (end now) or PREEMPT (save and be requeued)."""

    def __init__(self) -> None:
        self.asked = NONE
        self.owner = os.getpid()
        self._submitit = signal.getsignal(signal.SIGUSR2)  # in a submitit job, its handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a forked loader worker must not decide for the job
            return
        if number == signal.SIGINT and self.asked == INTERRUPT:
            os._exit(130)  # a second Ctrl-C: the user does not want to wait for the checkpoint
        self.asked = max(self.asked, PREEMPT if number == signal.SIGUSR2 else INTERRUPT)

    def leave(self, main: bool, progressed: bool) -> None:
        """After the checkpoint of an unfinished run: be queued again if asked to make room, else end.

        Returns where the job is not SLURM's.  In a SLURM job it never returns, because a rank that did would
        count as a success.  There a preemption sends SIGTERM and then SIGUSR2, and `scancel` sends SIGTERM
        alone; so an interrupted job waits a little for the other signal, and `scancel` kills it meanwhile.

        main: whether this is rank 0, which alone asks for the queue.  progressed: whether any step was
        taken; a job without one is not queued again, or it would be for ever.
        """
        in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"  # a local run may stand in an allocation
        deadline = time.monotonic() + (_PATIENCE if in_slurm else 0)
        while self.asked != PREEMPT and time.monotonic() < deadline:
            time.sleep(0.2)
        if self.asked == PREEMPT and main:
            if not progressed:
                raise RuntimeError(
                    "no step was taken within this allocation; not queued again: raise --timeout"
                )
            assert callable(self._submitit)
            self._submitit(signal.SIGUSR2, None)  # leaves through SystemExit
        if in_slurm:
            time.sleep(_PATIENCE)  # rank 0's exit ends this one
            sys.exit(130)
