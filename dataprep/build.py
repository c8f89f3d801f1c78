"""Turns a source into one .beton: writes shards in parallel, then joins them; resumable.

A source lists its tasks, the same ones every time.  A task becomes one shard in the folder OUT.parts, and
each file of it is renamed into place whole.  Whatever is killed, at most the unfinished shards are lost; the
same command goes on.  The order of samples is the source's own for any number of processes.  Memory does not
grow with the number of pairs, except with `dedup`: 16 bytes a sample, and sorting them.  Of triplets, the
shards hold the pictures, and this process their table: about 60 bytes a triplet.

Not here: how a sample is converted and a shard written (`shard.py`), processes (`pool.py`), SLURM
(`cluster.py`), how much space a build takes (`disk_space.py`).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dataprep import disk_space
from dataprep.dedup import first_copies
from dataprep.pool import run
from dataprep.samples import Source, Task
from dataprep.shard import SampleSettings, Tally, write_shard
from dataprep.target import check_out
from dataprep.triplets import Pictures, Triplets, TripletSource, pictures_of, place, triplets_of
from pipeline.base import console, files, hardware, machine
from pipeline.base.console import Progress, say
from pipeline.base.files import replacing
from pipeline.beton.fields import Beton
from pipeline.beton.writer import join

FORMAT = 4  # raised when the same settings come to mean another file
_OLDER = {
    3: "",
    2: "written without checksums of its images, which --restart adds",
}  # finished files that are kept
_PACKAGES = ("perceptual-initialization", "numpy", "pillow", "simplejpeg", "torch", "open_clip_torch", "ftfy")
_ENOUGH = 1000  # samples seen before a build may end early for its rejects


class TooManyRejects(console.Failed):
    """The share of rejected samples is above the limit; the command line's exit code is 1."""


class BadSource(ValueError):
    """The source must be mended: nothing of it, or not all that is needed, could be taken."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a build runs; nothing here changes what is written."""

    workers: int = 0
    """Processes; 0 takes every core this process may use."""
    max_rejects: float | None = None
    """Share of samples that may be rejected, past which the build ends. Default 0.05; 0 for triplets."""
    restart: bool = False
    """Throw away the finished file and finished shards first."""
    disk_check: bool = True
    """Estimate the space needed from the first images, and stop before the disk is full."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (all cores) or more, not {self.workers}")
        if self.max_rejects is not None and not 0 <= self.max_rejects <= 1:
            raise ValueError(f"max_rejects is a share from 0 to 1, not {self.max_rejects}")

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def build(
    source: Source | TripletSource,
    out: str | os.PathLike,
    settings: SampleSettings,
    how: RunSettings,
    runner: Callable[[Job, list[int]], None] | None = None,
) -> dict:
    """Write `out`, its JSON and its rejects; returns the JSON.

    `runner(job, unfinished tasks)` replaces this machine's processes (SLURM).
    Raises ValueError for a user's mistake, OSError for a full disk, TooManyRejects, WorkersDied.
    """
    job = Job(source, Path(out), settings, how)
    info, note = job.up_to_date()
    if info is not None:
        say(f"{job.out}: up to date, {info['samples']:,} samples; nothing to do")
        if note:
            say(f"  {note}")
        missing = sum(info["rejected"].get(reason, 0) for reason in ("missing file", "unreadable file"))
        if missing:
            say(f"  {missing:,} images were missing or unreadable then; --restart looks for them again")
        return info
    with job.lock():
        unfinished = job.resume()
        if how.disk_check:
            table = job.triplets.table_bytes if job.triplets else 0
            disk_space.check(job.parts.parent, job.stream, settings, len(unfinished), table)
        try:
            (runner or run_here)(job, unfinished)
            return job.finish()
        except BadSource:  # its shards would be taken for finished once it is mended
            shutil.rmtree(job.parts, ignore_errors=True)  # jobs of a cluster may still write there
            raise


def run_here(job: Job, unfinished: list[int]) -> None:
    """Write the shards of the unfinished tasks with this machine's processes."""
    run(job.write, unfinished, job.weights, job.how.processes, job.progress(unfinished), job.finished)


class Job:
    """One build: the source, where it goes, and the counts of the shards that are finished."""

    def __init__(self, source: Source | TripletSource, out: Path, settings: SampleSettings, how: RunSettings):
        check_out(out)
        if settings.dedup and source.kind != "pairs":
            raise ValueError("dedup compares the images of pairs; triplets share images by nature")
        self.source, self.out, self.settings, self.how = source, out, settings, how
        self.parts = out.with_name(out.name + ".parts")
        self.triplets: Triplets | None = None  # their pictures are what is converted
        if isinstance(source, TripletSource):
            self.triplets = _chosen(triplets_of(source), settings)
            self.stream: Source = pictures_of(source, self.triplets, self.parts / "pictures.npy")
        else:
            self.stream = source
        self.label = out.name + ("" if self.triplets is None else ", its pictures")  # what is counted
        self.tasks: list[Task] = self.stream.tasks()
        self.weights = [task.weight for task in self.tasks]
        self.total = Tally()  # of the finished shards: `resume` and `finished` add to it
        self._wanted = {"settings": asdict(settings), "source": source.describe()}
        self.fingerprint = self._fingerprint(FORMAT)

    def _fingerprint(self, version: int) -> str:
        known = self._wanted | {"format": version}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict:
        return vars(self) | {"triplets": None}  # what converts the pictures needs no table

    @property
    def limit(self) -> float:
        """The share of rejects that is allowed; of triplets, a curated set, none unless the user says so."""
        if self.how.max_rejects is not None:
            return self.how.max_rejects
        return 0.05 if self.source.kind == "pairs" else 0.0

    def progress(self, unfinished: list[int]) -> Progress:
        """A progress line that begins with what is finished."""
        total = sum(self.weights)
        return Progress(self.label, total, total - sum(self.weights[number] for number in unfinished))

    def stem(self, number: int) -> Path:
        """Path of shard `number` without its suffix."""
        return self.parts / f"{number:06d}"

    def write(self, number: int, step: Callable[[int], None]) -> Tally:
        """Write one shard; returns its counts."""
        return write_shard(self.stream, self.tasks[number], self.stem(number), self.settings, step)

    # -- before -----------------------------------------------------------------------------

    def up_to_date(self) -> tuple[dict | None, str]:
        """The JSON of the finished file if it is what this build would write, and what it lacks.

        A file of an older format is kept: building it again may take hours, and it is as sound as it was.
        """
        if self.how.restart or not self.out.is_file():
            return None, ""
        with contextlib.suppress(OSError, ValueError):
            beton = Beton(self.out)
            made = beton.info.get("fingerprint")
            for version, lacking in ({FORMAT: ""} | _OLDER).items():
                if made == self._fingerprint(version) and beton.info.get("bytes") == beton.size:
                    return beton.info, lacking
        return None, ""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Create and lock the folder of parts; afterwards remove it, unless it holds finished shards."""
        self.parts.parent.mkdir(parents=True, exist_ok=True)
        self.parts.mkdir(exist_ok=True)
        file, note = machine.lock(self.parts / "lock", f"build of {self.out.name}")
        try:
            with file:
                if note:
                    say(note)
                self._claim()
                if isinstance(self.stream, Pictures):
                    assert self.triplets is not None
                    self.stream.write_listing(self.triplets.names)
                try:
                    yield
                finally:
                    if not any(self.parts.glob("*.json")):
                        shutil.rmtree(self.parts, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):  # NFS keeps the file of the lock until it is closed
                self.parts.rmdir()

    def _claim(self) -> None:
        """Check that finished shards are of this very build; remove what killed workers left."""
        plan = self.parts / "plan"
        same = plan.is_file() and plan.read_text() == self.fingerprint
        worth_keeping = any(self.parts.glob("*.json")) and (same or any(self.parts.glob("*.beton")))
        if self.how.restart or not worth_keeping:
            for path in self.parts.iterdir():
                if path.is_dir():  # logs of jobs
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
        elif not same:
            raise ValueError(
                f"{self.parts}: begun with other settings, another state of the source or another version; "
                "--restart throws those shards away"
            )
        joined = f".{glob.escape(self.out.name)}.[0-9]*.tmp"
        for path in (*self.parts.glob(".*.tmp"), *self.out.parent.glob(joined)):
            path.unlink(missing_ok=True)
        plan.write_text(self.fingerprint)

    def tally(self, number: int) -> Tally | None:
        """Counts of shard `number`; None if it is not finished."""
        try:
            counts = self.stem(number).with_suffix(".json").read_text()
        except FileNotFoundError:
            return None
        tally = Tally.from_json(json.loads(counts))
        if tally.samples and not self.stem(number).with_suffix(".beton").is_file():
            return None  # it became the file itself, and the build was killed before the JSON was written
        return tally

    def is_finished(self, number: int) -> bool:
        return self.tally(number) is not None

    def resume(self) -> list[int]:
        """Count the finished shards anew; returns the numbers of the unfinished tasks."""
        tallies = {number: self.tally(number) for number in range(len(self.tasks))}
        finished = [tally for tally in tallies.values() if tally is not None]
        self.total = sum(finished, Tally())
        if finished:
            say(f"{self.out.name}: {len(finished):,} of {len(self.tasks):,} shards are finished")
        return [number for number, tally in tallies.items() if tally is None]

    # -- during and after -------------------------------------------------------------------

    def finished(self, number: int, tally: Tally) -> None:
        """A shard was written: count it, and check whether the build may go on."""
        self.total += tally
        self.check_rejects()

    def check_rejects(self, at_end: bool = False) -> None:
        """Raise if more samples were rejected than is allowed."""
        seen, rejected = self.total.seen, sum(self.total.rejected.values())
        if not rejected or not (at_end or self.limit == 0 or seen >= _ENOUGH):
            return
        first = self._first_reject()
        if self.limit == 0 and self.how.max_rejects is None:
            raise BadSource(f"{first}; mend it, or skip such samples with --max-rejects 0.05")
        if rejected / seen > self.limit:
            raise TooManyRejects(
                f"{rejected:,} of {seen:,} samples were rejected, past --max-rejects {self.limit:g}; "
                f"the first: {first}; all are in {self.parts}/*.rejects.jsonl; "
                "a larger --max-rejects goes on, and where you mended them, --restart reads them again"
            )

    def _first_reject(self) -> str:
        path = next(path for path in sorted(self.parts.glob("*.rejects.jsonl")) if path.stat().st_size)
        with open(path) as file:
            row = json.loads(file.readline())
        detail = f": {row['detail']}" if row["detail"] else ""
        return f"{row['source']}: {row['key']}: {row['reason']}{detail}"

    def finish(self) -> dict:
        """Join the shards into the file, write its JSON and rejects, remove the parts."""
        stems, total = [self.stem(n) for n in range(len(self.tasks))], self.total
        shards = [s.with_suffix(".beton") for s in stems if s.with_suffix(".beton").is_file()]
        placed = None
        if self.triplets is not None:
            placed = place(self.triplets, shards, [s.with_suffix(".rejects.jsonl") for s in stems])
            self.images, total.samples = total.samples, len(placed.kept)
            total.seen, total.rejected = len(self.triplets), placed.lost
            total.passed_over.update(self.triplets.passed_over)
        self.check_rejects(at_end=True)
        if not total.samples:
            raise BadSource(self._why_empty())
        keep = first_copies(shards) if self.settings.dedup else []
        if placed is None:
            self._collect(".rejects.jsonl", stems, self._left_out(shards, keep))
        else:
            self._collect(".rejects.jsonl", [], placed.rejects)
        if total.warned:
            self._collect(".warnings.jsonl", stems)
        else:
            self.out.with_suffix(".warnings.jsonl").unlink(missing_ok=True)
        if placed is not None:
            placed.write(self.out)
        elif len(shards) == 1 and not total.rejected["duplicate"]:
            os.replace(shards[0], self.out)
        else:
            join(shards, self.out, keep)
        info = self._info(total)
        files.write(self.out.with_suffix(".json"), json.dumps(info, indent=1) + "\n")
        shutil.rmtree(self.parts, ignore_errors=True)
        _report(self.out, info)
        return info

    def _why_empty(self) -> str:
        reasons = [f"{self.source.describe()['path']}: no sample could be taken"]
        reasons += [f"of --share {self.settings.share:g}"] if self.settings.share < 1 else []
        reasons += [f"the first: {self._first_reject()}"] if self.total.rejected else []
        reasons += [f"{count:,} {reason}" for reason, count in self.total.passed_over.items()]
        return "; ".join(reasons)

    def _left_out(self, shards: list[Path], keep: list[np.ndarray]) -> list[dict]:
        """Rows of rejects for the duplicates; takes their captions out of the counts."""
        rows = []
        for shard, kept in zip(shards, keep):
            beton, duplicates = Beton(shard), np.flatnonzero(~kept)
            self.total.count_captions(beton.rows(duplicates).arrays("tokens"), -1)
            path = self.tasks[int(shard.stem)].path
            keys = (beton.text("key", int(i)) for i in duplicates)
            rows += [{"source": path, "key": key, "reason": "duplicate", "detail": ""} for key in keys]
        if rows:
            self.total.rejected["duplicate"] = len(rows)
        return rows

    def _collect(self, ending: str, stems: list[Path], more: Iterable[dict] = ()) -> None:
        """Join the shards' files with this ending to one beside OUT, and append `more` rows."""
        with replacing(self.out.with_suffix(ending)) as name, open(name, "wb") as file:
            for stem in stems:
                with open(stem.with_suffix(ending), "rb") as part:
                    shutil.copyfileobj(part, file)
            file.writelines((json.dumps(row) + "\n").encode() for row in more)

    def _info(self, total: Tally) -> dict:
        """The JSON beside the file: the same for the same source, settings and versions."""
        info = {
            "kind": self.source.kind,
            "source": self.source.describe(),
            "samples": len(Beton(self.out)),
            "bytes": self.out.stat().st_size,
            "seen": total.seen,
            "images_kept_byte_for_byte": total.passed,
            "rejected": dict(sorted(total.rejected.items())),
            "passed_over": dict(sorted(total.passed_over.items())),
            "warned": dict(sorted(total.warned.items())),
            "settings": asdict(self.settings),
            "versions": hardware.versions(_PACKAGES),
            "fingerprint": self.fingerprint,
        }
        if isinstance(self.source, TripletSource):
            return info | {"votes": self.source.votes, "images": self.images}
        return info | {"captions": self._captions(total)}

    def _captions(self, total: Tally) -> dict:
        lengths, count = total.caption_lengths, int(total.caption_lengths.sum())
        return {
            "per_image": self.stream.captions,
            "count": count,
            "left_out": total.captions_left_out,
            "mean_tokens": round(float(lengths @ np.arange(len(lengths)) / count), 3),
            "lengths": lengths.tolist(),
        }


def _chosen(triplets: Triplets, settings: SampleSettings) -> Triplets:
    """Those in the share, over the pictures that they show."""
    if settings.share == 1:
        return triplets.compact()
    keys = (key.decode("utf-8", "surrogateescape") for key in triplets.key.tolist())
    return triplets.chosen(np.fromiter(map(settings.chooses, keys), np.bool_, len(triplets)))


def _report(out: Path, info: dict) -> None:
    pictures = f" of {info['images']:,} pictures" if "images" in info else ""
    say(f"{out}: {info['samples']:,} samples{pictures}, {info['bytes'] / 1e6:,.1f} MB")
    for key in ("passed_over", "rejected"):
        for reason, count in sorted(info[key].items(), key=lambda item: -item[1]):
            say(f"  {key.replace('_', ' ')} {count:,}: {reason}")
    left_out = info.get("captions", {}).get("left_out")
    if left_out:
        kept = info["captions"]["per_image"]
        say(f"  {left_out:,} captions left out, {kept} an image are kept: --captions N keeps more")
    if info["rejected"]:
        say(f"  listed in {out.with_suffix('.rejects.jsonl')}")
    if info["warned"]:
        count, listed = sum(info["warned"].values()), out.with_suffix(".warnings.jsonl")
        say(f"  {count:,} warnings about images that were taken nevertheless, listed in {listed}")
