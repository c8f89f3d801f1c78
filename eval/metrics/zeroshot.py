"""Zero-shot classification: class vectors from prompts, predictions, metrics.

N images, K classes, T templates, D width.  The formulas are open_clip's
`build_zero_shot_classifier` and clip-benchmark 1.6.2's `zeroshot_classification.py`, so that the
numbers are the field's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOGIT_SCALE = 100.0  # clip-benchmark's, whatever the model learned; the order of classes is the same


@dataclass(frozen=True)
class Predictions:
    """What the metrics, the statistics and the panels need of N images.

    labels (N,) int64; top (N, min(5, K)) int64, best first; scores, same shape, float32 cosines;
    argmax (N,) int64 (equals top[:, 0] unless classes tie exactly).
    """

    labels: np.ndarray
    top: np.ndarray
    scores: np.ndarray
    argmax: np.ndarray

    def hits(self, k: int = 1) -> np.ndarray:
        """(N,) bool: the label is among the k best."""
        return (self.top[:, :k] == self.labels[:, None]).any(1)


def classifier(prompt_features: Tensor, classes: int) -> Tensor:
    """(K·T, D) unit rows, class by class → (D, K): each class's mean prompt, normalised again."""
    means = prompt_features.view(classes, -1, prompt_features.shape[-1]).mean(dim=1)
    return (means / means.norm(dim=1, keepdim=True)).T


def predict(features: Tensor, weights: Tensor, labels: np.ndarray, batch_size: int = 1024) -> Predictions:
    """features (N, D) unit rows, weights (D, K), labels (N,)."""
    k = min(5, weights.shape[1])
    top, scores, best = [], [], []
    for rows in features.split(batch_size):
        logits = LOGIT_SCALE * rows @ weights
        values, indices = logits.topk(k, dim=1, largest=True, sorted=True)
        top.append(indices)
        scores.append(values / LOGIT_SCALE)
        best.append(logits.argmax(dim=1))
    return Predictions(
        np.asarray(labels, np.int64),
        torch.cat(top).numpy(),
        torch.cat(scores).numpy(),
        torch.cat(best).numpy(),
    )


def mean_per_class_recall(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall of the classes that occur (scikit-learn's balanced_accuracy_score)."""
    counts = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(counts))
    present = counts > 0
    return float(np.mean(right[present] / counts[present]))


def metrics(predictions: Predictions, classes: int) -> dict[str, float]:
    """acc1, acc5 (absent below five classes: it would be meaningless), mean_per_class_recall; fractions."""
    count = len(predictions.labels)
    out = {"acc1": float(predictions.hits(1).sum()) / count}
    if classes >= 5:
        out["acc5"] = float(predictions.hits(5).sum()) / count
    out["mean_per_class_recall"] = mean_per_class_recall(predictions.labels, predictions.argmax)
    return out
