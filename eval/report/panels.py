"""Pictures for the report: retrieval answers of both arms side by side, and triplets.

Retrieval (Figure 5) is drawn twice from the same queries: in the page, and as a file by `figures.answers`.

Which queries are shown is drawn at random with a fixed seed within each kind of outcome (only one
arm right, both, neither), and the number of queries of each kind is shown beside: nothing is picked
by eye.
"""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from eval.crops import mapped
from eval.metrics import perceptual
from eval.report import page
from eval.report.compare import Arm
from eval.results import Evaluation
from eval.sets import sources

SHOWN = 5  # answers a query
SIDE = 112  # pixels of a thumbnail's longer side


@dataclass
class Pictures:
    """Images of an evaluated set: the originals where they still lie, else the cached crops, else none."""

    evaluation: Evaluation
    key: str
    _images: object | None = field(default=None, init=False)
    _opened: bool = field(default=False, init=False)

    def _originals(self, path: Path) -> object | None:
        if self.key == "triplets":
            splits = dict.fromkeys(self.evaluation.arrays("triplets")["split"].tolist())
            return perceptual.read(path.parent if path.suffix == ".csv" else path, tuple(splits)).images
        found = sources.read_folder(path)
        return None if found is None else found.images

    def _open(self) -> object | None:
        data = self.evaluation.data
        record = data["triplets"] if self.key == "triplets" else self.evaluation.datasets[self.key]
        images, crops = None, Path(record["crops"] or "")
        with suppress(ValueError, OSError):  # moved or changed since
            images = self._originals(Path(record["path"]))
        if images is None and crops.is_file():  # what was evaluated
            images = mapped(crops)
        return images

    def thumbnail(self, index: int) -> Image.Image | None:
        """None where there is no picture any more."""
        if not self._opened:
            self._images, self._opened = self._open(), True
        if self._images is None or index >= len(self._images):
            return None
        image = self._images[index]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return image

    def uri(self, index: int) -> str | None:
        """A data: URI of a thumbnail, or None where there is no picture any more."""
        image = self.thumbnail(index)
        if image is None:
            return None
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


def _alt(record: dict, image: int) -> str:
    captions = record["captions"]
    return captions[image][0] if image < len(captions) and captions[image] else f"image {image}"


@dataclass(frozen=True)
class Answer:
    """One of an arm's first answers: a caption, or an image of the set."""

    text: str  # the caption, or one of the image's
    image: int | None  # its number in the set
    score: float
    right: bool

    def said(self) -> str:
        return f"{self.score:.3f}".replace("-", "−")


@dataclass(frozen=True)
class Query:
    """One query with what both arms answered."""

    outcome: str  # whose first answer is right
    image: int | None  # the query, where it is a picture: its number in the set
    texts: list[str]  # the caption, or the picture's true captions
    standings: tuple[str, str]
    answers: tuple[list[Answer], list[Answer]]


@dataclass(frozen=True)
class RetrievalPanel:
    """Figure 5 for one retrieval set and two arms (their first seeds); way: `i2t` or `t2i`."""

    key: str
    arms: tuple[Arm, Arm]
    each: int = 2

    @property
    def labels(self) -> tuple[str, str]:
        return self.arms[0].label, self.arms[1].label

    def _evaluations(self) -> list[Evaluation]:
        return [arm.runs[0].final for arm in self.arms]

    def pictures(self) -> Pictures:
        return Pictures(self._evaluations()[0], self.key)

    def _kinds(self, way: str) -> list[Kind]:
        hits = [e.arrays(self.key)[f"{way}_first"] == 0 for e in self._evaluations()]
        return kinds(hits[0], hits[1], self.labels, self.each)

    def queries(self, way: str) -> list[Query]:
        """Those that are shown."""
        one = self._evaluations()[0]
        record, arrays = one.datasets[self.key], one.arrays(self.key)
        index, owner = arrays["index"], arrays["owner"]
        captions = [c for i in index for c in record["captions"][i]]
        out = []
        for kind in self._kinds(way):
            for query in kind.shown:
                image = query if way == "i2t" else int(owner[query])
                own = np.flatnonzero(owner == image).tolist()
                right = set(own) if way == "i2t" else {image}
                found = [
                    self._answers(e.arrays(self.key), way, query, right, captions, record, index)
                    for e in self._evaluations()
                ]
                shown, texts = (int(index[image]), own) if way == "i2t" else (None, [query])
                standings, answers = zip(*found)
                out.append(Query(kind.title, shown, [captions[i] for i in texts], standings, answers))
        return out

    def _answers(
        self, arrays: dict, way: str, query: int, right: set[int], captions: list[str], record: dict,
        index: np.ndarray,
    ) -> tuple[str, list[Answer]]:  # fmt: skip
        """Where the right answer stands with one arm, and its first answers."""
        answers = []
        for found, score in zip(arrays[f"{way}_top"][query][:SHOWN], arrays[f"{way}_scores"][query][:SHOWN]):
            number = int(index[found]) if way == "t2i" else None
            text = captions[int(found)] if number is None else _alt(record, number)
            answers.append(Answer(text, number, float(score), int(found) in right))
        return _standing(arrays, way, query, right), answers

    def html(self, way: str) -> str:
        pictures, groups = self.pictures(), self._kinds(way)
        counts = ", ".join(f"{k.title} in {k.count:,}" for k in groups)
        total = sum(k.count for k in groups)
        out = [f'<p class="note">First answers to all {total:,} queries: {escape(counts)}.</p>']
        for query in self.queries(way):
            bodies = "".join(self._list(pictures, query, number) for number in (0, 1))
            out.append(f'<div class="query">{self._side(pictures, query)}{bodies}</div>')
        return "\n".join(out)

    def _side(self, pictures: Pictures, query: Query) -> str:
        lines = "".join(f"<li>{escape(t)}</li>" for t in query.texts)
        picture = pictures.tag(query.image, query.texts[0]) if query.image is not None else ""
        what = "Ground truth" if query.image is not None else "Caption"
        head = f"{query.outcome[0].upper()}{query.outcome[1:]}"
        return (
            f'<div class="side">{picture}<div><h4>{escape(head)}</h4><span class="quiet">{what}</span>'
            f'<ul class="truth">{lines}</ul></div></div>'
        )

    def _list(self, pictures: Pictures, query: Query, number: int) -> str:
        items = []
        for answer in query.answers[number]:
            mark = ' class="right"' if answer.right else ""
            if answer.image is None:
                text = escape(answer.text) + (' <span class="up">✓</span>' if answer.right else "")
                items.append(f'<li{mark}><span>{text}</span><span class="score">{answer.said()}</span></li>')
            else:
                tick = " ✓" if answer.right else ""
                picture = pictures.tag(answer.image, answer.text)
                items.append(f"<li{mark}>{picture}{answer.said()}{tick}</li>")
        kind = "answers" if query.image is not None else "hits"
        name = page.arm_name(self.arms[number].label, number, dot=True)
        title = f"<h4>{name} {page.span(query.standings[number], 'quiet')}</h4>"
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
