"""The ranks of a run: which one this process is, and the few things that all ranks do together.

Ranks come from torchrun's variables or from a submitit job; without either there is one.  Gradients travel
by NCCL with CUDA and by gloo without.  A second group, always gloo, carries the loop's decisions, so that
these never wait for the GPU.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.base import machine

TIMEOUT = timedelta(minutes=30)  # a checkpoint of a big model on a slow disk stays well below


@dataclass(frozen=True)
class World:
    """This process among its peers; `control` is None when it is alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = torch.device("cpu")
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agree(self, value: int) -> int:
        """The largest `value` any rank has."""
        if self.control is None:
            return value
        seen = torch.tensor([value])
        dist.all_reduce(seen, dist.ReduceOp.MAX, group=self.control)
        return int(seen)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over the ranks, on the CPU."""
        values = values.detach().cpu()
        if self.control is not None:
            dist.all_reduce(values, group=self.control)
        return values

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over the ranks of each value; every rank has the same names, in the same order."""
        sums = self.total(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, (sums / self.size).tolist()))

    def cores(self) -> float:
        """This rank's share of its node's cores: those it may use, each divided among the ranks that may.

        So it is right for ranks that are bound to cores of their own (SLURM) and for others (torchrun).
        """
        mine = platform.node(), os.sched_getaffinity(0)
        if self.control is None:
            return len(mine[1])
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine, group=self.control)
        users = Counter(core for node, cores in everyone if node == mine[0] for core in cores)
        return sum(1 / users[core] for core in mine[1])

    def barrier(self) -> None:
        if self.control is not None:
            dist.barrier(group=self.control)


def coordinates() -> World:
    """The ranks that the environment tells, not yet joined; one process if it tells none."""
    env = os.environ
    if "SUBMITIT_EXECUTOR" in env:
        import submitit

        job = submitit.JobEnvironment()
        return World(
            rank=job.global_rank,
            size=job.num_tasks,
            local_rank=job.local_rank,
            local_size=job.num_tasks // job.num_nodes,
        )
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun
        return World(
            rank=int(env["RANK"]),
            size=int(env["WORLD_SIZE"]),
            local_rank=int(env.get("LOCAL_RANK", 0)),
            local_size=int(env.get("LOCAL_WORLD_SIZE", 1)),
        )
    return World()


def rendezvous() -> str:
    """Where the ranks meet: in a SLURM job its first node, else the starter's MASTER_ADDR."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    import submitit

    job = submitit.JobEnvironment()
    return f"tcp://{job.hostnames[0]}:{20_000 + int(job.raw_job_id) % 40_000}"


@contextmanager
def join(threads: int) -> Iterator[World]:
    """This process's World, with torch's device and threads set; the groups are left at the end."""
    at = coordinates()
    cuda = torch.cuda.is_available()
    if cuda and at.local_size > torch.cuda.device_count():
        mig = "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", "")
        note = " (CUDA gives a process one MIG instance)" if mig else ""
        raise ValueError(f"--ngpus {at.local_size}: this node shows {torch.cuda.device_count()} GPUs{note}")
    device = torch.device("cuda", at.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // at.local_size))
    if at.size == 1:
        yield replace(at, device=device)
        return
    if at.local_size == at.size:  # else gloo asks for this machine's name, which may not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=rendezvous(),
        rank=at.rank,
        world_size=at.size,
        timeout=TIMEOUT,
        device_id=device if cuda else None,  # connects now, with a clear error, not in the first step
    )
    try:
        control: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield replace(at, device=device, control=control)
    finally:
        dist.destroy_process_group()


def replicate(module: torch.nn.Module, world: World) -> torch.nn.Module:
    """`module` under DistributedDataParallel, starting from rank 0's parameters; alone as it is."""
    return module if world.size == 1 else data_parallel(module, world.device)


def data_parallel(module: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    """`module` on the ranks of the default group: its backward pass averages the gradients over them.

    Buffers (running statistics) stay each rank's own until `share_buffers`.
    """
    devices = [device] if device.type == "cuda" else None
    # Torch 2.14 renames the setting, and warns at the older name.
    known = inspect.signature(DistributedDataParallel).parameters
    setting = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # As a view of the communication's buckets a gradient is stored once.
    options: dict[str, Any] = {"device_ids": devices, setting: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(module, **options)


def synchronised(module: torch.nn.Module, last: bool) -> AbstractContextManager:
    """Around forward and backward of a micro-batch: only the last one's backward communicates."""
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()


def share_buffers(module: torch.nn.Module, world: World) -> None:
    """Every rank takes rank 0's running statistics: what is validated is what is saved."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def lock_run(run: Path, world: World, stack: ExitStack) -> str:
    """Lock the run's folder until `stack` ends; a note where that cannot be.

    Raises machine.Busy, on every rank, where another run trains into the folder.  A job that was put in the
    queue again waits a little, because the locks of a node that died take a while to end.
    """
    note, busy = "", None
    if world.main:
        run.mkdir(parents=True, exist_ok=True)
        try:
            file, note = machine.lock(run / "lock", "run", 120 if "SLURM_RESTART_COUNT" in os.environ else 0)
            stack.enter_context(file)
        except machine.Busy as error:
            busy = error
    if world.agree(busy is not None):
        raise busy or machine.Busy(f"{run}: another run is running")
    return note
