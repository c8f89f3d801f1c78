"""Whether a build may write where it is told to."""

from __future__ import annotations

import json
from pathlib import Path


def check_out(out: Path) -> None:
    """ValueError if a .beton cannot be written as `out`, or its JSON would take the place of another file."""
    if out.suffix != ".beton":
        raise ValueError(f"{out}: the name of the file to write must end in .beton")
    if out.is_dir():
        raise ValueError(f"{out}: a folder lies there, where a file is to be written; choose another --out")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{above}: a file lies there, where --out needs a folder")
    info = out.with_suffix(".json")
    if info.exists() and not _is_ours(info):
        raise ValueError(
            f"{info}: the build writes its own JSON there, and this is another; "
            "move it away, or choose another --out"
        )


def _is_ours(path: Path) -> bool:
    try:
        return "fingerprint" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False
