"""Small sets for the downstream tasks, in the layouts that people hold; all of them constructed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.downstream import counting
from tests.kits.eval import encoded, pictures, write_webdataset


def with_training(folder: Path, classes: list[str], test: list[int], train: list[int]) -> Path:
    """A clip-benchmark folder with train/ beside test/; an image's class shows in its colour."""
    for split, labels in (("train", train), ("test", test)):
        write_webdataset(folder, [coloured(c, i) for i, c in enumerate(labels)], labels, classes)
        if split == "train":
            (folder / "test").rename(folder / "train")
    return folder


def coloured(number: int, seed: int) -> bytes:
    """A picture in one of 8 colours with some noise."""
    base = np.array([number & 1, number >> 1 & 1, number >> 2 & 1]) * 180 + 30
    noise = np.random.default_rng(seed).integers(0, 40, (24, 24, 3))
    return encoded(Image.fromarray((base + noise).astype(np.uint8)))


def write_fsc147(folder: Path, monkeypatch: pytest.MonkeyPatch, sizes=(12, 6, 7)) -> Path:
    """FSC-147 in the small: brighter pictures have more points."""
    monkeypatch.setattr(counting, "COUNTS", dict(zip(("train", "val", "test"), sizes)))
    (folder / counting.IMAGES).mkdir(parents=True)
    rng, annotations, splits, number = np.random.default_rng(0), {}, {}, 0
    for split, size in counting.COUNTS.items():
        splits[split] = [f"{number + i}.jpg" for i in range(size)]
        for name in splits[split]:
            count = int(rng.integers(5, 60))
            image = Image.new("RGB", (40, 30), (4 * count, 60, 255 - 4 * count))
            (folder / counting.IMAGES / name).write_bytes(encoded(image, "jpeg"))
            annotations[name] = {"points": rng.random((count, 2)).tolist(), "box_examples_coordinates": []}
        number += size
    splits |= {"val_coco": [], "test_coco": splits["test"][:1]}  # as the published file has
    (folder / counting.ANNOTATIONS).write_text(json.dumps(annotations))
    (folder / counting.SPLITS).write_text(json.dumps(splits))
    return folder


def write_revisited(folder: Path, key: str = "rmine", gallery: int = 8) -> Path:
    """Two queries over a gallery."""
    (folder / "jpg").mkdir(parents=True)
    names = [f"all_souls_{i:06d}" for i in range(gallery + 2)]
    for name, picture in zip(names, pictures(gallery + 2)):
        (folder / "jpg" / f"{name}.jpg").write_bytes(encoded(picture, "jpeg"))
    truth = [
        {"bbx": [2.4, 3.6, 20.2, 30.5], "easy": [0, 3], "hard": [5], "junk": [1]},
        {"bbx": [0, 0, 30, 30], "easy": [], "hard": [2, 4], "junk": []},
    ]
    table = {"imlist": names[2:], "qimlist": names[:2], "gnd": truth}
    (folder / f"gnd_{key}.json").write_text(json.dumps(table))
    return folder


def write_instances(folder: Path, instances: int = 4) -> Path:
    """Query 0.png of each instance, gallery a.png and b.png of each and of one more, a distractor."""
    made = [encoded(p) for p in pictures(3 * instances + 3)]
    for i in range(instances + 1):
        for j, (part, name) in enumerate((("query", "0"), ("gallery", "a"), ("gallery", "b"))):
            if part == "query" and i == instances:
                continue
            (folder / part / f"item{i}").mkdir(parents=True, exist_ok=True)
            (folder / part / f"item{i}" / f"{name}.png").write_bytes(made[3 * i + j])
    return folder
