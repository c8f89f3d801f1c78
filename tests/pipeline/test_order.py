"""The order of samples: a bijection for every size, seed and epoch, the same for any world size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import Order, Subset
from pipeline.philox import philox

SEEDS = st.integers(0, 2**64 - 1)
BLOCKS = st.builds(
    Order, kind=st.just("block"), block=st.integers(1, 40), window=st.integers(1, 6),
    lanes=st.integers(1, 5), turn=st.integers(1, 30),
)  # fmt: skip
ORDERS = st.one_of(st.builds(Order, kind=st.sampled_from(["random", "file"])), BLOCKS)


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32-10."""
    vectors = [
        (0, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, [2**32 - 1] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x299F31D0_A4093822, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]  # fmt: skip
    for key, counters, expected in vectors:
        got = philox(np.uint64(key), *map(np.uint32, counters))
        assert " ".join(f"{word:08x}" for word in got) == expected


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(order=ORDERS, samples=st.integers(1, 500), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_sample_once(order, samples, seed, epoch):
    epochs, index = order.locate(seed, samples, epoch * samples + np.arange(samples))
    assert (epochs == epoch).all()
    assert (np.sort(index) == np.arange(samples)).all()


@settings(max_examples=50, deadline=None)
@given(order=ORDERS, samples=st.integers(1, 300), seed=SEEDS, data=st.data())
def test_any_position_is_found_alone(order, samples, seed, data):
    t = np.arange(3 * samples)
    epochs, index = order.locate(seed, samples, t)
    some = np.array(data.draw(st.lists(st.integers(0, 3 * samples - 1), min_size=1, max_size=20)))
    assert np.array_equal(order.locate(seed, samples, some), (epochs[some], index[some]))


def test_block_order_reads_windows_of_whole_blocks():
    order, samples = Order(kind="block", block=16, window=4), 1000
    _, index = order.locate(3, samples, np.arange(samples))
    at = 0
    while at < samples:
        ranges = order.windows(3, samples, np.array([at]))[0]
        length = sum(stop - first for first, stop in ranges)
        members = np.concatenate([np.arange(first, stop) for first, stop in ranges])
        assert (np.sort(index[at : at + length]) == np.sort(members)).all()
        assert all(first % 16 == 0 for first, _ in ranges) and len(ranges) <= 4
        assert not (index[at : at + length] == members).all(), "a window is shuffled"
        at += length


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(order=BLOCKS, samples=st.integers(1, 400), seed=SEEDS, epoch=st.integers(0, 1000))
def test_windows_read_what_their_positions_need(order, samples, seed, epoch):
    """Each window is read for the positions of one lane that it holds, all of them and nothing else."""
    t = epoch * samples + np.arange(samples)
    _, index = order.locate(seed, samples, t)
    lane, windows = t // order.turn % order.lanes, {}
    for at in range(samples):
        ranges = tuple(order.windows(seed, samples, t[at : at + 1])[0])
        assert len(ranges) <= order.window and all(0 < stop - first <= order.block for first, stop in ranges)
        windows.setdefault((lane[at], ranges), []).append(index[at])
    for (_, ranges), members in windows.items():
        assert sorted(members) == sorted(i for first, stop in ranges for i in range(first, stop))


def test_a_node_reads_its_lane_of_the_file_and_no_more():
    """Two nodes of three ranks, eight samples a rank and step: with two lanes each reads half the file."""
    samples, block, batch = 5000, 40, 48
    for lanes, least, most in ((1, 250, 250), (2, 125, 125 + 4)):
        order = Order(kind="block", block=block, window=4, lanes=lanes, turn=batch // lanes)
        t = np.arange(samples // batch * batch)
        _, index = order.locate(9, samples, t)
        node = t % batch // (batch // 2)
        blocks = [len(np.unique(index[node == n] // block)) for n in (0, 1)]
        assert least <= sum(blocks) <= most, (lanes, blocks)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    order=BLOCKS, samples=st.integers(1, 200), seed=SEEDS, first=st.integers(0, 500), batch=st.integers(1, 50)
)
def test_the_windows_of_a_batch_and_the_next_of_each_lane(order, samples, seed, first, batch):
    """As found by walking over the stream's positions one by one; epochs end on the way."""
    one = lambda at: (at // samples, *order.windows(seed, samples, np.array([at]))[0])  # noqa: E731
    t, expected = np.arange(first, first + batch), []
    for lane in dict.fromkeys(t // order.turn % order.lanes):
        walk = (at for at in range(first, 10**9) if at // order.turn % order.lanes == lane)
        windows, past = [], False
        while not past:
            at = next(walk)
            if one(at) not in windows[-1:]:
                past = at >= first + batch
                windows.append(one(at))
        expected.append([list(w[1:]) for w in windows])
    got = order.windows(seed, samples, t)
    assert sorted(got) == sorted(w for lane in expected for w in lane)
    assert Order().windows(seed, samples, t) == []


@pytest.mark.slow
@pytest.mark.parametrize("samples", [5, 64, 100])
def test_places_are_uniform(samples):
    """Every sample is equally likely at every place, over seeds and over epochs (chi-square)."""
    from scipy.stats import chi2

    for vary in ("seed", "epoch"):
        counts, runs = np.zeros((samples, samples)), 3000
        for k in range(runs):
            seed, epoch = (k, 0) if vary == "seed" else (1, k)
            _, index = Order().locate(seed, samples, epoch * samples + np.arange(samples))
            counts[np.arange(samples), index] += 1
        expected = runs / samples
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < chi2.ppf(1 - 1e-4, (samples - 1) ** 2)


def test_neighbours_are_independent():
    """The step from one place to the next is as random as numpy's own shuffle makes it."""
    samples = 4096
    _, index = Order().locate(7, samples, np.arange(samples))
    ours = np.corrcoef(index[:-1], index[1:])[0, 1]
    assert abs(ours) < 4 / np.sqrt(samples)
    _, other = Order().locate(7, samples, samples + np.arange(samples))
    assert abs(np.corrcoef(index, other)[0, 1]) < 4 / np.sqrt(samples)


def test_fifteen_million_samples_without_a_list():
    samples = 15_000_000
    for kind in ("random", "block"):
        t = np.array([0, samples - 1, samples, 40 * samples + 123])
        epoch, index = Order(kind=kind).locate(1, samples, t)
        assert epoch.tolist() == [0, 0, 1, 40]
        assert ((index >= 0) & (index < samples)).all()


def test_a_subset_is_fixed_and_nested():
    subsets = [Subset(samples=n, seed=3) for n in (10, 40)]
    small, large = (set(s.members(100).tolist()) for s in subsets)
    assert len(small) == 10 and len(large) == 40 and small < large
    epoch, index = Order(subset=subsets[0]).locate(5, 100, np.arange(25))
    assert epoch.tolist() == [0] * 10 + [1] * 10 + [2] * 5
    assert set(index[:10].tolist()) == set(index[10:20].tolist()) == small


@settings(max_examples=50, deadline=None)
@given(
    total=st.integers(1, 300), share=st.floats(0.01, 1), block=st.integers(1, 40),
    window=st.integers(1, 5), lanes=st.integers(1, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_subset_in_block_order_loses_and_repeats_nothing(total, share, block, window, lanes, seed):
    samples = max(1, round(share * total))
    subset = Subset(samples=samples, seed=seed)
    order = Order(kind="block", block=block, window=window, lanes=lanes, turn=4, subset=subset)
    epoch, index = order.locate(seed, total, np.arange(2 * samples))
    assert epoch.tolist() == [0] * samples + [1] * samples
    for half in (index[:samples], index[samples:]):
        assert np.array_equal(np.sort(half), subset.members(total))
    for t in range(0, samples, max(1, samples // 7)):
        ranges, _ = order.windows(seed, total, np.array([t]))
        assert 0 < len(ranges) <= window
        assert index[t] in np.concatenate([order.expand(total, *r) for r in ranges])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'shuffled' is none of random, block, file"):
        Order(kind="shuffled")
    with pytest.raises(ValueError, match="at least 1"):
        Order(kind="block", block=0)
    with pytest.raises(ValueError, match="lanes 0 and turn 1 must be"):
        Order(kind="block", lanes=0)
    with pytest.raises(ValueError, match="only the block order has lanes"):
        Order(lanes=2)
    with pytest.raises(ValueError, match="without samples"):
        Order().locate(0, 0, np.arange(2))
    with pytest.raises(ValueError, match="a subset of 9 out of 5 samples"):
        Order(subset=Subset(samples=9, seed=0)).locate(0, 5, np.arange(2))
