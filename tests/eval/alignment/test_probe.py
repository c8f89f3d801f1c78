"""The linear probe: it finds what a linear map holds, from what it may see alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.alignment import judgements, probe, similarities
from tests.eval.alignment import kit

WIDTH = 16


@pytest.fixture(scope="module")
def constructed():
    """(features, judgements): people who look at three of the directions only."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(60, WIDTH, generator=generator) + 1, dim=-1)
    seen = F.normalize((features - features.mean(0))[:, :3], dim=-1)
    rows = np.stack([np.random.default_rng(i).permutation(60)[:3] for i in range(3000)])
    alike = similarities.of_pairs(seen, rows, judgements.PAIRS_OF[judgements.ODD])
    return features, kit.odd(rows, np.eye(3)[2 - alike.argmax(1)], 60)


def right(asked, features, rows) -> float:
    credit = judgements.odd_credit(judgements.cosines(asked, features, rows), asked.answers[rows])
    return float(credit["odd_one_out"].mean())


@pytest.mark.slow
def test_it_finds_what_people_look_at_and_is_the_same_every_time(constructed):
    features, asked = constructed
    fit_on, held_out = np.arange(2500), np.arange(2500, 3000)
    fitted = probe.fit(features, asked, fit_on)
    assert right(asked, features, held_out) < 0.6 < 0.75 < right(asked, fitted(features), held_out)
    again = probe.fit(features, asked, fit_on)
    assert torch.equal(fitted.weight, again.weight)
    moved = fitted.weight - torch.eye(WIDTH)
    assert moved[3:, 3:].diagonal().mean() < 0 < moved[:3, :3].diagonal().mean()


@pytest.mark.slow
def test_of_noise_it_learns_nothing_that_holds_for_others(constructed):
    features, asked = constructed
    odd = np.eye(3)[np.random.default_rng(0).integers(0, 3, len(asked.rows))]
    noise = replace(asked, answers=odd)
    fitted = probe.fit(features, noise, np.arange(2500))
    assert right(noise, fitted(features), np.arange(2500, 3000)) == pytest.approx(1 / 3, abs=0.07)


@pytest.mark.slow
def test_2afc(constructed):
    """The same people, asked which of two is nearer."""
    features, asked = constructed
    seen = F.normalize((features - features.mean(0))[:, :3], dim=-1)
    alike = similarities.of_pairs(seen, asked.rows, judgements.PAIRS_OF[judgements.TWOAFC])
    vote = (alike[:, 1] > alike[:, 0]).astype(float)
    asked = replace(asked, kind=judgements.TWOAFC, answers=vote, metrics=("twoafc",))
    fitted = probe.fit(features, asked, np.arange(2500))(features)
    held_out = asked.part(np.arange(2500, 3000))
    credit = [
        judgements.outcomes(held_out, judgements.cosines(held_out, x))["twoafc"].mean()
        for x in (features, fitted)
    ]
    assert credit[0] < 0.7 and credit[1] > 0.8


def test_the_penalty_keeps_it_near_the_identity(constructed, monkeypatch):
    features, asked = constructed
    monkeypatch.setattr(probe, "STEPS", 40)
    moved = []
    for penalty in (0.0, 100.0):
        monkeypatch.setattr(probe, "PENALTY", penalty)
        fitted = probe.fit(features, asked, np.arange(500))
        moved.append(float((fitted.weight - torch.eye(WIDTH)).norm()))
    assert moved[1] < 0.2 * moved[0]


def test_folds_share_no_image(constructed):
    _, asked = constructed
    tested = []
    for fit_on, held_out in probe.folds(asked):
        assert not {*asked.rows[fit_on].ravel()} & {*asked.rows[held_out].ravel()}
        assert len(fit_on) > len(held_out) > 0
        tested += held_out.tolist()
    assert len(tested) == len({*tested}) and len({*asked.rows[tested].ravel()}) > 50
    again = [held_out.tolist() for _, held_out in probe.folds(asked)]
    assert [i for part in again for i in part] == tested
