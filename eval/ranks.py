"""Several processes over one evaluation: who does which batch, and putting the parts together.

Batches, not sets, are dealt out, and a batch has the same content whatever the number of ranks,
so the numbers do not depend on it.  Without torch.distributed there is one rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1

    def mine(self, count: int) -> range:
        """The numbers of the batches this rank does."""
        return range(self.rank, count, self.world_size)

    def combine(self, part: Tensor) -> Tensor:
        """Rows that each rank filled in a tensor of zeros, all of them on every rank (exact: x + 0)."""
        if self.world_size > 1:
            dist.all_reduce(part)
        return part

    def gather(self, value: object) -> list:
        """One picklable value a rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        out: list = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def start(device: torch.device) -> Ranks:
    """The ranks torchrun (or SLURM's launcher through RANK and WORLD_SIZE) started; else one."""
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # One machine; else gloo asks for its name, which may not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # all_gather_object and the barrier run on the host; NCCL alone would need a device tensor for them
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
