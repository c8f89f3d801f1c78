"""Drawing triplets from embeddings and matrices: distances, the rule, votes, and which image is which row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.sources.drawn import rule as rules
from dataprep.sources.drawn import spaces
from dataprep.sources.drawn.images import Listing, list_images, part_of
from dataprep.sources.drawn.rule import Rule, draw, measure, random_rows
from dataprep.sources.drawn.spaces import Matrix, check_matrix, open_embedding, open_matrix
from tests.kits import dataprep as kit

ROUNDING = 1e-12  # sums of some 50 float64 products of about 1, added in another order


def everything(space: spaces.Space) -> np.ndarray:
    """(N, N) of a space."""
    numbers = np.arange(space.size)
    return space.distances(numbers, np.tile(numbers, (space.size, 1)))


def matrix_of(size: int, seed: int = 0, whole: bool = False) -> np.ndarray:
    """(size, size) random, symmetric, 0 on the diagonal; `whole`: of few different numbers, with ties."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(0, 4, (size, size)) if whole else rng.random((size, size)), 1)
    return upper + upper.T


# -- distances ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 1 << 19])  # numbers at once: an image, or all
@pytest.mark.parametrize("metric", spaces.METRICS)
def test_metrics_are_those_of_scipy(tmp_path, monkeypatch, metric, block):
    distance = pytest.importorskip("scipy.spatial.distance")
    monkeypatch.setattr(spaces, "_BLOCK", block)
    x = np.random.default_rng(0).standard_normal((17, 49))
    np.save(tmp_path / "x.npy", x)
    found = everything(open_embedding(tmp_path / "x.npy", metric))
    expected = -x @ x.T if metric == "dot" else distance.cdist(x, x, metric)
    assert np.abs(found - expected).max() < ROUNDING * max(1, np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i2", "u1"])
def test_embeddings_of_any_type_of_number(tmp_path, dtype):
    x = np.random.default_rng(0).integers(1, 100, (6, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    found = everything(open_embedding(tmp_path / "x.npy", "dot"))
    assert (found == -(x.astype(int) @ x.T.astype(int))).all()


@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ";"])
def test_text_is_read_as_numpy_wrote_it(tmp_path, delimiter):
    x = np.random.default_rng(0).standard_normal((5, 3))
    np.savetxt(tmp_path / "x.txt", x, delimiter=delimiter)
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.txt").read_bytes())  # Excel's mark
    assert np.allclose(everything(open_embedding(tmp_path / "x.txt", "dot")), -x @ x.T, rtol=1e-15)


@pytest.mark.parametrize("tile", [2, 1 << 11])
def test_condensed_matrices_are_those_of_scipy(tmp_path, monkeypatch, tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    monkeypatch.setattr(spaces, "_TILE", tile)
    x = np.random.default_rng(0).standard_normal((9, 4))
    np.save(tmp_path / "c.npy", distance.pdist(x))
    np.save(tmp_path / "m.npy", distance.squareform(distance.pdist(x)).astype(np.float32))
    condensed, square = (open_matrix(tmp_path / name, False) for name in ("c.npy", "m.npy"))
    other = ~np.eye(9, dtype=bool)  # an image with itself is never asked for
    assert condensed.size == square.size == 9 and check_matrix(tmp_path / "m.npy", False) == ""
    assert np.abs(everything(condensed) - distance.cdist(x, x))[other].max() < ROUNDING
    assert np.abs(everything(square) - distance.cdist(x, x))[other].max() < 1e-6  # float32
    assert (everything(open_matrix(tmp_path / "m.npy", True)) == -everything(square))[other].all()


@pytest.mark.parametrize("tile", [1, 1 << 11])
def test_matrices_that_are_none(tmp_path, monkeypatch, tile):
    """Whichever side of the diagonal it is seen on."""
    monkeypatch.setattr(spaces, "_TILE", tile)
    for change, similarity, message in (
        ({(6, 2): 9.0}, False, r"not symmetric, \[2, 6\] is .* and \[6, 2\] is 9"),
        ({(6, 2): np.nan}, False, r"not symmetric, \[2, 6\] is .* and \[6, 2\] is nan"),
        ({(2, 2): 1.0}, False, r"the diagonal of a dissimilarity is 0, but \[2, 2\] is 1"),
        ({(6, 6): -1.0}, True, r"is the largest of its row, .*, but \[6, 6\] is -1"),
        ({(0, 0): -1.0}, True, r"is the largest of its row, .*, but \[0, 0\] is -1"),
    ):
        m = matrix_of(7) + 2.0 * np.eye(7) * similarity
        for at, value in change.items():
            m[at] = value
        np.save(tmp_path / "m.npy", m)
        check_matrix.cache_clear()
        open_matrix.cache_clear()
        with pytest.raises(ValueError, match=message):
            check_matrix(tmp_path / "m.npy", similarity)


@pytest.mark.parametrize("tile", [2, 1 << 11])
@pytest.mark.parametrize("condensed", [True, False])
def test_gaps_of_matrices(monkeypatch, condensed, tile):
    monkeypatch.setattr(spaces, "_TILE", tile)
    m = matrix_of(7)
    m[5, :] = m[:, 5] = m[1, 3] = m[3, 1] = np.nan  # all of 5, and a pair
    values = m[np.triu_indices(7, 1)] if condensed else m
    unknown, line = Matrix(values, 7, 1).gaps()
    assert np.flatnonzero(unknown).tolist() == [5] and line.startswith("7 pairs of images are not finite")
    assert Matrix(np.nan_to_num(values), 7, 1).gaps()[1] == ""


# -- the rule -----------------------------------------------------------------------------------


def by_hand(m: np.ndarray, images: np.ndarray, least: float) -> set[tuple[int, frozenset[int]]]:
    """Every triplet that obeys the rule, without its sides."""
    found = set()
    for ref, *pair in itertools.permutations(images.tolist(), 3):
        difference = abs(m[ref, pair[0]] - m[ref, pair[1]])
        if difference >= least and difference > 0:
            found.add((ref, frozenset(pair)))
    return found


RULES = st.one_of(
    st.builds(Rule, margin=st.floats(0, 2), units=st.sampled_from(["sd", "absolute"])),
    st.builds(Rule, quantile=st.floats(0.01, 1), soft=st.floats(0.1, 3)),
)


@given(st.integers(4, 12), st.integers(0, 99), st.booleans(), st.booleans(), RULES, st.integers(1, 2000))
@settings(max_examples=60)
def test_what_is_drawn_obeys_the_rule(size, seed, whole, at_random, rule, count):
    """All of it, by brute force, where more is asked for than there is; of matrices with ties too."""
    m = matrix_of(size, seed, whole)
    space, images = Matrix(m, size, 1), np.delete(np.arange(size, dtype=np.int32), seed % size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_ALL", 0 if at_random else 1 << 22)
        patch.setattr(rules, "_ROUND", 1 << 12)
        patch.setattr(rules, "_SAMPLE", 1 << 10)
        if not np.ptp(m[np.ix_(images, images)][np.triu_indices(len(images), 1)]):
            return
        scale = measure(space, images, rule)
        rows, difference = draw(space, images, count, scale, seed)
    ref, left, right = rows.T
    assert (difference == m[ref, left] - m[ref, right]).all()
    possible = by_hand(m, images, scale.least)
    drawn = {(a, frozenset((b, c))) for a, b, c in rows.tolist()}
    assert len(drawn) == len(rows) and drawn <= possible
    assert len(rows) == min(count, len(possible))
    votes = scale.votes(difference)
    assert ((votes > 0.5) == (m[ref, right] < m[ref, left])).all() and (votes != 0.5).all()
    if rule.soft is None:
        assert set(votes) <= {0.0, 1.0}
    else:
        expected = 1 / (1 + np.exp(-difference / (rule.soft * scale.sd)))
        assert np.abs(votes - expected).max(initial=0) < 1e-5  # the temperature has six digits


def test_measuring_is_numpys(monkeypatch):
    monkeypatch.setattr(rules, "_SAMPLE", 1 << 16)
    m = matrix_of(40)
    space, images = Matrix(m, 40, 1), np.arange(40, dtype=np.int32)
    sd = m[np.triu_indices(40, 1)].std()
    scale = measure(space, images, Rule(margin=0.7))
    assert scale.sd == pytest.approx(sd, rel=1e-5) and scale.least == pytest.approx(0.7 * sd, rel=1e-5)
    assert measure(space, images, Rule(margin=0.1, units="absolute")).least == 0.1
    assert measure(space, images, Rule()).least == pytest.approx(sd / 2, rel=1e-5)
    differences = [abs(m[i, j] - m[i, k]) for i, j, k in itertools.permutations(range(40), 3)]
    fifth = measure(space, images, Rule(quantile=0.2))
    assert fifth.least == pytest.approx(np.quantile(differences, 0.8), rel=0.03)  # of 65,536 at random
    assert fifth.share == pytest.approx(0.2, abs=1e-4)


def test_an_image_without_numbers_is_never_drawn():
    m = matrix_of(20)
    m[5, :] = m[:, 5] = np.nan
    space, images = Matrix(m, 20, 1), np.arange(20, dtype=np.int32)
    scale = measure(space, images, Rule(margin=0.0))
    rows, difference = draw(space, images, 10**6, scale, 0)
    assert len(rows) == 19 * 18 * 17 / 2 and not (rows == 5).any() and np.isfinite(difference).all()


def test_both_sides_are_right_as_often_and_seeds_differ(monkeypatch):
    monkeypatch.setattr(rules, "_SAMPLE", 1 << 14)
    images = np.arange(60, dtype=np.int32)
    space = Matrix(
        np.add.outer(images, images), 60, 1
    )  # whichever the reference, the larger number is further
    scale = measure(space, images, Rule(margin=0.5))
    for gone_through in (rules._ALL, 0):
        monkeypatch.setattr(rules, "_ALL", gone_through)
        rows, difference = draw(space, images, 10_000, scale, 0)
        assert abs(scale.votes(difference).sum() - 5_000) < 5 * 50  # five standard deviations
        again, other = (draw(space, images, 10_000, scale, seed)[0] for seed in (0, 1))
        assert (rows == again).all() and (rows != other).any()


def test_random_triplets_are_all_as_likely():
    rows = random_rows(5, 60_000, np.random.default_rng(0))
    counts = np.bincount(rows @ [25, 5, 1], minlength=125)
    expected = [a * 25 + b * 5 + c for a, b, c in itertools.permutations(range(5), 3)]
    assert counts.sum() == counts[expected].sum()
    assert ((counts[expected] - 1_000.0) ** 2 / 1_000).sum() < 98.3  # 99.9 % of chi-square with 59 degrees


@pytest.mark.parametrize(
    "wrong",
    [
        {"triplets": 0}, {"margin": -1}, {"margin": float("nan")}, {"quantile": 0}, {"quantile": 1.5},
        {"soft": 0}, {"soft": float("inf")}, {"margin": 1, "quantile": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_are_none(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        Rule(**wrong).check()


# -- images -------------------------------------------------------------------------------------


def pictures(folder, names):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(kit.jpeg(n))
    return folder


def test_images_are_found_as_the_list_names_them(tmp_path):
    names = [
        "b/2.png",
        "b/2.tif",
        "a.JPG",
        "dog/dog_02.jpg",
        "dog/dog_01.jpg",
        "ice cream.webp",
        "unused.jpg",
    ]
    folder = pictures(tmp_path / "images", names)
    (tmp_path / "names.txt").write_text("b/2\n\na.JPG\ndog\nice cream\n")
    images = list_images(Listing(images=folder, names=tmp_path / "names.txt"), 4, tmp_path / "x.npy")
    found = [path.relative_to(folder).as_posix() for path in images.files]
    assert found == ["b/2.png", "a.JPG", "dog/dog_01.jpg", "ice cream.webp"] and not images.faults
    assert images.names == ("b/2", "a", "dog/dog_01", "ice cream")


def test_a_folder_is_sorted_unless_the_order_is_unsure(tmp_path):
    names = ["dog/dog_02.jpg", "dog/dog_11.jpg", "cat/9.jpg", "a.jpg", ".hidden.jpg"]
    images = list_images(Listing(images=pictures(tmp_path / "i", names)), 4, tmp_path / "x.npy")
    assert images.names == ("a", "cat/9", "dog/dog_02", "dog/dog_11")
    pictures(tmp_path / "ids", ["apple-1122537_1280.jpg", "apple-256261_640.jpg", "apple-99_640.jpg"])
    assert len(list_images(Listing(images=tmp_path / "ids"), 3, tmp_path / "x.npy").files) == 3
    pictures(tmp_path / "counted", [f"im{n}.jpg" for n in range(1, 11)])
    with pytest.raises(ValueError, match="im#.jpg sorted by name is another order .* --names"):
        list_images(Listing(images=tmp_path / "counted"), 10, tmp_path / "x.npy")


def test_the_name_alone_decides_the_split():
    parts = [part_of(f"things/{n}", 0.2) for n in range(5_000)]
    shares = {part: parts.count(part) / 5_000 for part in ("test", "val", "train")}
    # five standard deviations of 5,000 draws
    assert shares == pytest.approx({"test": 0.2, "val": 0.2, "train": 0.6}, abs=5 * (0.24 / 5_000) ** 0.5)
    assert {part_of(f"{n}", 0.0) for n in range(99)} == {"train"}
    assert "train" not in {part_of(f"{n}", 0.5) for n in range(99)}
