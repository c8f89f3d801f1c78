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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run by path: import the project's packages, and nothing from this folder by chance
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from tyro.conf import OmitArgPrefixes as Flat  # --size, not --settings.images.size

from dataprep.build import RunSettings, build, check_out
from dataprep.cluster import ClusterSettings
from dataprep.convert import ImageSettings
from dataprep.samples import Source
from dataprep.shard import SampleSettings
from dataprep.sources import emoji, nights
from dataprep.sources.bapps import Bapps
from dataprep.sources.columns import Choice
from dataprep.sources.download import URL, fetch_nights
from dataprep.sources.drawn.images import Listing
from dataprep.sources.drawn.rule import Rule
from dataprep.sources.drawn.source import Drawn, EmbeddingPrior, MatrixPrior, Prior
from dataprep.sources.drawn.spaces import Metric
from dataprep.sources.pairs import Layout, notes, open_pairs
from dataprep.sources.things import Things
from dataprep.summary import inspect
from dataprep.verify import verify
from pipeline.base import console
from pipeline.base.console import say
from pipeline.formats.nights import PARTS, SPLITS

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
class Build:
    """What all commands take that build a user's source."""

    settings: Flat[SampleSettings] = field(default_factory=SampleSettings)
    how: Flat[RunSettings] = field(default_factory=RunSettings)
    where: Flat[ClusterSettings] = field(default_factory=ClusterSettings)


@dataclass(kw_only=True)
class NightsCommand(Build):
    """Build the splits of a folder in NIGHTS' layout: data.csv, ref/, distort/."""

    source: Path | None = None
    """Folder that holds data.csv."""
    download: Path | None = None
    """Fetch the published data into this folder first (it resumes), and build from there."""
    url: str = URL
    """Where --download finds the data."""
    out: Path = Path("data/nights")
    """Folder to write: triplets-SPLIT.beton."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Any of train, val, test, test_imagenet, test_no_imagenet; a split without rows is an error."""
    min_votes: int | None = None
    """Rows with fewer are left out; by default 6, as the released loader does, if any row has as many."""

    def run(self) -> None:
        unknown = [name for name in self.splits if name not in SPLITS]
        if unknown or not self.splits:
            raise ValueError(f"--splits {' '.join(unknown)}: choose from {' '.join(SPLITS)}")
        folder = self.source or self.download
        if folder is None or None not in (self.source, self.download):
            raise ValueError("nights: give --source FOLDER or --download FOLDER")
        check_splits(self)
        if self.download is not None:
            fetch_nights(folder, self.url)
        sources = {split: nights.Nights(folder, split, self.min_votes) for split in self.splits}
        build_splits(sources, self)


@dataclass(kw_only=True)
class BappsCommand(Build):
    """Build BAPPS: 2afc/{train,val}/SUBSET/{ref,p0,p1,judge}, soft votes kept."""

    source: Path
    """Folder that holds 2afc, or train and val."""
    out: Path = Path("data/bapps")
    """Folder to write: triplets-SPLIT.beton."""
    splits: tuple[str, ...] = ("train", "val")
    """Folders of 2afc."""
    subsets: tuple[str, ...] = ()
    """traditional cnn mix superres deblur color frameinterp; by default all that exist."""

    def run(self) -> None:
        check_splits(self)
        build_splits({split: Bapps(self.source, split, self.subsets) for split in self.splits}, self)


@dataclass(kw_only=True)
class ThingsCommand(Build):
    """Build THINGS odd-one-out answers (a SPoSE embedding: see the command embedding)."""

    images: Path
    """Folder of object images: NAME.jpg, or folders NAME whose first image is taken."""
    out: Path
    """The .beton to write."""
    answers: Path
    """Rows of three objects, the last one odd: numbers from 0, or names."""
    ids: Path | None = None
    """unique_id.txt, the objects' names in their order; by default the images' names, sorted."""

    def run(self) -> None:
        check_out(self.out)
        if self.ids is not None and not self.ids.is_file():
            raise ValueError(f"{self.ids}: no such file")
        source = Things(self.answers, self.images, self.ids)
        build(source, self.out, self.settings, self.how, self.where.runner())


@dataclass(kw_only=True)
class DrawnCommand(Build):
    """What the commands take that draw triplets from numbers."""

    source: Path
    listing: Flat[Listing]
    rule: Flat[Rule] = field(default_factory=Rule)
    out: Path
    """Folder to write: triplets-SPLIT.beton."""
    splits: tuple[str, ...] = PARTS
    """Any of train, val, test."""
    held_out: float = 0.1
    """Share of the images that is in val, and in test. An image's name decides, so that no image is in two
    splits; triplets are drawn within each."""

    def prior(self) -> Prior:
        raise NotImplementedError

    def run(self) -> None:
        unknown = [name for name in self.splits if name not in PARTS]
        if unknown or not self.splits:
            raise ValueError(f"--splits {' '.join(unknown)}: choose from {' '.join(PARTS)}")
        check_splits(self)
        prior = self.prior()
        sources = {split: Drawn(prior, split) for split in self.splits}
        for line in (*prior.notes(), *(source.note() for source in sources.values())):
            say(line)
        build_splits(sources, self)

    def common(self) -> dict[str, Any]:
        """What priors of all kinds take."""
        values = {"table": self.source, "listing": self.listing, "rule": self.rule}
        return values | {"held_out": self.held_out, "seed": self.settings.seed}


@dataclass(kw_only=True)
class EmbeddingCommand(DrawnCommand):
    """Build triplets drawn from an embedding (SPoSE, a network's features): a row of numbers an image."""

    source: Path
    """N × D numbers: .npy, or rows of text (csv, tsv, blanks)."""
    metric: Metric = "cosine"
    """Distance of two rows: 1 - cosine, euclidean, minus the dot product (SPoSE's own), 1 - correlation."""

    def prior(self) -> Prior:
        return EmbeddingPrior(metric=self.metric, **self.common())


@dataclass(kw_only=True)
class MatrixCommand(DrawnCommand):
    """Build triplets drawn from a matrix of dissimilarities (an RDM of MEG, fMRI or ratings)."""

    source: Path
    """N × N numbers, or scipy's condensed form: .npy, or rows of text (csv, tsv, blanks)."""
    similarity: bool = False
    """Large numbers mean alike."""

    def prior(self) -> Prior:
        return MatrixPrior(similarity=self.similarity, **self.common())


Splits = NightsCommand | BappsCommand | DrawnCommand


def check_splits(command: Splits) -> None:
    """ValueError if one of the files cannot be written; called before anything is fetched or read."""
    for split in command.splits:
        check_out(command.out / f"triplets-{split}.beton")


def build_splits(sources: Mapping[str, Source], command: Splits) -> None:
    """One file a split; --share applies to the training split only."""
    for source in sources.values():
        source.tasks()  # tells all mistakes before the first file is written
    for split, source in sources.items():
        settings = command.settings if split == "train" else replace(command.settings, share=1.0)
        build(source, command.out / f"triplets-{split}.beton", settings, command.how, command.where.runner())


@dataclass(kw_only=True)
class Pairs(Build):
    """Build images with captions: webdataset tars, parquet, a table or texts with files, or SLIP's zips."""

    source: Path
    """Folder, tar, parquet, csv, tsv, jsonl or json; several: {000..041}.tar, or ONE::OTHER."""
    out: Path
    """The .beton to write; its JSON and list of rejects go beside it."""
    layout: Layout = "auto"
    """Layout to read; auto recognises it."""
    images: Path | None = None
    """Folder of the images (or zips), if it is not the table's folder."""
    image_column: str = ""
    """Column (or json field) that names or holds the image, in tars its ending; else the usual ones."""
    caption_columns: tuple[str, ...] = ()
    """Columns (or json fields; in tars also endings as txt) with captions; all are kept."""
    caption_lines: bool = False
    """Every line of a .txt is a caption of its own (clip-benchmark's retrieval sets say so themselves)."""
    captions: int = 0
    """Captions kept an image; 0 keeps as many as the image with the most has."""

    def run(self) -> None:
        check_out(self.out)
        source = open_pairs(
            self.source,
            layout=self.layout,
            images=self.images,
            choice=Choice(image=self.image_column, captions=self.caption_columns),
            captions=self.captions,
            lines=self.caption_lines,
            max_bytes=self.settings.images.max_bytes,
        )
        description = source.describe()
        say(
            f"{self.source}: layout {description['layout']}, "
            f"up to {description['captions']} captions an image"
        )
        if description.get("images_again"):
            say(
                f"  {description['images_again']:,} samples repeat an image that came before others: "
                "sort the table by image to have its captions in one sample"
            )
        for note in notes(source, self.source):
            say(f"  {note}")
        build(source, self.out, self.settings, self.how, self.where.runner())


@dataclass(kw_only=True)
class Yfcc15m(Pairs):
    """Build YFCC15M in whichever form you hold it; the same as pairs, with a default --out."""

    out: Path = Path("data/yfcc15m/pairs-train.beton")
    """The .beton to write; its JSON and list of rejects go beside it."""


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
    "demo": Demo, "pairs": Pairs, "yfcc15m": Yfcc15m, "nights": NightsCommand, "bapps": BappsCommand,
    "things": ThingsCommand, "embedding": EmbeddingCommand, "matrix": MatrixCommand,
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
