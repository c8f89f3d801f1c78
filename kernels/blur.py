"""The blur of the augmentation on a GPU, where the DALI engine's images already are."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 65535  # images: what a grid's third dimension holds


def gaussian_blur_(images: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian of window 2⌈3σ⌉ + 1 over each image, edges reflected; as `pipeline.pixels.blur`, in place.

    images: (N, S, S, 3) uint8, contiguous.  sigma: (N,) float32 in pixels on the same device; an image of 0
    is left as it is.  Sums in float32 and rounds once, halves up.  Returns `images`.  Takes 12·S² bytes an
    image meanwhile.  Raises ValueError where shapes, dtypes or devices do not fit.
    """
    from kernels.fused import blur

    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if not square or images.dtype != torch.uint8 or not images.is_contiguous() or len(images) > MOST:
        told = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"gaussian_blur_: expected contiguous uint8 (N, S, S, 3), N ≤ {MOST}, got {told}")
    if sigma.shape != images.shape[:1] or sigma.dtype != torch.float32 or sigma.device != images.device:
        told = f"{tuple(sigma.shape)} {sigma.dtype} on {sigma.device}"
        raise ValueError(f"gaussian_blur_: expected sigma float32 ({len(images)},) there too, got {told}")
    if len(images):
        blur.blur_(images, sigma.contiguous())
    return images
