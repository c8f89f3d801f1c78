"""AligNet's table, on constructed archives of the documented shape."""

from __future__ import annotations

import itertools
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.formats.judged import alignet

NAMES = [f"n0144076{i % 3}_{i}.JPEG" for i in range(6)]  # of three synsets
ROWS = np.array([[0, 1, 2], [3, 4, 5], [5, 0, 3]])
INDICES = ROWS * 1000 + 7
SIMILARITIES = np.array([[0.9, 0.5, 0.1], [3, 2, -1], [0, 0, -1]], np.float32)


@pytest.fixture
def images(tmp_path):
    for synset in range(3):
        (tmp_path / "train" / f"n0144076{synset}").mkdir(parents=True)
    return tmp_path / "train"


def arrays(**changed):
    right = {"filenames": np.array(NAMES)[ROWS], "similarities": SIMILARITIES, "indices": INDICES}
    return {name: array for name, array in {**right, **changed}.items() if array is not None}


def write(folder, **changed):
    np.savez_compressed(folder / "alignet_train.npz", **arrays(**changed))
    return folder / "alignet_train.npz"


def paths_of(found):
    return [[found.images[n] for n in row] for row in found.rows]


EXPECTED = [[f"{NAMES[n][:9]}/{NAMES[n]}" for n in row] for row in ROWS]


def test_the_last_is_the_odd_one(tmp_path, images):
    found = alignet.read(write(tmp_path), images)
    assert paths_of(found) == EXPECTED and len(found.images) == 6 and found.rows.dtype == np.int32
    assert found.odd.tolist() == [[0, 0, 1]] * 3 and found.votes.tolist() == [0, 0, 0]
    assert found.number.tolist() == [0, 1, 2] and found.group.tolist() == [""] * 3
    assert found.voters == "AligNet, computed" and found.notes == () and found.folder == images


@pytest.mark.parametrize(
    "kind", ["bytes", "folders", "wide", "big-endian", "Fortran", "int32", "float64", "stored"]
)
def test_ways_to_hold_the_same(tmp_path, images, kind):
    names = np.array(NAMES)[ROWS]
    changed = {
        "bytes": {"filenames": names.astype("S")},
        "folders": {"filenames": np.array(list(itertools.chain(*EXPECTED))).reshape(-1, 3)},
        "wide": {"filenames": names.astype("U60")},
        "big-endian": {"filenames": names.astype(">U19"), "indices": INDICES.astype(">i8")},
        "Fortran": {
            "filenames": np.asfortranarray(names),
            "similarities": np.asfortranarray(SIMILARITIES),
            "indices": np.asfortranarray(INDICES),
        },
        "int32": {"indices": INDICES.astype(np.int32)},
        "float64": {"similarities": SIMILARITIES.astype(np.float64)},
        "stored": {},
    }[kind]
    table = write(tmp_path, **changed)
    if kind == "stored":
        np.savez(table, **arrays())
    assert paths_of(alignet.read(table, images)) == EXPECTED


def test_the_whole_table_is_read_in_parts(tmp_path, images, monkeypatch):
    expected = alignet.read(write(tmp_path), images)
    monkeypatch.setattr(alignet, "_AT_ONCE", 1)
    found = alignet.read(write(tmp_path), images)
    assert found.images == expected.images and (found.rows == expected.rows).all()


@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
def test_shares_are_the_softmax_of_the_other_pair(tmp_path, images, temperature):
    """losses.py of the authors takes the softmax of [s01, s02, s12]: image 2, 1 and 0 are odd in these."""
    found = alignet.read(write(tmp_path), images, temperature)
    expected = softmax(SIMILARITIES.astype(np.float64) / temperature, axis=1)[:, [2, 1, 0]]
    np.testing.assert_allclose(found.odd, expected, rtol=1e-12)
    assert (found.odd.argmax(axis=1)[:2] == 2).all() and found.odd[2, 1] == found.odd[2, 2]


def test_a_small_temperature_does_not_overflow(tmp_path, images):
    found = alignet.read(write(tmp_path, similarities=SIMILARITIES * 1000), images, 1e-30)
    assert found.odd.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0.5, 0.5]]


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_temperatures_that_are_none(tmp_path, images, temperature):
    with pytest.raises(ValueError, match="^temperature .*: a number above 0 is expected"):
        alignet.read(write(tmp_path), images, temperature)


def many(count, against):
    """A table in which `against` rows say that the first image is the odd one."""
    similarities = np.tile(np.float32([0.9, 0.5, 0.1]), (count, 1))
    similarities[:against] = [0.1, 0.5, 0.9]
    rows = np.tile(ROWS, (count, 1))[:count]
    return {
        "filenames": np.array(NAMES)[rows], "indices": rows * 1000 + 7, "similarities": similarities,
    }  # fmt: skip


def test_rows_whose_similarities_contradict_their_order_are_counted(tmp_path, images):
    told = "in 2 of 20 rows the similarities make another image than the last the odd one"
    found = alignet.read(write(tmp_path, **many(20, 2)), images)
    assert found.notes == (f"{told}; the last is taken",) and found.odd[0].tolist() == [0, 0, 1]
    found = alignet.read(write(tmp_path, **many(20, 2)), images, 1.0)
    assert found.notes == (f"{told}; kept",) and found.odd[0].argmax() == 0


def test_a_table_in_another_order_is_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"npz: in 3 of 20 rows .* not sorted as AligNet is"):
        alignet.read(write(tmp_path, **many(20, 3)), images)


def test_rows_with_an_image_twice_are_left_out_and_counted(tmp_path, images):
    rows = np.array([[0, 1, 2], [3, 4, 3], [4, 4, 5], [1, 5, 5], [3, 4, 5]])
    changed = {
        "filenames": np.array(NAMES)[rows], "indices": rows,
        "similarities": np.tile(np.float32([3, 2, 1]), (5, 1)),
    }  # fmt: skip
    found = alignet.read(write(tmp_path, **changed), images, 1.0)
    assert found.notes == ("3 of 5 rows left out: an image is in it twice",)
    assert found.number.tolist() == [0, 4] and found.rows.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(found.odd) == len(found.votes) == len(found.group) == 2


def changed_at(array, place, value):
    array = array.copy()
    array[place] = value
    return array


FILENAMES = np.array(NAMES)[ROWS].astype("U40")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"filenames": None}, "no array filenames; it has similarities.npy, indices.npy"),
        ({"similarities": None}, "no array similarities"),
        ({"indices": None}, "no array indices"),
        ({"filenames": FILENAMES.astype(object)}, "filenames is a pickle of objects, which is not opened"),
        ({"filenames": FILENAMES[:2]}, "filenames has 2 rows, indices 3"),
        ({"similarities": SIMILARITIES[:2]}, "similarities has 2 rows, indices 3"),
        ({"filenames": FILENAMES[:, :2]}, "filenames is <U40 (3, 2); (n, 3) text is expected"),
        ({"filenames": INDICES}, "filenames is int64 (3, 3); (n, 3) text is expected"),
        ({"similarities": INDICES}, "similarities is int64 (3, 3); (n, 3) floats is expected"),
        ({"indices": SIMILARITIES}, "indices is float32 (3, 3); (n, 3) whole numbers is expected"),
        ({"filenames": FILENAMES.astype("U999")}, "filenames is of type <U999; names this long are none"),
        (
            {"similarities": changed_at(SIMILARITIES, (1, 2), np.nan)},
            "row 1: similarities is [3.0, 2.0, nan]",
        ),
        (
            {"similarities": changed_at(SIMILARITIES, (2, 0), np.inf)},
            "row 2: similarities is [inf, 0.0, -1.0]",
        ),
        ({"indices": changed_at(INDICES, (1, 2), -1)}, "row 1: indices is [3007, 4007, -1]; 0 to 1281166"),
        ({"indices": changed_at(INDICES, (2, 2), 1_281_167)}, "row 2: indices is [5007, 7, 1281167]"),
        (
            {"indices": changed_at(INDICES, (2, 0), 1007)},
            "row 2: index 1007 has another name than in another",
        ),
        ({"filenames": changed_at(FILENAMES, (2, 1), NAMES[4])}, "row 2: index 7 has another name"),
        ({"indices": changed_at(INDICES, (2, 0), 9)}, "indices has several numbers for one of filenames"),
        (
            {"filenames": changed_at(FILENAMES, (0, 1), "../n01440764_1.JPEG")},
            "row 0: filenames has '../n0144",
        ),
        ({"filenames": changed_at(FILENAMES, (0, 2), "/n01440764_1.JPEG")}, "row 0: filenames has '/n0144"),
        ({"filenames": changed_at(FILENAMES, (1, 1), "")}, "row 1: filenames has ''; a name like"),
        (
            {"filenames": changed_at(FILENAMES, (1, 1), "ILSVRC2012_val_00000001.JPEG")},
            "row 1: filenames has 'IL",
        ),
        ({"filenames": changed_at(FILENAMES, (1, 1), "n0144076é_1.JPEG")}, "row 1: filenames has 'n0144076é"),
        ({key: array[:0] for key, array in arrays().items()}, "similarities is float32 (0, 3)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, images, changed, message):
    table = write(tmp_path, **changed)
    with pytest.raises(ValueError) as caught:
        alignet.read(table, images)
    assert str(caught.value).startswith(f"{table}: {message}")


def test_the_row_of_a_fault_in_fortran_order(tmp_path, images):
    wrong = np.asfortranarray(changed_at(FILENAMES, (2, 1), NAMES[4]))
    with pytest.raises(ValueError, match="row 2: index 7 has another name"):
        alignet.read(write(tmp_path, filenames=wrong), images)


def test_texts_that_are_none(tmp_path, images):
    raw = np.zeros((3, 3), "U20")
    raw[:] = np.array([0x7FFFFFFF] * 20, np.uint32).view("U20")
    with pytest.raises(ValueError, match="row 0: filenames has "):
        alignet.read(write(tmp_path, filenames=raw, indices=np.zeros((3, 3), int)), images)
    latin = np.full((3, 3), "n0144076é_1.JPEG".encode("latin-1"))
    with pytest.raises(ValueError, match="filenames holds characters that are in no name"):
        alignet.read(write(tmp_path, filenames=latin, indices=np.zeros((3, 3), int)), images)


def rebuilt(table, name, change):
    """The archive with the bytes of one member changed."""
    with zipfile.ZipFile(table) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(table, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


@pytest.mark.parametrize("name", ["filenames", "similarities", "indices"])
def test_archives_that_are_damaged(tmp_path, images, name):
    for change, message in (
        (lambda data: data[:-1], "not a whole .npz (cut short)"),
        (lambda data: data + b"\0", "an array has more values than its header says"),
        (lambda data: b"", "EOF: reading magic string"),
        (lambda data: b"\x80\x04N." + data, "the magic string is not correct"),
    ):
        table = write(tmp_path)
        rebuilt(table, f"{name}.npy", change)
        with pytest.raises(ValueError) as caught:
            alignet.read(table, images)
        assert str(caught.value).startswith(f"{table}: ") and message in str(caught.value)


def test_bits_that_flipped_are_seen(tmp_path, images):
    table = tmp_path / "alignet_train.npz"
    np.savez(table, **arrays())
    data = table.read_bytes()
    table.write_bytes(data.replace(SIMILARITIES.tobytes(), (SIMILARITIES + 1).tobytes()))
    with pytest.raises(ValueError, match="not a whole .npz .*CRC"):
        alignet.read(table, images)


def test_files_that_are_no_archive(tmp_path, images):
    with pytest.raises(ValueError, match="none.npz: no such file"):
        alignet.read(tmp_path / "none.npz", images)
    for data in (b"", b"\x80\x04N.", write(tmp_path).read_bytes()[:300]):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"a.npz: not a whole .npz .*; download it again"):
            alignet.read(tmp_path / "a.npz", images)


def test_a_folder_that_is_not_imagenets(tmp_path, images):
    with pytest.raises(ValueError, match="no folder n01440760 in it; ILSVRC2012's train folder is expected"):
        alignet.read(write(tmp_path), tmp_path)


@pytest.mark.slow
def test_time_and_memory_of_a_large_table(tmp_path, images, monkeypatch):
    """300,000 rows over 50,000 images, in less memory than their names take: 264 bytes a row, 79 MB.

    Kept are 28 bytes a row (rows, number, group and votes), while reading 36 (indices and similarities); the
    images take 20 MB at most.
    """
    monkeypatch.setattr(alignet, "_IMAGES", 50_000)
    monkeypatch.setattr(alignet, "_AT_ONCE", 1 << 20)
    every = np.array([f"n0144076{i % 3}_{i:07}.JPEG" for i in range(50_000)])
    indices = np.random.default_rng(0).integers(0, len(every), (300_000, 3))
    similarities = np.tile(np.float32([3, 2, 1]), (300_000, 1))
    table = tmp_path / "large.npz"
    np.savez(table, filenames=every[indices], similarities=similarities, indices=indices)
    tracemalloc.start()
    started = time.process_time()
    found = alignet.read(table, images)
    spent, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spent < 20 and peak < 20e6 + 300_000 * 100
    sample = np.arange(0, len(found.rows), 997)
    names = [found.images[n] for n in found.rows[sample].ravel()]
    expected = every[indices[found.number[sample]]].ravel()
    assert names == [f"{name[:9]}/{name}" for name in expected.tolist()]
