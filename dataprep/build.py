"""Turns a source into one .beton: shards in parallel, resumable, then joined.

A source lists its tasks, the same ones every time; a task becomes one shard in the folder
OUT.parts, each file of it renamed into place whole.  So whatever is killed, at most the shards in
work are lost, and the same command goes on.  The order of samples is the source's own whatever the
number of processes, and memory does not grow with the number of samples (with `dedup`: 16 bytes and
the sorting of them a sample).

Not here: how a sample is converted and a shard written (`shard.py`), processes (`pool.py`), SLURM
(`cluster.py`), how much space it takes (`space.py`).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dataprep import space
from dataprep.pool import run
from dataprep.shard import SampleSettings, Source, Tally, Task, write_shard
from pipeline.base import console, hardware, machine
from pipeline.base.console import Progress
from pipeline.base.files import replacing
from pipeline.beton.fields import Beton
from pipeline.beton.writer import join

FORMAT = 2  # raised when the same settings come to mean another file
_PACKAGES = ("perceptual-initialization", "numpy", "pillow", "simplejpeg", "torch", "open_clip_torch", "ftfy")
_ENOUGH = 1000  # samples seen before a build may end early for its rejects


class TooManyRejects(console.Failed):
    """The share of samples not taken is above the limit; the command line's exit code is 1."""


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

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (all cores) or more, not {self.workers}")
        if self.max_rejects is not None and not 0 <= self.max_rejects <= 1:
            raise ValueError(f"max_rejects is a share from 0 to 1, not {self.max_rejects}")

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def build(
    source: Source, out: str | os.PathLike, settings: SampleSettings, how: RunSettings, runner=None
) -> dict:
    """Write `out`, its JSON and its rejects; returns the JSON.

    `runner(job, unfinished tasks)` replaces this machine's processes (SLURM).
    Raises ValueError for a user's mistake, OSError for a full disk, TooManyRejects, RuntimeError when
    a process died.
    """
    job = Job(source, Path(out), settings, how)
    info = job.up_to_date()
    if info is not None:
        print(f"{job.out}: up to date, {info['samples']:,} samples; nothing to do")
        gone = sum(info["rejected"].get(reason, 0) for reason in ("missing file", "unreadable file"))
        if gone:
            print(f"  {gone:,} images were missing or unreadable then; --restart looks for them again")
        return info
    with job.lock():
        left = job.unfinished()
        if how.disk_check:
            space.check(job.parts.parent, source, settings, len(left))
        (runner or run_here)(job, left)
        return job.finish()


def check_out(out: Path) -> None:
    """ValueError if a .beton cannot be written as `out`, or its JSON would take the place of another file."""
    if out.suffix != ".beton":
        raise ValueError(f"{out}: the name of the file to write must end in .beton")
    if out.is_dir():
        raise ValueError(f"{out}: a folder lies there, where a file is to be written; choose another --out")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{above}: a file lies there, where --out needs a folder")
    beside = out.with_suffix(".json")
    if beside.exists() and not _is_ours(beside):
        raise ValueError(
            f"{beside}: the build writes its own JSON there, and this is another; "
            "move it away, or choose another --out"
        )


def _is_ours(path: Path) -> bool:
    try:
        return "fingerprint" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def run_here(job: Job, left: list[int]) -> None:
    """Write the shards of the tasks `left` with this machine's processes."""
    weights = [task.weight for task in job.tasks]
    done = sum(weights) - sum(weights[number] for number in left)
    progress = Progress(job.out.name, sum(weights), done)
    run(job.write, left, weights, job.how.processes, progress, job.finished)


class Job:
    """One build: the source, where it goes, and which of its shards are finished."""

    def __init__(self, source: Source, out: Path, settings: SampleSettings, how: RunSettings):
        check_out(out)
        if settings.dedup and source.kind != "pairs":
            raise ValueError("dedup compares the images of pairs; triplets share images by nature")
        self.source, self.out, self.settings, self.how = source, out, settings, how
        self.tasks: list[Task] = source.tasks()
        self.total = Tally()  # of the shards finished so far
        self.parts = out.with_name(out.name + ".parts")
        known = {"format": FORMAT, "settings": asdict(settings), "source": source.describe()}
        self.fingerprint = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def limit(self) -> float:
        """The share of rejects that is allowed; a triplet set is a curated whole, so none unless asked."""
        if self.how.max_rejects is not None:
            return self.how.max_rejects
        return 0.05 if self.source.kind == "pairs" else 0.0

    def stem(self, number: int) -> Path:
        """Path of shard `number` without its suffix."""
        return self.parts / f"{number:06d}"

    def write(self, number: int, step) -> Tally:
        """Write one shard; returns its counts."""
        return write_shard(self.source, self.tasks[number], self.stem(number), self.settings, step)

    # -- before -----------------------------------------------------------------------------

    def up_to_date(self) -> dict | None:
        """The JSON of the finished file, if it is what this build would write."""
        if self.how.restart or not self.out.is_file():
            return None
        with contextlib.suppress(OSError, ValueError):
            beton = Beton(self.out)
            if beton.info.get("fingerprint") == self.fingerprint and beton.info.get("bytes") == beton.size:
                return beton.info
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Own the folder of parts; afterwards it is gone unless it holds shards worth keeping."""
        self.parts.parent.mkdir(parents=True, exist_ok=True)
        self.parts.mkdir(exist_ok=True)
        file, note = machine.lock(self.parts / "lock", f"build of {self.out.name}")
        try:
            with file:
                if note:
                    print(note)
                self._claim()
                try:
                    yield
                finally:
                    if not any(self.parts.glob("*.json")):
                        shutil.rmtree(self.parts, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):  # NFS keeps the file of the lock until it is closed
                self.parts.rmdir()

    def _claim(self) -> None:
        """See that finished shards belong to this very build, and remove what killed workers left."""
        plan = self.parts / "plan"
        same = plan.is_file() and plan.read_text() == self.fingerprint
        kept = any(self.parts.glob("*.json")) and (same or any(self.parts.glob("*.beton")))  # worth keeping
        if self.how.restart or not kept:
            for path in self.parts.iterdir():
                if path.is_dir():  # logs of jobs
                    shutil.rmtree(path)
                elif path.name != "lock":
                    path.unlink()
        elif not same:
            raise ValueError(
                f"{self.parts}: begun with other settings or another state of the source; "
                "--restart throws those shards away"
            )
        joined = f".{glob.escape(self.out.name)}.[0-9]*.tmp"
        for path in (*self.parts.glob(".*.tmp"), *self.out.parent.glob(joined)):
            path.unlink(missing_ok=True)
        plan.write_text(self.fingerprint)

    def unfinished(self) -> list[int]:
        """Numbers of the tasks without a finished shard."""
        left = [n for n in range(len(self.tasks)) if not self.count(n)]
        if len(left) < len(self.tasks):
            print(
                f"{self.out.name}: {len(self.tasks) - len(left):,} of {len(self.tasks):,} shards are finished"
            )
        return left

    # -- during and after -------------------------------------------------------------------

    def count(self, number: int) -> bool:
        """Add a shard's counts to the total; False if it is not finished."""
        try:
            counts = self.stem(number).with_suffix(".json").read_text()
        except FileNotFoundError:
            return False
        tally = Tally.from_json(json.loads(counts))
        if tally.samples and not self.stem(number).with_suffix(".beton").is_file():
            return False  # it became the file itself, and the build was killed before the JSON was written
        self.total += tally
        return True

    def finished(self, number: int, tally: Tally) -> None:
        """A shard was written: count it, and see whether the build may go on."""
        self.total += tally
        self.check_rejects()

    def check_rejects(self, at_end: bool = False) -> None:
        """End the build if more samples were rejected than is allowed."""
        total = self.total
        rejected = sum(total.rejected.values())
        if not rejected or not (at_end or self.limit == 0 or total.seen >= _ENOUGH):
            return
        first = self._first_reject()
        if self.limit == 0 and self.how.max_rejects is None:
            shutil.rmtree(self.parts, ignore_errors=True)  # other processes may still write there
            raise ValueError(f"{first}; mend it, or skip such samples with --max-rejects 0.05")
        if rejected / total.seen > self.limit:
            raise TooManyRejects(
                f"{rejected:,} of {total.seen:,} samples were rejected, past --max-rejects {self.limit:g}; "
                f"the first: {first}; all are in {self.parts}/*.rejects.jsonl; "
                "a larger --max-rejects goes on, and where you mended them, --restart reads them again"
            )

    def _first_reject(self) -> str:
        for path in sorted(self.parts.glob("*.rejects.jsonl")):
            with open(path) as file:
                for line in file:
                    row = json.loads(line)
                    detail = f": {row['detail']}" if row["detail"] else ""
                    return f"{row['source']}: {row['key']}: {row['reason']}{detail}"
        raise AssertionError("rejects were counted but none is written")

    def finish(self) -> dict:
        """Join the shards into the file, write its JSON and rejects, remove the parts."""
        self.check_rejects(at_end=True)
        total = self.total
        if not total.samples:
            why = [f"of --share {self.settings.share:g}"] if self.settings.share < 1 else []
            why += [f"the first: {self._first_reject()}"] if total.rejected else []
            why += [f"{count:,} {what}" for what, count in total.passed_over.items()]
            shutil.rmtree(self.parts)
            raise ValueError("; ".join([f"{self.source.describe()['path']}: no sample could be taken", *why]))
        stems = [self.stem(n) for n in range(len(self.tasks))]
        shards = [s.with_suffix(".beton") for s in stems if s.with_suffix(".beton").is_file()]
        keep = _first_copies(shards) if self.settings.dedup else []
        self._collect(".rejects.jsonl", stems, self._left_out(shards, keep))
        if total.warned:
            self._collect(".warnings.jsonl", stems)
        else:
            self.out.with_suffix(".warnings.jsonl").unlink(missing_ok=True)
        if len(shards) == 1 and not total.rejected["duplicate"]:
            os.replace(shards[0], self.out)
        else:
            join(shards, self.out, keep)
        info = self._info(total)
        with replacing(self.out.with_suffix(".json")) as name:
            name.write_text(json.dumps(info, indent=1) + "\n")
        shutil.rmtree(self.parts, ignore_errors=True)
        _report(self.out, info)
        return info

    def _left_out(self, shards: list[Path], keep: list[np.ndarray]) -> list[dict]:
        """Rows of rejects for the samples that are not kept; their captions are taken out of the counts."""
        rows = []
        for shard, kept in zip(shards, keep):
            beton, gone = Beton(shard), np.flatnonzero(~kept)
            self.total.count_captions(beton.arrays("tokens", gone), -1)
            path = self.tasks[int(shard.stem)].path
            keys = (beton.text("key", i) for i in gone)
            rows += [{"source": path, "key": key, "reason": "duplicate", "detail": ""} for key in keys]
        if rows:
            self.total.rejected["duplicate"] = len(rows)
        return rows

    def _collect(self, ending: str, stems: list[Path], more: Iterable[dict] = ()) -> None:
        """Write beside the file what all shards have in their files with this ending, and `more` rows."""
        with replacing(self.out.with_suffix(ending)) as name, open(name, "wb") as file:
            for stem in stems:
                with open(stem.with_suffix(ending), "rb") as part:
                    shutil.copyfileobj(part, file)
            file.writelines((json.dumps(row) + "\n").encode() for row in more)

    def _info(self, total: Tally) -> dict:
        """The JSON beside the file: the same for the same source, settings and versions."""
        lengths, described = total.caption_lengths, self.source.describe()
        info = {
            "kind": self.source.kind,
            "source": described,
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
        if self.source.kind == "pairs":
            count = int(lengths.sum())
            info["captions"] = {
                "per_image": self.source.captions,
                "count": count,
                "left_out": total.captions_left_out,
                "mean_tokens": round(float(lengths @ np.arange(len(lengths)) / count), 3),
                "lengths": lengths.tolist(),
            }
        else:
            info["votes"] = self.source.votes
        return info


def _first_copies(shards: list[Path]) -> list[np.ndarray]:
    """Which samples of each shard are the first with their bytes."""
    hashes = [np.load(shard.with_suffix(".hashes.npy")) for shard in shards]
    borders = np.cumsum([len(h) for h in hashes])
    everything = np.concatenate(hashes)
    order = np.lexsort((everything[:, 1], everything[:, 0]))  # stable: the first copy comes first
    repeated = (everything[order[1:]] == everything[order[:-1]]).all(1)
    first = np.ones(len(everything), bool)
    first[order[1:][repeated]] = False
    return np.split(first, borders[:-1])


def _report(out: Path, info: dict) -> None:
    print(f"{out}: {info['samples']:,} samples, {info['bytes'] / 1e6:,.1f} MB")
    for what in ("passed_over", "rejected"):
        for reason, count in sorted(info[what].items(), key=lambda item: -item[1]):
            print(f"  {what.replace('_', ' ')} {count:,}: {reason}")
    left_out = info.get("captions", {}).get("left_out")
    if left_out:
        kept = info["captions"]["per_image"]
        print(f"  {left_out:,} captions left out, {kept} an image are kept: --captions N keeps more")
    if info["rejected"]:
        print(f"  listed in {out.with_suffix('.rejects.jsonl')}")
    if info["warned"]:
        count, where = sum(info["warned"].values()), out.with_suffix(".warnings.jsonl")
        print(f"  {count:,} warnings about pictures that were taken all the same, listed in {where}")
