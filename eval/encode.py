"""Images and texts to unit vectors, by functions: nothing here knows a trainer.

B batch, T tokens, D width, N images, M texts.

All texts of all sets are encoded in one pass: equal ones once, sorted by length, each batch cut
after its longest end token (what follows an end token cannot reach it in a causal transformer).

Vectors are cached in float32, not half precision: figures computed from the cache equal those of the
first run to the last digit.  All 31 sets (419,108 images) take 0.9 GB a checkpoint at width 512.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import text_global_pool
from torch import Tensor

from eval.cache import Cache
from eval.crops import Crops, Preprocess
from eval.distributed import Ranks
from eval.sets.evalset import Images


@dataclass(frozen=True)
class Encoders:
    """A model as functions.

    image: (B, 3, S, S) float32 → (B, D).  text: (B, T) int64 → (B, D); both unnormalised.
    tokenize: list of strings → (M, T) int64, zero after the end token when `cut` is true, and then
    `text` takes any T that holds every end token.  identity names weights, layers and the pixels' scale, for
    the cache.
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    preprocess: Preprocess
    identity: str
    device: torch.device = torch.device("cpu")
    precision: str = "fp32"
    cut: bool = False


def _cut_text(model) -> Callable[[Tensor], Tensor]:
    """open_clip's `CLIP.encode_text` for fewer than its full number of positions, same weights and order.

    `kernels/towers.py` trims texts too, and faster; this one repeats open_clip's operations, for equal bits.
    """

    def encode(tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        x = text_global_pool(model.ln_final(x), tokens, model.text_pool_type)
        if model.text_projection is None:
            return x
        linear = isinstance(model.text_projection, torch.nn.Linear)
        return model.text_projection(x) if linear else x @ model.text_projection

    return encode


def model_identity(model: torch.nn.Module, preprocess: Preprocess) -> str:
    """Hash of every parameter and buffer by name, and of what gives other embeddings from the same weights:
    the layers (QuickGELU or GELU) and the pixels' mean and deviation."""
    digest = hashlib.blake2b(f"{model} {preprocess.mean} {preprocess.std}".encode(), digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def from_open_clip(model, tokenizer, transform, device: torch.device, precision: str = "fp32") -> Encoders:
    """An open_clip model's encoders in inference mode; precision `amp` is clip-benchmark's autocast."""
    model = model.to(device).eval()
    cut = isinstance(model, CLIP) and model.text_pool_type == "argmax" and model.attn_mask is not None

    def guarded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast(device.type, enabled=precision == "amp"):
                return function(x)

        return run

    preprocess = Preprocess.from_transform(transform)
    return Encoders(
        image=guarded(model.encode_image),
        text=guarded(_cut_text(model) if cut else model.encode_text),
        tokenize=tokenizer,
        preprocess=preprocess,
        identity=model_identity(model, preprocess),
        device=device,
        precision=precision,
        cut=cut,
    )


def check_finite(features: Tensor, name: Callable[[int], str], what: str) -> None:
    """ValueError naming the first row that holds a NaN or an infinity."""
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{what}: {int(bad.sum())} of {len(features)} embeddings are not finite (first: {name(first)}); "
            "the checkpoint has diverged or the precision is too low"
        )


class _Rows:
    """(count, D) float32 that each rank fills in part; D is known from the first rows."""

    def __init__(self, count: int):
        self._count = count
        self._rows: Tensor | None = None

    def put(self, where: Tensor | slice, features: Tensor) -> None:
        if self._rows is None:
            self._rows = torch.zeros(self._count, features.shape[1])
        self._rows[where] = features

    def combined(self, ranks: Ranks) -> Tensor:
        """All rows, on every rank."""
        width = max(ranks.gather(0 if self._rows is None else self._rows.shape[1]))
        return ranks.combine(torch.zeros(self._count, width) if self._rows is None else self._rows)


def _unit_rows(encode: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    """(B, D) unit vectors of x (B, …) on the CPU.

    The batch is filled up with copies of its last row: every batch of a set has one shape, so the kernels,
    and the digits, are the same.
    """
    count = len(x)
    if count < batch_size:
        x = torch.cat([x, x[-1:].expand(batch_size - count, *x.shape[1:])])
    return F.normalize(encode(x).float(), dim=-1)[:count].cpu()


# -- images -----------------------------------------------------------------------------------------


def crops_of(images: Images, preprocess: Preprocess, cache: Cache) -> Crops:
    """The crops of a set's images; sets over the same images (CLEVR's two) share them by content."""
    return Crops(images, preprocess, cache, f"{cache.identity(images)}-{preprocess.key}")


def image_features(
    crops: Crops, encoders: Encoders, batch_size: int, workers: int, ranks: Ranks
) -> tuple[Tensor, dict[int, str]]:
    """(N, D) float32 unit rows on the CPU, and {index: message} of unreadable images, whose rows are zero."""
    key = f"image-{crops.key}-{encoders.identity}-{encoders.precision}"
    count = len(crops.images)
    known = crops.cache.load(key, count)
    if all(ranks.gather(known is not None)):
        return torch.from_numpy(known), {}
    rows = _Rows(count)

    def encode(span: range, batch: np.ndarray) -> None:
        x = encoders.preprocess.tensor(batch, encoders.device)
        rows.put(slice(span.start, span.stop), _unit_rows(encoders.image, x, min(batch_size, count)))

    unreadable = crops.for_each(encode, batch_size, workers, ranks)
    features = rows.combined(ranks)
    if unreadable:
        features[list(unreadable)] = 0
    check_finite(features, crops.images.name, str(crops.images.name(0)).split(", member")[0])
    if ranks.rank == 0 and not unreadable:  # a file of features would not say which rows are unreadable
        crops.cache.save(key, features.numpy())
    return features, unreadable


# -- texts ------------------------------------------------------------------------------------------


def text_key(texts: Sequence[str], encoders: Encoders, what: str) -> str:
    """The cache's name for something computed from these texts."""
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
    return f"{what}-{digest}-{encoders.identity}-{encoders.precision}"


def text_features(
    texts: Iterable[str], encoders: Encoders, batch_size: int, ranks: Ranks
) -> dict[str, Tensor]:
    """{text: (D,) float32 unit vector on the CPU} of the different texts."""
    unique = sorted(set(texts))
    if not unique:
        return {}
    tokens = encoders.tokenize(unique).to(torch.int64)
    lengths = tokens.argmax(1) + 1 if encoders.cut else torch.full((len(unique),), tokens.shape[1])
    order = torch.argsort(lengths, stable=True)
    batches = [order[s : s + batch_size] for s in range(0, len(order), batch_size)]
    out = _Rows(len(unique))
    for number in ranks.mine(len(batches)):
        rows = batches[number]
        batch = tokens[rows, : int(lengths[rows].max())].to(encoders.device)
        out.put(rows, _unit_rows(encoders.text, batch, min(batch_size, len(unique))))
    features = out.combined(ranks)
    check_finite(features, lambda i: repr(unique[i]), "texts")
    return dict(zip(unique, features))


def stacked(texts: Sequence[str], vectors: dict[str, Tensor]) -> Tensor:
    """(M, D): the vectors of these texts."""
    return torch.stack([vectors[t] for t in texts])
