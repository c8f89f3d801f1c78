"""One model over a list of sets: embed, classify, retrieve, choose.

Takes functions (`eval.encode.Encoders`), never a trainer.  Writes nothing: `eval/results.py` does, once
everything is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from eval import encode
from eval.cache import Cache
from eval.distributed import Ranks
from eval.encode import Encoders
from eval.metrics import perceptual, retrieval, zeroshot
from eval.sets.catalog import CLASSIFICATION_TASK
from eval.sets.evalset import ClassificationSet, EvalSet, Images, RetrievalSet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is computed; none of these changes a metric."""

    batch_size: int = 256
    text_batch_size: int = 512
    workers: int = 4
    max_unreadable: float = 0.0  # share of a set's images that may be left out; 0 refuses the set


@dataclass(kw_only=True)
class _Result:
    """An outcome; `arrays` are per-sample, written as an npz."""

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    crops: str | None = None  # where the crops lie, for the report's images


@dataclass(kw_only=True)
class SetResult(_Result):
    """One set's outcome."""

    evalset: EvalSet
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(kw_only=True)
class TripletResult(_Result):
    """The triplets' outcome."""

    triplets: perceptual.Triplets


@dataclass(kw_only=True)
class Outcome:
    """Everything one model got; seconds by what they went to."""

    sets: list[SetResult]
    triplets: TripletResult | None
    seconds: dict[str, float]
    texts_encoded: int = 0


# -- texts ------------------------------------------------------------------------------------------


def set_texts(evalset: EvalSet) -> list[str]:
    """A set's prompts, class by class, or its captions, image by image."""
    if evalset.prompts is not None:
        return evalset.prompts.texts()
    return [caption for captions in evalset.captions for caption in captions]


def text_vectors(
    sets: Sequence[EvalSet], encoders: Encoders, cache: Cache, batch_size: int, ranks: Ranks
) -> tuple[list[Tensor], int]:
    """Per set the class weights (D, K) or the captions' unit vectors (M, D), and how many texts were encoded.

    What is cached is read; everything else is encoded in one pass over the different texts of all sets.
    """
    texts = [set_texts(evalset) for evalset in sets]
    kinds = ["captions" if s.prompts is None else f"classes{len(s.prompts.classes)}" for s in sets]
    keys = [encode.text_key(group, encoders, kind) for group, kind in zip(texts, kinds)]
    cached = [cache.load(key) for key in keys]
    known = [all(here) for here in zip(*ranks.gather([vectors is not None for vectors in cached]))]
    missing = (text for group, here in zip(texts, known) if not here for text in group)
    encoded = encode.text_features(missing, encoders, batch_size, ranks)
    out = []
    for evalset, group, key, vectors, here in zip(sets, texts, keys, cached, known):
        if here:
            out.append(torch.from_numpy(vectors))
            continue
        made = encode.stacked(group, encoded)
        if evalset.prompts is not None:
            made = zeroshot.classifier(made, len(evalset.prompts.classes)).contiguous()
        if ranks.rank == 0:
            cache.save(key, made.numpy())
        out.append(made)
    return out, len(encoded)


# -- one set ----------------------------------------------------------------------------------------


def _readable(evalset: EvalSet, unreadable: dict[int, str], allowed: float) -> np.ndarray:
    """Indices of the readable images; ValueError when more than the allowed share is not readable."""
    if len(unreadable) > allowed * len(evalset.images):
        first = unreadable[min(unreadable)]
        raise ValueError(
            f"{first}; {len(unreadable)} of {evalset.entry.key}'s {len(evalset.images)} images cannot be "
            "read (--max-unreadable SHARE leaves such images out and reports them)"
        )
    return np.array([i for i in range(len(evalset.images)) if i not in unreadable], np.int64)


def classify(evalset: ClassificationSet, features: Tensor, weights: Tensor, kept: np.ndarray) -> SetResult:
    """features (N, D), weights (D, K), kept: the images that count."""
    predictions = zeroshot.predict(features[kept], weights, evalset.labels[kept])
    arrays = {"index": kept, **vars(predictions)}
    if evalset.groups is not None:
        arrays["groups"] = evalset.groups[kept]
    metrics = zeroshot.metrics(predictions, len(evalset.prompts.classes))
    return SetResult(evalset=evalset, metrics=metrics, arrays=arrays)


def retrieve(evalset: RetrievalSet, features: Tensor, captions: Tensor, kept: np.ndarray) -> SetResult:
    """features (N, D), captions (M, D) of all images in order, kept: the images that count."""
    owner = retrieval.owners(evalset.captions)
    position = np.full(len(features), -1)
    position[kept] = np.arange(len(kept))
    counted = position[owner] >= 0
    owner = position[owner[counted]]
    image_to_text, text_to_image = retrieval.both_ways(features[kept], captions[counted], owner)
    arrays = {"index": kept, "owner": owner}
    arrays |= {f"i2t_{k}": v for k, v in vars(image_to_text).items()}
    arrays |= {f"t2i_{k}": v for k, v in vars(text_to_image).items()}
    return SetResult(evalset=evalset, metrics=retrieval.metrics(image_to_text, text_to_image), arrays=arrays)


def _embedded(
    images: Images, encoders: Encoders, cache: Cache, settings: Settings, ranks: Ranks
) -> tuple[Tensor, dict[int, str], str | None]:
    """(features (N, D), {index: message} of unreadable images, where the crops lie)."""
    crops = encode.crops_of(images, encoders.preprocess, cache)
    features, unreadable = encode.image_features(
        crops, encoders, settings.batch_size, settings.workers, ranks
    )
    return features, unreadable, str(crops.path) if crops.path and crops.path.is_file() else None


def _score_set(
    evalset: EvalSet, vectors: Tensor, encoders: Encoders, cache: Cache, settings: Settings, ranks: Ranks
) -> SetResult:
    """vectors: of its texts, as `text_vectors` returns them."""
    features, unreadable, crops = _embedded(evalset.images, encoders, cache, settings, ranks)
    kept = _readable(evalset, unreadable, settings.max_unreadable)
    if evalset.prompts is None:
        result = retrieve(evalset, features, vectors, kept)
    else:
        result = classify(evalset, features, vectors, kept)
    result.unreadable = [unreadable[i] for i in sorted(unreadable)]
    result.crops = crops
    return result


def _score_triplets(
    triplets: perceptual.Triplets, encoders: Encoders, cache: Cache, settings: Settings, ranks: Ranks
) -> TripletResult:
    features, unreadable, crops = _embedded(triplets.images, encoders, cache, settings, ranks)
    if unreadable:
        first = unreadable[min(unreadable)]
        raise ValueError(f"{first}; {len(unreadable)} images of {triplets.path} cannot be read")
    choices = perceptual.choose(triplets, features)
    return TripletResult(
        triplets=triplets,
        metrics=perceptual.metrics(choices),
        arrays={"rows": triplets.rows, **vars(choices)},
        crops=crops,
    )


# -- all of them ------------------------------------------------------------------------------------


def score(
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
    for evalset, vectors in zip(sets, texts):
        started = time.perf_counter()
        result = _score_set(evalset, vectors, encoders, cache, settings, ranks)
        result.seconds = seconds[evalset.entry.key] = time.perf_counter() - started
        results.append(result)
        say(_set_line(result))
    chosen = None
    if triplets is not None:
        started = time.perf_counter()
        chosen = _score_triplets(triplets, encoders, cache, settings, ranks)
        seconds["triplets"] = time.perf_counter() - started
        say(_triplets_line(chosen))
    return Outcome(sets=results, triplets=chosen, seconds=seconds, texts_encoded=encoded)


def _set_line(result: SetResult) -> str:
    entry, metrics = result.evalset.entry, result.metrics
    if entry.task == CLASSIFICATION_TASK:
        figures = f"{100 * metrics['acc1']:.2f} top-1"
        if "acc5" in metrics:
            figures += f", {100 * metrics['acc5']:.2f} top-5"
    else:
        figures = (
            f"{100 * metrics['text_retrieval_recall@1']:.2f} image to text R@1, "
            f"{100 * metrics['image_retrieval_recall@1']:.2f} text to image R@1"
        )
    left_out = f", {len(result.unreadable)} unreadable images left out" if result.unreadable else ""
    return f"{entry.key}: {figures} ({len(result.arrays['index'])} images, {result.seconds:.1f} s{left_out})"


def _triplets_line(result: TripletResult) -> str:
    triplets, metrics = result.triplets, result.metrics
    majority, soft = (metrics.get(m, float("nan")) for m in ("twoafc", "twoafc_soft"))
    both = "" if metrics["ceiling"] == 1 else f" (majority), {100 * soft:.1f} (share of people)"
    splits = " and ".join(sorted({*triplets.split.tolist()}))
    votes = perceptual.describe_votes(triplets.voters)
    return f"triplets, {splits}: {100 * majority:.1f} 2AFC{both} of {len(triplets.vote)} ({votes})"
