"""The benchmark's part for a GPU: each kernel beside torch and open_clip, then whole training steps.

Every figure comes with the limit that it is measured against: bytes a second of a large copy, or FLOP/s of a
large matrix product, both measured on the card first. A section that fails is named in the result and does
not stop the others. Needs open_clip.

B pairs, D width, R rows of packed captions, L tokens in a row.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference
from kernels.attention import AttentionBackend, attention
from kernels.bench.cases import Case, Step, synthetic_captions, synthetic_lengths
from kernels.bench.clock import call_ms, kernel_ms, peak_bytes
from kernels.bench.ranks import EqualRanks, open_clip_rank_loss
from kernels.contrastive import contrastive_loss
from kernels.towers import TowerSettings, encode_image, encode_packed_text
from kernels.triplet import triplet_loss
from pipeline.base import hardware
from pipeline.packing import Packed, pack

BATCH, RANKS, WIDTH = 5120, 6, 512  # the paper's batch of 30,720 on 6 GPUs
ROW = 128
_LIMITS = {"copy": ("bytes_per_s", "copy rate"), "product": ("flop_per_s", "matrix product rate")}
PUBLISHED_FLOP = 44.3e9  # a ViT-B/32 pair, forward and backward, 77 tokens


def bench_gpu() -> dict[str, Any]:
    """All sections on the current CUDA device; raises ValueError where there is none."""
    if not torch.cuda.is_available():
        raise ValueError("--gpu: torch sees no CUDA device here")
    import triton

    torch.manual_seed(0)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "failed": {},
    }
    limits: dict[str, float] = {}
    sections = (bench_limits, bench_triplet, bench_infonce, bench_attention, bench_steps)
    for section in sections:
        name = section.__name__.removeprefix("bench_")
        try:
            result[name] = section(limits)
        except RuntimeError as error:  # out of memory, or a kernel that does not run
            traceback.print_exc()
            result["failed"][name] = str(error).splitlines()[0]
        torch.cuda.empty_cache()
    return result


def bench_limits(limits: dict[str, float]) -> dict[str, float]:
    """What the card reaches: a copy of 2 GiB and a product of 8192³ in bfloat16."""
    a = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    limits["bytes_per_s"] = 2 * a.nbytes / kernel_ms(lambda: a.clone()) * 1e3
    x, y = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    limits["flop_per_s"] = 2 * 8192**3 / kernel_ms(lambda: x @ y) * 1e3
    copy, product = limits["bytes_per_s"] / 1e9, limits["flop_per_s"] / 1e12
    print(f"limits: copy {copy:.0f} GB/s, product {product:.0f} TFLOP/s")
    return dict(limits)


def bench_triplet(limits: dict[str, float]) -> dict[str, Any]:
    """Loss and gradients of 65,536 triplets: 6 arrays (B, D) to read or write."""
    batch = 65536
    ref, left, right = features = [
        torch.randn(batch, WIDTH, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
    ]
    vote = torch.rand(batch, device="cuda")

    def plain(ref: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return reference.triplet_losses(ref.float(), left.float(), right.float(), vote, 0.05).mean()

    sides: dict[str, Callable[[], Tensor]] = {
        "triton": lambda: triplet_loss(ref, left, right, vote, backend="triton")[0],
        "torch": partial(plain, *features),
        "torch compiled": partial(torch.compile(plain), *features),
    }
    moved = 6 * features[0].nbytes
    return compare(f"triplet {batch}×{WIDTH}", sides, features, limits, "copy", moved)


def bench_infonce(limits: dict[str, float]) -> dict[str, Any]:
    """One rank's loss of a global batch, without the network: this rank's rows, all ranks' columns."""
    image, text = (F.normalize(torch.randn(BATCH, WIDTH, device="cuda"), dim=-1).bfloat16() for _ in range(2))
    scale = torch.tensor(100.0, device="cuda", requires_grad=True)
    inputs = image.requires_grad_(), text.requires_grad_(), scale
    sides = {
        "triton": partial(contrastive_loss, *inputs, group=EqualRanks(RANKS), backend="triton"),
        "open_clip": partial(open_clip_rank_loss, *inputs, RANKS),
    }
    flop = 4 * 2 * BATCH * RANKS * BATCH * WIDTH
    return compare(f"InfoNCE {BATCH}×{RANKS * BATCH}×{WIDTH}", sides, inputs, limits, "product", flop)


def bench_attention(limits: dict[str, float]) -> dict[str, Any]:
    """An image tower's rows and packed captions' rows, beside SDPA from the same packed projections."""
    segment = pack(synthetic_captions(synthetic_lengths(BATCH)), ROW).segment.cuda()
    shapes = {
        "image 50 tokens, 12 heads": (BATCH, 50, 12, None, False),
        f"captions in rows of {ROW}, 8 heads": (len(segment), ROW, 8, segment, True),
    }
    results = {}
    for name, (rows, length, heads, numbers, causal) in shapes.items():
        qkv = torch.randn(rows, length, 3 * heads * 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        call = partial(attention, qkv, heads, segment=numbers, causal=causal)
        sides = {backend: partial(call, backend=backend) for backend in ("triton", "sdpa")}
        if numbers is not None:  # another result: FlashAttention's time where captions are not kept apart
            sides["sdpa, causal only"] = partial(attention, qkv, heads, causal=True)
        # Read: qkv twice, the output's gradient. Written: the output, qkv's gradient.
        moved = 3 * qkv.nbytes + 2 * qkv.nbytes // 3
        results[name] = compare(name, sides, [qkv], limits, "copy", moved)
    return results


def bench_steps(limits: dict[str, float]) -> dict[str, Any]:
    """Whole steps of ViT-B/32 in bfloat16 with AdamW: ours on packed captions, open_clip on padded ones."""
    import open_clip

    torch.set_float32_matmul_precision("high")
    model = open_clip.create_model("ViT-B-32", device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    useful = useful_flop(model)
    results: dict[str, Any] = {"useful_flop_per_pair": useful, "published_flop_per_pair": PUBLISHED_FLOP}
    cases: dict[str, tuple[Callable[[int], Callable[[], Tensor]], int]] = {
        "ours, triton attention": (partial(our_loss, model, "triton"), BATCH),
        "ours, sdpa": (partial(our_loss, model, "sdpa"), BATCH),
        "open_clip compiled": (partial(open_clip_loss, model, True), BATCH // 4),
        "open_clip eager": (partial(open_clip_loss, model, False), BATCH // 4),
    }
    for name, (make, batch) in cases.items():
        torch.compiler.reset()
        results[name] = whole_step(name, make, batch, optimizer, useful, limits)
    return results


def whole_step(
    name: str,
    make: Callable[[int], Callable[[], Tensor]],
    batch: int,
    optimizer: torch.optim.Optimizer,
    useful: float,
    limits: dict[str, float],
) -> dict[str, float]:
    """Median time of a step; a batch that does not fit the memory is halved."""
    while True:
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            milliseconds = call_ms(partial(train_step, make(batch), optimizer))
            break
        except torch.OutOfMemoryError:
            print(f"{name}: a batch of {batch} does not fit")
            if batch < 64:
                raise
            batch //= 2
    rate = batch / milliseconds * 1e3
    card = hardware.gpu(torch.cuda.get_device_name())
    row = {
        "batch": batch,
        "milliseconds": milliseconds,
        "pairs_per_s": rate,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "share_of_measured_product": rate * useful / limits["flop_per_s"],
    }
    line = f"step, {name}: batch {batch}, {rate:.0f} pairs/s, {row['peak_bytes'] / 1e9:.1f} GB"
    if card:
        row |= {"mfu_published": rate * PUBLISHED_FLOP / card.flops, "mfu_useful": rate * useful / card.flops}
        line += f", MFU {row['mfu_published']:.2f} as published, {row['mfu_useful']:.2f} useful"
    print(line)
    return row


def train_step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Forward in bfloat16, backward and update."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        value = loss()
    value.backward()
    optimizer.step()


def our_loss(model: Any, backend: AttentionBackend, batch: int) -> Callable[[], Tensor]:
    """The fast towers, compiled, on packed captions, LayerNorm and GELU recomputed; our InfoNCE."""
    settings = TowerSettings(attention=backend, recompute="pointwise")
    images = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    packed = pack(synthetic_captions(synthetic_lengths(batch)), ROW).to("cuda")

    @torch.compile(fullgraph=True, dynamic=False)
    def towers(images: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        image = encode_image(model, images, settings)
        text = encode_packed_text(model, *packed, settings)
        return F.normalize(image.float(), dim=-1).bfloat16(), F.normalize(text.float(), dim=-1).bfloat16()

    return lambda: contrastive_loss(*towers(images, packed), model.logit_scale.exp())


def open_clip_loss(model: Any, compiled: bool, batch: int) -> Callable[[], Tensor]:
    """open_clip's forward and loss on captions padded to 77 tokens."""
    images = torch.randn(batch, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    step = Step(model, images, synthetic_captions(synthetic_lengths(batch)).cuda())
    return partial(torch.compile(step.loss) if compiled else step.loss, Case())


def useful_flop(model: Any) -> float:
    """FLOPs of a pair by torch's counter, nothing padded and nothing computed that is not read."""
    batch = 64
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    step = Step(model, images, synthetic_captions(synthetic_lengths(batch)).cuda())
    flops = step.count(Case(towers=TowerSettings())).flops
    model.zero_grad(set_to_none=True)
    return flops / batch


def compare(
    title: str,
    sides: Mapping[str, Callable[[], Tensor]],
    inputs: Sequence[Tensor],
    limits: dict[str, float],
    limit: str,
    work: float,
) -> dict[str, Any]:
    """Forward alone and with backward: time, peak memory, and the share of the limit for both together.

    work: bytes moved where the limit is "copy", FLOPs where it is "product".
    """
    rows, (rate, words) = {}, _LIMITS[limit]
    for name, call in sides.items():
        upstream = torch.ones_like(call().detach())

        def both(call=call, upstream=upstream) -> None:
            torch.autograd.grad(call(), inputs, upstream)

        row = {"forward_ms": kernel_ms(call), "ms": kernel_ms(both), "peak_bytes": peak_bytes(both)}
        share = work / (row["ms"] / 1e3) / limits[rate]
        rows[name] = row | {f"share_of_{limit}": share}
        print(
            f"{title}, {name}: {row['forward_ms']:.3f} ms forward, {row['ms']:.3f} ms with backward, "
            f"{row['peak_bytes'] / 1e6:.0f} MB, {share:.0%} of the {words}"
        )
    return rows
