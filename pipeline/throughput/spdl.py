"""SPDL (facebookresearch/spdl) over the same file, for `throughput` only; the `paper` recipe.

Threads decode whole batches, and one FFmpeg filter graph a sample does the rest, which took less time than
torchvision's operations on SPDL's batches.  It does the recipe in our form: our draws, jitter and grayscale
as one matrix.  It differs in that crop and blur are of planes with halved chroma, and in rounding.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch

from pipeline.augment import Draws, sample_draws
from pipeline.beton.fields import Beton
from pipeline.throughput.settings import Case


def spdl(file: Beton, case: Case) -> Generator[torch.Tensor]:
    """SPDL's pipeline of threads: decode and filter a batch, then normalise it."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    mean, std = (255 * torch.tensor(values) for values in (case.augment.mean, case.augment.std))

    def load(index: np.ndarray) -> torch.Tensor:
        rows = file.rows(index)
        data, start = file.read(*rows.spans("image"))
        sizes = rows.sizes("image")[:, None]
        luma = rows.records["luma"][:, None]
        draws = sample_draws(case.augment, 1, 1, index, sizes[..., 0], sizes[..., 1], luma)
        frames = [
            spdl.io.decode_packets(spdl.io.demux_image(jpeg), filter_desc=filters)
            for jpeg, filters in zip(np.split(data, start[1:]), filter_graphs(draws, case.image_size))
        ]
        images = spdl.io.to_torch(spdl.io.convert_frames(frames))
        return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)

    builder = PipelineBuilder().add_source(_indices(len(file), case.batch_size))
    builder = builder.pipe(load, concurrency=case.workers).add_sink(2)
    threads = builder.build(num_threads=case.workers)
    with threads.auto_stop():
        yield from threads


def _indices(count: int, batch: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, count, batch)


def filter_graphs(draws: Draws, side: int) -> Iterator[str]:
    """FFmpeg's description of each sample's crop, resize, flip, blur and colour matrix."""
    for (top, left, height, width), matrix, coloured, sigma, flip in zip(
        draws.box[:, 0].tolist(), draws.matrix[:, 0], draws.coloured, draws.sigma.tolist(), draws.flip
    ):
        steps = [f"crop={width}:{height}:{left}:{top}", f"scale={side}:{side}:flags=bicubic"]
        steps += ["hflip"] if flip else []
        steps += [f"gblur=sigma={sigma:.3f}"] if sigma else []
        steps += ["format=pix_fmts=rgba", _mixer(matrix)] if coloured else []
        yield ",".join([*steps, "format=pix_fmts=rgb24"])


def _mixer(matrix: np.ndarray) -> str:
    """A 3x4 matrix: its offsets come as multiples of the opaque alpha."""
    factors = np.concatenate([matrix[:, :3], matrix[:, 3:] / 255], 1)
    terms = [f"{'rgb'[i]}{'rgba'[j]}={value:.5f}" for (i, j), value in np.ndenumerate(factors)]
    return "colorchannelmixer=" + ":".join(terms)
