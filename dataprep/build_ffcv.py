"""Prepares data: turns a source into one .beton, which stock FFCV reads.

    python dataprep/build_ffcv.py                      the embedded demonstration data
    python dataprep/build_ffcv.py pairs --source …     images with captions
    python dataprep/build_ffcv.py nights --source …    human 2AFC triplets
    python dataprep/build_ffcv.py matrix --source …    triplets drawn from dissimilarities of images

Images: JPEG, MPO, PNG, WEBP, GIF, BMP, DIB, TIFF, PPM, JPEG2000, AVIF, ICO, ICNS, CUR, PSD, DDS, QOI, SGI,
PCX, XPM, XBM, SUN, MSP, IM, BLP, FLI, FTEX, TGA; recognised by their content, not by their names.  Of several
frames the first is taken; transparency becomes white.

Exit codes: 0 done, 1 too many samples were rejected, 2 a mistake (one line says which), 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run by path: import the project's packages, and nothing from this folder by chance
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from tyro.conf import OmitArgPrefixes as Flat  # --size, not --settings.images.size

from dataprep.build import RunSettings, build
from dataprep.commands import judged, pairs, triplets
from dataprep.convert import ImageSettings
from dataprep.shard import SampleSettings
from dataprep.sources import emoji, nights
from dataprep.summary import inspect
from dataprep.verify import verify
from pipeline.base import console
from pipeline.base.console import say

# 48-pixel line drawings: at this quality the error is about 46 dB, and sharp colours are kept.
DEMO = SampleSettings(images=ImageSettings(quality=98, subsampling="444"))


@dataclass(kw_only=True)
class Demo:
    """Build the embedded demonstration data: emoji drawings, and evaluation sets of a held-out style."""

    out: Path = Path("data/demo")
    """Folder to write."""
    nights: Path | None = None
    """A NIGHTS folder whose human triplets take the place of the constructed ones."""
    held_out: Literal["noto", "twemoji", "fluent3d"] = emoji.HELD_OUT
    """Whose drawings are evaluated on; training sees the other two vendors'."""
    how: Flat[RunSettings] = field(default_factory=RunSettings)

    def run(self) -> None:
        if self.held_out in emoji.IN_TRIPLETS and not self.nights:
            raise ValueError(
                f"--held-out {self.held_out}: the constructed triplets show its drawings, so stage 1 would "
                "see them; give other triplets with --nights DIR"
            )
        build(emoji.EmojiPairs(held_out=self.held_out), self.out / "pairs-train.beton", DEMO, self.how)
        for split in ("train", "test"):
            source = nights.Nights(self.nights, split) if self.nights else emoji.EmojiTriplets(split)
            settings = SampleSettings() if self.nights else DEMO
            build(source, self.out / f"triplets-{split}.beton", settings, self.how)
        written = emoji.write_eval(self.out / "eval", self.held_out)
        state = "" if written else "up to date, "
        say(f"{self.out / 'eval'}: {state}4 evaluation sets of the held-out vendor {self.held_out}")
        if not self.nights:
            say("The triplets are constructed, no human voted; --nights DIR uses human ones.")


@dataclass(kw_only=True)
class Verify:
    """Read every sample of a .beton back and report what is wrong; exit code 1 if anything is."""

    file: tyro.conf.Positional[Path]
    decode: bool = False
    """Decode every image too; checksums alone tell whether its bytes are those that were written."""
    workers: int = 0
    """Processes; 0 takes every core this process may use."""

    def run(self) -> int:
        workers = RunSettings(workers=self.workers).processes
        return 1 if verify(self.file, workers, self.decode).counts else 0


@dataclass(kw_only=True)
class Inspect:
    """Print counts, sizes and caption lengths of a .beton, and draw a contact sheet."""

    file: tyro.conf.Positional[Path]
    sheet: Path | None = None
    """PNG of sample images to write; by default FILE.png in the current folder."""
    count: int = 24
    """Samples on the sheet."""

    def run(self) -> None:
        inspect(self.file, self.sheet or Path(self.file.with_suffix(".png").name), self.count)


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo, "pairs": pairs.Pairs, "yfcc15m": pairs.Yfcc15m, "nights": triplets.NightsCommand,
    **judged.COMMANDS, "embedding": triplets.EmbeddingCommand, "matrix": triplets.MatrixCommand,
    "verify": Verify, "inspect": Inspect,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return console.command(lambda: _run(arguments), interrupted="stopped; the same command goes on")


def _run(arguments: list[str]) -> int | None:
    if not arguments:
        say("No source named: building the demonstration data. For yours: pairs or nights (see --help).")
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, "demo")
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="build_ffcv.py", description=__doc__, args=arguments
    )
    return command.run()


if __name__ == "__main__":
    sys.exit(main())
