"""How the prior is learned and what is carried over: both demo models, evaluated on a vendor that chooses."""

from pathlib import Path

from eval.study.studies import Arm, Study, Training

HUMAN = Path("data/human")
TWEMOJI = Path("data/demo-twemoji")


def arms(model: str) -> tuple[Arm, ...]:
    shared = {"model": model, "precision": "bf16"}
    first = Training(
        stage=1,
        recipe="demo",
        flags={**shared, "prior": "nights", "data": str(HUMAN / "triplets-train.beton")},
    )
    second = Training(
        stage=2,
        recipe="demo",
        flags={**shared, "epochs": "10", "data": str(TWEMOJI / "pairs-train.beton")},
    )
    slow = first.with_flags(lr="3e-4")
    lengths, norms = {"init-lengths": "fresh"}, {"init-norms": "fresh"}
    chains = {
        "rate 3e-4": (slow, second),
        "rate 1e-4": (first.with_flags(lr="1e-4"), second),
        "40 steps": (first.with_flags(steps="40"), second),
        "rate 3e-4, 400 steps": (slow.with_flags(steps="400"), second),
        "rate 3e-4, 400 steps of 32": (slow.with_flags(steps="400", batch="32"), second),
        "lengths fresh": (first, second.with_flags(**lengths)),
        "norms fresh": (first, second.with_flags(**norms)),
        "both fresh": (first, second.with_flags(**lengths, **norms)),
    }
    return (
        Arm(label=f"Baseline, {model}", chain=(second,), group=model, role="baseline"),
        Arm(label=f"PI, {model}", chain=(first, second), group=model, role="subject"),
        *(Arm(label=f"{name}, {model}", chain=chain, group=model) for name, chain in chains.items()),
    )


STUDY = Study(
    name="choose",
    description="How the prior is learned and what is carried over, evaluated on twemoji",
    arms=arms("demo-RN") + arms("demo-ViT"),
    seeds=3,
    data=TWEMOJI / "eval",
    triplets=HUMAN / "triplets-test.beton",
)
