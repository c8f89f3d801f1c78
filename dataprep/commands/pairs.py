"""Images with captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataprep.build import build
from dataprep.commands.base import Build
from dataprep.sources.columns import Choice
from dataprep.sources.pairs import Layout, notes, open_pairs
from dataprep.target import check_out
from pipeline.base.console import say


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
