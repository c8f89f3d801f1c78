"""Constructed sets of human similarity in the layouts that people have, and a model's own vectors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat

from eval.alignment import judgements
from eval.alignment.judgements import ODD, Judgements
from eval.alignment.scores import Arrays
from eval.session import Session
from tests.kits.eval import MODEL, encoded, pictures

PEOPLE = 7  # of every constructed share of votes


def pngs(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    """A smooth random picture under each name."""
    for name, image in zip(names, pictures(len(names), seed)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, "bmp" if path.suffix.lower() == ".bmp" else "png"))


def npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def nights(folder: Path, count: int = 16) -> Path:
    """Triplets in NIGHTS' layout: soft votes, some of them even; every fourth is of the training split."""
    rows = ["id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet,prompt"]
    for i in range(count):
        names = (f"ref/{i}.png", f"distort/{i}_0.png", f"distort/{i}_1.png")
        right = (3 * i) % (PEOPLE + 2) / (PEOPLE + 1)
        split = "train" if i % 4 == 3 else "test"
        rows.append(f"{i},{1 - right},{right},8,{','.join(names)},{split},{i % 3 == 0},x")
        pngs(folder, names, i)
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    return folder


def bapps(folder: Path, counts: dict[str, int]) -> Path:
    """2afc/val with these subsets."""
    for seed, (subset, count) in enumerate(counts.items()):
        base = folder / "2afc" / "val" / subset
        for number, part in enumerate(("ref", "p0", "p1")):
            pngs(base / part, [f"{i:06d}.png" for i in range(count)], 10 * seed + number)
        for i in range(count):
            npy(base / "judge" / f"{i:06d}.npy", np.array([(i * 2 + seed) % 6 / 5], np.float32))
    return folder


def things(folder: Path, objects: int = 12, answers: int = 60, train: int = 0) -> Path:
    """gLocal's layout: test_10.npy, and train_90.npy where `train` answers are wanted."""
    pngs(folder / "images", [f"object_{i:02d}.png" for i in range(objects)])
    rng = np.random.default_rng(0)
    for name, count in (("test_10", answers), ("train_90", train)):
        if count:
            rows = np.stack([rng.permutation(objects)[:3] for _ in range(count)])
            npy(folder / "triplets" / f"{name}.npy", rows)
    return folder


def levels(folder: Path) -> Path:
    pngs(folder, [f"{i}.png" for i in range(9)])
    rng = np.random.default_rng(1)
    rows = ["a,b,c,odd,group"]
    for level in ("coarse", "fine", "boundary"):
        trios = [rng.permutation(9)[:3] for _ in range(5)]
        rows += [f"{a}.png,{b}.png,{c}.png,{'abc'[a % 3]},{level}" for a, b, c in trios]
    (folder / "levels.csv").write_text("\n".join(rows) + "\n")
    return folder


def peterson(folder: Path, categories: Sequence[str] = ("animals", "fruits")) -> Path:
    for seed, category in enumerate(categories):
        pngs(folder / category / "images", [f"{i}.png" for i in range(7 + seed)], seed)
        similar = np.random.default_rng(seed).uniform(0, 10, (7 + seed, 7 + seed))
        similar = (similar + similar.T) / 2
        similar[0, 3] = similar[3, 0] = np.nan if seed else similar[0, 3]  # a pair that nobody judged
        np.fill_diagonal(similar, 10)
        (folder / category / "sim_judgments").mkdir()
        savemat(folder / category / "sim_judgments" / "simMatrix.mat", {"simMatrix": similar})
    return folder


def tid2013(folder: Path) -> Path:
    """Three references with eight distortions each; two have one score."""
    names = [f"i{r:02d}_{d:02d}_1.bmp" for r in (1, 2, 3) for d in range(1, 9)]
    pngs(folder / "reference_images", [f"I{r:02d}.BMP" for r in (1, 2, 3)])
    pngs(folder / "distorted_images", names, 1)
    marks = np.random.default_rng(2).uniform(1, 7, len(names)).round(5)
    marks[5] = marks[11]
    lines = [f"{mark} {name}" for mark, name in zip(marks, names)]
    (folder / "mos_with_names.txt").write_text("\n".join(lines) + "\n")
    (folder / "mos_std.txt").write_text("0.1\n" * len(names))
    return folder


def jnd(folder: Path) -> Path:
    rows = ["ref_path,path,same,votes"]
    for i in range(12):
        pngs(folder, [f"ref/{i // 2}.png", f"distort/{i}.png"], i)
        rows.append(f"ref/{i // 2}.png,distort/{i}.png,{(5 * i) % 4 / 3:.3f},3")
    (folder / "jnd_votes.csv").write_text("\n".join(rows) + "\n")
    return folder


def root(place: Path) -> Path:
    """Several of them, under names as they are unpacked, with a folder that is no set."""
    nights(place / "nights")
    bapps(place / "BAPPS", {"cnn": 9, "color": 5})
    things(place / "things")
    levels(place / "Levels")
    peterson(place / "Peterson")
    tid2013(place / "tid2013")
    jnd(place / "jnd")
    (place / "holiday").mkdir()
    return place


# -- judgements without files -------------------------------------------------------------------------


class Nothing:
    """Images that are never looked at; the number is all that counts."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count


def odd(rows: np.ndarray, answers: np.ndarray, images: int) -> Judgements:
    """Odd-one-out judgements over images that are not there."""
    count = len(rows)
    return Judgements(
        kind=ODD,
        metrics=judgements._majority_and_soft("odd_one_out", answers),
        images=Nothing(images),
        names=tuple(map(str, range(images))),
        rows=rows.astype(np.int64),
        answers=answers,
        group=np.zeros(count, np.int16),
        groups=np.array([""]),
        clusters=np.empty((count, 0), np.int32),
        number=np.arange(count),
    )


def arrays(clusters: np.ndarray | None = None, group: np.ndarray | None = None, **columns) -> Arrays:
    """Outcomes as `eval/alignment/scores.py` takes them."""
    count = len(next(iter(columns.values())))
    groups, number = np.unique(np.full(count, "") if group is None else group, return_inverse=True)
    clusters = np.empty((count, 0)) if clusters is None else np.asarray(clusters).reshape(count, -1)
    return {"groups": groups, "group": number.astype(np.int16), "clusters": clusters.astype(np.int32)} | {
        name: np.asarray(column) for name, column in columns.items()
    }


# -- a model --------------------------------------------------------------------------------------


def vectors(now: Session, paths: Sequence[Path]) -> np.ndarray:
    """(U, D) float64 unit rows of files, one by one, by torchvision's and open_clip's own calls alone."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    transform = image_transform_v2(PreprocessCfg(size=now.model.model.visual.image_size), is_train=False)
    out = []
    with torch.inference_mode():
        for path in paths:
            pixels = transform(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
            out.append(now.model.model.encode_image(pixels[None])[0].double().numpy())
    return np.stack([vector / np.linalg.norm(vector) for vector in out])


def session(out: Path, model: str = MODEL, seed: int = 0) -> Session:
    from eval import session as sessions
    from eval.options import OneModel

    return sessions.start(OneModel(checkpoint=model, seed=seed, workers=1), model, out)
