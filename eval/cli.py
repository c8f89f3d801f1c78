"""What every command of this room does with errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def say(line: str) -> None:
    """Print a line; when nobody reads any more (`… | head`) the work goes on without a word."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(run: Callable[[], None]) -> int:
    """Run a command line's function; what a user did wrong becomes one line and exit code 2."""
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
