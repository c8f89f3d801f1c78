"""What every command of this room does with errors."""

from __future__ import annotations

import sys
from collections.abc import Callable


def command(run: Callable[[], None]) -> int:
    """Run a command line's function; what a user did wrong becomes one line and exit code 2."""
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
