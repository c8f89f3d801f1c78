"""Damaged images and a failing graph or GPU: what the DALI engine says, repairs, and refuses to hide."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from pipeline import dali_loader
from pipeline.augment import AUGMENTS
from pipeline.base import console
from pipeline.dali_graph import define
from pipeline.dali_loader import DALIFailed, DALILoader
from pipeline.ffcv_loader import FFCVLoader
from tests.kits.pipeline import (
    damaged_jpegs,
    decodable_but_for_dali,
    jpeg,
    pairs_file,
    picture,
    triplets_file,
)
from tests.pipeline.loaders.test_dali import loader
from tests.pipeline.loaders.test_loader import joined, take


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pairs_file(tmp_path_factory.mktemp("pairs") / "p.beton", 20)


@pytest.fixture(scope="module", params=[True, False], ids=["checksums", "none"])
def battered(request, tmp_path_factory):
    """A file most of whose pictures were damaged, each in a way of its own."""
    folder, each = tmp_path_factory.mktemp("battered"), 6
    whole = pairs_file(folder / "whole.beton", 120)
    broken = damaged_jpegs(whole, each)
    return pairs_file(folder / "p.beton", 120, broken=broken, checksums=request.param)


@pytest.mark.parametrize("preset", ["none", "paper"])
def test_both_engines_judge_every_damage_alike(battered, preset):
    """Some damage makes another sound JPEG of other pixels: without checksums neither can see that."""
    options = dict(batch_size=32, image_size=24, augment=AUGMENTS[preset], seed=1)
    ours = joined(list(FFCVLoader.one_pass(battered, **options)))
    theirs = joined(list(DALILoader.one_pass(battered, device="cpu", **options)))
    masked = int((~ours["valid"]).sum())
    assert masked == 108 if battered.checksummed else 40 < masked < 108
    assert ours["valid"][108:].all()
    assert torch.equal(ours["valid"], theirs["valid"])
    assert not theirs["images"][~theirs["valid"]].any()
    assert (ours["images"] - theirs["images"]).abs().flatten(1).mean(1).max() < 0.1


@pytest.mark.slow
def test_damage_is_masked_at_every_visit(battered):
    """In training, over epochs and on several ranks, of which each has seen other samples before."""
    options = dict(batch_size=10, world_size=3, workers=2)
    for rank in range(3):
        a = joined(take(loader(battered, rank=rank, **options), 12))
        b = joined(take(loader(battered, FFCVLoader, rank=rank, **options), 12))
        assert torch.equal(a["index"], b["index"]) and torch.equal(a["valid"], b["valid"])
        assert not a["images"][~a["valid"]].any()
        assert (a["images"] - b["images"]).abs().flatten(1).mean(1).max() < 0.1


def test_a_triplet_with_one_bad_picture_is_masked_whole(tmp_path):
    whole = triplets_file(tmp_path / "whole.beton", 6)
    data = bytearray(whole.jpeg(3, "left"))
    middle = len(data) * 2 // 3
    data[middle : middle + 24] = b"\xff" * 24
    bad = triplets_file(tmp_path / "t.beton", 6, broken={3: bytes(data)})
    (batch,) = DALILoader.one_pass(bad, batch_size=6, image_size=24, device="cpu")
    assert batch.valid.tolist() == [True, True, True, False, True, True]


def without_tables(data: bytes) -> bytes:
    """A whole JPEG by its markers, but with its quantisation tables turned into comments."""
    return data.replace(b"\xff\xdb", b"\xff\xfe")


@pytest.mark.parametrize("screened", [True, False])
def test_bad_samples_are_replaced_counted_named_and_masked(tmp_path, pairs, caplog, monkeypatch, screened):
    """Even those that only DALI stumbles over: each costs nothing but its own batch."""
    broken = {
        2: pairs.jpeg(2).tobytes()[:400], 5: b"<html>", 9: jpeg(picture(0, 8, 8)).data,
        12: without_tables(pairs.jpeg(12).tobytes()),
    }  # fmt: skip
    bad = pairs_file(tmp_path / "bad.beton", 20, broken=broken, checksums=screened)
    if not screened:
        decodable_but_for_dali(len(broken[12]), monkeypatch)
    with caplog.at_level(logging.WARNING, "pipeline"):
        stream = loader(bad)
        got = joined(take(stream, 10))
    clean = joined(take(loader(pairs), 10))
    expected = torch.tensor([i not in broken for i in got["index"].tolist()])
    assert torch.equal(got["index"], clean["index"]) and torch.equal(got["valid"], expected)
    assert not got["images"][~expected].any()
    error = (got["images"] - clean["images"])[expected].abs().flatten(1).mean(1)
    assert error.max() < 0.1  # a repaired batch comes from the other engine
    hit = {t // 6 for t in range(60) if got["index"][t] == 12 and not screened}
    untouched = torch.tensor([t // 6 not in hit for t in range(60)]) & expected
    assert torch.equal(got["images"][untouched], clean["images"][untouched])
    repaired = ~untouched & expected
    assert screened or not torch.equal(got["images"][repaired], clean["images"][repaired])
    assert stream.rejected == int((~expected).sum())
    named = [r.getMessage() for r in caplog.records]
    repairs = [n for n in named if n.startswith("DALI")]
    assert repairs == [] if screened else "gave up" in repairs[0] and "so far" in repairs[-1]
    named = [n for n in named if n not in repairs]
    assert len(named) == 4 and all(any(f"key key-{i})" in n for n in named) for i in broken)


class FailingPipe:
    """DALI's, whose runs end as `outcomes` say: None is what DALI does, a string its error."""

    def __init__(self, pipe, outcomes):
        self._pipe, self._outcomes = pipe, iter(outcomes)

    def build(self):
        self._pipe.build()

    def schedule_run(self):
        self._pipe.schedule_run()

    def outputs(self):
        result, outcome = self._pipe.outputs(), next(self._outcomes, None)
        if outcome is None:
            return result
        raise MemoryError(outcome) if outcome == "std::bad_alloc" else RuntimeError(outcome)


REFUSED = (
    "Critical error in pipeline:\nError in MIXED operator `nvidia.dali.fn.decoders.image`,\nwhich was used "
    'in the pipeline definition with the following traceback:\n\n  File "/opt/CUDA/x.py", line 13, in p\n\n'
    "encountered:\n\nFailed to decode sample #1 : \nCurrent pipeline object is no longer valid.\n"
)


@pytest.fixture
def failing(monkeypatch):
    def fail(*outcomes):
        monkeypatch.setattr(dali_loader, "define", lambda *a: FailingPipe(define(*a), outcomes))

    return fail


def test_a_fault_is_told_once_counted_and_repaired(pairs, failing, caplog):
    failing(REFUSED, None, REFUSED, REFUSED, None, REFUSED)
    with caplog.at_level(logging.WARNING, "pipeline"), loader(pairs) as stream:
        got = take(stream, 8)
    assert stream.repaired == 4 and all(b.valid.all() for b in got)
    assert [r.getMessage() for r in caplog.records] == [
        "DALI gave up a piece of a batch, which the CPU engine does instead: Failed to decode sample #1",
        "DALI has given up 2 pieces so far",
        "DALI has given up 4 pieces so far",
    ]
    ours = take(loader(pairs, FFCVLoader), 8)
    same = [torch.equal(a.images, b.images) for a, b in zip(got, ours)]
    assert same == [True, False, True, True, False, True, False, False]


def test_repeated_faults_end_the_run(pairs, failing):
    failing(None, REFUSED, REFUSED, REFUSED)
    with pytest.raises(DALIFailed, match=r"failed 3 times in a row: Failed to decode.*--engine ffcv"):
        take(loader(pairs), 8)


@pytest.mark.parametrize(
    "words",
    ["CUDA runtime API error cudaErrorIllegalAddress (700)", "CUDA allocation failed", "std::bad_alloc"],
)
def test_faults_of_the_gpu_end_the_run_at_once(pairs, failing, words):
    failing(None, words)
    with pytest.raises(DALIFailed, match=f"cannot go on: {re.escape(words)}.*--engine ffcv"):
        take(loader(pairs), 2)


@pytest.mark.parametrize("words", [REFUSED, "CUDA allocation failed"])
def test_training_ends_with_one_line(pairs, failing, words, capsys):
    failing(words, words, words)
    assert console.command(lambda: take(loader(pairs), 3)) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: DALI") and err.count("\n") == 1
