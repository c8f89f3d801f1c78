"""Matrices as gLocal keeps them, on constructed MATLAB files of their shape."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from scipy.io import savemat
from scipy.spatial.distance import pdist, squareform

from pipeline.formats.judged import matrices

SIMILARITY = np.array([[10, 7.5, 1], [7.5, 10, 0], [1, 0, 10]])


def images(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def category(folder, name="animals", similarity=SIMILARITY, key="simMatrix", file="turkSimilarities.mat"):
    images(folder / name / "images", "b.png", "a.png", "c.jpg", "Thumbs.db")
    (folder / name / "sim_judgments").mkdir()
    savemat(folder / name / "sim_judgments" / file, {key: similarity, "order": [1, 2, 3]})
    return folder / name / "sim_judgments" / file


def test_peterson_is_turned_round(tmp_path):
    category(tmp_path)
    category(tmp_path, "vegetables", np.full((3, 3), 10))
    (tmp_path / "notes").mkdir()
    animals, vegetables = matrices.peterson(tmp_path)
    assert (animals.name, vegetables.name) == ("animals", "vegetables") and animals.notes == ()
    assert animals.images == ("animals/images/a.png", "animals/images/b.png", "animals/images/c.jpg")
    assert animals.matrix.tolist() == [[0, 2.5, 9], [2.5, 0, 10], [9, 10, 0]]
    assert vegetables.matrix.tolist() == np.zeros((3, 3)).tolist() and vegetables.matrix.dtype == np.float64


def test_halves_that_differ_are_averaged_and_told(tmp_path):
    uneven = SIMILARITY.copy()
    uneven[0, 1], uneven[2, 0] = 6.5, np.nan
    category(tmp_path, similarity=uneven)
    (found,) = matrices.peterson(tmp_path)
    assert found.matrix[0, 1] == found.matrix[1, 0] == 3 and found.matrix[0, 2] == found.matrix[2, 0] == 9
    (note,) = found.notes
    assert note.startswith("turkSimilarities.mat: simMatrix is not symmetric (halves up to 1 apart)")


def test_one_half_alone_is_enough(tmp_path):
    upper = np.where(np.triu(np.ones((3, 3)), 1) > 0, SIMILARITY, np.nan)
    category(tmp_path, similarity=upper)
    (found,) = matrices.peterson(tmp_path)
    assert found.matrix[np.triu_indices(3, 1)].tolist() == [2.5, 9, 10] and found.notes == ()
    assert found.matrix[np.tril_indices(3, -1)].tolist() == [2.5, 9, 10]


def test_pairs_that_nobody_rated_are_nan(tmp_path):
    holes = SIMILARITY.copy()
    holes[0, 1] = holes[1, 0] = np.nan
    category(tmp_path, similarity=holes)
    (found,) = matrices.peterson(tmp_path)
    assert np.argwhere(np.isnan(found.matrix)).tolist() == [[0, 1], [1, 0]] and found.notes == ()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"similarity": SIMILARITY[:2, :2]}, "simMatrix is (2, 2); the 3 images make (3, 3)"),
        ({"similarity": SIMILARITY[:2]}, "simMatrix is (2, 3)"),
        ({"similarity": SIMILARITY * 10}, "simMatrix[0, 1] is 75; from 0 to 10 is expected"),
        ({"similarity": -SIMILARITY}, "simMatrix[0, 1] is -7.5"),
        ({"similarity": np.where(SIMILARITY < 1, np.inf, SIMILARITY)}, "simMatrix[1, 2] is inf"),
        ({"similarity": np.full((3, 3), np.nan)}, "simMatrix holds no value"),
        ({"similarity": SIMILARITY.astype(object)}, "simMatrix is no array of real numbers"),
        ({"similarity": SIMILARITY * 1j}, "simMatrix is no array of real numbers"),
        ({"similarity": np.array(["abc"])}, "simMatrix is no array of real numbers"),
        ({"key": "matrix"}, "one array with sim in its name is expected; it has matrix, order"),
    ],
)
def test_peterson_names_what_is_wrong(tmp_path, changed, message):
    path = category(tmp_path, **changed)
    with pytest.raises(ValueError) as caught:
        matrices.peterson(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_two_arrays_that_might_be_meant(tmp_path):
    path = category(tmp_path)
    savemat(path, {"simMatrix": SIMILARITY, "simSD": SIMILARITY})
    with pytest.raises(
        ValueError, match="one array with sim in its name is expected; it has simMatrix, simSD"
    ):
        matrices.peterson(tmp_path)
    savemat(path.parent / "other_sim.mat", {"sim": SIMILARITY})
    with pytest.raises(ValueError, match=r"one .mat with sim in its name is expected, it has 2"):
        matrices.peterson(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    category(tmp_path, "fruits").unlink()

    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('opened')",))

    (tmp_path / "fruits/sim_judgments/fruits_mturkRESULTS_all.pickle").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        ValueError, match="only fruits_mturkRESULTS_all.pickle; a pickle may run code"
    ) as caught:
        matrices.peterson(tmp_path)
    assert "\n" not in str(caught.value)
    savemat(tmp_path / "fruits/sim_judgments/sim.mat", {"sim": SIMILARITY})  # as the message says
    assert [found.name for found in matrices.peterson(tmp_path)] == ["fruits"]


def test_categories_that_are_half_there(tmp_path):
    category(tmp_path).unlink()
    with pytest.raises(
        ValueError, match=r"sim_judgments: one .mat with sim in its name is expected, it has 0"
    ):
        matrices.peterson(tmp_path)
    (tmp_path / "animals/sim_judgments").rmdir()
    with pytest.raises(ValueError, match=r"one .mat with sim in its name is expected, it has 0"):
        matrices.peterson(tmp_path)
    for folder in (tmp_path / "animals", tmp_path / "none"):
        with pytest.raises(ValueError, match="no CATEGORY/images with CATEGORY/sim_judgments in it"):
            matrices.peterson(folder)


def test_the_multi_arrangement_is_the_average_over_people(tmp_path):
    images(tmp_path / "images", "b.jpg", "a.jpg", "c.jpg")
    (tmp_path / "sim_judgements").mkdir()
    people = np.random.default_rng(0).uniform(size=(4, 3, 3))
    people += people.transpose(0, 2, 1)
    savemat(tmp_path / "sim_judgements/judgments_general.mat", {"judgments": people})
    (found,) = matrices.multi_arrangement(tmp_path)
    np.testing.assert_allclose(found.matrix, people.mean(axis=0))
    assert found.images == ("images/a.jpg", "images/b.jpg", "images/c.jpg") and found.notes == ()
    assert found.name == "multi-arrangement"


def behavior(folder, one, two):
    for part in ("set1", "set2"):
        images(folder / "images" / part, "0002.jpg", "0001.jpg", "0004.jpg", "0003.jpg")
    (folder / "sim_judgements").mkdir()
    parts = {"set1": {"pairwisedistances": one}, "set2": {"pairwisedistances": two}}
    savemat(folder / "sim_judgements/BEHAVIOR.mat", {"BEHAVIOR": parts})
    return folder / "sim_judgements/BEHAVIOR.mat"


def test_free_arrangements_are_in_the_order_of_pdist(tmp_path):
    """gLocal compares the distances with a model's upper triangle; scipy's squareform is the reference."""
    points = np.random.default_rng(0).normal(size=(5, 4, 2))
    people = np.stack([pdist(person) for person in points])
    behavior(tmp_path, people, people[:2])
    first, second = matrices.multi_arrangement(tmp_path)
    np.testing.assert_allclose(first.matrix, squareform(people.mean(axis=0)))
    np.testing.assert_allclose(second.matrix, squareform(people[:2].mean(axis=0)))
    assert (first.name, second.name) == ("set1", "set2")
    assert second.images == tuple(f"images/set2/000{n}.jpg" for n in range(1, 5))
    assert all("not verified" in found.notes[0] for found in (first, second))


def test_people_who_left_pairs_out(tmp_path):
    people = np.array([[1, 2, 3, 4, 5, np.nan], [3, np.nan, 3, 4, 5, np.nan]])
    behavior(tmp_path, people, people)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = matrices.multi_arrangement(tmp_path)[0]
    assert found.matrix[0, 1:3].tolist() == [2, 2] and np.isnan(found.matrix[2, 3])


@pytest.mark.parametrize(
    ("two", "message"),
    [
        (np.ones((2, 5)), "BEHAVIOR.set2.pairwisedistances has 5 pairs; 4 images have 6"),
        (np.full((2, 6), -1.0), "BEHAVIOR.set2.pairwisedistances[0, 1] is -1; 0 or more"),
        (np.full((2, 6), np.inf), "BEHAVIOR.set2.pairwisedistances[0, 1] is inf; 0 or more"),
        (np.full((2, 6), np.nan), "BEHAVIOR.set2.pairwisedistances holds no value"),
        (np.ones((2, 6)).astype(object), "no array BEHAVIOR.set2.pairwisedistances (people, pairs)"),
        ("text", "no array BEHAVIOR.set2.pairwisedistances (people, pairs)"),
    ],
)
def test_free_arrangements_name_what_is_wrong(tmp_path, two, message):
    path = behavior(tmp_path, np.ones((2, 6)), two)
    with pytest.raises(ValueError) as caught:
        matrices.multi_arrangement(tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_arrangements_name_what_is_wrong(tmp_path):
    path = behavior(tmp_path, np.ones((2, 6)), np.ones((2, 6)))
    savemat(path, {"BEHAVIOR": {"set1": 1}})
    with pytest.raises(ValueError, match="no array BEHAVIOR.set1.pairwisedistances"):
        matrices.multi_arrangement(tmp_path)
    savemat(path.parent / "judgments_general.mat", {"judgments": np.ones((3, 3))})
    with pytest.raises(
        ValueError, match=r"both of judgments_general.mat and BEHAVIOR.mat in it; one is expected"
    ):
        matrices.multi_arrangement(tmp_path)
    path.unlink()
    images(tmp_path / "images/more")
    with pytest.raises(ValueError, match="images: no jpg in it"):
        matrices.multi_arrangement(tmp_path)
    (tmp_path / "images/1.jpg").touch()
    with pytest.raises(ValueError, match=r"judgments is \(3, 3\); \(people, images, images\) is expected"):
        matrices.multi_arrangement(tmp_path)
    savemat(path.parent / "judgments_general.mat", {"judgment": np.ones((2, 3, 3))})
    with pytest.raises(ValueError, match="array judgments is expected; it has judgment"):
        matrices.multi_arrangement(tmp_path)
    with pytest.raises(ValueError, match="neither of judgments_general.mat and BEHAVIOR.mat"):
        matrices.multi_arrangement(tmp_path / "none")
