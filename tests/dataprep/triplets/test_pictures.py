"""Triplets that share pictures: each is stored once, and one that cannot be takes its triplets along."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep import disk_space, triplets
from dataprep.build import BadSource, Job, RunSettings, TooManyRejects, build
from dataprep.shard import SampleSettings
from dataprep.triplets import Triplets, TripletSource
from dataprep.verify import verify
from pipeline.beton.fields import Beton
from pipeline.beton.triplets import SIDES
from tests.kits import dataprep as kit

COUNT, PICTURES = 60, 9


@dataclass(frozen=True)
class Made(TripletSource):
    """Constructed triplets over a folder of pictures."""

    folder: Path
    votes = "constructed"

    def triplets(self) -> Triplets:
        rng = np.random.default_rng(0)
        return Triplets(
            names=[f"{i}.jpg" for i in range(PICTURES + 1)],  # nobody shows the last one
            rows=rng.integers(0, PICTURES, (COUNT, 3)).astype(np.int32),
            vote=rng.random(COUNT),
            votes=np.full(COUNT, 3, np.int32),
            key=np.arange(COUNT).astype(bytes),
            passed_over={"rows of another kind": 2},
        )

    def picture(self, name: str) -> Path:
        return self.folder / name

    def describe(self) -> dict:
        return {"name": "made", "path": str(self.folder)}


@pytest.fixture
def source(tmp_path, monkeypatch) -> Made:
    monkeypatch.setattr(triplets, "_SHARD", 4)  # pictures, so that there are three
    (tmp_path / "in").mkdir()
    for i in range(PICTURES):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(kit.jpeg(i))
    return Made(tmp_path / "in")


def check(out: Path, source: Made, which: np.ndarray) -> Beton:
    """That the file holds these triplets of the source, whole."""
    beton, table = Beton(out), source.triplets()
    assert len(beton) == len(which) and kit.keys(beton) == [str(i) for i in which]
    assert beton.metadata["vote"].tolist() == table.vote[which].tolist()
    for sample, row in enumerate(table.rows[which].tolist()):
        assert [beton.jpeg(sample, side).tobytes() for side in SIDES] == [kit.jpeg(i) for i in row]
    assert not verify(out, 1, decode=True).counts
    return beton


@pytest.mark.parametrize("workers", [1, 2])
def test_each_picture_is_stored_once(tmp_path, source, workers):
    out = tmp_path / "out.beton"
    info = build(source, out, SampleSettings(), RunSettings(workers=workers))
    beton = check(out, source, np.arange(COUNT))
    assert info["images"] == info["images_kept_byte_for_byte"] == PICTURES and info["seen"] == COUNT
    assert info["kind"] == "triplets" and info["votes"] == "constructed"
    assert info["passed_over"] == {"rows of another kind": 2} and not info["rejected"]
    rows = beton.rows(np.arange(COUNT))
    assert len(np.unique([rows.spans(side)[0] for side in SIDES])) == PICTURES
    assert not out.with_name("out.beton.parts").exists()


def test_a_share_stores_only_what_it_shows(tmp_path, source):
    settings = SampleSettings(share=0.1, seed=3)
    info = build(source, tmp_path / "out.beton", settings, kit.ONE)
    which = np.array([i for i in range(COUNT) if settings.chooses(str(i))])
    check(tmp_path / "out.beton", source, which)
    assert 0 < len(which) < COUNT / 3 and info["images"] == len(np.unique(source.triplets().rows[which]))


def test_a_picture_that_cannot_be_stored_is_an_error_that_names_it(tmp_path, source):
    (source.folder / "5.jpg").write_bytes(b"no picture")
    with pytest.raises(BadSource, match=r"in: 5\.jpg: .*--max-rejects"):
        build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    assert not (tmp_path / "out.beton").exists()


def test_its_triplets_go_with_it_where_the_user_says_so(tmp_path, source):
    (source.folder / "5.jpg").write_bytes(b"no picture")
    (source.folder / "2.jpg").unlink()
    out, rows = tmp_path / "out.beton", source.triplets().rows
    lost = np.isin(rows, [2, 5]).any(1)
    few = RunSettings(workers=1, max_rejects=0.9 * lost.mean())
    with pytest.raises(TooManyRejects, match=f"{lost.sum()} of {COUNT} samples were rejected"):
        build(source, out, SampleSettings(), few)
    info = build(source, out, SampleSettings(), RunSettings(workers=1, max_rejects=0.99, restart=True))
    check(out, source, np.flatnonzero(~lost))
    first = Counter(
        {2: "missing file", 5: "not an image"}[next(i for i in row if i in (2, 5))] for row in rows[lost]
    )
    assert info["rejected"] == dict(sorted(first.items())) and info["seen"] == COUNT
    listed = {row["key"]: row["triplets"] for row in kit.rejects(out)}
    assert listed == {f"{i}.jpg": int((rows == i).any(1).sum()) for i in (2, 5)}


def test_what_converts_pictures_is_not_sent_the_table(tmp_path, source):
    job = Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    assert pickle.loads(pickle.dumps(job)).triplets is None and job.triplets is not None


def test_it_goes_on_where_it_was_killed(tmp_path, source, monkeypatch):
    out = tmp_path / "out.beton"

    def killed(job, unfinished):
        job.write(unfinished[1], lambda n: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, out, SampleSettings(), kit.ONE, killed)
    done = []

    def goes_on(job, unfinished):
        done.extend(unfinished)
        for number in unfinished:
            job.finished(number, job.write(number, lambda n: None))

    build(source, out, SampleSettings(), kit.ONE, goes_on)
    assert done == [0, 2]
    check(out, source, np.arange(COUNT))


@given(which=st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).filter(any))
def test_some_triplets_keep_their_pictures(which):
    whole, which = Made(Path("in")).triplets(), np.array(which)
    some = whole.chosen(which)
    names = np.array(whole.names)
    assert (np.array(some.names)[some.rows] == names[whole.rows[which]]).all()
    assert set(some.names) == set(names[whole.rows[which]].ravel().tolist())
    assert json.dumps(some.names) == json.dumps(sorted(some.names, key=whole.names.index))


def test_disk_space_is_told_beforehand(tmp_path, source):
    """Pictures twice (shards and the file), the table once; within a tenth of what is written."""
    job = Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    with job.lock():
        pictures = disk_space.needed(job.stream, SampleSettings(), len(job.tasks)) / 2
    build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
    file = Beton(tmp_path / "out.beton")
    data = sum(len(kit.jpeg(i)) for i in range(PICTURES))
    assert data <= pictures <= data + 300 * PICTURES
    each = file.dtype.itemsize + 5 * 24 + 12 + 2  # record, five allocations, luma, key
    assert job.triplets.table_bytes == COUNT * each


def test_a_build_that_would_fill_the_disk_does_not_begin(tmp_path, source, monkeypatch):
    free = Job(source, tmp_path / "out.beton", SampleSettings(), kit.ONE).triplets.table_bytes
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(ValueError, match="are needed .*--no-disk-check"):
        build(source, tmp_path / "out.beton", SampleSettings(), kit.ONE)
