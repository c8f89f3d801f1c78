"""Asking a running job to stop: a flag that the training loop reads once a step.

Handlers only set the flag: a handler that saved a checkpoint itself could run in the middle of an
update, or while another rank waits in a collective.  The ranks agree on the flag in every step
(`World.agree`), so that all of them stop after the same update.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

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

    def requeue_job(self, main: bool) -> None:
        """Let submitit put the job in the queue again, from the main rank; does not return in SLURM.

        The other ranks wait there to be ended: one that left with success or failure would end the
        job before it is in the queue.
        """
        if main:
            assert callable(self._submitit)
            self._submitit(signal.SIGUSR2, None)
        elif "SLURM_JOB_ID" in os.environ:
            time.sleep(120)
