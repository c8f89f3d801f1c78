"""The DALI engine's blur on a GPU: for all images of a piece two products of matrices, in torch.

N images, S side.
"""

from __future__ import annotations

import numpy as np
import torch


def blur(images: torch.Tensor, sigma: np.ndarray) -> None:
    """A Gaussian over each image, in place; as `pixels.blur` to one level.

    images: (N, S, S, 3) uint8, contiguous, on any device.  sigma: (N,) float32 in pixels; an image of 0 is
    left as it is.  Multiplies in float16, whose steps are an eighth of a level or less.
    """
    count, side = len(blurred := np.flatnonzero(sigma)), images.shape[1]
    if not count:
        return
    # Without waiting for the GPU.
    index = torch.from_numpy(blurred).to(images.device, non_blocking=True)
    own = torch.from_numpy(sigma[blurred]).to(images.device, non_blocking=True)
    windows, x = _windows(own, side), images[index].half()
    for _ in range(2):  # along the columns; then, transposed, along the rows
        x = torch.bmm(windows, x.reshape(count, side, 3 * side)).view(x.shape).transpose(1, 2)
    images[index] = x.round().clamp(max=255).byte()


def _windows(sigma: torch.Tensor, side: int) -> torch.Tensor:
    """(N, S, S) float16: each pixel's weights, window 2 ceil(3 sigma) + 1, edges reflected as torch does."""
    sigma, last = sigma[:, None, None], side - 1
    radius = (3 * sigma).ceil().clamp(max=last)
    to = torch.arange(side, device=sigma.device)[:, None]
    of = torch.arange(side, device=sigma.device)

    def weight(distance: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.5 * (distance / sigma) ** 2) * (there & (distance <= radius))

    inside = weight((to - of).abs(), of >= 0)
    weights = inside + weight(to + of, of > 0) + weight(2 * last - to - of, of < last)
    return (weights / weights.sum(2, keepdim=True)).half()
