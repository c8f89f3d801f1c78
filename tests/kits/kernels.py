"""Small towers, captions and features for the tests of the kernels, and how errors are judged.

An error is judged by the error that the same formula has in the same dtype in plain torch; both are compared
with float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

START, END, VOCABULARY = 998, 999, 1000
VIT = {"image_size": 32, "layers": 3, "width": 48, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEXT = {"width": 32, "heads": 2, "layers": 2, "vocab_size": VOCABULARY}


def assert_as_good(ours: Tensor, plain: Tensor, exact: Tensor, what: str, scale: float = 0.0) -> None:
    """The largest error is at most twice plain torch's in the same dtype, plus 4 roundings of the largest.

    scale: what the result is a difference of, where that is larger than the result.
    """
    scale = max(scale, exact.abs().max().item())
    error, allowed = (ours.double() - exact).abs(), (plain.double() - exact).abs().max().item()
    worst = int(error.argmax())
    limit = 2 * allowed + 4 * torch.finfo(ours.dtype).eps * scale
    assert error.isfinite().all(), f"{what}: not finite"
    assert error.max() <= limit, (
        f"{what}: error {error.max():.3g} at element {worst} of {tuple(ours.shape)}, allowed {limit:.3g}"
    )


def assert_norm_as_good(ours: Tensor, plain: Tensor, exact: Tensor, what: str, more: float = 0.0) -> None:
    """For large tensors: the relative error in norm is at most twice plain torch's, 2 roundings and more."""
    size = exact.norm()
    error, allowed = (ours.double() - exact).norm() / size, (plain.double() - exact).norm() / size
    assert error <= 2 * allowed + 2 * torch.finfo(ours.dtype).eps + more, (
        f"{what}: {error:.3g}, plain {allowed:.3g}"
    )


def unit_pairs(
    n: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit vectors image, text (n, width) whose pairs are alike, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, n, width, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1).to(dtype), F.normalize(text + image, dim=-1).to(dtype)


# -- towers -----------------------------------------------------------------------------------


def model(vision: dict = VIT, text: dict = TEXT, cls: type = CLIP, **options) -> nn.Module:
    torch.manual_seed(0)
    model = cls(24, vision, text, **options).double()
    for parameter in model.parameters():  # so that no norm or bias is 0 or 1
        nn.init.normal_(parameter, std=0.1 + 0.9 * (parameter.ndim < 2))
    return model


def captions(lengths: list[int], dtype: torch.dtype = torch.int32, context: int = 77) -> Tensor:
    """Padded captions of the given lengths, start and end token counted in."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.zeros(len(lengths), context, dtype=dtype)
    for row, length in zip(tokens, lengths):
        row[:length] = torch.randint(1, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return tokens


def images(batch: int = 3, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pack(tokens: Tensor, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First-fit packing into rows of `length`, with a filler row and filler tokens that are not zero."""
    rows: list[list[int]] = []
    lengths = (tokens.argmax(-1) + 1).tolist()
    for caption, n in enumerate(lengths):
        row = next((r for r in rows if sum(lengths[c] for c in r) + n <= length), None)
        if row is None:
            rows.append(row := [])
        row.append(caption)
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, VOCABULARY, (len(rows) + 1, length), generator=generator, dtype=tokens.dtype)
    segment, position = torch.zeros_like(packed), torch.zeros_like(packed)
    pool = torch.zeros(len(tokens), dtype=torch.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, caption in enumerate(row, 1):
            stop = start + lengths[caption]
            packed[r, start:stop] = tokens[caption, : lengths[caption]]
            segment[r, start:stop] = number
            position[r, start:stop] = torch.arange(stop - start)
            pool[caption] = r * length + stop - 1
            start = stop
    return packed, segment, position, pool


def assert_same(model: nn.Module, ours, theirs) -> None:
    """Features and the gradient of every parameter agree to rounding."""
    results = []
    for encode in (ours, theirs):
        model.zero_grad()
        features = encode()
        generator = torch.Generator().manual_seed(2)
        features.backward(torch.randn(features.shape, generator=generator, dtype=features.dtype))
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((features.detach(), gradients))
    (features, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(features, expected, rtol=1e-11, atol=1e-11)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for name, gradient in expected_gradients.items():
        error = (gradients[name] - gradient).norm()
        # The softmax cancels the keys' bias: its gradient is nothing but rounding.
        size = expected_gradients[name.replace("k_proj.bias", "k_proj.weight")].norm()
        assert error <= 1e-11 * size, f"{name}: {error} of {size}"
