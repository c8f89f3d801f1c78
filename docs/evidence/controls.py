"""Is it the human part of the prior?  Both demo models, judged on a vendor that `choose.py` never saw."""

from dataclasses import replace
from pathlib import Path

from eval.study import studies
from eval.study.studies import Arm, Study, Training

CHOSEN = {"lr": "3e-4", "steps": "400"}  # of stage 1, by choose.py
HUMAN = Path("data/human")
NOTO = Path("data/demo-noto")
FLAGS = {
    1: {"prior": "nights", "data": str(HUMAN / "triplets-train.beton"), **CHOSEN},
    2: {"data": str(NOTO / "pairs-train.beton"), "epochs": "10"},
}


def ours(training: Training, model: str) -> Training:
    """The same training of this model, data and recipe."""
    like = None if training.like is None else ours(training.like, model)
    flags = {"model": model, "precision": "bf16", **FLAGS[training.stage]}
    return replace(training.with_flags(**flags), like=like)


def of_both_models(arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
    return tuple(
        replace(
            arm, label=f"{arm.label}, {model}", group=model, chain=tuple(ours(t, model) for t in arm.chain)
        )
        for model in ("demo-RN", "demo-ViT")
        for arm in arms
    )


STUDY = Study(
    name="controls",
    description="Is it the human part of the prior?",
    arms=of_both_models(studies.controls("demo")),
    seeds=12,
    data=NOTO / "eval",
    triplets=HUMAN / "triplets-test.beton",
)
