"""The machine a command runs on: environment variables, a private folder for caches, a lock on a file.

Needs the standard library alone.  Commands call `settle`; importing this module changes nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import getpass
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import IO


class Busy(ValueError):
    """Another process holds the lock."""


def settle() -> None:
    """Set the variables that this process and its children need and that the user has not set.

    Call it before torch is imported: OpenMP reads its variables when it is loaded, CUDA when it starts.
    """
    if not faulthandler.is_enabled():  # a crash of compiled code then prints where it happened
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):  # no real stderr
            faulthandler.enable()
    _share_cores()
    # How many streams a GPU takes work from independently: 8 by default, and streams that share one wait for
    # each other.  DALI's kernels beside a ViT-B/32 step: 437 ms a batch instead of 563 (docs/benchmarks.md).
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user id without a name; torch and others ask for one
        os.environ["USER"] = f"uid-{os.getuid()}"
    writable = os.access(os.path.expanduser("~"), os.W_OK | os.X_OK)
    if not {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys() and not writable:
        folder = private_folder()
        if folder is not None:
            os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def _share_cores() -> None:
    """Let OpenMP's idle threads spin only briefly before they sleep, unless the user has chosen otherwise.

    By default they spin 300,000 times, on cores that another run could use.  We set 1,000.  Measured on two
    cores, all to the same bits:

    * 60 steps of the demo's stage 1 beside a second run: 171 s by default, 31 s with 1,000 turns.
    * 12 steps beside another load of 1 to 3: 40 s by default, 11 s with 1,000 turns.
    * Stage 2 of the demo alone: 5 to 8 % longer with 1,000 turns (medians of 12 and 16 pairs of 8 steps,
      themselves 0.8 to 1.4), and a tenth less CPU time; 10,000 and 30,000 turns measure the same.
    * OMP_WAIT_POLICY=passive alone: 1.2 times as long.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def private_folder() -> Path | None:
    """A folder for caches below $TMPDIR that only this user can write to; None where there is none.

    Caches hold code, so a folder of this name that another user made, or may write to, is not used.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"perceptual-initialization-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if ours else None


def lock(path: Path, what: str, patience: float = 0) -> tuple[IO, str]:
    """Lock the file `path`; returns it, open, and a note for the user if its file system has no locks.

    The lock holds until the file is closed or this process ends.  what: for the message, what only one
    process may do at a time.  patience: seconds to wait for another process.  Raises Busy while another
    process holds the lock, OSError where the file cannot be opened.
    """
    file = open(path, "a")  # noqa: SIM115
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file, ""
        except BlockingIOError:
            if time.monotonic() >= until:
                file.close()
                raise Busy(f"{path.parent}: another {what} is running; wait for it, or end it") from None
            time.sleep(min(1, patience))
        except OSError as error:  # a mount without locks (Lustre, FUSE, NFS without its lock service)
            return file, (
                f"note: {path.parent}: its file system has no locks ({error.strerror}), so only you "
                f"can see to it that there is one {what} at a time"
            )
