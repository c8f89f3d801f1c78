"""What is done to a sample, as numbers: presets and draws.

All randomness of a sample is a pure function of (seed, epoch, sample index).  `sample_draws` computes it for
a whole batch at once; the engines only apply it.  The images of a triplet share one set of draws.

Brightness, contrast, saturation, hue and grayscale are folded into one 3x4 matrix a sample.
torchvision applies them one by one, in random order, and clamps in between.  The result is the same but for
that clamping and for hue, which is a rotation about the grey axis here and an HSV shift there.

B batch, V images of a sample (1, or 3 of a triplet), S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.compiled import compiled
from pipeline.philox import philox

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROPS = ("resize", "centre", "random")
CENTRE, RANDOM = CROPS.index("centre"), CROPS.index("random")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """One recipe of augmentation; by default images are resized and normalised, and nothing is drawn.

    crop: "resize" squeezes the whole image into the square, whatever its aspect ratio.  "centre" scales the
    short side to S and cuts the middle out (torchvision's Resize and CenterCrop, as open_clip evaluates).
    "random" draws torchvision's RandomResizedCrop box from `scale` (share of the area) and `ratio` (width
    over height).
    brightness, contrast, saturation: factor 1 ± value; hue: ± turns.
    `*_p` are probabilities; `blur_sigma` is in pixels of the resized image.
    """

    crop: str = "resize"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_p: float = 0.0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ValueError(f"augment: crop {self.crop!r} is none of {', '.join(CROPS)}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"augment: scale {self.scale} must be 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"augment: ratio {self.ratio} must be 0 < low <= high")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] <= 10:
            raise ValueError(f"augment: blur_sigma {self.blur_sigma} must be 0 < low <= high <= 10 pixels")
        for name in ("jitter_p", "gray_p", "blur_p", "flip_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment: {name} {getattr(self, name)} is no probability")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment: {name} {getattr(self, name)} must not be negative")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"augment: hue {self.hue} must be within 0 … 0.5 turns")
        if min(self.std) <= 0:
            raise ValueError(f"augment: std {self.std} must be positive")


AUGMENTS = {
    "none": Augment(),  # no random draws and nothing cut off: images are squeezed into the square
    "eval": Augment(crop="centre"),  # no random draws either, but the aspect ratio is kept
    "clip": Augment(crop="random", scale=(0.9, 1.0)),
    "paper": Augment(crop="random", scale=(0.2, 1.0), gray_p=0.2, blur_p=0.5, flip_p=0.5,
                     brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8),
    "demo": Augment(crop="random", scale=(0.65, 1.0), ratio=(0.85, 1.18), gray_p=0.05,
                    brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, jitter_p=0.8),
}  # fmt: skip


class Draws(NamedTuple):
    """The numbers drawn for a batch, as `sample_draws` returns them.

    Boxes are per image.  Everything else is shared by a sample's images, but for the centre of the contrast
    operation, which is in the matrix.
    """

    box: np.ndarray  # (B, V, 4) int32: top, left, height, width of the crop
    covers: bool  # the box is not squeezed to the square but covers it: see `pixels.covering`
    matrix: np.ndarray  # (B, V, 3, 4) float32: colour' = M[:, :3] @ colour + M[:, 3], in 0 … 255
    coloured: np.ndarray  # (B,) bool: whether the matrix is other than the identity
    sigma: np.ndarray  # (B,) float32: blur in pixels, 0 for none
    flip: np.ndarray  # (B,) bool: mirrored left to right
    choice: np.ndarray  # (B,) float64 in [0, 1): which caption

    def of_view(self, view: int, part: slice) -> Draws:
        """The draws of one image of each sample in `part`: box is (N, 4) then, matrix (N, 3, 4)."""
        return Draws(
            box=self.box[part, view],
            covers=self.covers,
            matrix=self.matrix[part, view],
            coloured=self.coloured[part],
            sigma=self.sigma[part],
            flip=self.flip[part],
            choice=self.choice[part],
        )


def sample_draws(
    augment: Augment,
    seed: int,
    epoch: np.ndarray | int,
    index: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    luma: np.ndarray,
) -> Draws:
    """The draws of samples `index` (B,) in `epoch` (B,) or one number.

    heights, widths: (B, V) pixels of the stored images; luma: (B, V) their mean luma, 0 … 255.
    """
    index = np.ascontiguousarray(index, np.int64)
    epoch = np.ascontiguousarray(np.broadcast_to(np.asarray(epoch, np.int64), index.shape))
    heights, widths = np.ascontiguousarray(heights, np.int64), np.ascontiguousarray(widths, np.int64)
    luma = np.ascontiguousarray(luma, np.float64)
    assert heights.shape == widths.shape == luma.shape == (len(index), heights.shape[1])
    a = augment
    strengths = np.array([a.brightness, a.contrast, a.saturation, a.hue])
    chances = np.array([a.jitter_p, a.gray_p, a.blur_p, a.flip_p])
    limits = np.array([*a.scale, *np.log(a.ratio), *a.blur_sigma])
    sizes, crop = (heights, widths), CROPS.index(a.crop)
    return _sample_draws(np.uint64(seed), epoch, index, *sizes, luma, crop, strengths, chances, limits)


@compiled
def _uniform(seed, epoch, index, block):
    """Four numbers in [0, 1) of a sample; `block` numbers the fours."""
    i = np.uint64(index)
    a, b, c, d = philox(seed, i, i >> np.uint64(32), epoch, block)
    return a * 2.0**-32, b * 2.0**-32, c * 2.0**-32, d * 2.0**-32


@compiled
def _random_box(seed, epoch, index, height, width, limits, uy, ux):
    """torchvision's RandomResizedCrop.get_params: ten tries, then the largest centred box within `ratio`."""
    area = height * width
    log_low, log_high = limits[2], limits[3]
    a = b = c = d = 0.0
    for attempt in range(10):
        if attempt % 2 == 0:
            a, b, c, d = _uniform(seed, epoch, index, 3 + attempt // 2)
        else:
            a, b = c, d
        target = area * (limits[0] + a * (limits[1] - limits[0]))
        aspect = np.exp(log_low + b * (log_high - log_low))
        w, h = int(np.rint(np.sqrt(target * aspect))), int(np.rint(np.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return int(uy * (height - h + 1)), int(ux * (width - w + 1)), h, w
    w, h = width, height
    if width < height * np.exp(log_low):
        h = int(np.rint(width / np.exp(log_low)))
    elif width > height * np.exp(log_high):
        w = int(np.rint(height * np.exp(log_high)))
    return (height - h) // 2, (width - w) // 2, h, w


@compiled
def _colour_matrix(brightness, contrast, saturation, turns, gray, luma, out):
    """gray @ hue @ saturation, times brightness and contrast about the image's mean luma → out (3, 4)."""
    weights = np.array([0.299, 0.587, 0.114])
    angle = 2 * np.pi * turns
    cos, sin, u = np.cos(angle), np.sin(angle), 3**-0.5
    same, after, before = cos + (1 - cos) / 3, (1 - cos) / 3 - u * sin, (1 - cos) / 3 + u * sin
    hue = np.array([[same, after, before], [before, same, after], [after, before, same]])
    m = np.zeros((3, 3))
    for r in range(3):
        for c in range(3):
            m[r, c] = saturation * hue[r, c]
            for k in range(3):
                m[r, c] += (1 - saturation) * hue[r, k] * weights[c]
    for c in range(3):
        grey = weights[0] * m[0, c] + weights[1] * m[1, c] + weights[2] * m[2, c]
        for r in range(3):
            out[r, c] = brightness * contrast * (grey if gray else m[r, c])
    for r in range(3):
        out[r, 3] = brightness * (1 - contrast) * luma


@compiled
def _factor(u, strength):
    """u in [0, 1) → a factor within 1 ± strength, not below 0."""
    low = max(0.0, 1 - strength)
    return low + u * (1 + strength - low)


@compiled
def _sample_draws(seed, epochs, indices, heights, widths, luma, crop, strengths, chances, limits):
    count, views = heights.shape
    box = np.empty((count, views, 4), np.int32)
    matrix = np.empty((count, views, 3, 4), np.float32)
    coloured, flip = np.empty(count, np.bool_), np.empty(count, np.bool_)
    sigma, choice = np.zeros(count, np.float32), np.empty(count, np.float64)
    for i in range(count):
        epoch, index = epochs[i], indices[i]
        ub, uc, us, uh = _uniform(seed, epoch, index, 0)
        u_jitter, u_gray, u_blur, u_sigma = _uniform(seed, epoch, index, 1)
        u_flip, choice[i], uy, ux = _uniform(seed, epoch, index, 2)
        jitter, gray = u_jitter < chances[0], u_gray < chances[1]
        coloured[i] = gray or (jitter and strengths.any())
        if u_blur < chances[2]:
            sigma[i] = limits[4] + u_sigma * (limits[5] - limits[4])
        flip[i] = u_flip < chances[3]
        b = c = s = 1.0
        turns = 0.0
        if jitter:
            b, c, s = _factor(ub, strengths[0]), _factor(uc, strengths[1]), _factor(us, strengths[2])
            turns = (2 * uh - 1) * strengths[3]
        for v in range(views):
            h, w = heights[i, v], widths[i, v]
            top = left = 0
            if crop == RANDOM:
                top, left, h, w = _random_box(seed, epoch, index, h, w, limits, uy, ux)
            box[i, v, 0], box[i, v, 1], box[i, v, 2], box[i, v, 3] = top, left, h, w
            _colour_matrix(b, c, s, turns, gray, luma[i, v], matrix[i, v])
    return Draws(box, crop == CENTRE, matrix, coloured, sigma, flip, choice)


def lookup_table(augment: Augment, dtype: torch.dtype) -> torch.Tensor:
    """(3, 256): the normalised value of each level of each channel, rounded once to `dtype`.

    For uint8, whose images are not normalised: the levels themselves.
    """
    import torch

    level = torch.arange(256, dtype=torch.float64).expand(3, 256)
    if dtype == torch.uint8:
        return level.to(dtype)
    mean, std = torch.tensor(augment.mean).double(), torch.tensor(augment.std).double()
    return ((level / 255 - mean[:, None]) / std[:, None]).to(dtype)


def mean_colour(augment: Augment, dtype: torch.dtype) -> torch.Tensor:
    """(3,): the pixel of an image that does not decode; zeros, or in uint8 the levels next to 255 * mean."""
    import torch

    levels = (255 * torch.tensor(augment.mean).double()).round().clamp(0, 255)
    return (levels if dtype == torch.uint8 else torch.zeros(3)).to(dtype)


def normalise(levels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """A loader's uint8 images, normalised as the FFCV engine does it in the dtype of `table`, to the bit.

    levels: (B, 3, S, S) uint8.  table: `lookup_table` of the loader's augmentation, on the same device.
    Returns (B, 3, S, S) in the memory layout of `levels`: contiguous, or else channels_last.

    torch.compile makes it one gather, fused with what uses it.  Of torch's gathers `index_select` is the
    fastest on a CPU: 6 ms for 16 images of 224 px on one thread, where indexing takes 15.
    """
    import torch

    index = (
        levels.int() + torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=levels.device)[:, None, None]
    )
    rows = index if index.is_contiguous() else index.permute(0, 2, 3, 1)
    values = table.flatten().index_select(0, rows.flatten()).view(rows.shape)
    return values if rows is index else values.permute(0, 3, 1, 2)
