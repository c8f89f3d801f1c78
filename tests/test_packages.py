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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [*map(Requirement, said)] for name, said in PROJECT["optional-dependencies"].items()}
BASE = [*map(Requirement, PROJECT["dependencies"])]
NAMED = [r for r in sum(EXTRAS.values(), BASE) if r.name != PROJECT["name"]]
# room → its extra, and those that its bench/ and imports inside functions may need: engines, peers, raw files
ROOMS = {
    "kernels": ("kernels", "bench"),
    "pipeline": ("loader", "dali", "bench", "bench-peers", "bench-agpl"),
    "dataprep": ("dataprep", "bench"),
    "train": ("train",),
    "eval": ("eval", "pcam"),
}
# Reached by names that are no promise: a next version may lack them, or mean something else by them.
PRIVATE = ("torch", "submitit", "torchvision", "ftfy", "numba", "llvmlite", "open-clip-torch", "xxhash")
# Extras that `make setup` leaves out: DALI for another CUDA, one or the other; benchmarks' own installs.
APART = ("dali13", "bench-peers", "bench-agpl")
# An oracle's own environment has it, or a test is skipped; modules whose names are not their packages'.
PEERS = {"clip_benchmark", "albumentations", "spdl"}


def closure(*extras: str) -> set[str]:
    """What an installation with `extras` asks for by name, those that they hold included."""
    names = {canonicalize_name(r.name) for r in BASE}
    for requirement in (r for extra in extras for r in EXTRAS[extra]):
        own = requirement.name == PROJECT["name"]
        names |= closure(*requirement.extras) if own else {canonicalize_name(requirement.name)}
    return names


def pins() -> dict[str, Version]:
    rows = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = [re.fullmatch(r"([\w.-]+)==([\w.+]+)", row) for row in rows if row]
    assert all(found), "a line of constraints.txt is not NAME==VERSION"
    names = [canonicalize_name(m[1]) for m in found]
    assert len(set(names)) == len(names)
    return {name: Version(m[2]) for name, m in zip(names, found)}


def imported(folder: str) -> dict[str, tuple[str, bool]]:
    """{top-level module: (a file of ours that imports it, whether only inside functions or bench/)}."""
    found: dict[str, tuple[str, bool]] = {}

    def visit(node: ast.AST, file: str, inside: bool):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in (n.split(".")[0] for n in names):
            if not inside or name not in found:
                found[name] = file, inside
        inside |= isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, file, inside)

    for path in (ROOT / folder).rglob("*.py"):
        visit(ast.parse(path.read_text()), str(path.relative_to(ROOT)), path.parent.name == "bench")
    return {n: said for n, said in found.items() if n not in {*STANDARD, *PEERS, folder}}


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_imports_its_extra_installs(room):
    """Not by chance there, as some other package's dependency; for a room it imports, all that room's."""
    extra, provided = closure(ROOMS[room][0]), packages_distributions()
    with_optional = closure(*ROOMS[room])
    for module, (file, inside) in imported(room).items():
        allowed = with_optional if inside else extra
        if module in ROOMS:
            assert closure(ROOMS[module][0]) <= allowed, (
                f"{file} imports {module}, whose extra {room}'s leaves out"
            )
            continue
        names = {canonicalize_name(n) for n in provided.get(module, [module])}
        assert names & allowed, f"{file} imports {module}, which no extra of {room} names"


def test_kernels_need_torch_triton_and_numpy_only():
    assert closure("kernels") == {"torch", "triton", "numpy"}


@pytest.mark.slow
def test_what_the_tests_import_make_setup_installs():
    provided, installed = packages_distributions(), closure("all", "test")
    ours = {*ROOMS, *(p.stem for p in (ROOT / "tests").rglob("*")), "tests"}
    ours |= {"functorch", "cuda"}  # which torch has, and which its builds for CUDA need
    for module, (file, _) in imported("tests").items():
        names = {canonicalize_name(n) for n in provided.get(module, [module])}
        assert module in ours or names & installed, f"{file} imports {module}, which no extra names"


def test_all_is_every_extra_but_the_tools():
    assert closure("all") == closure(*(EXTRAS.keys() - {"all", "test", *APART}))
    assert "albumentationsx" not in closure(*(EXTRAS.keys() - {"bench-agpl"}))  # the AGPL's


def test_a_package_named_twice_has_one_bound():
    said: dict[str, str] = {}
    for requirement in NAMED:
        assert said.setdefault(requirement.name, str(requirement)) == str(requirement)


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_reached_by_private_names_is_capped(name):
    (operators,) = {
        frozenset(s.operator for s in r.specifier) for r in NAMED if canonicalize_name(r.name) == name
    }
    assert operators & {"<", "<=", "==", "~="}, f"{name} has no upper bound"


def test_the_tested_set_fits_the_bounds_and_names_every_package():
    tested = pins()
    for requirement in NAMED:
        pin = tested.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not name {requirement.name}"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} leaves out {pin}"


@pytest.mark.skipif(
    not list(Path(sys.prefix).glob(".installed-tested-*")), reason="this environment is not the tested set's"
)
def test_this_environment_is_the_tested_set():
    """Of what the project itself asks for: `make setup` with other versions would test something else."""
    tested = pins()
    installed = {name: Version(version(name)) for name in closure("all")}
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


def script(file: Path, text: str):
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with FFCV's libraries around it, whose environment's Python writes down what it is told."""
    folder = tmp_path / "a check out"
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / ".ci").mkdir()
    for name in (".ci/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    script(
        folder / "venv" / "bin" / "python", 'echo "$@" >> said; echo "by ${PIP_CONSTRAINT:-nothing}" >> said'
    )
    (tmp_path / "bin").mkdir()
    for name in ("g++", "pkg-config"):
        script(tmp_path / "bin" / name, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return folder


def test_setup_installs_the_tested_set_once(checkout):
    said = setup(checkout, PIP_CONSTRAINT="/of/a/container")
    assert said == ["-m pip install -q -e .[all,test]", "by constraints.txt"]
    assert setup(checkout) == []


@pytest.mark.slow
def test_setup_follows_its_inputs(checkout):
    """A change of either file, and of the set asked for, installs again; the stamp left is the last one's."""
    setup(checkout)
    for name in ("constraints.txt", "pyproject.toml"):
        with open(checkout / name, "a") as file:
            file.write("\n# another\n")
        assert setup(checkout), f"a change of {name} is not seen"
        assert setup(checkout) == []
    assert setup(checkout, LATEST="1") == [
        "-m pip install -q --upgrade --upgrade-strategy eager -e .[all,test]",
        "by nothing",
    ]
    assert setup(checkout, LATEST="1") == []
    assert setup(checkout) and len(list((checkout / "venv").glob(".installed-*"))) == 1


@pytest.fixture
def bare(checkout, monkeypatch):
    """The same without one library, and with an apt-get that writes down what it is told."""
    programs = checkout.parent / "bin"
    for name in (
        "bash",
        "cat",
        "cut",
        "date",
        "dirname",
        "env",
        "grep",
        "rm",
        "sh",
        "sha256sum",
        "touch",
        "tr",
    ):
        (programs / name).symlink_to(shutil.which(name))
    script(programs / "apt-get", 'echo "$@" >> apt; case $1 in install) touch here;; esac')
    script(programs / "pkg-config", '[ "$2" = opencv4 ] || [ -e here ]')
    script(programs / "sudo", '[ "$1" != -n ] || exit "${SUDO_N:-0}"; exec "$@"')
    script(programs / "id", 'echo "${UID_HERE:-1000}"')
    monkeypatch.setenv("PATH", str(programs))
    return checkout


def at_a_terminal(folder: Path, types: str) -> tuple[int, str]:
    """(exit code, output) of `.ci/setup` in `folder` for somebody who types that."""
    ours, theirs = os.openpty()
    os.write(ours, types.encode())
    done = subprocess.run(
        ["bash", ".ci/setup", sys.executable, "venv"],
        cwd=folder,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    return done.returncode, done.stdout


INSTALL = "apt-get install -y --no-install-recommends ca-certificates libturbojpeg0-dev"


@pytest.mark.parametrize("typed", ["n\n", "No\n", "\x04"], ids=["n", "No", "end of file"])
def test_setup_asks_before_it_uses_sudo(bare, typed):
    code, output = at_a_terminal(bare, typed)
    assert code == 2 and f"about to run: sudo {INSTALL}" in output and "nothing was installed" in output
    assert not (bare / "apt").exists() and not (bare / "said").exists()


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["\n", "y\n"])
def test_setup_goes_on_when_told_to(bare, typed, monkeypatch):
    monkeypatch.setenv("SUDO_N", "1")  # a password will be asked for, by sudo
    code, output = at_a_terminal(bare, typed)
    assert code == 0 and INSTALL in output
    assert (bare / "apt").read_text().splitlines()[-1] == INSTALL.removeprefix("apt-get ") + " -qq"
    assert (bare / "said").exists()


@pytest.mark.slow
def test_setup_asks_nobody_without_a_terminal(bare):
    assert setup(bare) and (bare / "apt").exists()


@pytest.mark.slow
def test_setup_does_not_ask_root(bare, monkeypatch):
    monkeypatch.setenv("UID_HERE", "0")
    code, output = at_a_terminal(bare, "")
    assert code == 0 and f"about to run: {INSTALL}" in output and (bare / "apt").exists()


def test_setup_without_rights_says_what_to_run(bare, monkeypatch):
    monkeypatch.setenv("SUDO_N", "1")
    done = subprocess.run(
        ["bash", ".ci/setup", sys.executable, "venv"],
        cwd=bare,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"error: system packages are missing; run: sudo {INSTALL} \n",
    )


@pytest.fixture
def sources(tmp_path):
    """A checkout to install from: what its build reads, a module in each room."""
    folder = tmp_path / "sources"
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", ".ci/editable_backend.py"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, folder / name)
    for room in ROOMS:
        (folder / room).mkdir()
        (folder / room / "__init__.py").touch()
    return folder


def pip_install(*arguments: str) -> subprocess.CompletedProcess:
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_a_copy_is_not_installed(sources, tmp_path):
    """`kernels` and `eval` are names that other packages have in site-packages."""
    done = pip_install("--target", str(tmp_path / "site"), str(sources))
    assert done.returncode and "error: this project runs from its checkout" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "site").exists()


@pytest.mark.slow
def test_an_editable_installation_names_the_rooms_only(sources, tmp_path):
    done = pip_install("--target", str(tmp_path / "site"), "--editable", str(sources))
    assert done.returncode == 0, done.stderr
    site = [p for p in (tmp_path / "site").iterdir() if p.name not in ("__pycache__", "bin")]
    assert site and all(p.name.startswith(("__editable__", "perceptual_initialization")) for p in site)
    # -S: nothing of this environment, where the project is installed too
    code = "import site; site.addsitedir('.'); import kernels; print(kernels.__file__)"
    found = subprocess.check_output([sys.executable, "-ISc", code], cwd=tmp_path / "site", text=True)
    assert Path(found.strip()) == sources / "kernels" / "__init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_say_that_they_are_typed(room):
    assert (ROOT / room / "py.typed").exists()
