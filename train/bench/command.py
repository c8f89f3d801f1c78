"""What training takes, beside open_clip: `python -m train.bench --stage 2 --recipe paper`.

The step is the trainer's own, with the settings that a run would take, on random images and captions.  Each
side has a process of its own; they take turns, so that a machine that is busy for a while is busy for all.
All flags of a recipe work; --batch is what one rank takes, --steps the steps in a row of a turn.  On a GPU
the recipe's share of a rank is measured, without one 16 samples in fp32 on 2 threads.

The last line is one object of JSON.  A peer that fails is a row that says why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from pipeline.base import console, files, hardware, machine
from train import architectures, command, recipes
from train.bench.forms import USUAL, Name
from train.bench.race import OURS, Race
from train.bench.worker import Worker
from train.config import Recipe, Stage1

R = TypeVar("R", bound=Recipe)
Choice = Literal["none", Name]
USUAL_TRIPLETS = ("human", "triplet")
GOALS = {"step_vs_open_clip": 1.5, "step_vs_open_clip_main": 1.2}  # of a ViT-B/32 on a CPU


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """The trainer's step beside open_clip's, side by side in turns.

    --batch is what one rank takes: by default its share in the recipe, without a GPU 16 samples, in fp32 on 2
    threads.  --steps are the steps in a row of a turn.
    """

    recipe: R
    tokens: float = 16.0
    """Mean tokens of a caption."""
    rounds: int = 5
    """How often every side has its turn."""
    peers: tuple[Choice, ...] = ()
    """Whom to compare with: open_clip as it is installed, eager or its model compiled; its main branch, eager
    or its whole step compiled. Without it: the best of each here."""
    open_clip_main: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The folder of open_clip's main branch that holds its package (src)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the JSON there, too."""

    def check(self, cuda: bool) -> None:
        """ValueError for what cannot be measured (apart from construction: tyro would frame the line)."""
        architectures.check_model_name(self.recipe.model)
        self.recipe.rank_batch(1)
        if isinstance(self.recipe, Stage1) and (self.recipe.votes, self.recipe.objective) != USUAL_TRIPLETS:
            raise ValueError("--votes, --objective: only the step on a file's own triplets is measured")
        if self.rounds < 1:
            raise ValueError(f"--rounds {self.rounds}: at least 1")
        if not 3 <= self.tokens <= 77:
            raise ValueError(f"--tokens {self.tokens}: captions have 3 to 77")
        if self.recipe.compute.attention == "triton" and not cuda:
            raise ValueError("--attention triton: needs a GPU, and there is none")
        if self.open_clip_main and not (self.open_clip_main / "open_clip" / "__init__.py").is_file():
            raise ValueError(f"--open-clip-main {self.open_clip_main}: holds no folder open_clip")


def read(args: Sequence[str], cuda: bool) -> Command:
    """The command line over the defaults of this machine; ValueError for a mistake."""
    flags, _ = command.split_off(args, "stage", "recipe")
    recipe = recipes.choose(flags["stage"] or "2", flags["recipe"] or "paper")
    if cuda:
        own = ["--batch", str(recipe.batch // recipes.GPUS.get(recipe.name, 1))]
    else:
        own = ["--batch", "16", "--precision", "fp32", "--threads", "2"]
    options = command.read(Command, [*own, "--warmup-steps", "0", *args], "python -m train.bench")
    options.check(cuda)
    return options


# -- measuring ------------------------------------------------------------------------------


def measure(options: Command, cuda: bool) -> dict[str, Any]:
    """All sides."""
    from train.bench import peers, trainer

    recipe, tokens, main = options.recipe, options.tokens, options.open_clip_main
    starts = {OURS: partial(Worker, trainer.Trainer, recipe, tokens)}
    chosen: Sequence[Choice] = options.peers or USUAL["cuda" if cuda else "cpu"]
    for name in chosen:
        if name != "none":
            starts[name] = partial(Worker, peers.make, name, recipe, tokens, main)
    with ExitStack() as stack:
        race = Race(stack)
        for side, start in starts.items():
            race.start(side, start, counted=not cuda)  # beside a GPU's step there may be no memory for it
        race.run(options.rounds)
        race.figures(trainer.FIGURES)
    rows = race.rows
    rows[OURS] |= shares(rows[OURS])
    return {
        "stage": recipe.stage,
        "recipe": recipe.name,
        "model": recipe.model,
        "precision": recipe.compute.precision,
        "device": device(cuda),
        "threads": recipe.compute.threads,
        "rounds": options.rounds,
        "versions": hardware.versions(("torch", "triton", "open_clip_torch")),
        **verdicts(rows),
        "goals": {} if cuda else GOALS,
        "ours": rows.pop(OURS),
        "peers": rows,
    }


def shares(ours: dict[str, Any]) -> dict[str, float]:
    """How much of our step its matrix products are, and useful arithmetic of a large product's rate."""
    found = {}
    if ours.keys() >= {"ms", "products_ms"}:
        found["products_of_step"] = ours["products_ms"] / ours["ms"]
    if ours.keys() >= {"useful_tflops", "card"}:
        found["useful_of_8192"] = ours["useful_tflops"] / ours["card"]["tflops_8192"]
    return found


def device(cuda: bool) -> str:
    import torch

    return torch.cuda.get_device_name() if cuda else "cpu"


def verdicts(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`step_vs_NAME` of each peer; of open_clip's main branch, against its best form that was measured."""
    found: dict[str, float] = {}
    for name, row in rows.items():
        if "times_faster" in row:
            key = f"step_vs_{name.replace('main_compiled', 'main')}"
            found[key] = min(row["times_faster"], found.get(key, row["times_faster"]))
    return found


# -- reporting ------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """A row a side: its time, how many times as fast we are and the FLOPs allow; and what limits us."""
    heads = ("batch", "ms", "samples/s", "ours ×", "range", "CPU time", "limit", "first s")
    lines = [f"{'step':26}" + "".join(f"{head:>12}" for head in heads)]
    for name, row in {OURS: result["ours"], **result["peers"]}.items():
        lines.append(f"{name:26}{_cells(row)}" + (f"  failed: {row['failed']}" if "failed" in row else ""))
    ours = result["ours"]
    if "together_ms" in ours and "products_ms" in ours:
        lines.append(
            f"ours, {ours['ms']:.1f} ms: {ours['together_ms']:.1f} ms fed from the host; its matrix products "
            f"by themselves {ours['products_ms']:.1f} ms; ms by kind {ours.get('ms_by_kind')}"
        )
    if "peak_gb" in ours:
        gb = (f"{ours[key]:.1f}" for key in ("peak_gb", "reserved_gb", "planned_gb"))
        lines.append("memory, GB: {} of tensors, {} reserved, {} planned".format(*gb))
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    low, high = row.get("times_faster_range", (None, None))
    cells = (
        row.get("batch"),
        _number(row.get("turn_ms"), 1),
        _number(row.get("turn_samples_s"), 1),
        _number(row.get("times_faster"), 2),
        low and f"{low:.2f}–{high:.2f}",
        _number(row.get("times_faster_cpu_time"), 2),
        _number(row.get("flops_allow"), 2),
        _number(row.get("first_s"), 1),
    )
    return "".join(f"{'' if cell is None else cell:>12}" for cell in cells)


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    machine.settle()
    return console.command(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(args: Sequence[str]) -> int:
    import torch

    cuda = torch.cuda.is_available()
    options = read(args, cuda)
    result = measure(options, cuda)
    print(table(result))
    print(json.dumps(result))
    if options.out:
        files.write(options.out, json.dumps(result, indent=1))
    return int("failed" in result["ours"])
