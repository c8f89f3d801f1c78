"""Linear probes: multinomial logistic regression on frozen features, by L-BFGS.

N images, D width, K classes.  The objective is scikit-learn's, C · Σ loss + ½ ‖W‖², the intercept free, as in
openai/CLIP `README.md` ("Linear-probe evaluation"), here divided by C · N.  C is searched for as appendix A.3
of CLIP's paper says (from 10⁻⁶ to 10⁶ in steps of two decades, then by halving the step around the best down
to an eighth of a decade), on a part of the training split that is held out.  All is in float64 and starts
from zero, so a fit is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

STEPS = 1000  # L-BFGS iterations at most, as in CLIP's paper
FINEST = 1 / 8  # decades
RANGE = 6  # decades on either side of 1
HELD_OUT = 5  # one of so many images of each class
_ROWS = 65_536  # images whose logits are held at a time


@dataclass(frozen=True)
class Probe:
    """weights (D, K), intercepts (K,) float64; converged: whether L-BFGS stopped before its last step."""

    weights: Tensor
    intercepts: Tensor
    converged: bool

    def predict(self, features: Tensor) -> np.ndarray:
        """(M,) int64 classes of features (M, D)."""
        parts = [(rows.double() @ self.weights + self.intercepts).argmax(1) for rows in features.split(_ROWS)]
        return torch.cat(parts).cpu().numpy()


class Turned:
    """Training images turned so that L-BFGS finds its way in tens of steps, not thousands.

    Features are centred, which the free intercept takes up, and rotated to their principal axes, which the
    penalty does not see.  `fit` then scales each axis by the curvature of the objective along it, as it is
    where all classes are equally likely.  The probe is the same as without.
    """

    def __init__(self, features: Tensor, labels: np.ndarray, classes: int):
        """features (N, D), labels (N,) int64 below `classes`."""
        x = features.double()
        self.labels, self.classes = torch.from_numpy(labels).to(x.device), classes
        self.middle = x.mean(0)
        x = x - self.middle
        variance, self.axes = torch.linalg.eigh(x.T @ x / len(x))
        self.turned, self.variance = x @ self.axes, variance.clamp(min=0)

    def fit(self, c: float) -> Probe:
        """c: inverse strength of the penalty."""
        penalty, width = 1 / (c * len(self.turned)), len(self.axes)
        curvature = self.variance * (self.classes - 1) / self.classes**2 + penalty
        scale = curvature.rsqrt()[:, None]

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            both = self._parameters(flat)
            weights = scale * both[:-1]
            loss, gradient = self._loss(weights, both[-1])
            loss += penalty / 2 * weights.square().sum()
            gradient[:-1] = scale * (gradient[:-1] + penalty * weights)
            return loss.item(), gradient.flatten().cpu().numpy()

        limits = {"maxiter": STEPS, "maxfun": 10 * STEPS, "maxls": 50, "gtol": 1e-6, "ftol": 1e-10}
        start = np.zeros((width + 1) * self.classes)
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=limits)
        both = self._parameters(found.x)
        weights = self.axes @ (scale * both[:-1])
        return Probe(weights, both[-1] - self.middle @ weights, found.nit < STEPS)

    def _parameters(self, flat: np.ndarray) -> Tensor:
        return torch.from_numpy(flat).to(self.axes.device).view(-1, self.classes)

    def _loss(self, weights: Tensor, intercepts: Tensor) -> tuple[Tensor, Tensor]:
        """(mean cross-entropy, its gradient (D + 1, K)), rows by rows: all logits of ImageNet take 10 GB."""
        loss, gradient = weights.new_zeros(()), weights.new_zeros(len(weights) + 1, self.classes)
        for rows, own in zip(self.turned.split(_ROWS), self.labels.split(_ROWS)):
            logs = torch.log_softmax(rows @ weights + intercepts, dim=1)
            loss -= logs.gather(1, own[:, None]).sum()
            excess = logs.exp()
            excess[torch.arange(len(own), device=own.device), own] -= 1
            gradient[:-1] += rows.T @ excess
            gradient[-1] += excess.sum(0)
        return loss / len(self.turned), gradient / len(self.turned)


def held_out(labels: np.ndarray) -> np.ndarray:
    """(N,) bool: a fifth of each class's images, one at least of those with two; drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(labels))
    sizes = np.bincount(labels)
    within = np.empty(len(labels), np.int64)  # each image's place among its class's, in the drawn order
    by_class = order[np.argsort(labels[order], kind="stable")]
    within[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = np.where(sizes > 1, np.maximum(sizes // HELD_OUT, 1), 0)
    return within < taken[labels]


def search(score: Callable[[float], float]) -> float:
    """The exponent of 10 with the highest score, the lowest of equals, among those that are tried."""
    scores: dict[float, float] = {}

    def tried(exponents: list[float]) -> float:
        for exponent in exponents:
            if abs(exponent) <= RANGE and exponent not in scores:
                scores[exponent] = score(exponent)
        return min(scores, key=lambda exponent: (-scores[exponent], exponent))

    step = 2.0
    best = tried([float(e) for e in range(-RANGE, RANGE + 1, 2)])
    while step > FINEST:
        step /= 2
        best = tried([best - step, best + step])
    return best


def probe(features: Tensor, labels: np.ndarray, classes: int) -> tuple[Probe, float]:
    """(the probe of the whole training split, C that was best on the held-out part, which is not empty)."""
    out = held_out(labels)
    assert out.any()
    kept, rest = torch.from_numpy(~out), torch.from_numpy(out)
    some = Turned(features[kept], labels[~out], classes)

    def accuracy(exponent: float) -> float:
        return float((some.fit(10**exponent).predict(features[rest]) == labels[out]).mean())

    c = 10 ** search(accuracy)
    return Turned(features, labels, classes).fit(c), c
