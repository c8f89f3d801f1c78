"""Several processes over one evaluation: which rank does which batch, and how the parts are combined.

Batches, not sets, are dealt out.  A batch has the same content whatever the number of ranks, so the
figures do not depend on it.  Without torch.distributed there is one rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those of the evaluation."""

    rank: int = 0
    world_size: int = 1

    def mine(self, count: int) -> range:
        """The numbers of the batches that are this rank's."""
        return range(self.rank, count, self.world_size)

    def combine(self, part: Tensor) -> Tensor:
        """All rows on every rank, of which each rank filled some in a tensor of zeros (exact: x + 0)."""
        if self.world_size > 1:
            dist.all_reduce(part)
        return part

    def gather(self, value: object) -> list:
        """Every rank's (picklable) value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        out: list = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out


def start(device: torch.device) -> Ranks:
    """The ranks that torchrun started (or any launcher that sets RANK and WORLD_SIZE); else one."""
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # One machine: without this, gloo looks up the machine's name, which may not resolve.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # all_gather_object runs on the host; NCCL alone would need a device tensor for it
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
