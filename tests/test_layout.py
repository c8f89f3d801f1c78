"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"pipeline", "kernels", "dataprep", "train", "eval"}

# room → what of ours it may import
OURS = {
    "kernels": set(),
    "pipeline": set(),
    "dataprep": {"pipeline"},
    "train": {"pipeline", "kernels"},
    "eval": {"pipeline"},
}
# file → what it may import on top of its room's
EXTRA = {"eval/run.py": {"train.model", "train.checkpoint"}}
# engine → the only rooms that know it
ENGINES = {
    "ffcv": {"pipeline", "dataprep"},
    "nvidia": {"pipeline", "dataprep"},
    "triton": {"kernels"},
    "submitit": {"train", "dataprep", "eval"},
}


def imports(path: Path) -> list[str]:
    """Absolute dotted names of everything a file imports, wherever in the file it stands."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module) if p)
            found += [f"{module}.{a.name}" for a in node.names]
    return found


def source_files() -> list[Path]:
    return [p for room in sorted(ROOMS) for p in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path):
    room, name = path.relative_to(ROOT).parts[0], path.relative_to(ROOT).as_posix()
    allowed = OURS[room] | EXTRA.get(name, set()) | {room}
    for module in imports(path):
        top = module.split(".")[0]
        if top in ROOMS:
            assert any(module == a or module.startswith(a + ".") for a in allowed), (
                f"{name} imports {module}; {room} may import {sorted(allowed)}"
            )
        if top in ENGINES:
            assert room in ENGINES[top], f"{name} imports {module}, which {room} must run without"


def test_no_two_modules_import_each_other():
    """Nor in a longer circle, nor for the sake of types alone; graphlib names the circle."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in source_files()}
    named = {name.removesuffix(".__init__"): imports(path) for name, path in files.items()}
    graph = {
        name: {m for m in named if any(i == m or i.startswith(f"{m}.") for i in said)}
        for name, said in named.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(files) > 100


def test_no_module_shadows_another_for_scripts_run_by_path():
    """`python dataprep/build_ffcv.py` puts dataprep/ first on sys.path."""
    hazards = {"profile", "tokenize", "ffcv", "datasets", "types", "random", "copy", "statistics", "numbers"}
    for room in ("dataprep", "pipeline"):
        stems = {p.stem for p in (ROOT / room).glob("*.py")}
        assert not stems & hazards


def test_kernels_package_is_empty():
    """transformers probes for Hugging Face's package of the same name."""
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""
