"""The thread that prepares batches: their order, its errors and its end, and what counts as waiting."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.device.prefetch import AHEAD, Prefetcher

CPU = torch.device("cpu")


class Part(NamedTuple):
    x: torch.Tensor
    last: bool


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@given(st.lists(st.integers(0, 99), max_size=20))
def test_every_batch_once_in_order(numbers):
    def prepare(number):
        return [Part(torch.tensor([number]), last) for last in (False, True)]

    with Prefetcher(numbers, prepare, CPU) as batches:
        assert [(int(a.x), int(b.x), a.last, b.last) for (a, b), _ in batches] == [
            (number, number, False, True) for number in numbers
        ]
    assert not threads()


@pytest.mark.parametrize("where", ("loader", "prepare"))
def test_an_error_of_the_thread_is_raised_after_the_batches_before_it(where):
    def numbers():
        yield from (1, 2)
        if where == "loader":
            raise OSError("the disk is gone")
        yield 3

    def prepare(number):
        if number == 3:
            raise ValueError("caption")
        return number

    with Prefetcher(numbers(), prepare, CPU) as batches:
        assert [next(batches)[0], next(batches)[0]] == [1, 2]
        for _ in range(2):  # asked again, it still is an error, not a wait for ever
            with pytest.raises(OSError if where == "loader" else ValueError):
                next(batches)
    assert not threads()


def test_no_more_is_sent_than_is_asked_for():
    taken = []

    def numbers():
        for number in range(100):
            taken.append(number)
            yield number

    sent = []
    prefetcher = Prefetcher(numbers(), lambda number: number, CPU)
    prefetcher._sent = lambda prepared, send=prefetcher._sent: sent.append(prepared) or send(prepared)
    with prefetcher as batches:
        for asked in range(1, 20):
            next(batches)
            time.sleep(0.005)
            # In use and ready; one more waits on the host, prepared.
            assert len(taken) <= asked + AHEAD and len(sent) <= asked + AHEAD - 1
    assert not threads()


def test_closing_ends_a_thread_that_waits_for_its_consumer():
    ended = []

    class Loader:
        def __iter__(self):
            try:
                while True:
                    yield 0
            finally:
                ended.append(threading.current_thread().name)

    with Prefetcher(Loader(), lambda number: number, CPU) as batches:
        next(batches)
    assert ended == ["prefetch"] and not threads()  # the loader's own threads end with its iterator


def test_waiting_is_what_the_training_stood_still():
    release = threading.Semaphore(0)

    def numbers():
        for number in range(3):
            release.acquire()
            yield number

    with Prefetcher(numbers(), lambda number: number, CPU) as batches:
        release.release()
        _, first = next(batches)
        release.release()
        time.sleep(0.2)  # a step: the next batch is there long before its end
        _, hidden = next(batches)
        threading.Timer(0.2, release.release).start()
        _, late = next(batches)
    assert hidden.seconds() < 0.1 < 0.15 < late.seconds() and first.seconds() >= 0
