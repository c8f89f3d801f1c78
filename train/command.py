"""The command line of a run: read, completed, and checked before a file is written or a job submitted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from pipeline.beton.fields import Beton
from train import architectures, recipes, splits
from train.cluster.options import Launch
from train.config import FREE_TO_CHANGE, Recipe, Stage1, differences, to_dict
from train.device import engine
from train.stages import votes

R = TypeVar("R", bound=Recipe)
PROG = "python -m train.launch"
USAGE = """Start a run: `python -m train.launch --stage 1|2 [--recipe NAME] [options]`.

    --stage 2 --help                 that stage's options, with the recipe's values as defaults
    --recipe paper|strong|pft|demo|debug
    --stages 1,2                     both stages, the second from the first; flags reach both, --stage1.FLAG
                                     and --stage2.FLAG one of them; --prior none leaves stage 1 out
    --cluster auto|slurm|local|debug auto: SLURM where sbatch is, else this machine; debug: this very process
    --dry-run                        print what would be run or submitted

Everything a user can get wrong is checked before a file is written or a job is submitted: one line and
exit code 2.  Ctrl-C saves a checkpoint and ends with 130; the same command continues the run.
A run here uses the GPUs of CUDA_VISIBLE_DEVICES (all without it), and belongs to no SLURM allocation that
surrounds it; without a GPU, only the recipes demo and debug run on the CPU unasked.
"""


@dataclass(frozen=True, kw_only=True)
class Command(Generic[R]):
    """The command line of one stage."""

    recipe: R
    launch: Launch = field(default_factory=Launch)


# -- reading --------------------------------------------------------------------------------


def parse(args: Sequence[str]) -> list[Command]:
    """One command a stage, in order, with data and run folders filled in; ValueError for a mistake."""
    flags, rest = split_off(args, "stages")
    if flags["stages"] is None:
        return [parse_stage(rest)]
    if flags["stages"] != "1,2":
        raise ValueError(f"--stages {flags['stages']}: the only chain is 1,2")
    return parse_chain(rest)


def parse_stage(args: Sequence[str]) -> Command:
    """The command line of a single stage."""
    stage = split_off(args, "stage")[0]["stage"]
    if stage is None:
        if {"-h", "--help"} & set(args):
            print(USAGE)
            raise SystemExit(0)
        raise ValueError("--stage 1 (perceptual) or --stage 2 (contrastive) is missing")
    command = read(Command, args, f"{PROG} --stage {stage}")
    return replace(command, recipe=complete(command.recipe))


def parse_chain(args: Sequence[str]) -> list[Command]:
    """Stage 1, and stage 2 that starts from it; with `--prior none` stage 2 alone, from random towers."""
    chain, args = split_off(args, "prior", "run")
    own = {stage: [a for a in args if a.startswith(f"--stage{stage}.")] for stage in "12"}
    if any("=" not in a for flags in own.values() for a in flags):
        raise ValueError("flags of one stage of a chain are written --stage1.FLAG=VALUE")
    shared = [a for a in args if not a.startswith(("--stage1.", "--stage2."))]
    commands: list[Command] = []
    for stage in "2" if chain["prior"] == "none" else "12":
        flags = [f"--{a.partition('.')[2]}" for a in own[stage]]
        if stage == "1" and chain["prior"]:
            flags.append(f"--prior={chain['prior']}")
        if chain["run"]:
            flags.append(f"--run={Path(chain['run']) / f'stage{stage}'}")
        if commands:
            flags.append(f"--init={commands[0].recipe.folder}")
        commands.append(parse_stage(["--stage", stage, *shared, *flags]))
    first, last = commands[0], commands[-1]
    if first.recipe.model != last.recipe.model:
        raise ValueError(f"--model: stage 1 trains {first.recipe.model} and stage 2 {last.recipe.model}")
    return commands


def split_off(args: Sequence[str], *names: str) -> tuple[dict[str, str | None], list[str]]:
    """(the value of each of these flags, None where it is absent; the arguments without them)."""
    kind = dataclasses.make_dataclass("Flags", [(name, str | None, None) for name in names])
    flags, rest = from_command_line(kind, args, return_unknown_args=True, add_help=False)
    return vars(flags), rest


def read(command: Any, args: Sequence[str], prog: str) -> Any:
    """A `command`, a dataclass that is generic in its `recipe`: the defaults, with the changes of `args`.

    `--stage` (2 without it) and `--recipe` (paper) are read first: they decide which flags and defaults
    there are.  ValueError for a mistake.
    """
    flags, rest = split_off(args, "stage", "recipe")
    recipe = recipes.choose(flags["stage"] or "2", flags["recipe"] or "paper")
    default = command(recipe=recipe)
    return from_command_line(
        command[type(recipe)], rest, default=default, prog=prog, config=(tyro.conf.OmitArgPrefixes,)
    )


def from_command_line(kind: Any, args: Sequence[str], **options: Any) -> Any:
    """`tyro.cli`, but a mistake is a ValueError of one line."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(kind, args=args, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_without_frame(stderr.getvalue())) from None


def _without_frame(box: str) -> str:
    """The first paragraph of tyro's message, which has a frame of a terminal's characters or of ASCII."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│| ").strip()
        if text and not set(text) <= set("─╰╯-+"):
            lines.append(text)
        elif lines:
            break
    text = " ".join(lines) or "the command line could not be read (see --help)"
    return re.sub(r"^Error parsing ((recipe(\.\w+)?|machine|launch): )?", "", text)


def complete(recipe: Recipe) -> Recipe:
    """The recipe with its training file, the votes in another file, and its run folder named."""
    recipe = votes.named(splits.locate_data(recipe))
    if recipe.run is None:
        start = "-init" if recipe.init else ""
        folder = f"{recipe.name}-{recipe.model}-stage{recipe.stage}{start}-seed{recipe.seed}"
        recipe = replace(recipe, run=Path("runs") / folder)
    return recipe


# -- checking -------------------------------------------------------------------------------


def check(recipe: Recipe, world_size: int, before: Recipe | None = None) -> None:
    """ValueError for what would make the run fail; imports torch only to look into `--init`.

    before: the run that `--init` names and that will exist by then.
    """
    recipe.rank_batch(world_size)
    engine.check(recipe)
    splits.check_data(recipe)
    files = [splits.open_split(p, recipe) for p in (recipe.data.data, recipe.data.val) if p]
    recipe.total_steps(len(files[0]))
    if isinstance(recipe, Stage1):
        votes.of(recipe, files[0])
    check_model(recipe, *files)
    _check_folder(recipe)
    trainable = recipe.trainable if isinstance(recipe, Stage1) else "image"
    if trainable != "image" and recipe.init is None:
        raise ValueError(f"--trainable {trainable}: fine-tunes a trained model; name it with --init RUN")
    if trainable != "image" or (recipe.init is not None and before is None):
        from train import model

        model.check(recipe)


def check_model(recipe: Recipe, *files: Beton) -> None:
    """ValueError for an unknown model, or one whose text tower does not read the captions."""
    architectures.check_model_name(recipe.model)
    if recipe.stage == 1:  # no captions
        return
    context = architectures.caption_length(recipe.model)
    for note in filter(None, (architectures.check_lengths(recipe.model, context, file) for file in files)):
        print(note, file=sys.stderr)


def _check_folder(recipe: Recipe) -> None:
    """ValueError if the run's folder holds another run, which could not be continued with these numbers."""
    saved = recipe.folder / "recipe.json"
    if not saved.is_file():
        return
    try:
        held = json.loads(saved.read_text())
        if not isinstance(held, dict):
            raise ValueError("it holds no recipe")
        changed = differences(held, to_dict(recipe), _free_to_change(held, recipe))
    except ValueError as error:
        raise ValueError(f"{saved}: damaged: {error}; choose another --run") from None
    if changed:
        raise ValueError(f"{recipe.folder}: holds another run ({'; '.join(changed)}); choose another --run")


def _free_to_change(held: dict, recipe: Recipe) -> Set[str]:
    """What changes no number: the micro-batch, too, unless it decides negatives or batch statistics."""
    negatives = {held.get("negatives"), to_dict(recipe).get("negatives")}
    decides = "micro" in negatives or architectures.may_have_batch_norm(recipe.model)
    return FREE_TO_CHANGE if decides else FREE_TO_CHANGE | {"compute.micro"}
