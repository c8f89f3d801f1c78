"""Finding the sets: which folder is which, what is read of it, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest

from dataprep.build_ffcv import main as build
from eval.alignment import sets
from tests.eval.alignment import kit


def only(root, key):
    """The judgements of one set."""
    (test,) = sets.discover(root, (key,)).tests
    return test.asked


def counted(asked) -> dict[str, int]:
    names, counts = np.unique(asked.groups[asked.group], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist()))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return kit.root(tmp_path_factory.mktemp("root"))


def test_all_that_are_there_in_a_fixed_order(root):
    found = sets.discover(root)
    keys = ["nights", "jnd", "bapps", "things", "levels", "peterson", "tid2013"]
    assert [test.known.key for test in found.tests] == keys
    assert found.notes[0] == "folders of no known set passed over: holiday"
    assert "peterson: fruits: 1 of 28 pairs have no judgement" in found.notes
    metrics = {test.known.key: test.asked.metrics for test in found.tests}
    assert metrics["bapps"] == ("twoafc_soft", "twoafc") and metrics["nights"] == ("twoafc", "twoafc_soft")
    assert metrics["peterson"] == ("rsa",) and metrics["tid2013"] == ("srcc", "krcc")


def test_parts_of_sets(root):
    assert counted(only(root, "nights")) == {"ImageNet": 4, "not ImageNet": 8}
    assert counted(only(root, "bapps")) == {"cnn": 9, "color": 5}
    assert counted(only(root, "levels")) == {"boundary": 5, "coarse": 5, "fine": 5}
    assert counted(only(root, "peterson")) == {"animals": 21, "fruits": 27}


@pytest.mark.parametrize(
    "wanted, message",
    [
        (("things", "thing"), r"--sets thing: not known; there are nights, .*, cifar100"),
        (("pieapp",), r"--sets pieapp: not in .*, which has nights, jnd, bapps, "),
    ],
)
def test_sets_asked_for_must_be_there(root, wanted, message):
    with pytest.raises(ValueError, match=message):
        sets.discover(root, wanted)


def test_folders_without_any(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(
        ValueError, match=r"none of the known sets in it, which are nights, .*; it has images"
    ):
        sets.discover(tmp_path)
    with pytest.raises(ValueError, match="no such folder of sets"):
        sets.discover(tmp_path / "images" / "x")


def test_two_folders_of_one_set(tmp_path):
    for name in ("TPIPS-2AFC", "tpips_2afc"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="TPIPS-2AFC and tpips_2afc are one set"):
        sets.discover(tmp_path)


@pytest.mark.parametrize(
    "key, file, message",
    [
        ("nights", None, "neither data.csv nor triplets.csv"),
        ("nights_raw", None, "nights_raw.csv"),
        ("jnd", None, "jnd_votes.csv"),
        ("bapps", None, "val"),
        ("things", None, r"no answers; one of triplets/test_10\.npy, .* is expected"),
        ("levels", None, "levels.csv"),
        ("peterson", None, "no CATEGORY/images"),
        ("multi_arrangement", None, "neither of judgments_general.mat and BEHAVIOR.mat"),
        ("pieapp", None, "test_reference_list.txt"),
        ("kadid10k", None, "dmos.csv"),
        ("pipal", None, "Train_Label"),
        ("tid2013", None, "mos_with_names.txt"),
        ("tpips_2afc", None, r"test\.jsonl"),
        ("tpips_odd_one_out", None, r"test\.jsonl"),
        ("things", "triplets/test_10.npy", "test_10.npy"),
        ("nights", "data.csv", "data.csv: no column"),
    ],
)
def test_a_set_that_is_named_but_damaged_is_an_error(tmp_path, key, file, message):
    """An empty folder of that name, or a file that holds nothing."""
    folder = tmp_path / key
    folder.mkdir()
    if file:
        kit.pngs(folder / "images", ["object.png"])
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=message) as told:
        sets.discover(tmp_path)
    assert str(folder) in str(told.value) and "\n" not in str(told.value)


def test_hidden_folders_are_not_told(root):
    (root / ".cache").mkdir(exist_ok=True)
    assert not any(".cache" in note for note in sets.discover(root).notes)


def test_jnd_votes_may_lie_beside_the_triplets(tmp_path):
    kit.nights(tmp_path / "nights")
    kit.jnd(tmp_path / "nights")
    assert [test.known.key for test in sets.discover(tmp_path).tests] == ["nights", "jnd"]
    assert len(only(tmp_path, "jnd").rows) == 12
    kit.jnd(tmp_path / "jnd")  # a folder of its own comes first
    assert next(t for t in sets.discover(tmp_path).tests if t.known.key == "jnd").folder.name == "jnd"


def test_nights_that_does_not_tell_imagenet_is_one_group(tmp_path):
    kit.nights(tmp_path / "nights")
    table = tmp_path / "nights" / "data.csv"
    table.write_text(table.read_text().replace(",is_imagenet", ",other", 1))
    asked = only(tmp_path, "nights")
    assert counted(asked) == {"test": 12} and any("no split or column tells" in n for n in asked.notes)


@pytest.mark.slow
def test_nights_as_betons(tmp_path):
    """Both halves or the whole test split; never one half alone."""
    source = kit.nights(tmp_path / "source", 16)
    command = [
        "nights",
        "--source",
        source,
        "--out",
        tmp_path / "root" / "nights",
        "--size",
        "none",
        "--splits",
    ]
    assert build([str(word) for word in [*command, "test", "test_imagenet", "train"]]) == 0
    asked = only(tmp_path / "root", "nights")
    assert counted(asked) == {"test": 12} and len({*asked.names}) == len(asked.images)
    assert build([str(word) for word in [*command, "test_no_imagenet"]]) == 0
    asked = only(tmp_path / "root", "nights")
    assert counted(asked) == {"ImageNet": 4, "not ImageNet": 8}
    train = sets.SETS[0].train(tmp_path / "root" / "nights")
    assert len(train.rows) == 4 and not {*train.names} & {*asked.names}
    (tmp_path / "root" / "nights" / "triplets-train.beton").unlink()
    assert sets.SETS[0].train(tmp_path / "root" / "nights") is None


def test_answers_of_things_are_chosen_by_their_names(tmp_path):
    """Base and odd one come with the file's name; a file that is passed over is told."""
    folder = kit.things(tmp_path / "things", objects=5)
    kit.npy(folder / "triplets" / "test_10.npy", np.array([[0, 1, 4], [2, 3, 1]]))
    asked = only(tmp_path, "things")
    assert asked.answers.argmax(1).tolist() == [2, 2] and asked.names[asked.rows[0, 2]] == "object_04.png"
    table = folder / "triplets_large_final_correctednc_correctedorder.csv"
    table.write_text("image1\timage2\timage3\tchoice\n1\t2\t5\t1\n3\t4\t2\t3\n")
    assert any(f"{table.name} is there too" in note for note in only(tmp_path, "things").notes)
    (folder / "triplets" / "test_10.npy").unlink()
    asked = only(tmp_path, "things")
    assert asked.names[asked.rows[0, 2]] == "object_04.png"  # 1-based
    assert asked.answers.argmax(1).tolist() == [0, 2]
    table.unlink()
    (folder / "things_valset.txt").write_text("object_00 object_01 object_04\n")
    asked = only(tmp_path, "things")
    assert asked.answers.tolist() == [[0, 0, 1]] and f"answers of {'things_valset.txt'}" in asked.notes


def test_objects_of_things_by_their_own_list(tmp_path):
    folder = kit.things(tmp_path / "things", objects=3)
    kit.npy(folder / "triplets" / "test_10.npy", np.array([[0, 1, 2]]))
    (folder / "unique_id.txt").write_text("object_02\nobject_00\nobject_01\n")
    asked = only(tmp_path, "things")
    assert [asked.names[i] for i in asked.rows[0]] == ["object_02.png", "object_00.png", "object_01.png"]
    assert sets._things_train(folder) is None
    kit.npy(folder / "triplets" / "train_90.npy", np.array([[2, 1, 0]]))
    assert sets._things_train(folder).answers.tolist() == [[0, 0, 1]]


def test_unsure_pairs_of_pieapp_are_a_group_of_their_own(tmp_path):
    folder = tmp_path / "PieAPP"
    rows = [f"r.png, d_{a}.png, d_{b}.png, {p}" for a, b, p in ((0, 1, 0.9), (1, 2, 0.4), (0, 2, 0.61))]
    header = "ref. image, distorted image A, distorted image B, preference for A"
    (folder / "labels" / "test").mkdir(parents=True)
    (folder / "labels" / "test" / "r_pairwise_labels.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "test_reference_list.txt").write_text("r.png\n")
    kit.pngs(
        folder, ["reference_images/test/r.png", *(f"distorted_images/test/r/d_{i}.png" for i in range(3))]
    )
    asked = only(tmp_path, "pieapp")
    assert counted(asked) == {"clear": 2, "unsure": 1}
    assert asked.answers.tolist() == pytest.approx([0.1, 0.6, 0.39])


@pytest.mark.slow
def test_triplets_of_ones_own(tmp_path):
    """A .beton in a folder of any other name; one without a test split is passed over."""
    source = kit.nights(tmp_path / "source", 16)
    command = ["nights", "--source", source, "--size", "none", "--splits"]
    assert build([str(w) for w in [*command, "test", "--out", tmp_path / "root" / "Our-Own"]]) == 0
    assert build([str(w) for w in [*command, "train", "--out", tmp_path / "root" / "other"]]) == 0
    found = sets.discover(tmp_path / "root")
    assert [(test.known.key, test.known.title) for test in found.tests] == [("our_own", "Our-Own")]
    assert found.notes == ("folders of no known set passed over: other",)
    asked, theirs = only(tmp_path / "root", "our_own"), only(link(tmp_path, source), "nights")
    assert sorted(asked.answers) == sorted(theirs.answers) and asked.metrics == theirs.metrics


def link(folder, source):
    """A root with `source` as the set called nights."""
    (folder / "linked").mkdir()
    (folder / "linked" / "nights").symlink_to(source)
    return folder / "linked"
