"""Runs that were evaluated, without training or a real model, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval import encode, results, scoring
from eval.cache import Cache
from eval.distributed import Ranks
from eval.metrics import perceptual, zeroshot
from eval.report import command as report
from eval.sets import sources
from tests.kits.eval import encoded, encoders, pictures, write_webdataset

NAMES = [f"thing {i}" for i in range(8)]
COUNT = 24  # images of each set


def paper_sets(root: Path) -> Path:
    """Small sets under names of the paper's, from four families and retrieval."""
    images = [encoded(p) for p in pictures(COUNT)]
    for key, classes in (
        ("imagenet1k", 8),
        ("imagenet-a", 8),
        ("vtab-dtd", 6),
        ("vtab-pcam", 2),
        ("cifar10", 8),
    ):
        write_webdataset(root / f"wds_{key}", images, [i % classes for i in range(COUNT)], NAMES[:classes])
    captions = [[f"<b>{i}</b>", f"caption {i}"] for i in range(COUNT)]
    write_webdataset(root / "wds_mscoco_captions", images, captions)
    return root


def constructed_triplets(root: Path) -> perceptual.Triplets:
    """Triplets of two splits over the images of CIFAR-10 in `paper_sets`."""
    return perceptual.Triplets(
        path=root,
        images=sources.read_webdataset(root / "wds_cifar10").images,
        rows=np.array([(i, (i + 1) % COUNT, (i + 2) % COUNT) for i in range(COUNT)]),
        vote=np.arange(COUNT) % 2.0,
        split=np.array(["test", "val"] * (COUNT // 2)),
        voters=perceptual.CONSTRUCTED,
        source="demo",
    )


def evaluated(
    root: Path,
    folder: Path,
    seed: int,
    noise: float = 1.0,
    steps: Sequence[int] = (100,),
    init: str | None = None,
) -> Path:
    """A run folder with evaluations; less noise, better figures: images get their class's text vector."""
    sets, made = sources.discover(root), encoders()
    texts = encode.text_features([t for s in sets for t in scoring.set_texts(s)], made, 64, Ranks())
    real = encode.image_features
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * seed + step)

        def fake(crops, *rest, generator=generator, step=step):
            features, unreadable = real(crops, *rest)
            evalset = next((s for s in sets if s.images is crops.images), None)
            if evalset is not None:
                vectors = _own_texts(evalset, texts)
                vectors = vectors - vectors.mean(0)  # what tells the classes apart
                level = noise * 100 / step * vectors.norm(dim=1).mean()
                shift = F.normalize(torch.randn(vectors.shape, generator=generator), dim=-1)
                features = F.normalize(vectors + level * shift, dim=-1)
            return features, unreadable

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode, "image_features", fake)
            settings = scoring.Settings(workers=1)
            outcome = scoring.score(made, sets, constructed_triplets(root), Cache(None), settings, Ranks())
        recipe = {"model": "tiny", "seed": seed, "init": init, "optim": {"lr": 0.1}, "run": str(folder)}
        checkpoint = {"model": "tiny", "pretrained": "x", "source": "x", "step": step, "samples": 10 * step}
        about = {"checkpoint": checkpoint, "recipe": recipe, "settings": {"device": "cpu"}, "versions": {}}
        results.write(folder / "eval" / f"step-{step:06d}", outcome, about)
    rows = [
        {"step": s, "samples": 10 * s, "loss": 5 / (s + seed + 1), "val_loss": None} for s in range(1, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def _own_texts(evalset, texts: dict[str, torch.Tensor]) -> torch.Tensor:
    """(N, D): the vector of each image's class, or of its first caption."""
    if evalset.prompts is None:
        return encode.stacked([captions[0] for captions in evalset.captions], texts)
    prompts = encode.stacked(evalset.prompts.texts(), texts)
    return zeroshot.classifier(prompts, len(evalset.prompts.classes)).T[evalset.labels]


def voted(folder: Path, votes: Sequence[float], seed: int, voters: str = "v") -> Path:
    """An evaluation of triplets alone, whose votes are these."""
    count = len(votes)
    dist = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    choices = perceptual.Choices(dist, np.array(votes), np.full(count, "test"))
    triplets = perceptual.Triplets(
        path=folder,
        images=sources.FileImages([sources.Member.whole(folder / "x.png")]),
        rows=np.zeros((count, 3), np.int64),
        vote=choices.vote,
        split=choices.split,
        voters=voters,
    )
    result = scoring.TripletResult(
        triplets=triplets,
        metrics=perceptual.metrics(choices),
        arrays={"rows": triplets.rows, **vars(choices)},
    )
    checkpoint = {"model": "tiny", "pretrained": "x", "source": "x", "activation": "QuickGELU"}
    checkpoint["assumed"] = ["assumed, since no file tells: <this>"]
    settings = {"preprocess": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    about = {"checkpoint": checkpoint, "recipe": None, "settings": settings, "versions": {}}
    results.write(folder / "eval", scoring.Outcome(sets=[], triplets=result, seconds={}), about)
    return folder


def page(*specs: object, tmp_path: Path) -> tuple[str, list]:
    """The report of these runs, and its charts."""
    return report.build(report.Report(runs=tuple(str(s) for s in specs), out=tmp_path))


def change(evaluation: Path, edit) -> None:
    """Edit what a results.json holds."""
    file = evaluation / results.RESULTS
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))
