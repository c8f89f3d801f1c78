"""Reads a finished .beton back: `verify` looks at every sample, `inspect` describes the file.

Not here: building; what a loader makes of the samples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataprep.convert import mean_luma
from dataprep.pool import run
from pipeline import text
from pipeline.base.console import Progress
from pipeline.beton import fields as f
from pipeline.formats import pictures

_CHUNK = 2_000  # samples a task
_SHOWN = 20  # faults that are named
_LUMA = 16.0  # of 255: the mean was taken before the encoding, which shifts noise and saturated colours


@dataclass
class Findings:
    """What `verify` found in some samples."""

    faults: Counter = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def add(self, index: int, name: str, fault: str, detail: str = "") -> None:
        self.faults[f"{name}: {fault}"] += 1
        if len(self.named) < _SHOWN:
            self.named.append(f"sample {index}: {name}: {fault}{': ' + detail if detail else ''}")


@dataclass(frozen=True)
class Verifier:
    """Checks stretches of samples of one file; picklable."""

    path: Path

    def check(self, task: int, step) -> Findings:
        """Look at the samples of stretch `task`."""
        beton, findings = f.Beton(self.path), Findings()
        indices = np.arange(task * _CHUNK, min((task + 1) * _CHUNK, len(beton)))
        images = [n for n, column in beton.fields.items() if column.kind == f.IMAGE]
        rows = beton.rows(indices)
        lumas = rows.records["luma"][:, None] if len(images) == 1 else rows.arrays("luma")
        for column, name in enumerate(images):
            known: dict[int, tuple] = {}  # a shared image is decoded once a stretch
            pointers = rows.records[name]["data_ptr"].tolist()
            for index, pointer in zip(indices.tolist(), pointers):
                if pointer not in known:
                    known[pointer] = _image(beton, index, name)
                    step(1 if column == 0 else 0)
                fault, detail, luma = known[pointer]
                if fault:
                    findings.add(index, name, fault, detail)
                elif abs(luma - lumas[index - indices[0], column]) > _LUMA:
                    findings.add(index, name, "stored mean luma is wrong", f"the pixels have {luma:.1f}")
        for index in indices.tolist():
            if not beton.text("key", index):
                findings.add(index, "key", "empty")
        _tokens(rows, indices, findings) if beton.kind == "pairs" else _votes(rows, indices, findings)
        return findings


def _image(beton: f.Beton, index: int, name: str) -> tuple[str, str, float]:
    """(fault, detail, mean luma) of one stored image; decoded in full."""
    height, width = beton.sizes(name, np.array(index)).tolist()
    try:
        data = beton.jpeg(index, name).tobytes()
        head = pictures.read_head(data)
        if head is None or head.sof != 0xC0 or len(head.components) != 3:
            return "not a baseline RGB JPEG", "", 0.0
        return "", "", mean_luma(pictures.stored(data, height, width))
    except ValueError as error:
        return "engines refuse it", str(error), 0.0


def _tokens(rows: f.Rows, indices: np.ndarray, findings: Findings) -> None:
    tokens = rows.arrays("tokens")  # (N, K, 77)
    lengths = text.lengths(tokens)
    used = tokens[..., 0] != 0
    position = np.arange(f.CONTEXT_LENGTH)
    begun = tokens[..., 0] == text.START
    ended = np.take_along_axis(tokens, lengths[..., None] - 1, -1)[..., 0] == text.END
    zero_after = (np.where(position >= lengths[..., None], tokens, 0) == 0).all(-1)
    fine = np.where(used, begun & ended & zero_after, ~tokens.any(-1))
    for row in np.flatnonzero(~used[:, 0]):
        findings.add(int(indices[row]), "tokens", "no caption")
    for row in np.flatnonzero(~fine.all(-1)):
        findings.add(int(indices[row]), "tokens", "not start, words, end, zeros")


def _votes(rows: f.Rows, indices: np.ndarray, findings: Findings) -> None:
    vote, votes = rows.records["vote"], rows.records["votes"]
    for row in np.flatnonzero(~((vote >= 0) & (vote <= 1))):
        findings.add(int(indices[row]), "vote", "not a fraction", str(vote[row]))
    for row in np.flatnonzero(votes < 0):
        findings.add(int(indices[row]), "votes", "negative")


def verify(path: Path, workers: int) -> Findings:
    """Check every sample of `path`, and that its JSON speaks of this file; prints what is wrong."""
    beton, findings = f.Beton(path), Findings()
    assert beton.kind  # ValueError for a file with other columns
    if beton.info.get("samples", len(beton)) != len(beton):
        findings.add(-1, "json", "speaks of another number of samples", str(beton.info["samples"]))
    if beton.info.get("bytes", beton.size) != beton.size:
        findings.add(-1, "json", "speaks of another length of the file", str(beton.info["bytes"]))
    tasks = range(-(-len(beton) // _CHUNK))
    weights = [min(_CHUNK, len(beton) - _CHUNK * n) for n in tasks]

    def finished(_: int, found: Findings) -> None:
        findings.faults.update(found.faults)
        findings.named.extend(found.named)

    run(Verifier(Path(path)).check, tasks, weights, workers, Progress(Path(path).name, len(beton)), finished)
    for line in findings.named[:_SHOWN]:
        print(line)
    total = sum(findings.faults.values())
    for fault, count in findings.faults.most_common():
        print(f"{count:,} × {fault}")
    print(f"{path}: {len(beton):,} samples, " + (f"{total:,} faults" if total else "all sound"))
    return findings


# -- inspect --------------------------------------------------------------------------------


def inspect(path: Path, sheet: Path | None, count: int = 24) -> None:
    """Print what a file holds, and draw a contact sheet of samples spread over it."""
    beton = f.Beton(path)
    images = [n for n, column in beton.fields.items() if column.kind == f.IMAGE]
    print(f"{path}: {beton.kind}, {len(beton):,} samples, {beton.size / 1e6:,.1f} MB, "
          f"pages of {beton.page_size >> 20} MiB")  # fmt: skip
    some = np.unique(np.linspace(0, len(beton) - 1, min(len(beton), 100_000)).astype(np.int64))
    rows = beton.rows(some)
    for name in images:
        _, sizes = rows.spans(name)
        sides = rows.sizes(name)
        print(f"  {name}: short side {_spread(sides.min(-1))} px, long side {_spread(sides.max(-1))} px, "
              f"{_spread(sizes)} bytes")  # fmt: skip
    if beton.kind == "pairs":
        tokens = beton.arrays("tokens", some[:20_000])
        used = tokens[..., 0] != 0
        print(f"  captions: up to {tokens.shape[1]} an image, {used.sum(1).mean():.2f} on average; "
              f"{_spread(text.lengths(tokens[used]))} tokens with start and end")  # fmt: skip
        print(f"  mean luma: {_spread(rows.records['luma'])}")
    else:
        vote = beton.metadata["vote"]
        histogram = np.histogram(vote, np.linspace(0, 1, 6))[0]
        print(f"  vote for right: mean {vote.mean():.3f}, in fifths {histogram.tolist()}; "
              f"{_spread(rows.records['votes'])} votes a triplet")  # fmt: skip
        print(f"  votes are {beton.info.get('votes', 'of unknown origin')}")
    for reason, number in beton.info.get("rejected", {}).items():
        print(f"  rejected {number:,}: {reason}")
    if sheet is not None:
        draw_sheet(beton, images, sheet, count)
        print(f"  contact sheet: {sheet}")


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:,.0f}…{middle:,.0f}…{high:,.0f}"


def draw_sheet(beton: f.Beton, images: list[str], out: Path, count: int) -> None:
    """A PNG of `count` samples spread evenly over the file, with keys and captions or votes."""
    side, line, pad = 160, 14, 8
    across = 6 if len(images) == 1 else 2
    chosen = np.unique(np.linspace(0, len(beton) - 1, min(count, len(beton))).astype(np.int64)).tolist()
    lines = 4 if beton.kind == "pairs" else 2
    width, height = len(images) * side + pad, side + lines * line + pad
    rows = -(-len(chosen) // across)
    page = Image.new("RGB", (across * width + pad, rows * height + pad), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for place, index in enumerate(chosen):
        x, y = pad + place % across * width, pad + place // across * height
        for column, name in enumerate(images):
            with Image.fromarray(pictures.decode_jpeg(beton.jpeg(index, name).tobytes())) as image:
                image.thumbnail((side - 4, side - 4))
                page.paste(image, (x + column * side, y))
        words = _label(beton, index, lines, width // 6)
        draw.multiline_text((x, y + side), words, "black", font, spacing=1)
    page.save(out)


def _label(beton: f.Beton, index: int, lines: int, letters: int) -> str:
    key = beton.text("key", index)[-letters:]
    if beton.kind == "triplets":
        record = beton.rows([index]).records[0]
        vote, votes = float(record["vote"]), int(record["votes"])
        return f"{key}\nref, left, right: {vote:.2f} of {votes} for right"
    tokens = beton.arrays("tokens", np.array([index]))[0]
    captions = [text.decode(row)[:letters] for row in tokens if row[0]]
    return "\n".join([key, *captions][:lines])
