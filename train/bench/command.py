"""What training takes, beside open_clip: `python -m train.bench --stage 2 --recipe paper`.

The step is the trainer's own, with the settings that a run would take, on random images and captions.  Each
side has a process of its own; they take turns, so that a machine that is busy for a while is busy for all.
All flags of a recipe work; --batch is what one rank takes, --steps the steps in a row of a turn.  On a GPU
the recipe's share of a rank is measured, without one 16 samples in fp32 on 2 threads.

The last line is one object of JSON.  A peer that fails is a row that says why.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from pipeline.base import console, files, hardware, machine
from pipeline.base.console import Failed
from pipeline.base.measure import Spent, paired_rounds
from train import architectures, command, recipes
from train.config import Recipe

R = TypeVar("R", bound=Recipe)
PeerName = Literal["none", "open_clip", "open_clip_compiled", "open_clip_main", "open_clip_main_compiled"]
OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """The command line of a benchmark."""

    recipe: R
    tokens: float = 16.0
    """Mean tokens of a caption."""
    rounds: int = 5
    """How often every side has its turn."""
    peers: tuple[PeerName, ...] = ()
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


def sides(options: Command, device: str) -> dict[str, Callable[[], Any]]:
    """What starts each side's process, by name."""
    from train.bench import peers
    from train.bench.trainer import Trainer
    from train.bench.worker import Worker

    recipe, tokens, main = options.recipe, options.tokens, options.open_clip_main
    names = [name for name in options.peers or peers.USUAL[device] if name != "none"]
    starts: dict[str, Callable[[], Any]] = {OURS: lambda: Worker(Trainer, recipe, tokens)}
    for name in names:
        starts[name] = lambda name=name: Worker(peers.make, name, recipe, tokens, main)
    return starts


class Race:
    """Workers and their rows; one that fails keeps its row and has no more turns."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.rows = stack, dict[str, dict[str, Any]]()
        self.workers: dict[str, Any] = {}
        self.spent: dict[str, list[Spent]] = {}

    def attempt(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Add what `work` returns to the side's row, or why it failed."""
        try:
            self.rows.setdefault(name, {}).update(work())
        except (Failed, OSError) as error:
            self.rows[name]["failed"] = str(error)
            self.workers.pop(name, None)
            print(f"{name}: failed: {error}", file=sys.stderr)

    def start(self, name: str, start: Callable[[], Any], counted: bool) -> None:
        """Start a side and take its first step."""

        def work() -> dict[str, Any]:
            self.workers[name] = self.stack.enter_context(start())
            row = self.workers[name]("first")
            if counted:
                row["gflop"] = self.workers[name]("flops") / row["batch"] / 1e9
            print(f"{name}: first step after {row['first_s']:.1f} s", file=sys.stderr)
            return row

        self.attempt(name, work)

    def turns(self, rounds: int) -> None:
        """Every side has its turn in every round."""

        def turn(name: str) -> dict[str, Any]:
            if name in self.workers:
                self.spent.setdefault(name, []).append(self.workers[name]("turn"))
            return {}

        turns = {name: lambda name=name: self.attempt(name, lambda: turn(name)) for name in self.workers}
        paired_rounds(turns, rounds, lambda line: print(line, file=sys.stderr))
        for name, times in self.spent.items():
            seconds = statistics.median(spent.wall for spent in times)
            rate = {"ms": 1e3 * seconds, "samples_s": self.rows[name]["batch"] / seconds}
            self.rows[name].update(rate, cpu_ms=1e3 * statistics.median(spent.cpu for spent in times))

    def compare(self, name: str) -> dict[str, Any]:
        """How many times as fast as this peer we are, sample for sample and round by round."""
        ours, peer = self.spent[OURS], self.spent[name]
        samples = self.rows[OURS]["batch"] / self.rows[name]["batch"]
        row: dict[str, Any] = {}
        for clock, suffix in (("wall", ""), ("cpu", "_cpu_time")):
            ratios = [samples * getattr(b, clock) / getattr(a, clock) for a, b in zip(ours, peer)]
            row |= {f"times_faster{suffix}": statistics.median(ratios)}
            row |= {f"times_faster{suffix}_range": [min(ratios), max(ratios)]}
        if {"gflop"} <= self.rows[OURS].keys() & self.rows[name].keys():
            row["flops_allow"] = self.rows[name]["gflop"] / self.rows[OURS]["gflop"]
        return row


def measure(options: Command, cuda: bool) -> dict[str, Any]:
    """All sides; the first is ours."""
    recipe = options.recipe
    with ExitStack() as stack:
        race = Race(stack)
        for name, start in sides(options, "cuda" if cuda else "cpu").items():
            # The counter does not see into compiled code, and a GPU's step may fill its memory.
            race.start(name, start, counted=not cuda and "compiled" not in name)
        race.turns(options.rounds)
        if OURS in race.workers:
            race.attempt(OURS, lambda: race.workers[OURS]("figures"))
    for name in race.rows.keys() - {OURS}:
        if len(race.spent.get(name, [])) == len(race.spent.get(OURS, [])) == options.rounds:
            race.rows[name].update(race.compare(name))
    ours = race.rows.pop(OURS)
    return {
        "stage": recipe.stage,
        "recipe": recipe.name,
        "model": recipe.model,
        "tokens": options.tokens,
        "rounds": options.rounds,
        **hardware.versions(("torch", "triton", "open_clip_torch")),
        "compute": asdict(recipe.compute),
        **verdicts(race.rows),
        "ours": ours,
        "peers": race.rows,
    }


GOALS = {"step_vs_open_clip": 1.5, "step_vs_open_clip_main": 1.2}  # on a CPU


def verdicts(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`step_vs_NAME`; of open_clip's main branch, against its best form."""
    found: dict[str, float] = {}
    for name, row in rows.items():
        if "times_faster" in row:
            key = f"step_vs_{'open_clip_main' if 'main' in name else name}"
            found[key] = min(row["times_faster"], found.get(key, row["times_faster"]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    machine.settle()
    return console.command(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(args: Sequence[str]) -> int:
    import torch

    cuda = torch.cuda.is_available()
    options = read(args, cuda)
    result = measure(options, cuda)
    line = json.dumps(result)
    print(line)
    if options.out:
        files.write(options.out, json.dumps(result, indent=1))
    return int("failed" in result["ours"])
