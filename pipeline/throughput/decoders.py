"""Decoding alone on a GPU, for `throughput`: whole images, the work that bounds every loader there.

`device="cpu"` runs the same code without a GPU, for tests.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch

from pipeline.beton.fields import Beton
from pipeline.dali_graph import colours, decode_whole, typical_size
from pipeline.throughput.settings import Case


def jpegs(file: Beton, batch: int) -> Iterator[tuple[list[np.ndarray]]]:
    """Batches of random samples' JPEGs, as DALI's external source takes them."""
    rng = np.random.default_rng(0)
    while True:
        rows = file.rows(rng.integers(0, len(file), batch))
        data, start = file.read(*rows.spans("image"))
        yield (np.split(data, start[1:]),)


def dali(file: Beton, case: Case, share: float, device: str = "gpu") -> Generator:
    """DALI's decoder as our engine has it, `share` of each batch by the GPU's JPEG engine."""
    from nvidia.dali import fn, pipeline_def, types

    typical = typical_size(file, "image")
    number = torch.cuda.current_device() if device == "gpu" else None

    @pipeline_def(
        batch_size=case.batch_size, num_threads=case.workers, device_id=number, prefetch_queue_depth=2
    )
    def pipeline():
        source = jpegs(file, case.batch_size)
        (jpeg,) = fn.external_source(source, num_outputs=1, dtype=types.UINT8, ndim=1, no_copy=True)
        if device == "gpu":
            return decode_whole(jpeg, typical, share)
        return fn.decoders.image(jpeg, device="cpu", **colours())

    pipe = pipeline()
    pipe.build()
    while True:
        yield pipe.run()


def torchvision(file: Beton, case: Case, device: str = "cuda") -> Generator[list[torch.Tensor]]:
    """torchvision's decoder of a list, called from one thread."""
    from torchvision.io import decode_jpeg

    for (images,) in jpegs(file, case.batch_size):
        yield decode_jpeg([torch.from_numpy(image) for image in images], device=device)


def torchcodec(file: Beton, case: Case, device: str = "cuda") -> Generator[list[torch.Tensor]]:
    """torchcodec's decoder of a list (from 0.16 on), called from one thread."""
    from torchcodec.decoders import decode_jpeg

    for (images,) in jpegs(file, case.batch_size):
        yield decode_jpeg([torch.from_numpy(image) for image in images], device=device)
