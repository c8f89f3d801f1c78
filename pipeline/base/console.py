"""What a command prints: one line for an error, a status line while it works, lines of a log.

Exit codes: 0 done; 1 the work failed, or a bug of ours, with its traceback; 2 a user's mistake, or something
that this machine lacks; 130 Ctrl-C.  Needs the standard library alone.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable

USER_ERRORS = (ValueError, OSError)
_THREADS = (
    "no more threads or processes may be started here (ulimit -u, or the pids limit of a container): "
    "raise it, or lower --workers, --threads or --ngpus"
)
# Words in the errors of Python and Triton → what the machine lacks, and what to do.
_ADVICE = {
    "can't start new thread": _THREADS,
    "Failed to find C compiler": "Triton, whose kernels a GPU runs, finds no C compiler: install gcc, or "
    "name a compiler with CC",
    "'-fPIC', '-Wno-psabi'": "the C compiler that Triton calls failed (its own words are above, or in the "
    "run's jobs folder); it needs the headers of C and of Python (python3-dev)",
}


class Failed(RuntimeError):
    """The work cannot go on, and the user made no mistake: one line, and this exit code."""

    code = 1


# -- commands -------------------------------------------------------------------------------


def command(run: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Call `run`, which does a command's work; returns the exit code.

    An error that a user can act on becomes one line on stderr.
    """
    settle_streams()
    try:
        return run() or 0
    except (KeyboardInterrupt, Exception) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        print(interrupted if stopped else describe(error), file=sys.stderr)
        return exit_code(error)


def describe(error: BaseException) -> str:
    """One line for an error that a user can act on, the traceback for any other."""
    if advice := _advice(error):
        return f"error: {advice}"
    if isinstance(error, (Failed, *USER_ERRORS)):
        return f"error: {' '.join(str(error).split())}"
    return "".join(traceback.format_exception(error)).rstrip("\n")


def exit_code(error: BaseException) -> int:
    """The exit code of a command that `error` ends."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Failed):
        return error.code
    return 2 if isinstance(error, USER_ERRORS) or _advice(error) else 1


def _advice(error: BaseException) -> str | None:
    """What to do, if the machine lacks something that the work needs."""
    if isinstance(error, BlockingIOError):
        return _THREADS
    return next((advice for words, advice in _ADVICE.items() if words in str(error)), None)


def settle_streams() -> None:
    """Make the standard streams take any text, and open those that are closed.

    Names of files may be no text, and a terminal may lack letters.  After `2>&-` the next file that is opened
    would be stderr.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it takes the lowest free number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # notebooks have another kind
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line; when nobody reads any more (`… | head`) the work goes on silently."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- progress -------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class StatusLine:
    """A line on stderr that the next one replaces on a terminal; elsewhere plain lines."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._open = False  # whether the terminal's last line may be replaced

    def show(self, text: str, stays: bool = False) -> None:
        """Put up `text`, until the next line unless it `stays`."""
        self._open = self.live and not stays
        line, end = f"\r\033[K{text}" if self.live else text, "" if self._open else "\n"
        print(line, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the last line where it stands."""
        if self._open:
            print(file=sys.stderr)
            self._open = False


class Progress:
    """A status line with samples a second and the time left, for work whose tasks have weights.

    name: what the line begins with.  total: weight of all tasks.  done: weight of those finished earlier.
    """

    _TERMINAL, _LOG = 0.5, 30.0  # seconds between lines

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.done = name, total, done
        self._fresh = 0  # weight done by this run: rates do not count what an earlier run did
        self._line = StatusLine()
        self._every = self._TERMINAL if self._line.live else self._LOG
        self._started = self._shown = time.monotonic()

    def finished(self, weight: int) -> None:
        """A task of this weight is complete."""
        self.done += weight
        self._fresh += weight

    def show(self, samples: int, inside: float = 0.0, force: bool = False) -> None:
        """`samples` seen by this run, `inside` weight within tasks that are not complete."""
        now = time.monotonic()
        if not force and now - self._shown < self._every:
            return
        self._shown, seconds = now, max(now - self._started, 1e-9)
        share = min((self.done + inside) / max(self.total, 1), 1.0)
        fresh = min(self._fresh + inside, self.total)
        left = "time left unknown"
        if fresh > 0:
            left = f"{clock((self.total - self.done - inside) / fresh * seconds)} left"
        self._line.show(f"{self.name}: {share:6.1%}  {samples:,} samples  {samples / seconds:,.0f}/s  {left}")

    def end(self) -> None:
        """Leave the terminal's line."""
        self._line.end()


# -- lines of a log -------------------------------------------------------------------------

# `2026-01-31 23:59:59 | text`; progress, which the next line may replace on a terminal, has > for |.
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([|>]) (.*)", re.DOTALL)


def log_line(text: str, progress: bool = False) -> str:
    """A line of a log file, with the time."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {'>' if progress else '|'} {text}\n"


def read_log_line(line: str) -> tuple[str, bool]:
    """(text, whether it is progress) of a line of `log_line`; of any other line, the line itself."""
    line = line.rstrip("\n")
    match = _LOG_LINE.fullmatch(line)
    return (match[2], match[1] == ">") if match else (line, False)
