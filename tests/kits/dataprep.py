"""Small sources in every layout, for the dataprep tests."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from dataprep.build import RunSettings
from dataprep.build_ffcv import main
from pipeline.beton.fields import Beton
from pipeline.formats.nights import COLUMNS
from pipeline.text import decode, tokenize

ONE = RunSettings(workers=1)
WORDS = ["red", "green", "blue", "cat", "dog", "tree", "house", "boat", "cloud", "river"]


def jpeg(seed: int, height: int = 40, width: int = 56) -> bytes:
    """A small baseline JPEG, another one for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def caption(seed: int) -> str:
    rng = np.random.default_rng(seed)
    return f"{' '.join(rng.choice(WORDS, 3))} number {seed}"


def folder_of_images(folder: Path, count: int) -> list[tuple[str, str]]:
    """`count` images under `folder`/images; (relative path, caption) of each."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for n in range(count):
        (folder / "images" / f"{n:03d}.jpg").write_bytes(jpeg(n))
        rows.append((f"images/{n:03d}.jpg", caption(n)))
    return rows


def write_csv(path: Path, rows: list[tuple], header=("filepath", "caption"), delimiter=",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def captions_table(folder: Path, count: int) -> Path:
    """captions.csv of `count` images under `folder`."""
    return write_csv(folder / "captions.csv", folder_of_images(folder, count))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_of(path, *samples: tuple[str, dict[str, bytes | str]]):
    """A tar of (key, {ending: content})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [(f"{key}.{end}", data) for key, parts in samples for end, data in parts.items()]
    encoded = [(name, data.encode() if isinstance(data, str) else data) for name, data in members]
    return write_tar(path, encoded)


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def nights_folder(folder: Path, count: int, votes: int = 8, **change) -> Path:
    """A folder in NIGHTS' own layout; every fourth row is of the test split."""
    rows = []
    for n in range(count):
        names = f"ref/000/{n:03d}.png", f"distort/000/{n:03d}_0.png", f"distort/000/{n:03d}_1.png"
        for k, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(jpeg(1000 + 3 * n + k))
        left = n % 2
        split = "test" if n % 4 == 3 else "val" if n % 4 == 2 else "train"
        rows.append([n, left, 1 - left, votes, *names, split, n % 8 == 3, f"prompt {n}"])
    header = ("id", *COLUMNS, "split", "is_imagenet", "prompt")
    write_csv(folder / "data.csv", rows, header)
    return folder


def keys(beton: Beton) -> list[str]:
    return [beton.text("key", i) for i in range(len(beton))]


def tokens(beton: Beton) -> np.ndarray:
    return beton.rows(np.arange(len(beton))).arrays("tokens")


def expected_tokens(captions: list[list[str]]) -> np.ndarray:
    """(N, K, 77) of captions an image, unused rows zero."""
    most = max(map(len, captions))
    out = np.zeros((len(captions), most, 77), np.int32)
    for row, several in zip(out, captions):
        row[: len(several)] = tokenize(several)
    return out


def rejects(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.with_suffix(".rejects.jsonl").read_text().splitlines()]


def make(source, out, *more: str) -> int:
    """`build_ffcv.py pairs`, in this process."""
    return main(["pairs", "--source", str(source), "--out", str(out), "--workers", "1", *more])


def taken(out) -> list[tuple[str, list[str]]]:
    """(key, captions) of a file, the captions as they are stored."""
    beton = Beton(out)
    rows = [[decode(row) for row in table if row[0]] for table in tokens(beton)]
    return list(zip(keys(beton), rows))


def table_of(path, body: str | bytes):
    """A table, and images 0.jpg … 8.jpg beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for n in range(9):
        (path.parent / f"{n}.jpg").write_bytes(jpeg(n))
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return path
