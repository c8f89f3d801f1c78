"""The code that a study runs: a copy of the checkout's, so that what is changed later changes no job."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("pipeline", "kernels", "dataprep", "train", "eval")


@dataclass(frozen=True)
class Code:
    """folder: what jobs run from.  commit: of git, with `-changed-…` where files differ from it; "" without a
    checkout.  told: one line for the user."""

    folder: Path
    commit: str
    told: str

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that shall import this code, whatever folder it starts in."""
        return {"PYTHONPATH": str(self.folder), "PYTHONSAFEPATH": "1"}

    def arguments(self, arguments: Sequence[str]) -> list[str]:
        """After `python`: a script of ours is that of this code."""
        script = self.folder / arguments[0]
        return [str(script) if script.is_file() else arguments[0], *arguments[1:]]


def pin(out: Path) -> Code:
    """Copy the checkout's files that git does not ignore to OUT/code/COMMIT, unless they are there."""
    if not (ROOT / ".git").exists():
        return Code(ROOT, "", f"no checkout of git: jobs run what is installed in {ROOT}")
    commit = _git("rev-parse", "HEAD").strip()
    changes = _git("status", "--porcelain", "--", *ROOMS)
    if changes:
        state = changes + _git("diff", "HEAD", "--", *ROOMS) + _untracked()
        commit += f"-changed-{hashlib.sha256(state.encode()).hexdigest()[:10]}"
    folder = out.absolute() / "code" / commit
    if not folder.is_dir():
        _copy(folder, commit)
    changed = f", with {len(changes.splitlines())} changed files" if changes else ""
    return Code(folder, commit, f"code: commit {commit[:10]}{changed}, copied to {folder}")


def _copy(folder: Path, commit: str) -> None:
    """Under another name first.  Runs read their commit from the copy (`hardware.commit`)."""
    temporary = folder.with_name(f"{folder.name}.{id(folder):x}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    listing = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *ROOMS)
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():  # a deleted one is still listed
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    (temporary / "COMMIT").write_text(commit + "\n")
    try:
        temporary.rename(folder)
    except OSError:  # another command was faster
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.is_dir():
            raise


def _untracked() -> str:
    """The contents of new files, as far as they can tell two states apart."""
    names = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *ROOMS).split("\0")
    files = [ROOT / name for name in names if name]
    return "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ValueError(f"git {arguments[0]} in {ROOT}: {' '.join(said.split())}") from None
    return done.stdout
