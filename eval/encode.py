"""Images and texts to unit vectors, by functions: nothing here knows a trainer.

B batch, T tokens, D width, N images, M texts.

All texts of all sets are encoded in one pass: equal ones once, sorted by length, each batch cut
after its longest end token (what follows an end token cannot reach it in a causal transformer).

Vectors are cached in float32, not half precision: figures computed from the cache are those of the
first run to the last digit.  All 31 sets (419,108 images) take 0.9 GB a checkpoint at width 512.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.crops import Cache, Crops, Preprocess
from eval.ranks import Ranks
from eval.sets.evalset import EvalSet


@dataclass(frozen=True)
class Encoders:
    """A model as functions.

    image: (B, 3, S, S) float32 → (B, D).  text: (B, T) int64 → (B, D); both unnormalised.
    tokenize: list of strings → (M, T) int64, zero after the end token when `cut` is true, and then
    `text` takes any T that holds every end token.  identity names weights, layers and pixels' scale, for
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
    """open_clip's `CLIP.encode_text` for fewer than its full number of positions, same weights and order."""
    from open_clip.transformer import text_global_pool

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
    """Hash of every parameter and buffer by name, and of what makes other embeddings of the same weights:
    the layers (QuickGELU or GELU) and the pixels' mean and deviation."""
    digest = hashlib.blake2b(f"{model} {preprocess.mean} {preprocess.std}".encode(), digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def from_open_clip(model, tokenizer, transform, device: torch.device, precision: str = "fp32") -> Encoders:
    """An open_clip model's encoders in inference mode; precision `amp` is clip-benchmark's autocast."""
    from open_clip.model import CLIP

    model = model.to(device).eval()
    cut = isinstance(model, CLIP) and model.text_pool_type == "argmax" and model.attn_mask is not None
    text = _cut_text(model) if cut else model.encode_text

    def guarded(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast(device.type, enabled=precision == "amp"):
                return function(x)

        return run

    preprocess = Preprocess.from_transform(transform)
    identity = model_identity(model, preprocess)
    return Encoders(
        guarded(model.encode_image), guarded(text), tokenizer, preprocess, identity, device, precision, cut
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


def _padded(x: Tensor, rows: int) -> Tensor:
    """Zero rows added: every batch of a set has one shape, so the kernels, and the digits, are the same."""
    return x if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def image_features(
    one: EvalSet | Crops, encoders: Encoders, cache: Cache, batch_size: int, workers: int, ranks: Ranks
) -> tuple[Tensor, dict[int, str]]:
    """(N, D) float32 unit rows on the CPU, and {index: message} of unreadable images, whose rows are zero."""
    crops = one if isinstance(one, Crops) else crops_of(one, encoders.preprocess, cache)
    key = f"image-{crops.key}-{encoders.identity}-{encoders.precision}"
    count = len(crops.images)
    if ranks.gather(cache.has(key, count))[0]:
        return torch.from_numpy(cache.load(key, count)), crops.bad
    out = None
    for span, batch in crops.batches(batch_size, workers, ranks):
        x = _padded(encoders.preprocess.tensor(batch, encoders.device), min(batch_size, count))
        features = F.normalize(encoders.image(x).float(), dim=-1)[: len(span)].cpu()
        if out is None:
            out = torch.zeros(count, features.shape[1])
        out[span.start : span.stop] = features
    width = max(ranks.gather(0 if out is None else out.shape[1]))
    out = ranks.combine(torch.zeros(count, width) if out is None else out)
    if crops.bad:
        out[list(crops.bad)] = 0
    check_finite(out, crops.images.name, str(crops.images.name(0)).split(", member")[0])
    if ranks.rank == 0 and not crops.bad:  # a file of features would not say which rows no decoder read
        cache.save(key, out.numpy())
    return out, crops.bad


def crops_of(one: EvalSet, preprocess: Preprocess, cache: Cache) -> Crops:
    """The set's crops; sets over the same pictures (CLEVR's two) share them by the pictures' hash."""
    return Crops(one.images, preprocess, cache, f"{cache.identity(one.images)}-{preprocess.key}")


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
    spans = [order[s : s + batch_size] for s in range(0, len(order), batch_size)]
    out = None
    for number in ranks.mine(len(spans)):
        rows = spans[number]
        batch = tokens[rows, : int(lengths[rows].max())].to(encoders.device)
        batch = _text_padded(batch, min(batch_size, len(unique)))
        features = F.normalize(encoders.text(batch).float(), dim=-1)
        if out is None:
            out = torch.zeros(len(unique), features.shape[1])
        out[rows] = features[: len(rows)].cpu()
    width = max(ranks.gather(0 if out is None else out.shape[1]))
    out = ranks.combine(torch.zeros(len(unique), width) if out is None else out)
    check_finite(out, lambda i: repr(unique[i]), "texts")
    return dict(zip(unique, out))


def _text_padded(tokens: Tensor, rows: int) -> Tensor:
    """As `_padded`, with copies of the last text: a row of zeros has no end token."""
    missing = rows - len(tokens)
    return tokens if missing <= 0 else torch.cat([tokens, tokens[-1:].expand(missing, -1)])


def stacked(texts: Sequence[str], known: dict[str, Tensor]) -> Tensor:
    """(M, D): the vectors of these texts."""
    return torch.stack([known[t] for t in texts])
