"""Whether this machine has GPUs that a process may use, and whether a recipe needs one.

The driver is asked, because device files say little (WSL2 has none, and some containers have them without a
GPU) and importing torch takes seconds.
"""

from __future__ import annotations

import ctypes
import glob
import os

from train.config import Recipe
from train.recipes import SMALL

MARKS = ("/dev/nvidia[0-9c]*", "/dev/dxg", "/proc/driver/nvidia")  # of a machine that has a driver


def here() -> int:
    """GPUs that a process started here would see; CUDA_VISIBLE_DEVICES counts, and of MIG instances one."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else count.value


def needed(recipe: Recipe) -> bool:
    """Whether the recipe would take years without a GPU."""
    return recipe.name not in SMALL


def on_cpu(recipe: Recipe) -> str:
    """The line a run on the CPU begins with; ValueError if this recipe must not run so unasked.

    CUDA_VISIBLE_DEVICES= (empty) or -1 asks for the CPU.
    """
    count = here()
    if count:
        raise ValueError(
            f"the driver shows {count} GPU(s), but this torch cannot use them (python -c 'import torch; "
            "torch.zeros(1).cuda()' tells why); to train on the CPU all the same, set CUDA_VISIBLE_DEVICES="
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = visible is not None and visible.strip() in ("", "-1")
    reason = _reason(visible)
    if needed(recipe) and not wanted:
        raise ValueError(
            f"--recipe {recipe.name}: {reason}; to train on the CPU all the same, set CUDA_VISIBLE_DEVICES="
        )
    return f"note: {reason}: training on the CPU"


def _reason(visible: str | None) -> str:
    if visible is not None:
        return f"no GPU found (CUDA_VISIBLE_DEVICES={visible})"
    mark = next((path for pattern in MARKS for path in sorted(glob.glob(pattern))), None)
    if mark is not None:
        return f"no GPU found, though {mark} is there (nvidia-smi may tell why)"
    return "no GPU found"
