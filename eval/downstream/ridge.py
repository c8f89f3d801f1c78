"""Ridge regression of a number on frozen features, in float64.

N images, D width.  The objective is scikit-learn's, ‖y − Xw − b‖² + α ‖w‖², the intercept free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALPHAS = 10.0 ** np.arange(-6, 6.25, 0.25)  # what is tried, quarter decades


@dataclass(frozen=True)
class Line:
    """weights (D,), intercept: float64."""

    weights: Tensor
    intercept: float

    def predict(self, features: Tensor) -> np.ndarray:
        """(M,) float64 of features (M, D)."""
        return (features.double() @ self.weights).cpu().numpy() + self.intercept


def fits(features: Tensor, values: np.ndarray) -> list[Line]:
    """The fit of each of ALPHAS; features (N, D), values (N,)."""
    x, y = features.double(), torch.from_numpy(np.asarray(values, float)).to(features.device)
    middle, level = x.mean(0), y.mean()
    u, s, v = torch.linalg.svd(x - middle, full_matrices=False)
    seen = u.T @ (y - level)
    weights = [v.T @ (s / (s.square() + float(alpha)) * seen) for alpha in ALPHAS]
    return [Line(w, float(level - middle @ w)) for w in weights]


def choose(lines: list[Line], features: Tensor, values: np.ndarray) -> tuple[Line, float]:
    """(the fit with the least mean absolute error on these, its α); of equals the largest α."""
    errors = [float(np.abs(line.predict(features) - values).mean()) for line in lines]
    best = max(i for i, error in enumerate(errors) if error == min(errors))
    return lines[best], float(ALPHAS[best])
