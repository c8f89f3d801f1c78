"""Checkpoints: whole or absent, checked when read, written while training goes on.

    RUN/checkpoints/step-000200/weights.safetensors     open_clip's names and layout
                                optimizer.safetensors   first and second moments by parameter name
                                recipe.json
                                state.json              step, samples, bytes and CRC-32 of each file
    RUN/latest                                          the newest one's name
    RUN/recipe.json, RUN/versions.json                  what the run is; written once

Every rank holds the same parameters and moments, so rank 0 writes alone and any number of ranks can
read.  The loader's state is the number of samples and all randomness is a function of the seed, so
there is nothing else to save.  torch.distributed.checkpoint is not used: its metadata is a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.base import files
from pipeline.base.files import sync, sync_folder
from train.weights import origin

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
STATE, RECIPE = "state.json", "recipe.json"
_CHUNK = 1 << 24


@dataclass(kw_only=True)
class State:
    """What a run continues from, besides the tensors."""

    step: int = 0
    steps: int = 0
    """Of the whole run: who watches it knows when it has ended."""
    samples: int = 0
    """Handed out by the loader so far."""
    in_file: int = 0
    """Of the training file."""
    keep: bool = False
    """Never remove this checkpoint."""
    micro: int = 0
    """Samples that a rank forwarded at once."""
    frozen: int | None = None
    """CRC-32 of the parameters that must never change, if there are any."""
    files: dict[str, dict[str, int]] = field(default_factory=dict)


# -- writing --------------------------------------------------------------------------------


def prepare(run: Path, recipe: dict, versions: Callable[[], dict]) -> None:
    """Make the run's folder, once, and remove what is left of checkpoints that were being written."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    for part in (run / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(part)
    if not (run / RECIPE).is_file():
        files.write(run / RECIPE, json.dumps(recipe, indent=1))
        files.write(run / "versions.json", json.dumps(versions(), indent=1))


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            value = zlib.crc32(block, value)
    return value


def write(folder: Path, state: State, recipe: dict, groups: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Write a checkpoint under another name, then rename it and point `latest` to it; returns its bytes.

    groups: tensors by name, by file name.  Raises OSError when the disk is full.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / RECIPE).write_text(json.dumps(recipe, indent=1))
    try:
        for name, tensors in groups.items():
            save_file(dict(tensors), part / name, origin.metadata(recipe) if name == WEIGHTS else None)
    except SafetensorError as error:
        raise OSError(f"{folder}: could not be written: {error}") from None
    for file in sorted(part.iterdir()):
        sync(file)
        state.files[file.name] = {"bytes": file.stat().st_size, "crc32": _crc32(file)}
    files.write(part / STATE, json.dumps(vars(state), indent=1))
    if folder.exists():  # a damaged one of the same step
        _remove(folder)
    os.replace(part, folder)
    sync_folder(folder.parent)
    files.write(folder.parents[1] / "latest", f"{folder.name}\n")
    return sum(file["bytes"] for file in state.files.values())


def _remove(folder: Path) -> None:
    """Take a checkpoint away whole: killed half-way, it leaves a name that the next start removes."""
    part = folder.with_name(f".{folder.name}.old.part")
    shutil.rmtree(part, ignore_errors=True)
    os.replace(folder, part)
    shutil.rmtree(part)


class Saver:
    """Writes a run's checkpoints in the background and removes old ones; for rank 0 only."""

    def __init__(self, run: Path, recipe: dict, keep: int, say: Callable[[str], None]):
        self.folder, self.recipe, self.keep, self.say = run / "checkpoints", recipe, keep, say
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, state: State, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Copy the tensors and return; they are written in the background.

        Waits for the checkpoint before; raises OSError if that one could not be written.
        """
        start = time.perf_counter()
        self.wait()
        groups = {
            name: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in group.items()}
            for name, group in ((WEIGHTS, weights), (OPTIMIZER, moments))
        }
        waited = time.perf_counter() - start
        self._writing = self._pool.submit(self._write, state, groups, waited)

    def _write(self, state: State, groups: dict, waited: float) -> None:
        start = time.perf_counter()
        folder = self.folder / folder_name(state.step)
        size = write(folder, state, self.recipe, groups)
        passing = [old for old in folders(self.folder.parent) if not _stays(old)]
        for old in passing[self.keep :]:
            _remove(old)
        self.say(
            f"checkpoint {folder.name}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.2f} s, "
            f"training waited {waited:.2f} s"
        )

    def wait(self) -> None:
        """Until nothing is being written; raises what went wrong there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def frozen_digest(clip: nn.Module) -> int | None:
    """CRC-32 of all parameters that are not trained; None if every one is."""
    frozen = [(n, p) for n, p in clip.named_parameters() if not p.requires_grad]
    value = 0
    for name, parameter in frozen:
        array = parameter.detach().cpu().contiguous().view(-1).numpy()
        value = zlib.crc32(array.view("u1").data, zlib.crc32(name.encode(), value))
    return value if frozen else None


# -- reading --------------------------------------------------------------------------------


def folders(run: Path) -> list[Path]:
    """The run's checkpoints, newest first, sound or not; whatever else lies there is passed over."""
    named = ((_step(path.name), path) for path in (run / "checkpoints").glob("step-*") if path.is_dir())
    return [path for step, path in sorted(named, reverse=True) if step >= 0]


def _step(name: str) -> int:
    """Of a checkpoint's name as `Saver` writes it; -1 for other names (copies, what rsync leaves)."""
    digits = name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and name == folder_name(int(digits)) else -1


def folder_name(step: int) -> str:
    """A checkpoint's; from a million steps on it grows."""
    return f"step-{step:06d}"


def read_state(folder: Path) -> State:
    """What state.json says; ValueError where it is damaged.  The tensors are not looked at: see `check`."""
    try:
        return State(**json.loads((folder / STATE).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: damaged: {STATE}: {error}") from None


def _stays(folder: Path) -> bool:
    try:
        return read_state(folder).keep
    except ValueError:
        return False


def check(folder: Path) -> State:
    """The state of a sound checkpoint; ValueError names what is damaged."""
    state = read_state(folder)
    for name, expected in state.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != expected["bytes"]:
            raise ValueError(f"{folder}: damaged: {name} is missing or not {expected['bytes']} bytes long")
        if _crc32(file) != expected["crc32"]:
            raise ValueError(f"{folder}: damaged: {name} has other contents than were written")
    if not {WEIGHTS, OPTIMIZER, RECIPE} <= state.files.keys():
        raise ValueError(f"{folder}: damaged: {STATE} does not name all files")
    return state


def latest(run: Path | str, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest sound checkpoint of a run, or None; damaged ones are passed over, with a line to `say`."""
    for folder in folders(Path(run)):
        try:
            check(folder)
            return folder
        except ValueError as error:
            if say is not None:
                say(f"{error}; using the one before")
    return None


def find(path: Path | str, say: Callable[[str], None] | None = None) -> Path:
    """The checkpoint that `path` means: itself, or a run's newest sound one; ValueError if there is none.

    say: gets a line for each damaged one that is passed over.
    """
    path = Path(path)
    if (path / STATE).is_file():
        check(path)
        return path
    damaged: list[str] = []
    folder = latest(path, damaged.append)
    if say is not None:
        for line in damaged:
            say(line)
    if folder is not None:
        return folder
    if damaged:
        raise ValueError(
            f"{path}: none of its checkpoints is whole; the newest: {damaged[0].partition(';')[0]}"
        )
    runs = ", ".join(sorted(str(p.parent) for p in path.glob("*/checkpoints")))
    raise ValueError(
        f"{path}: holds no checkpoint (expected a run's folder, or one of its checkpoints/step-*)"
        + (f"; runs in it: {runs}" if runs else "")
    )


def weights(path: Path | str) -> dict[str, Tensor]:
    """Parameters and buffers by open_clip's names, from a .safetensors file, a checkpoint or a run."""
    return _load(weights_file(path))


def weights_file(path: Path | str) -> Path:
    """The .safetensors file that `path` means: itself, or that of a checkpoint or of a run's newest."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else find(path) / WEIGHTS


def moments(folder: Path) -> dict[str, Tensor]:
    """The optimizer's tensors of a checkpoint."""
    return _load(folder / OPTIMIZER)


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from None
