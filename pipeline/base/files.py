"""Files that are either whole or absent: write under another name, sync, rename.

Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`; on success it is synced and takes `path`'s place, else removed.

    The caller creates the file under that name.  It holds the process id, so two processes that write one
    file do not write into each other.  Creates the folder.  Raises OSError that names `path` where the disk
    is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)  # else the name may outlive a crash of the machine, and the contents not
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:  # of a full disk, which a write raises without the path
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike, data: bytes | str) -> None:
    """All of `data` at `path`, or what was there before.

    Text is written as UTF-8; bytes of a file's name that are no text become \\udcXX, as JSON writes them.
    """
    encoded = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with replacing(path) as temporary:
        temporary.write_bytes(encoded)


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have the disk hold a folder's names; SMB and some of FUSE cannot."""
    with contextlib.suppress(OSError):
        sync(path)
