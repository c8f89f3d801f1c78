"""What README, CONTRIBUTING and docs/ name is there: links, files, and the flags of every command."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = "pipeline|kernels|dataprep|train|eval|tests|docs"
# Flags that `train.launch` reads before it knows which stage's options there are.
LAUNCH = {"--stages", "--stage", "--recipe", "--prior"}


@pytest.fixture(params=PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def page(request) -> Path:
    return request.param


def anchor(heading: str) -> str:
    """GitHub's name of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, section = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name}: {target}"
        if section:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert section in map(anchor, headings), f"{page.name}: {target}"


def test_files_that_are_named_exist(page):
    for name in re.findall(rf"`((?:{ROOMS})/[\w./-]*\w/?)", page.read_text()):
        assert (ROOT / name).exists() or "NAME" in name, f"{page.name}: {name}"


# -- commands -------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """The words of each of this project's commands in the page's bash blocks, from the program's name on."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    words = [shlex.split(line.replace("…", ""), comments=True) for line in lines]
    programs = [w[i + 1 :] for w in words for i in range(len(w)) if w[i] in ("-m",)]
    return programs + [w[1:] for w in words if len(w) > 1 and w[1] == "dataprep/build_ffcv.py"]


@functools.cache
def help_of(*command: str) -> str:
    start = [sys.executable, *(command if command[0].endswith(".py") else ("-m", *command)), "--help"]
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_flags_of_commands_exist():
    """Of all pages at once: a command's help takes seconds."""
    asked: dict[tuple[str, ...], set[str]] = {}
    for file in PAGES:
        for program, *arguments in commands(file):
            flags = {a.partition("=")[0] for a in arguments if re.match(r"--\w", a)}
            shared = {f for f in flags if not re.match(r"--stage[12]\.", f)}
            if program.endswith(".py") or program == "dataprep.bench":
                asked.setdefault((program, *arguments[:1]), set()).update(flags)
            elif program in ("train.launch", "train.job"):
                stage = re.search(r"--stage ([12])", " ".join(arguments))
                name = ("train.launch", "--stage", stage[1] if stage else "2")
                asked.setdefault(name, set()).update(shared - LAUNCH)
                for number in "12":
                    own = {"--" + f.partition(".")[2] for f in flags if f.startswith(f"--stage{number}.")}
                    asked.setdefault(("train.launch", "--stage", number), set()).update(own)
            else:
                asked.setdefault((program,), set()).update(flags - LAUNCH)
    assert len(asked) > 10 and sum(map(len, asked.values())) > 40
    for command, flags in asked.items():
        known = set(re.findall(r"--[a-z][\w.-]*", help_of(*command)))
        assert flags <= known, f"{' '.join(command)} has no {sorted(flags - known)}"
