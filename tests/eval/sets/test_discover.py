"""Finding sets: what is read and what is not, what is asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.cache import Cache
from eval.sets import catalog, sources
from eval.sets.evalset import Unreadable, is_image
from tests.kits.eval import class_folders, encoded, pictures, write_webdataset

# -- finding ---------------------------------------------------------


def test_discover(tmp_path, images, folder):
    write_webdataset(tmp_path / "wds_emoji-names", images[:3], [0, 1, 2], ["a", "b", "c"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing here")
    assert [s.entry.key for s in sources.discover(tmp_path)] == ["emoji-names", "beasts"]
    assert [s.entry.key for s in sources.discover(tmp_path, {"beasts"})] == ["beasts"]
    assert [s.entry.key for s in sources.discover(folder)] == ["beasts"]
    with pytest.raises(ValueError, match="no evaluation set in it among vtab/dtd"):
        sources.discover(tmp_path, {"vtab/dtd"})
    shutil.copytree(folder, tmp_path / "beasts")
    with pytest.raises(ValueError, match="both hold beasts"):
        sources.discover(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        sources.discover(tmp_path / "nowhere")


# -- tars as people hold them ---------------------------------------------------------


def test_a_damaged_set_of_a_family_asked_for_ends_the_run(tmp_path, images):
    """Also where its folder has another name than the catalog, or lies above."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "captions.json").write_text("[{")
    write_webdataset(tmp_path / "wds_flickr", images[:2], [["a"], ["b"]])
    with pytest.raises(ValueError, match="captions.json: not captions"):
        sources.discover(tmp_path, catalog.select(families=["Retrieval"]))


# -- what is read, and what is not ---------------------------------------------------------

FORMATS = ["jpg", "JPEG", "jfif", "png", "bmp", "tif", "gif", "ppm", "webp", "ico", "tga", "jp2"]


def test_every_format_that_pillow_reads(tmp_path):
    place = tmp_path / "mix"
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True)
        for i, suffix in enumerate(FORMATS):
            form = Image.registered_extensions()["." + suffix.lower()]
            Image.new("RGB", (32, 32), (i, 99, 200)).save(place / name / f"{i}.{suffix}", form)
    one = sources.read_folder(place)
    assert len(one.images) == 2 * len(FORMATS) and one.notes == ()
    assert [one.images[i].size for i in range(len(one.images))] == [(32, 32)] * len(one.images)


def test_as_many_as_torchvisions_image_folder(tmp_path, picture):
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    place = class_folders(tmp_path / "mix", ["cat", "dog"], picture)
    for suffix in IMG_EXTENSIONS:
        (place / "cat" / f"x{suffix}").write_bytes(picture)
    theirs, one = ImageFolder(str(place)), sources.read_folder(place)
    assert len(one.images) == len(theirs) and one.labels.tolist() == theirs.targets
    assert [str(m[0]) for m in one.images.members] == [path for path, _ in theirs.samples]


def test_what_is_not_read_is_counted_and_named(tmp_path, picture):
    place = class_folders(tmp_path / "mix", ["cat", "dog"], picture, 2)
    (place / "cat" / "._0.jpg").write_bytes(b"Mac OS X")
    (place / "dog" / ".DS_Store").write_bytes(b"x")
    (place / "dog" / "notes.txt").write_text("x")
    (place / "dog" / "raw.heic").write_text("x")
    (place / "empty").mkdir()
    (place / "dog" / "more").mkdir()
    (place / "stray.jpg").write_bytes(picture)
    one = sources.read_folder(place)
    assert len(one.images) == 4 and one.prompts.classes == ("cat", "dog", "empty")
    assert one.notes == (
        "2 hidden files (names that begin with a dot) passed over",
        "3 files not read: 1 .heic, 1 .txt, 1 images outside class folders",
        "1 folders inside class folders not read: dog/more",
        "1 classes without an image, still among the answers: empty",
    )
    assert not is_image("._a.jpg") and is_image("a.b.JPG") and not is_image("jpg")


def test_splits_are_no_classes(tmp_path, picture):
    place = tmp_path / "beasts"
    for split in ("train", "test"):
        class_folders(place / split, ["cat", "dog"], picture)
    (place / "train" / "loose.jpg").write_bytes(picture)
    assert sources.read_folder(place).prompts.classes == ("cat", "dog")
    class_folders(place / "val", ["cat", "dog"], picture)
    assert "val/ is what is read, not test/" in sources.read_folder(place).notes


def test_a_root_of_sets_is_no_set_itself(tmp_path, picture):
    images = [encoded(p) for p in pictures(3)]
    write_webdataset(tmp_path / "wds_beasts", images, [0, 1, 2], ["a", "b", "c"])
    class_folders(tmp_path, ["flat-one", "flat-two"], picture)
    said = []
    assert [s.entry.key for s in sources.discover(tmp_path, say=said.append)] == ["beasts"]
    assert said == ["no evaluation set that is known here, passed over: flat-one, flat-two"]


def test_a_folder_of_triplets_is_no_set_of_classes(tmp_path, picture):
    class_folders(tmp_path / "triplets", ["ref", "distort"], picture)
    class_folders(tmp_path / "mix", ["cat", "dog"], picture)
    for place, names in (("triplets", "id,left_vote,right_vote,ref_path,left_path"), ("mix", "file,class")):
        (tmp_path / place / "data.csv").write_text(names)
    assert [s.entry.key for s in sources.discover(tmp_path)] == ["mix"]


def test_sets_of_captions_are_no_classes_of_their_root(tmp_path, picture):
    for place in (tmp_path / "here", tmp_path / "there"):
        class_folders(tmp_path, [place.name], picture, 2)
        rows = [{"file": f"{i}.jpg", "captions": [f"picture {i}"]} for i in range(2)]
        (place / "captions.json").write_text(json.dumps(rows))
    assert [s.captions for s in sources.discover(tmp_path)] == [[["picture 0"], ["picture 1"]]] * 2


def test_a_set_is_known_by_its_place(tmp_path, picture, monkeypatch):
    """`--data .`, and Hugging Face's cache, where the folder of a data set is called by its commit."""
    hub = tmp_path / "hub" / "datasets--clip-benchmark--wds_cifar10"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0f3a")
    inside = write_webdataset(hub / "snapshots" / "0f3a", [picture] * 3, [0, 1, 2], ["a", "b", "c"])
    for root in (hub.parent, hub, inside):
        with pytest.raises(ValueError, match="cifar10 has 10000 test images, 3 are here"):
            sources.discover(root)
    monkeypatch.chdir(class_folders(tmp_path / "pets at home", ["cat", "dog"], picture))
    assert [s.entry.key for s in sources.discover(Path("."))] == ["pets at home"]


def test_a_link_to_nowhere_is_one_unreadable_image(tmp_path, picture):

    place = class_folders(tmp_path / "mix", ["cat", "dog"], picture)
    os.symlink("/nowhere.jpg", place / "dog" / "b.jpg")
    one = sources.read_folder(place)
    assert len(one.images) == 3
    before = one.images.stamp(), Cache(tmp_path / "cache").identity(one.images)
    (place / "dog" / "b.jpg").unlink()
    (place / "dog" / "b.jpg").write_bytes(picture)
    after = sources.read_folder(place).images
    assert after.stamp() != before[0] and after.identity() != before[1]


# -- what is asked for ---------------------------------------------------------


@pytest.fixture
def two_sets(tmp_path):
    images = [encoded(p) for p in pictures(3)]
    for name in ("wds_emoji-names", "wds_beasts"):
        write_webdataset(tmp_path / name, images, [0, 1, 2], ["a", "b", "c"])
    return tmp_path


@pytest.mark.parametrize(
    "datasets, families, message",
    [
        (
            ["emoji-names", "emoji-nmaes"],
            [],
            r"--datasets emoji-nmaes: .*near it: emoji-names.*found: emoji-names",
        ),
        (["beasts", "beatss"], [], r"--datasets beatss: .*near it: beasts"),
        (["emoji-names", "vtab/dtd"], [], "--datasets vtab/dtd: no such set under"),
        (["wds_beasts"], ["VTAB"], "--families VTAB: no set of it"),
        (["wds_beasts", "emoji-names_test"], ["Demo", "Other"], None),
        ([], ["Other"], None),
    ],
)
def test_what_is_asked_for_must_be_there(two_sets, datasets, families, message):
    found = sources.discover(two_sets, catalog.select(datasets, families))
    entries = [one.entry for one in found]
    if message is None:
        catalog.check_found(datasets, families, entries, two_sets)
        assert "beasts" in [e.key for e in entries]  # of no family of the catalog: Other
    else:
        with pytest.raises(ValueError, match=message):
            catalog.check_found(datasets, families, entries, two_sets)


def test_a_damaged_set_that_is_not_asked_for_ends_nothing(two_sets, picture):
    class_folders(two_sets / "shards", ["00000", "00001"], picture)
    with pytest.raises(ValueError, match="numbered"):
        sources.discover(two_sets)
    assert [s.entry.key for s in sources.discover(two_sets, {"beasts"})] == ["beasts"]
    with pytest.raises(ValueError, match="numbered"):
        sources.discover(two_sets, {"shards"})
    with pytest.raises(ValueError, match=r"among beatss \(near it: beasts\)"):
        sources.discover(two_sets, {"beatss"})


def test_sixteen_bits_are_not_white(tmp_path):
    """Pillow clips them at 255, so that all of a 16-bit picture but its darkest 1 in 256 would be white."""
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    for name in ("cat", "dog"):
        (tmp_path / "mix" / name).mkdir(parents=True)
        Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "mix" / name / "a.png")
        Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "mix" / name / "b.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "mix" / "dog" / "c.tif")
    images = sources.read_folder(tmp_path / "mix").images
    for i in range(4):
        assert np.abs(np.asarray(images[i])[..., 0] - grey).max() < 1.01
    with pytest.raises(Unreadable, match="c.tif: .*mode F have no agreed range"):
        images[4]
