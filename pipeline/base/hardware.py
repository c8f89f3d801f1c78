"""What GPUs can do by their data sheets, and which packages are installed here, in which versions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """A card by NVIDIA's data sheet."""

    flops: float
    """Dense bfloat16 operations a second."""
    memory: float
    """Bytes that torch finds (`total_memory`), which is neither the GB nor the GiB that it is sold by."""
    parts: tuple[str, ...]
    """All of these are in the name that its driver reports."""
    jpeg_engine: bool = True
    """Whether it decodes JPEGs beside its computing units (NVJPG); nvJPEG's manual lists the cards."""


# Keys are the names that this project's commands take; the first card whose parts fit a device is it.
GPUS = {
    "a100-40": Gpu(312e12, 42.3e9, ("A100", "40GB")),
    "a100": Gpu(312e12, 85.0e9, ("A100",)),
    "h100-pcie": Gpu(756e12, 84.9e9, ("H100", "PCIe")),
    "h100": Gpu(989e12, 84.9e9, ("H100",)),
    "gh200": Gpu(989e12, 101.5e9, ("GH200",)),
    "h200": Gpu(989e12, 150.1e9, ("H200",)),
    "b200": Gpu(2250e12, 191.5e9, ("NVIDIA B200",)),
    "a40": Gpu(149.7e12, 47.6e9, ("NVIDIA A40",), jpeg_engine=False),
}


def gpu(name: str) -> Gpu | None:
    """The data sheet of a device by its driver's name (torch.cuda.get_device_name); None if unknown."""
    return next((card for card in GPUS.values() if all(part in name for part in card.parts)), None)


def installed(module: str) -> bool:
    """Whether a module of this dotted name could be imported; it is not."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, of each package ("absent" where it is not installed), and the git commit of this code."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "git": commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def commit() -> str:
    """This checkout's commit, with -dirty where files have changed since; "unknown" without git.

    A copy of a checkout has a file COMMIT that tells.
    """
    copied = Path(__file__).parents[2] / "COMMIT"
    if copied.is_file():
        return copied.read_text().strip()
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
