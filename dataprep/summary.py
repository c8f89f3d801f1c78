"""`inspect`: describes a finished .beton and draws a contact sheet of its samples.

Not here: whether the samples are sound (`verify.py`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataprep.verify import image_columns
from pipeline import text
from pipeline.base.console import say
from pipeline.beton.fields import Beton
from pipeline.formats import pictures

_SIZES, _CAPTIONS = 100_000, 20_000  # samples that are looked at
_SIDE, _LINE, _PAD = 160, 14, 8  # pixels of the contact sheet: an image, a line of text, a margin


def inspect(path: Path, sheet: Path | None, count: int = 24) -> None:
    """Print what a file holds, and draw a contact sheet of `count` samples."""
    beton = Beton(path)
    say(
        f"{path}: {beton.kind}, {len(beton):,} samples, {beton.size / 1e6:,.1f} MB, "
        f"pages of {beton.page_size >> 20} MiB"
    )
    _describe(beton)
    for reason, number in beton.info.get("rejected", {}).items():
        say(f"  rejected {number:,}: {reason}")
    if sheet is not None:
        draw_sheet(beton, sheet, count)
        say(f"  contact sheet: {sheet}")


def _describe(beton: Beton) -> None:
    samples = _spread_over(beton, _SIZES)
    rows = beton.rows(samples)
    for name in image_columns(beton):
        _, sizes = rows.spans(name)
        sides = rows.sizes(name)
        say(
            f"  {name}: short side {_range(sides.min(-1))} px, long side {_range(sides.max(-1))} px, "
            f"{_range(sizes)} bytes"
        )
    if beton.kind == "pairs":
        tokens = beton.rows(samples[:_CAPTIONS]).arrays("tokens")
        used = tokens[..., 0] != 0
        say(
            f"  captions: up to {tokens.shape[1]} an image, {used.sum(1).mean():.2f} on average; "
            f"{_range(text.lengths(tokens[used]))} tokens with start and end"
        )
        say(f"  mean luma: {_range(rows.records['luma'])}")
    else:
        vote = rows.records["vote"]
        histogram = np.histogram(vote, np.linspace(0, 1, 6))[0]
        say(
            f"  vote for right: mean {vote.mean():.3f}, in fifths {histogram.tolist()}; "
            f"{_range(rows.records['votes'])} votes a triplet"
        )
        say(f"  votes are {beton.info.get('votes', 'of unknown origin')}")


def _spread_over(beton: Beton, most: int) -> np.ndarray:
    """Numbers of at most so many samples, evenly over the file."""
    return np.unique(np.linspace(0, len(beton) - 1, min(most, len(beton))).astype(np.int64))


def _range(values: np.ndarray) -> str:
    """Least, median and greatest."""
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:,.0f}…{middle:,.0f}…{high:,.0f}"


def draw_sheet(beton: Beton, out: Path, count: int) -> None:
    """A PNG of `count` samples spread evenly over the file, with keys and captions or votes."""
    images, samples = image_columns(beton), _spread_over(beton, count).tolist()
    across = 6 if len(images) == 1 else 2
    lines = 4 if beton.kind == "pairs" else 2
    width, height = len(images) * _SIDE + _PAD, _SIDE + lines * _LINE + _PAD
    down = -(-len(samples) // across)
    page = Image.new("RGB", (across * width + _PAD, down * height + _PAD), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, index in enumerate(samples):
        x, y = _PAD + number % across * width, _PAD + number // across * height
        for column, name in enumerate(images):
            with Image.fromarray(pictures.decode_jpeg(beton.jpeg(index, name).tobytes())) as image:
                image.thumbnail((_SIDE - 4, _SIDE - 4))
                page.paste(image, (x + column * _SIDE, y))
        label = _label(beton, index, lines, width // 6)
        draw.multiline_text((x, y + _SIDE), label, "black", font, spacing=1)
    page.save(out)


def _label(beton: Beton, index: int, lines: int, letters: int) -> str:
    key = beton.text("key", index)[-letters:]
    if beton.kind == "triplets":
        record = beton.rows(np.array([index])).records[0]
        vote, votes = float(record["vote"]), int(record["votes"])
        return f"{key}\nref, left, right: {vote:.2f} of {votes} for right"
    tokens = beton.rows(np.array([index])).arrays("tokens")[0]
    captions = [text.decode(row)[:letters] for row in tokens if row[0]]
    return "\n".join([key, *captions][:lines])
