"""Pictures for the report: retrieval answers of both arms side by side, and triplets.

Which queries are shown is drawn at random with a fixed seed within each kind of outcome (only one
arm right, both, neither), and the number of queries of each kind is shown beside: nothing is picked
by eye.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from eval import page, perceptual, sources
from eval.compare import Arm
from eval.results import Evaluation

SHOWN = 5  # answers a query
SIDE = 112  # pixels of a thumbnail's longer side


@dataclass
class Pictures:
    """Images of an evaluated set: the originals where they still lie, else the cached crops, else none."""

    evaluation: Evaluation
    key: str
    _images: object | None = field(default=None, init=False)
    _opened: bool = field(default=False, init=False)

    def _open(self) -> object | None:
        record = (
            self.evaluation.data["triplets"] if self.key == "triplets" else self.evaluation.datasets[self.key]
        )
        path = Path(record["path"])
        try:
            if self.key == "triplets":
                return perceptual.read(path.parent if path.suffix == ".csv" else path).images
            found = sources.read_folder(path)
            return None if found is None else found.images
        except (ValueError, OSError):  # moved or changed since: the crops are what was evaluated
            crops = record.get("crops")
            return np.load(crops, mmap_mode="r") if crops and Path(crops).is_file() else None

    def uri(self, index: int) -> str | None:
        """A data: URI of a thumbnail, or None where there is no picture any more."""
        if not self._opened:
            self._images, self._opened = self._open(), True
        if self._images is None or index >= len(self._images):
            return None
        image = self._images[index]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "webp", quality=82)
        return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"

    def tag(self, index: int, alt: str) -> str:
        uri = self.uri(index)
        if uri is None:
            return '<div class="blank" role="img" aria-label="picture not here any more"></div>'
        return f'<img src="{uri}" alt="{escape(alt, quote=True)}" loading="lazy">'


@dataclass(frozen=True)
class Kind:
    """Queries of one outcome: how many there are, and the few that are shown."""

    title: str
    count: int
    shown: list[int]


def kinds(a: np.ndarray, b: np.ndarray, labels: tuple[str, str], each: int, seed: int = 0) -> list[Kind]:
    """Split queries by whose first answer is right; a, b (Q,) bool."""
    rng = np.random.default_rng(seed)
    parts = (
        (f"only {labels[0]} is right", a & ~b),
        (f"only {labels[1]} is right", b & ~a),
        ("both are right", a & b),
        ("neither is right", ~a & ~b),
    )
    out = []
    for title, mask in parts:
        rows = np.flatnonzero(mask)
        chosen = rng.choice(rows, min(each, len(rows)), replace=False) if len(rows) else []
        out.append(Kind(title, len(rows), sorted(int(i) for i in chosen)))
    return out


def _standing(arrays: dict[str, np.ndarray], way: str, query: int, right: set[int]) -> str:
    """Where the right answer stands, and its margin over the best wrong one (or behind the first)."""
    top, scores = arrays[f"{way}_top"][query], arrays[f"{way}_scores"][query]
    place = int(arrays[f"{way}_rank"][query]) + 1
    found = [i for i, t in enumerate(top) if int(t) in right]
    wrong = [i for i, t in enumerate(top) if int(t) not in right]
    if not found or not wrong:
        return f"right answer at rank {place}"
    margin = float(scores[found[0]] - scores[wrong[0]])
    return f"right answer at rank {place}, margin {margin:+.3f}".replace("-", "−")


def _alt(record: dict, owner: np.ndarray, image: int) -> str:
    captions = record["captions"]
    return captions[image][0] if image < len(captions) and captions[image] else f"image {image}"


@dataclass(frozen=True)
class RetrievalPanel:
    """Figure 5 for one retrieval set and two arms (their first seeds)."""

    key: str
    arms: tuple[Arm, Arm]
    each: int = 2

    def _evaluations(self) -> list[Evaluation]:
        return [arm.runs[0].final for arm in self.arms]

    def _captions(self) -> tuple[dict, np.ndarray, list[str], np.ndarray]:
        one = self._evaluations()[0]
        record, arrays = one.datasets[self.key], one.arrays(self.key)
        kept = [record["captions"][i] for i in arrays["index"]]
        return record, arrays["index"], [c for group in kept for c in group], arrays["owner"]

    def html(self, way: str) -> str:
        """way: `i2t` or `t2i`."""
        record, index, captions, owner = self._captions()
        pictures = Pictures(self._evaluations()[0], self.key)
        hits = [e.arrays(self.key)[f"{way}_first"] == 0 for e in self._evaluations()]
        groups = kinds(hits[0], hits[1], (self.arms[0].label, self.arms[1].label), self.each)
        counts = ", ".join(f"{k.title} in {k.count:,}" for k in groups)
        out = [f'<p class="note">First answers to all {len(hits[0]):,} queries: {escape(counts)}.</p>']
        for kind in groups:
            for query in kind.shown:
                image = query if way == "i2t" else int(owner[query])
                head = f"{kind.title[0].upper()}{kind.title[1:]}"
                texts = (
                    [captions[m] for m in np.flatnonzero(owner == image)]
                    if way == "i2t"
                    else [captions[query]]
                )
                side = self._side(way, pictures, index, image, texts, head)
                bodies = [
                    self._answers(way, n, query, owner, captions, index, pictures, record) for n in (0, 1)
                ]
                out.append(f'<div class="query">{side}{"".join(bodies)}</div>')
        return "\n".join(out)

    def _side(
        self, way: str, pictures: Pictures, index: np.ndarray, image: int, texts: Sequence[str], head: str
    ) -> str:
        lines = "".join(f"<li>{escape(t)}</li>" for t in texts)
        picture = pictures.tag(int(index[image]), texts[0]) if way == "i2t" else ""
        what = "Ground truth" if way == "i2t" else "Caption"
        return (
            f'<div class="side">{picture}<div><h4>{escape(head)}</h4><span class="quiet">{what}</span>'
            f'<ul class="truth">{lines}</ul></div></div>'
        )

    def _answers(
        self, way: str, number: int, query: int, owner: np.ndarray, captions: list[str], index: np.ndarray,
        pictures: Pictures, record: dict,
    ) -> str:  # fmt: skip
        arrays = self._evaluations()[number].arrays(self.key)
        right = set(np.flatnonzero(owner == query).tolist()) if way == "i2t" else {int(owner[query])}
        items = []
        for answer, score in zip(arrays[f"{way}_top"][query][:SHOWN], arrays[f"{way}_scores"][query][:SHOWN]):
            good = int(answer) in right
            mark = ' class="right"' if good else ""
            score = f"{score:.3f}".replace("-", "−")
            if way == "i2t":
                text = escape(captions[int(answer)]) + (' <span class="up">✓</span>' if good else "")
                items.append(f'<li{mark}><span>{text}</span><span class="score">{score}</span></li>')
            else:
                alt = _alt(record, owner, int(index[answer]))
                items.append(
                    f"<li{mark}>{pictures.tag(int(index[answer]), alt)}{score}{' ✓' if good else ''}</li>"
                )
        kind = "answers" if way == "i2t" else "hits"
        name = page.arm_name(self.arms[number].label, number, dot=True)
        title = f"<h4>{name} {page.span(_standing(arrays, way, query, right), 'quiet')}</h4>"
        return f'<div>{title}<ol class="{kind}">{"".join(items)}</ol></div>'


def triplet_panel(arms: tuple[Arm, Arm], each: int = 2) -> str:
    """Triplets with the voted picture framed and both arms' distances beneath."""
    evaluations = [arm.runs[0].final for arm in arms]
    arrays = [e.arrays("triplets") for e in evaluations]
    credit = [
        perceptual.Choices(a["dist"], a["vote"], a["split"]).credit() == 1 for a in arrays
    ]  # even votes are NaN, so false
    pictures = Pictures(evaluations[0], "triplets")
    out = []
    for kind in kinds(credit[0], credit[1], (arms[0].label, arms[1].label), each):
        for row in kind.shown:
            out.append(_trio(pictures, arrays, row, kind))
    return f'<div class="trio">{"".join(out)}</div>'


def _trio(pictures: Pictures, arrays: list[dict], row: int, kind: Kind) -> str:
    images, vote = arrays[0]["rows"][row], float(arrays[0]["vote"][row])
    cells = []
    for place, title in enumerate(("reference", "left", "right")):
        voted = (place == 2 and vote > 0.5) or (place == 1 and vote < 0.5)
        below = [page.span(f"{a['dist'][row][place - 1]:.3f}", f"arm{n}") for n, a in enumerate(arrays)]
        small = "<br>".join(below) if place else title
        picture = pictures.tag(int(images[place]), title)
        cells.append(f"<div{' class=vote' if voted else ''}>{picture}<small>{small}</small></div>")
    caption = page.span(f"{escape(kind.title)} ({kind.count:,})", "quiet")
    return f'<div><div class="pics">{"".join(cells)}</div><p>{caption}</p></div>'
