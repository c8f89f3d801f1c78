"""Images for the report: retrieval answers of both arms side by side (Figure 5), and triplets.

Which queries are shown is drawn at random with a fixed seed within each kind of outcome (only one
arm right, both, neither), and the number of queries of each kind is shown beside: nothing is picked
by eye.  The page's templates and `figures.answers` draw the same values.
"""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from eval.cache import mapped
from eval.metrics import perceptual
from eval.report import compare
from eval.report.compare import Comparison, choices
from eval.report.render import minus
from eval.report.runs import Arm
from eval.results import Evaluation
from eval.sets import evalset, sources
from eval.sets.catalog import RETRIEVAL_TASK

SHOWN = 5  # answers a query
EACH = 2  # queries of each kind of outcome
SIDE = 112  # pixels of a thumbnail's longer side
WAYS = {"i2t": "image to text", "t2i": "text to image"}


# -- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thumbnail:
    """A small image of an evaluated set; `image` None where it is not there any more."""

    image: Image.Image | None
    alt: str

    @cached_property
    def uri(self) -> str | None:
        """A data: URI."""
        if self.image is None:
            return None
        data = io.BytesIO()
        self.image.save(data, "webp", quality=82)
        return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


@dataclass
class Images:
    """Images of an evaluated set: the originals where they still lie, else the cached crops, else none."""

    evaluation: Evaluation
    key: str
    _made: dict[int, Image.Image | None] = field(default_factory=dict, init=False)

    def thumbnail(self, index: int, alt: str = "") -> Thumbnail:
        if index not in self._made:
            self._made[index] = self._shrunk(index)
        return Thumbnail(self._made[index], alt)

    def _shrunk(self, index: int) -> Image.Image | None:
        if self._images is None or index >= len(self._images):
            return None
        image = self._images[index]
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return image

    @cached_property
    def _images(self) -> evalset.Images | np.ndarray | None:
        record = self.evaluation.record(self.key)
        crops = Path(record["crops"] or "")
        with suppress(ValueError, OSError):  # moved or changed since
            if (images := self._originals(Path(record["path"]))) is not None:
                return images
        return mapped(crops) if crops.is_file() else None  # what was evaluated

    def _originals(self, path: Path) -> evalset.Images | None:
        if self.key == "triplets":
            splits = dict.fromkeys(self.evaluation.arrays("triplets")["split"].tolist())
            return perceptual.read(path.parent if path.suffix == ".csv" else path, tuple(splits)).images
        original = sources.read_folder(path)
        return None if original is None else original.images


# -- what is shown --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Queries of one outcome: how many there are, and the few that are shown."""

    title: str
    count: int
    shown: list[int]


def kinds(hits: dict[str, np.ndarray], each: int = EACH, after: int = 0) -> list[Kind]:
    """Split queries by whose first answer is right; hits: (Q,) bool of each of two arms, by label.

    each: how many are drawn.  after: how many were drawn before and are not shown again.
    """
    rng = np.random.default_rng(0)
    (one, a), (other, b) = hits.items()
    parts = {
        f"only {one} is right": a & ~b,
        f"only {other} is right": b & ~a,
        "both are right": a & b,
        "neither is right": ~a & ~b,
    }
    out = []
    for title, mask in parts.items():
        rows = np.flatnonzero(mask)
        chosen = rng.permutation(rows)[after : after + each]
        out.append(Kind(title, len(rows), sorted(chosen.tolist())))
    return out


# -- retrieval ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One of an arm's first answers: a caption, or (with `thumbnail`) an image of the set."""

    text: str
    thumbnail: Thumbnail | None
    score: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class ArmAnswers:
    """What one arm answered to a query; `standing`: where it has the right answer."""

    label: str
    standing: str
    answers: list[Answer]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query with what both arms answered.

    thumbnail: the query, where it is an image.  texts: the caption, or the image's true captions.
    """

    outcome: str  # whose first answer is right
    thumbnail: Thumbnail | None
    texts: list[str]
    arms: list[ArmAnswers]


@dataclass(frozen=True, kw_only=True)
class RetrievalPanel:
    """Figure 5 for one retrieval set and one direction, of both arms' first seeds."""

    key: str
    way: str
    title: str
    kinds: list[Kind]
    queries: list[Query]


def retrieval_panels(a: Arm, b: Arm, each: int = EACH, after: int = 0) -> list[RetrievalPanel]:
    """Both directions of every retrieval set that the arms share; each, after: as for `kinds`."""
    datasets = a.first.datasets
    keys = [key for key in compare.shared_keys([*a.runs, *b.runs]) if datasets[key]["task"] == RETRIEVAL_TASK]
    return [
        reader.panel(way, each, after) for key in keys for reader in [_Retrieval(a, b, key)] for way in WAYS
    ]


class _Retrieval:
    """The captions, images and both arms' arrays of one retrieval set."""

    def __init__(self, a: Arm, b: Arm, key: str):
        first = a.first
        self.key, self.record, self.images = key, first.datasets[key], Images(first, key)
        self.arrays = {arm.label: arm.first.arrays(key) for arm in (a, b)}
        self.index, self.owner = (first.arrays(key)[name] for name in ("index", "owner"))
        self.captions = [caption for i in self.index for caption in self.record["captions"][i]]

    def panel(self, way: str, each: int, after: int) -> RetrievalPanel:
        hits = {label: arrays[f"{way}_first"] == 0 for label, arrays in self.arrays.items()}
        groups = kinds(hits, each, after)
        return RetrievalPanel(
            key=self.key,
            way=way,
            title=f"{self.record['name']}: {WAYS[way]}",
            kinds=groups,
            queries=[self._query(way, query, kind.title) for kind in groups for query in kind.shown],
        )

    def _query(self, way: str, query: int, outcome: str) -> Query:
        by_image = way == "i2t"
        image = query if by_image else int(self.owner[query])
        own = np.flatnonzero(self.owner == image).tolist()
        texts = [self.captions[i] for i in (own if by_image else [query])]
        right = own if by_image else [image]
        return Query(
            outcome=outcome,
            thumbnail=self.images.thumbnail(int(self.index[image]), texts[0]) if by_image else None,
            texts=texts,
            arms=[self._answers(label, way, query, right) for label in self.arrays],
        )

    def _answers(self, label: str, way: str, query: int, right: list[int]) -> ArmAnswers:
        """An arm's answers, and the right one's margin over the best wrong one (or behind the first)."""
        top, scores, rank = (self.arrays[label][f"{way}_{name}"][query] for name in ("top", "scores", "rank"))
        hit = np.isin(top, right)
        standing = f"right answer at rank {rank + 1}"
        if hit.any() and not hit.all():
            standing += minus(f", margin {scores[hit][0] - scores[~hit][0]:+.3f}")
        shown = zip(top[:SHOWN].tolist(), scores.tolist(), hit.tolist())
        answers = [self._answer(way, *candidate) for candidate in shown]
        return ArmAnswers(label=label, standing=standing, answers=answers)

    def _answer(self, way: str, candidate: int, score: float, right: bool) -> Answer:
        thumbnail = None
        if way == "i2t":
            text = self.captions[candidate]
        else:
            image = int(self.index[candidate])
            text = self.record["captions"][image][0]
            thumbnail = self.images.thumbnail(image, text)
        return Answer(text=text, thumbnail=thumbnail, score=minus(f"{score:.3f}"), right=right)


# -- triplets -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Left or right of a triplet: its distance to the reference in each arm."""

    thumbnail: Thumbnail
    voted: bool
    distances: list[str]


@dataclass(frozen=True, kw_only=True)
class Trio:
    """A triplet; `outcome` says who is right, `count` how many triplets have that outcome."""

    reference: Thumbnail
    choices: list[Choice]
    outcome: str
    count: int


def trios(comparison: Comparison) -> list[Trio]:
    """Triplets with the voted image marked and both arms' distances."""
    arrays = {arm.label: arm.first.arrays("triplets") for arm in (comparison.a, comparison.b)}
    hits = {label: choices(held).credit() == 1 for label, held in arrays.items()}  # even votes: NaN, so false
    images = Images(comparison.a.first, "triplets")
    return [_trio(images, [*arrays.values()], row, kind) for kind in kinds(hits) for row in kind.shown]


def _trio(images: Images, arrays: list[dict[str, np.ndarray]], row: int, kind: Kind) -> Trio:
    reference, left, right = arrays[0]["rows"][row].tolist()
    vote = float(arrays[0]["vote"][row])
    to_left, to_right = zip(*([f"{distance:.3f}" for distance in held["dist"][row]] for held in arrays))
    return Trio(
        reference=images.thumbnail(reference, "reference"),
        choices=[
            Choice(thumbnail=images.thumbnail(left, "left"), voted=vote < 0.5, distances=[*to_left]),
            Choice(thumbnail=images.thumbnail(right, "right"), voted=vote > 0.5, distances=[*to_right]),
        ],
        outcome=kind.title,
        count=kind.count,
    )
