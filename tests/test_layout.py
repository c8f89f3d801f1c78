"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"pipeline", "kernels", "dataprep", "train", "eval"}

# folder → what of ours it may import; the longest that fits counts
OURS = {
    "kernels": {"kernels"},
    "kernels/bench": {"kernels", "pipeline"},
    "pipeline/base": {"pipeline.base"},
    "pipeline/beton": {"pipeline.base", "pipeline.beton"},
    "pipeline/formats": {"pipeline.base", "pipeline.formats"},
    "pipeline": {"pipeline"},
    "dataprep": {"dataprep", "pipeline"},
    "train": {"train", "pipeline", "kernels"},
    "eval": {"eval", "pipeline"},
    "eval/models.py": {"eval", "pipeline", "train.model", "train.checkpoint"},
    "eval/study": {"eval", "pipeline", "train"},  # it runs both
}
# engine → the only rooms that know it
ENGINES = {
    "ffcv": {"pipeline", "dataprep"},
    "nvidia": {"pipeline", "dataprep"},
    "triton": {"kernels"},
    "submitit": {"pipeline", "train", "dataprep", "eval"},
}
MOST_LINES, MOST_FILES = 400, 16


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
    name = path.relative_to(ROOT).as_posix()
    room, place = name.split("/")[0], max((p for p in OURS if f"{name}/".startswith(f"{p}/")), key=len)
    allowed = OURS[place]
    for module in imports(path):
        top = module.split(".")[0]
        if top in ROOMS:
            assert any(module == a or module.startswith(a + ".") for a in allowed), (
                f"{name} imports {module}; {place} may import {sorted(allowed)}"
            )
        if top in ENGINES:
            assert room in ENGINES[top], f"{name} imports {module}, which {room} must run without"


def test_no_two_modules_import_each_other():
    """Nor in a longer circle, nor for the sake of types alone; graphlib names the circle."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in source_files()}
    named = {name.removesuffix(".__init__"): imports(path) for name, path in files.items()}
    graph = {name: {m for i in said for m in _module_of(i, named)} for name, said in named.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(files) > 100


def _module_of(imported: str, modules) -> list[str]:
    """The file that an imported name comes from; a package's door is passed on the way to a module of it."""
    return sorted((m for m in modules if f"{imported}.".startswith(f"{m}.")), key=len)[-1:]


def test_no_file_and_no_folder_is_too_large_to_find_ones_way():
    files = [p for p in (*source_files(), *(ROOT / "tests").rglob("*.py"))]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > MOST_LINES}
    full = {str(d.relative_to(ROOT)): n for d in {p.parent for p in files} if (n := _entries(d)) > MOST_FILES}
    assert not long and not full


def _entries(folder: Path) -> int:
    return sum(1 for p in folder.iterdir() if p.is_file() and p.name not in ("__init__.py", "py.typed"))


def test_no_module_shadows_another_for_scripts_run_by_path():
    """`python dataprep/build_ffcv.py` puts dataprep/ first on sys.path."""
    hazards = {"profile", "tokenize", "ffcv", "datasets", "types", "random", "copy", "statistics", "numbers"}
    for room in ("dataprep", "pipeline"):
        stems = {p.stem for p in (ROOT / room).glob("*.py")}
        assert not stems & hazards


def test_kernels_package_is_empty():
    """transformers probes for Hugging Face's package of the same name."""
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""
