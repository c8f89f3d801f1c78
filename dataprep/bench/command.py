"""Measures this room: against stock FFCV and open_clip on the same data, and at full size.

    python -m dataprep.bench speed --photos FOLDER     one line of JSON at the end
    python -m dataprep.bench rows --rows 15000000      time and memory of a simulated full build

`speed` gives each side one process, lets them take turns, and keeps the best of several rounds.  Rates are
per second of processor time, with that of child processes, so that a busy machine does not decide.  This
favours FFCV's writer, whose waiting is not counted.  Passing JPEGs through costs the check that they are
sound, their entropy decoding; libjpeg's rate at that alone is measured too.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from dataprep.build import RunSettings, build
from dataprep.convert import ImageSettings
from dataprep.samples import Pair, Source, Task, pieces
from dataprep.shard import SampleSettings
from dataprep.sources.pairs import open_pairs
from pipeline.base import console, measure
from pipeline.formats import pictures
from pipeline.text import tokenize

FULL = 15_000_000
_QUIET = RunSettings(workers=1, restart=True, disk_check=False)

Side = Callable[[], object]


def _silent() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stderr(io.StringIO())


def _best(rounds: int, **sides: Side) -> dict[str, float]:
    """The least processor time of each side, in seconds, over rounds in which they take turns."""
    times = measure.paired_rounds(sides, rounds)
    return {name: min(spent.cpu for spent in times[name]) for name in sides}


def _on_disk(path: Path) -> int:
    """Bytes that a file takes: holes between pages take none."""
    return path.stat().st_blocks * 512


# -- images -----------------------------------------------------------------------------------


def _ours(table: Path, out: Path, images: ImageSettings) -> None:
    with _silent(), contextlib.redirect_stdout(io.StringIO()):
        build(open_pairs(table), out, SampleSettings(images=images), _QUIET)


def _stock(files: list[Path], out: Path, longest: int | None) -> Side:
    """FFCV's own writer on the same files, opened by Pillow as its documentation does."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Files:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index):
            with Image.open(files[int(index)]) as image:
                return image.convert("RGB"), int(index)

    def side() -> None:
        image = RGBImageField(write_mode="jpg", max_resolution=longest, jpeg_quality=90)
        with _silent():
            writer = DatasetWriter(str(out), {"image": image, "index": IntField()}, num_workers=1)
            writer.from_indexed_dataset(Files())
        for child in multiprocessing.active_children():
            child.join()  # FFCV does not wait for its workers

    return side


def _libjpeg_check(jpegs: list[bytes]) -> None:
    for jpeg in jpegs:
        pictures.decode_jpeg(jpeg, "GRAY", min_height=1, min_width=1)


def _predict(what: str, cores: int, seconds: float, size: float) -> None:
    """Tell what a full build takes; seconds of a core and bytes of one image."""
    core_hours = FULL * seconds / 3600
    print(
        f"{FULL:,} such images, {what}: {core_hours / cores:.1f} h on {cores} cores "
        f"({core_hours:,.0f} core hours), {FULL * size / 1e9:,.0f} GB, "
        f"and as much again for the shards while they are joined",
        file=sys.stderr,
    )


@dataclass(kw_only=True)
class Speed:
    """Images and captions a second and core, against stock FFCV's DatasetWriter and open_clip."""

    photos: Path
    """Folder of JPEGs; captions.csv (filepath, caption) in it is used where it is there."""
    images: int = 1_000
    """Images written by each side in a round; files are taken again as often as needed."""
    size: int = 256
    """Short side when re-encoding."""
    rounds: int = 3
    cores: int = 16
    """For the prediction of a full build."""

    def run(self) -> None:
        files = sorted(p for p in self.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            raise ValueError(f"{self.photos}: no .jpg files in it")
        files = [files[i % len(files)] for i in range(self.images)]
        captions = self._captions(files)
        with tempfile.TemporaryDirectory() as folder:
            results = self._measure(Path(folder), files, captions)
        print(json.dumps({key: round(value, 2) for key, value in results.items()}))

    def _captions(self, files: list[Path]) -> list[str]:
        with contextlib.suppress(OSError), open(self.photos / "captions.csv", encoding="utf-8") as file:
            known = {row["filepath"]: row["caption"] for row in csv.DictReader(file)}
            return [known.get(path.name) or path.stem for path in files]
        return [path.stem for path in files]

    def _measure(self, folder: Path, files: list[Path], captions: list[str]) -> dict[str, float]:
        table, out, stock_out = folder / "photos.csv", folder / "ours.beton", folder / "stock.beton"
        with open(table, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["filepath", "caption"])
            rows.writerows(zip((str(path.absolute()) for path in files), captions))
        count = len(files)
        longest = round(self.size * 1.5)  # the long side of a 3:2 photograph
        encoding = _best(
            self.rounds,
            ours=lambda: _ours(table, out, ImageSettings(size=self.size, passthrough=False)),
            stock=_stock(files, stock_out, longest),
        )
        _predict("re-encoding", self.cores, encoding["ours"] / count, _on_disk(out) / count)
        jpegs = [path.read_bytes() for path in files]
        passing = _best(
            self.rounds,
            ours=lambda: _ours(table, out, ImageSettings(size="none")),
            stock=_stock(files, stock_out, None),
            check=lambda: _libjpeg_check(jpegs),
        )
        kept = json.loads(out.with_suffix(".json").read_text())["images_kept_byte_for_byte"]
        if kept != count:
            print(f"only {kept} of {count} are baseline RGB", file=sys.stderr)
        _predict("passing through", self.cores, passing["ours"] / count, _on_disk(out) / count)
        words, texts = self._tokenizers(captions), 10 * count
        return {
            "reencode_vs_ffcv": encoding["stock"] / encoding["ours"],
            "passthrough_vs_ffcv": passing["stock"] / passing["ours"],
            "tokenize_vs_open_clip": words["open_clip"] / words["ours"],
            "reencode_images_per_s": count / encoding["ours"],
            "passthrough_images_per_s": count / passing["ours"],
            "ffcv_resizing_images_per_s": count / encoding["stock"],
            "ffcv_images_per_s": count / passing["stock"],
            "libjpeg_check_images_per_s": count / passing["check"],
            "captions_per_s": texts / words["ours"],
            "open_clip_captions_per_s": texts / words["open_clip"],
        }

    def _tokenizers(self, captions: list[str]) -> dict[str, float]:
        from open_clip.tokenizer import SimpleTokenizer

        theirs, many = SimpleTokenizer(), captions * 10
        tokenize(many), theirs(many)  # both keep the words they have seen
        return _best(self.rounds, ours=lambda: tokenize(many), open_clip=lambda: theirs(many))


# -- full size ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated(Source):
    """`rows` tiny JPEGs with captions, made as they are read: all but the reading is real."""

    rows: int
    each: int = 4_000
    kind = "pairs"
    captions = 1

    def tasks(self) -> list[Task]:
        return pieces("simulated", self.rows, self.each)

    def read(self, task: Task) -> Iterator[Pair]:
        jpegs = [_tiny_jpeg(level) for level in range(0, 256, 4)]
        for row in range(task.start, task.stop):
            yield Pair(f"{row:09d}", jpegs[row % 64], [f"picture {row} of a build that is only simulated"])

    def describe(self) -> dict:
        return {"name": "simulated", "path": "simulated", "rows": self.rows}


def _tiny_jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 128, 255 - level)).save(out, "JPEG", quality=50, optimize=True)
    return out.getvalue()


@dataclass(kw_only=True)
class Rows:
    """Build a file of very many tiny rows; prints its time and the greatest memory of a process."""

    rows: int = FULL
    out: Path = Path("rows.beton")
    """The file to write; it is removed afterwards unless --keep."""
    workers: int = 0
    keep: bool = False

    def run(self) -> None:
        with measure.stopwatch() as spent:
            info = build(Simulated(self.rows), self.out, SampleSettings(), RunSettings(workers=self.workers))
        peak, children = (
            resource.getrusage(who).ru_maxrss / 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        result = {
            "rows": info["samples"], "bytes": info["bytes"], "seconds": round(spent.wall, 1),
            "rows_per_s": round(info["samples"] / spent.wall),
            "peak_mb_parent": round(peak), "peak_mb_worker": round(children) if self.workers != 1 else 0,
        }  # fmt: skip
        if not self.keep:
            for suffix in (".beton", ".json", ".rejects.jsonl"):
                self.out.with_suffix(suffix).unlink()
        print(json.dumps(result))


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    os.environ["OMP_NUM_THREADS"] = "1"
    commands: dict[str, Callable[..., Any]] = {"speed": Speed, "rows": Rows}
    return console.command(
        lambda: tyro.extras.subcommand_cli_from_dict(commands, description=__doc__, args=arguments).run()
    )
