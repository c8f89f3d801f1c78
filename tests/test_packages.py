"""The packages this project needs: all declared, the tested set complete and in bounds, set-up by it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

STANDARD = {*sys.stdlib_module_names, "compression"}  # which Python has from 3.14 on
ROOT = Path(__file__).parent.parent
ROOMS = ("dataprep", "pipeline", "kernels", "train", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = [Requirement(r) for extra in PROJECT["optional-dependencies"].values() for r in extra]
# Reached by names that are no promise: a next version may lack them, or mean something else by them.
PRIVATE = ("submitit", "torchvision", "ftfy", "numba", "llvmlite", "open-clip-torch")
PEERS = {"clip_benchmark"}  # an oracle's own environment has it, or a test is skipped


def pins() -> dict[str, Version]:
    rows = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", row) for row in rows if row]
    assert all(found), "a line of constraints.txt is not NAME==VERSION"
    names = [canonicalize_name(m[1]) for m in found]
    assert len(set(names)) == len(names)
    return {name: Version(m[2]) for name, m in zip(names, found)}


def imported() -> dict[str, str]:
    """{top-level module: a file of ours that imports it}, outside of the standard library and the rooms."""
    found = {}
    for file in (f for room in ROOMS for f in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            found |= {name.split(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return {n: f for n, f in found.items() if n not in (*ROOMS, *STANDARD, *PEERS)}


def test_what_is_imported_is_declared():
    """Not by chance there, as some other package's dependency."""
    extras = {canonicalize_name(r.name) for r in EXTRAS}
    provided = packages_distributions()
    for module, file in imported().items():
        names = {canonicalize_name(n) for n in provided.get(module, [module])}
        assert names & (DECLARED.keys() | extras), (
            f"{file} imports {module}, which pyproject.toml does not name"
        )


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_reached_by_private_names_is_capped(name):
    operators = {s.operator for s in DECLARED[name].specifier}
    assert operators & {"<", "<=", "==", "~="}, f"{name} has no upper bound"


def test_the_tested_set_fits_the_bounds_and_names_every_package():
    tested = pins()
    for requirement in (*DECLARED.values(), *EXTRAS):
        pin = tested.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not name {requirement.name}"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} leaves out {pin}"


@pytest.mark.skipif(
    not list(Path(sys.prefix).glob(".installed-tested-*")), reason="this environment is not the tested set's"
)
def test_this_environment_is_the_tested_set():
    """Of what the project itself asks for: `make setup` with other versions would test something else."""
    tested = pins()
    installed = {name: Version(version(name)) for name in DECLARED}
    assert installed == {name: tested[name] for name in installed}


def setup(folder: Path, **environment: str) -> list[str]:
    """What `.ci/setup` in `folder` had pip do: [] if it found everything in place."""
    (folder / "said").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", ".ci/setup", sys.executable, "venv"],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k != "LATEST"}, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "said").read_text().splitlines() if (folder / "said").exists() else []


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose environment's Python writes down what it was called with."""
    libraries = ["pkg-config", "--exists", "opencv4", "libturbojpeg"]
    if not shutil.which("g++") or not shutil.which("pkg-config") or subprocess.run(libraries).returncode:
        pytest.skip("the libraries that .ci/setup would install are not here")
    folder = tmp_path / "a check out"
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / ".ci").mkdir()
    for name in (".ci/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = folder / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >> said\necho "by ${PIP_CONSTRAINT:-nothing}" >> said\n')
    python.chmod(0o755)
    return folder


def test_setup_installs_the_tested_set_once(checkout):
    said = setup(checkout, PIP_CONSTRAINT="/of/a/container")
    assert said == ["-m pip install -q -e .[test]", "by constraints.txt"]
    assert setup(checkout) == []


def test_setup_follows_its_inputs(checkout):
    """A change of either file, and of the set asked for, installs again; the stamp left is the last one's."""
    setup(checkout)
    for name in ("constraints.txt", "pyproject.toml"):
        with open(checkout / name, "a") as file:
            file.write("\n# another\n")
        assert setup(checkout), f"a change of {name} is not seen"
        assert setup(checkout) == []
    assert setup(checkout, LATEST="1") == [
        "-m pip install -q --upgrade --upgrade-strategy eager -e .[test]",
        "by nothing",
    ]
    assert setup(checkout, LATEST="1") == []
    assert setup(checkout) and len(list((checkout / "venv").glob(".installed-*"))) == 1
