"""Batches on the device before they are asked for, prepared and copied by a thread of their own.

The way of a batch on a GPU:

1. The thread takes it from the loader and has it prepared: captions packed, memory pinned.
2. It waits until the GPU has finished with the batch before the one in use, so that two are there at most.
3. It copies on a stream of its own, beside the step, and records an event.
4. The training thread has its stream wait for the event; the host waits for nothing but an unprepared batch.

On a CPU the thread prepares one batch while the other is trained on, and that is all.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

AHEAD = 2  # batches on the device: the one in use, and the next


@dataclass(frozen=True)
class Wait:
    """How long the training stood still for a batch."""

    asked: Any  # an event of the GPU's stream of kernels, or seconds
    given: Any

    def seconds(self) -> float:
        """On a GPU: for which that stream had nothing to do. It must have come this far."""
        if isinstance(self.asked, torch.cuda.Event):
            return self.asked.elapsed_time(self.given) / 1e3
        return self.given - self.asked


class _Sent(NamedTuple):
    batch: Any
    copied: torch.cuda.Event | None


class Prefetcher:
    """An iterator over (prepared batch on the device, `Wait`); close it, or use it as a context.

    batches: an iterable that only the thread uses from now on.  prepare: batch → a tree of tensors on the CPU
    (lists, tuples, named tuples), or on the device already.  An error of either is raised by `next`.
    """

    def __init__(self, batches: Iterable[Any], prepare: Callable[[Any], Any], device: torch.device):
        self._batches, self._prepare, self._device = batches, prepare, device
        self._cuda = device.type == "cuda"
        self._ready: queue.Queue[_Sent | BaseException] = queue.Queue()
        # A permission to send one more batch, once the GPU has come to the event.
        self._tickets: queue.Queue[torch.cuda.Event | None] = queue.Queue()
        self._given = 0
        self._closed = threading.Event()
        for _ in range(AHEAD):
            self._tickets.put(None)
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    # -- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if not self._cuda:
                return self._send_all(self._batches)
            with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.Stream()):
                self._send_all(self._batches)
        except BaseException as error:
            self._ready.put(error)

    def _send_all(self, batches: Iterable[Any]) -> None:
        for batch in batches:
            prepared = tree_map_only(Tensor, self._pinned, self._prepare(batch))
            del batch
            ticket = self._tickets.get()
            if self._closed.is_set():
                return
            if ticket is not None:
                ticket.synchronize()
            self._ready.put(self._sent(prepared))
            del prepared
        self._ready.put(StopIteration())

    def _pinned(self, x: Tensor) -> Tensor:
        """Memory that is not pinned would be copied only once the card is idle."""
        return x if not self._cuda or x.is_cuda or x.is_pinned() else x.pin_memory()

    def _sent(self, prepared: Any) -> _Sent:
        batch = tree_map_only(Tensor, lambda x: x.to(self._device, non_blocking=True), prepared)
        if not self._cuda:
            return _Sent(batch, None)
        copied = torch.cuda.Event()
        copied.record()
        return _Sent(batch, copied)

    # -- the training thread ------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Any, Wait]]:
        return self

    def __next__(self) -> tuple[Any, Wait]:
        asked = self._now()
        if self._given:  # the GPU is done with the batch before, once it has come here
            self._tickets.put(asked if self._cuda else None)
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # for whoever asks again
            raise item
        self._given += 1
        if item.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(item.copied)
            for x in tree_leaves(item.batch):
                if isinstance(x, Tensor):
                    x.record_stream(stream)
        return item.batch, Wait(asked, self._now())

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def close(self) -> None:
        """End the thread, after the batch that it is waiting for."""
        self._closed.set()
        self._tickets.put(None)
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
