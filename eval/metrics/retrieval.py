"""Image–text retrieval with any number of captions an image.

N images, M captions, D width.  Recall@k is the share of queries with any right answer among the
k best (CLIP's and clip-benchmark's sense).  Scores are made chunk by chunk, so the memory needed
is a chunk's, not N × M × N as for a one-hot form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KS = (1, 5, 10)


@dataclass(frozen=True)
class Ranking:
    """One direction: Q queries against the candidates.

    top (Q, k) int64 candidates, best first; scores (Q, k) float32 cosines;
    first (Q,) int64: position of the first right answer in `top`, k where there is none;
    rank (Q,) int64: how many candidates score higher than the best right answer.
    """

    top: np.ndarray
    scores: np.ndarray
    first: np.ndarray
    rank: np.ndarray

    def hits(self, k: int) -> np.ndarray:
        """(Q,) bool: a right answer is among the k best."""
        return self.first < k


def owners(captions: Sequence[Sequence[str]]) -> np.ndarray:
    """(M,) int64: the image of each caption, captions in order."""
    return np.repeat(np.arange(len(captions)), [len(c) for c in captions]).astype(np.int64)


def rank(queries: Tensor, candidates: Tensor, right: list[np.ndarray], chunk: int = 1024) -> Ranking:
    """Queries (Q, D), candidates (C, D), unit rows; right[q]: indices of the candidates that are right."""
    k = min(max(KS), len(candidates))
    owner_row = np.concatenate([np.full(len(r), q) for q, r in enumerate(right)])
    owner_col = np.concatenate(right)
    tops, values, firsts, ranks = [], [], [], []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ candidates.T
        value, index = scores.topk(k, dim=1)
        here = (owner_row >= start) & (owner_row < start + chunk)
        row, col = torch.from_numpy(owner_row[here] - start), torch.from_numpy(owner_col[here])
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[row, col] = True
        hit = positive.gather(1, index)
        best = torch.full((len(scores),), -torch.inf).scatter_reduce(0, row, scores[row, col], "amax")
        tops.append(index)
        values.append(value)
        firsts.append(torch.where(hit.any(1), hit.to(torch.uint8).argmax(1), k))
        ranks.append(torch.count_nonzero(scores > best[:, None], 1))
    joined = [torch.cat(parts).numpy() for parts in (tops, values, firsts, ranks)]
    return Ranking(*joined)


def both_ways(images: Tensor, texts: Tensor, owner: np.ndarray, chunk: int = 1024) -> tuple[Ranking, Ranking]:
    """(image → text, text → image) of unit rows images (N, D), texts (M, D), owner (M,)."""
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(images) + 1))
    captions = [order[a:b] for a, b in zip(starts[:-1], starts[1:])]
    image_to_text = rank(images, texts, captions, chunk)
    text_to_image = rank(texts, images, [owner[i : i + 1] for i in range(len(texts))], chunk)
    return image_to_text, text_to_image


def _mean(hits: np.ndarray) -> float:
    return torch.from_numpy(hits).float().mean().item()  # float32, as clip-benchmark computes it


def metrics(image_to_text: Ranking, text_to_image: Ranking) -> dict[str, float]:
    """clip-benchmark's names: `text_retrieval_recall@k` has images as queries.

    A k above the number of candidates is absent.  Median ranks count from 1.
    """
    out: dict[str, float] = {}
    for k in KS:
        if k <= text_to_image.top.shape[1]:
            out[f"image_retrieval_recall@{k}"] = _mean(text_to_image.hits(k))
        if k <= image_to_text.top.shape[1]:
            out[f"text_retrieval_recall@{k}"] = _mean(image_to_text.hits(k))
    out["text_retrieval_median_rank"] = float(np.median(image_to_text.rank)) + 1
    out["image_retrieval_median_rank"] = float(np.median(text_to_image.rank)) + 1
    return out
