"""Triplets made of published sets of human judgements, and of tables of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dataprep.build import build
from dataprep.commands.base import Build, build_splits, check_choice, file_of
from dataprep.sources.judged import JudgedTriplets
from dataprep.target import check_out
from dataprep.triplets import triplets_of
from pipeline.base.console import say
from pipeline.formats.judged import (
    alignet,
    bapps,
    jnd,
    nights_raw,
    pieapp,
    quality,
    table,
    things,
    tpips,
)
from pipeline.formats.judged.forms import Judged
from pipeline.formats.nights import PARTS

Reader = Callable[[], Judged]


@dataclass(kw_only=True)
class OneFile(Build):
    """What the commands take whose set is one table, and so one split."""

    out: Path
    """The .beton to write."""
    split: Literal["train", "val", "test"] = "train"
    """What the file is recorded as: training reads train, evaluation val and test."""

    def make(self, name: str, path: Path, reader: Reader, **options: object) -> None:
        """Build the file of what the reader returns."""
        check_out(self.out)
        source = JudgedTriplets(name, path, reader, tuple(options.items()), self.split)
        triplets_of(source)
        for note in source.notes():
            say(f"  {note}")
        build(source, self.out, self.settings, self.how, self.where.runner())


@dataclass(kw_only=True)
class Splits(Build):
    """What the commands take whose set has splits."""

    source: Path
    """Folder of the set."""
    out: Path
    """Folder to write: triplets-SPLIT.beton."""

    def make(
        self, name: str, readers: Mapping[str, Reader], held_out: float | None = None, **options: object
    ) -> None:
        """Build a file for each split of what its reader returns."""
        for split in readers:
            check_out(file_of(self.out, split))
        told = tuple(options.items())
        sources = {
            split: JudgedTriplets(name, self.source, reader, told, split, held_out)
            for split, reader in readers.items()
        }
        for note in dict.fromkeys(note for source in sources.values() for note in source.notes()):
            say(f"  {note}")
        build_splits(sources, self.out, self)


@dataclass(kw_only=True)
class Bapps(Splits):
    """Build BAPPS: 2afc/{train,val}/SUBSET/{ref,p0,p1,judge}, soft votes kept."""

    out: Path = Path("data/bapps")
    """Folder to write: triplets-SPLIT.beton."""
    splits: tuple[str, ...] = ("train", "val")
    """Folders of 2afc."""
    subsets: tuple[str, ...] = ()
    """traditional cnn mix superres deblur color frameinterp; by default all that exist."""

    def run(self) -> None:
        read = {split: partial(bapps.read, self.source, split, self.subsets) for split in self.splits}
        self.make("bapps", read, subsets=self.subsets)


@dataclass(kw_only=True)
class Things(OneFile):
    """Build THINGS odd-one-out answers (a SPoSE embedding: see the command embedding)."""

    images: Path
    """Folder of object images: NAME.jpg, or folders NAME whose first image is taken."""
    answers: Path
    """Rows of three objects, numbers or names: text, or .npy."""
    base: Literal[0, 1] | None = None
    """The number of the first object: 0 in SPoSE's, VICE's and gLocal's files, 1 in osf.io/f5rn6's. To be
    given unless the rows hold names."""
    odd: Literal["first", "last", "4"]
    """Which of the three is odd: last in SPoSE's, VICE's, gLocal's and DreamSim's; 4: the fourth column says
    (osf.io/f5rn6)."""
    ids: Path | None = None
    """unique_id.txt, the objects' names in their order; by default the images' names, sorted."""

    def run(self) -> None:
        odd = 4 if self.odd == "4" else self.odd
        read = partial(things.read, self.answers, self.images, self.ids, self.base, odd)
        told = {"base": self.base, "odd": self.odd, "ids": str(self.ids or "")}
        self.make("things", self.answers, read, images=str(self.images), **told)


@dataclass(kw_only=True)
class Alignet(OneFile):
    """Build AligNet's triplets: 10 million over ImageNet, computed, no human votes."""

    table: Path
    """alignet_train.npz or alignet_valid.npz."""
    images: Path
    """ImageNet's training images, by synset."""
    temperature: float | None = None
    """Make soft votes of the table's similarities with this temperature; by default its odd ones count."""

    def run(self) -> None:
        read = partial(alignet.read, self.table, self.images, self.temperature)
        self.make("alignet", self.table, read, images=str(self.images), temperature=self.temperature)


@dataclass(kw_only=True)
class NightsRaw(OneFile):
    """Build a split of NIGHTS as it was before it was filtered: nights_raw.csv, with all votes."""

    source: Path
    """Folder that holds nights_raw.csv."""

    def run(self) -> None:
        self.make("nights-raw", self.source, partial(nights_raw.read_split, self.source, self.split))


@dataclass(kw_only=True)
class Jnd(OneFile):
    """Build NIGHTS' just noticeable differences: jnd_votes.csv."""

    source: Path
    """Folder that holds jnd_votes.csv."""

    def run(self) -> None:
        say("  its table tells no splits: pairs of triplets that NIGHTS tests with may be among these")
        self.make("jnd", self.source, partial(jnd.read, self.source))


@dataclass(kw_only=True)
class Tpips(Splits):
    """Build TPIPS: comparisons, or odd ones out, with soft votes."""

    kind: Literal["2afc", "odd"]
    """Which of its two sets."""
    factor: str = "overall"
    """By what people judged."""
    splits: tuple[str, ...] = ("train",)
    """Splits to build."""

    def run(self) -> None:
        reader: Callable[..., Judged] = tpips.read_2afc if self.kind == "2afc" else tpips.read_odd
        read = {split: partial(reader, self.source, split, self.factor) for split in self.splits}
        self.make("tpips", read, kind=self.kind, factor=self.factor)


@dataclass(kw_only=True)
class Pieapp(Splits):
    """Build PieAPP's comparisons of distorted images, soft votes kept."""

    splits: tuple[str, ...] = PARTS
    """Any of train, val, test."""
    skip_unsure: bool = False
    """Leave out comparisons whose preference lies between 0.4 and 0.6."""

    def run(self) -> None:
        check_choice("--splits", self.splits, PARTS)
        read = {split: partial(pieapp.read, self.source, split, self.skip_unsure) for split in self.splits}
        self.make("pieapp", read, skip_unsure=self.skip_unsure)


@dataclass(kw_only=True)
class Quality(Splits):
    """Build comparisons of rated distortions: all pairs with one reference, soft votes from the ratings."""

    set: Literal["kadid", "pipal", "tid2013"]
    """Whose layout the folder has."""
    splits: tuple[str, ...] = PARTS
    """Any of train, val, test."""
    held_out: float = 0.1
    """Share of the references that is in val, and in test; a reference's name decides."""

    def run(self) -> None:
        check_choice("--splits", self.splits, PARTS)
        if not 0 <= self.held_out <= 0.5:
            raise ValueError(f"--held-out is a share from 0 to 0.5, not {self.held_out:g}")
        reader = {
            "kadid": partial(quality.kadid, self.source),
            "pipal": partial(quality.pipal, self.source, "train"),
            "tid2013": partial(quality.tid2013, self.source),
        }[self.set]
        self.make(self.set, dict.fromkeys(self.splits, reader), self.held_out)


@dataclass(kw_only=True)
class Table(OneFile):
    """Build triplets from a table of your own: ref,left,right,vote or a,b,c,odd."""

    source: Path
    """csv or tsv with a header; also votes (how many answered) and group, where there are such columns."""
    images: Path
    """Folder of the images, which the table names by paths, or by numbers into their sorted list."""
    kind: Literal["2afc", "odd"]
    """2afc: vote is the share that preferred right. odd: odd is the odd one."""
    base: Literal[0, 1] | None = None
    """The number of the first image, where the table holds numbers; without it, paths."""
    odd: Literal["first", "last", "column"] | None = None
    """Of kind odd, to be given: which of the three is the odd one; column: the column odd says."""
    ids: Path | None = None
    """Text with an image a line, in the order of the numbers; by default all in --images, sorted."""

    def run(self) -> None:
        if (self.kind == "odd") != (self.odd is not None):
            raise ValueError("--odd first, last or column: with --kind odd, and with it only")
        odd = None if self.odd == "column" else self.odd
        read = partial(table.read, self.source, self.images, self.kind, self.base, odd, self.ids)
        told = {"kind": self.kind, "base": self.base, "odd": self.odd, "ids": str(self.ids or "")}
        self.make("table", self.source, read, images=str(self.images), **told)


COMMANDS: dict[str, Callable[..., Any]] = {
    "bapps": Bapps, "things": Things, "alignet": Alignet, "nights-raw": NightsRaw, "jnd": Jnd,
    "tpips": Tpips, "pieapp": Pieapp, "quality": Quality, "table": Table,
}  # fmt: skip
