"""The report's curves of training logs."""

from __future__ import annotations

from types import SimpleNamespace

from eval.report import curves, figures


def test_validations_stand_at_the_samples_of_their_step(monkeypatch):
    # As training writes them: a validation's row follows the training row of its step.
    log = []
    for step in (2, 4, 6):
        log += [{"step": step, "samples": 32 * step, "loss": 1 / step}, {"step": step, "val_loss": 2 / step}]
    drawn = {}
    monkeypatch.setattr(figures, "lines", lambda name, title, lines, *a, **k: drawn.update({name: lines}))
    run = SimpleNamespace(log=log, recipe={})
    curves.learning([SimpleNamespace(label="PI", runs=[run])])
    for name, y in (("curve-loss", [1 / 2, 1 / 4, 1 / 6]), ("curve-val_loss", [2 / 2, 2 / 4, 2 / 6])):
        (line,) = drawn[name]
        assert list(line.x) == [64, 128, 192] and list(line.y) == y
