"""One model over a list of sets: embed, classify, retrieve, choose.

Takes functions (`eval.encode.Encoders`), never a trainer, and writes nothing: `eval/results.py`
does, once everything is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from eval import encode
from eval.crops import Cache, Crops
from eval.encode import Encoders
from eval.metrics import perceptual, retrieval, zeroshot
from eval.ranks import Ranks
from eval.sets.catalog import CLASSIFICATION_TASK
from eval.sets.evalset import EvalSet


@dataclass(frozen=True)
class Settings:
    """How it is computed; none of these changes a metric."""

    batch_size: int = 256
    text_batch_size: int = 512
    workers: int = 4
    max_unreadable: float = 0.0  # share of a set's images that may be left out; 0 refuses the set


@dataclass
class SetResult:
    """One set's outcome; `arrays` are per-sample, written as an npz."""

    one: EvalSet
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    unreadable: list[str] = field(default_factory=list)
    crops: str | None = None  # where its cropped pictures lie, for the report's panels
    seconds: float = 0.0


@dataclass
class TripletResult:
    triplets: perceptual.Triplets
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    crops: str | None = None
    seconds: float = 0.0


@dataclass
class Outcome:
    sets: list[SetResult]
    triplets: TripletResult | None
    seconds: dict[str, float]
    texts_encoded: int


def _texts(one: EvalSet) -> list[str]:
    if one.prompts is not None:
        return one.prompts.texts()
    return [caption for captions in one.captions for caption in captions]


def text_vectors(
    sets: Sequence[EvalSet], encoders: Encoders, cache: Cache, batch_size: int, ranks: Ranks
) -> tuple[list[Tensor], int]:
    """Per set the class weights (D, K) or the captions' unit vectors (M, D), and how many texts were encoded.

    What is cached is read; everything else is encoded in one pass over the different texts of all sets.
    """
    texts = [_texts(one) for one in sets]
    keys = [
        encode.text_key(
            t, encoders, "captions" if one.prompts is None else f"classes{len(one.prompts.classes)}"
        )
        for one, t in zip(sets, texts)
    ]
    known = ranks.gather([cache.has(k) for k in keys])[0]
    missing = [t for t, cached in zip(texts, known) if not cached]
    vectors = encode.text_features((t for group in missing for t in group), encoders, batch_size, ranks)
    out = []
    for one, group, key, cached in zip(sets, texts, keys, known):
        if cached:
            out.append(torch.from_numpy(cache.load(key)))
            continue
        value = encode.stacked(group, vectors)
        if one.prompts is not None:
            value = zeroshot.classifier(value, len(one.prompts.classes)).contiguous()
        if ranks.rank == 0:
            cache.save(key, value.numpy())
        out.append(value)
    return out, len(vectors)


def _kept(one: EvalSet, bad: dict[int, str], allowed: float) -> np.ndarray:
    """Indices of the readable images; ValueError when more than the allowed share is not readable."""
    if len(bad) > allowed * len(one.images):
        first = bad[min(bad)]
        raise ValueError(
            f"{first}; {len(bad)} of {one.entry.key}'s {len(one.images)} images cannot be read "
            "(--max-unreadable SHARE leaves such images out and says so)"
        )
    return np.array([i for i in range(len(one.images)) if i not in bad], np.int64)


def classify(one: EvalSet, features: Tensor, weights: Tensor, kept: np.ndarray) -> SetResult:
    """features (N, D), weights (D, K), kept: the images that count."""
    predictions = zeroshot.predict(features[kept], weights, one.labels[kept])
    arrays = {"index": kept, **vars(predictions)}
    if one.groups is not None:
        arrays["groups"] = one.groups[kept]
    return SetResult(one, zeroshot.metrics(predictions, len(one.prompts.classes)), arrays)


def retrieve(one: EvalSet, features: Tensor, captions: Tensor, kept: np.ndarray) -> SetResult:
    """features (N, D), captions (M, D) of all images in order, kept: the images that count."""
    owner = retrieval.owners(one.captions)
    position = np.full(len(features), -1)
    position[kept] = np.arange(len(kept))
    counted = position[owner] >= 0
    owner = position[owner[counted]]
    image_to_text, text_to_image = retrieval.both_ways(features[kept], captions[counted], owner)
    arrays = {"index": kept, "owner": owner}
    arrays |= {f"i2t_{k}": v for k, v in vars(image_to_text).items()}
    arrays |= {f"t2i_{k}": v for k, v in vars(text_to_image).items()}
    return SetResult(one, retrieval.metrics(image_to_text, text_to_image), arrays)


def _triplets(
    triplets: perceptual.Triplets, encoders: Encoders, cache: Cache, settings: Settings, ranks: Ranks
) -> TripletResult:
    started = time.perf_counter()
    key = f"{cache.identity(triplets.images)}-{encoders.preprocess.key}"
    crops = Crops(triplets.images, encoders.preprocess, cache, key)
    features, bad = encode.image_features(
        crops, encoders, cache, settings.batch_size, settings.workers, ranks
    )
    if bad:
        raise ValueError(f"{bad[min(bad)]}; {len(bad)} pictures of {triplets.path} cannot be read")
    choices = perceptual.choose(triplets, features)
    arrays = {"rows": triplets.rows, **vars(choices)}
    where = str(crops.path) if crops.path is not None and crops.path.is_file() else None
    seconds = time.perf_counter() - started
    return TripletResult(triplets, perceptual.metrics(choices), arrays, where, seconds)


def evaluate(
    encoders: Encoders,
    sets: Sequence[EvalSet],
    triplets: perceptual.Triplets | None,
    cache: Cache,
    settings: Settings,
    ranks: Ranks,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Every set's metrics and per-sample outcomes; the same for any batch size, rank and worker count.

    Raises ValueError naming the set, file and member for data that cannot be used.
    """
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    texts, encoded = text_vectors(sets, encoders, cache, settings.text_batch_size, ranks)
    seconds["texts"] = time.perf_counter() - started
    say(f"texts: {encoded} encoded in {seconds['texts']:.1f} s, the rest was cached")
    results = []
    for one, vectors in zip(sets, texts):
        started = time.perf_counter()
        crops = encode.crops_of(one, encoders.preprocess, cache)
        features, bad = encode.image_features(
            crops, encoders, cache, settings.batch_size, settings.workers, ranks
        )
        kept = _kept(one, bad, settings.max_unreadable)
        step = classify if one.entry.task == CLASSIFICATION_TASK else retrieve
        result = step(one, features, vectors, kept)
        result.unreadable = [bad[i] for i in sorted(bad)]
        result.crops = str(crops.path) if crops.path is not None and crops.path.is_file() else None
        result.seconds = seconds[one.entry.key] = time.perf_counter() - started
        results.append(result)
        say(_line(result))
    outcome = None
    if triplets is not None:
        outcome = _triplets(triplets, encoders, cache, settings, ranks)
        seconds["triplets"] = outcome.seconds
        share, soft = (outcome.metrics.get(m, float("nan")) for m in ("twoafc", "twoafc_soft"))
        both = "" if outcome.metrics["ceiling"] == 1 else f" (majority), {100 * soft:.1f} (share of people)"
        splits = " and ".join(sorted({*triplets.split.tolist()}))
        say(
            f"triplets, {splits}: {100 * share:.1f} 2AFC{both} of {len(triplets.vote)} ({triplets.votes_are})"
        )
    return Outcome(results, outcome, seconds, encoded)


def _line(result: SetResult) -> str:
    one, shown = result.one, result.metrics
    if one.entry.task == CLASSIFICATION_TASK:
        figures = f"{100 * shown['acc1']:.2f} top-1"
        if "acc5" in shown:
            figures += f", {100 * shown['acc5']:.2f} top-5"
    else:
        figures = (
            f"{100 * shown['text_retrieval_recall@1']:.2f} image to text R@1, "
            f"{100 * shown['image_retrieval_recall@1']:.2f} text to image R@1"
        )
    left_out = f", {len(result.unreadable)} unreadable images left out" if result.unreadable else ""
    return (
        f"{one.entry.key}: {figures} ({len(result.arrays['index'])} images, {result.seconds:.1f} s{left_out})"
    )
