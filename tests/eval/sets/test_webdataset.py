"""clip-benchmark's folders of tars, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from eval.cache import Cache
from eval.sets import catalog, evalset, sources
from eval.sets.evalset import FileImages, Unreadable
from pipeline.formats import tars
from tests.kits.eval import CLASSES, encoded, pictures, write_tar, write_webdataset

# -- webdataset folders ---------------------------------------------------------


def test_webdataset(folder, images):
    one = sources.read_webdataset(folder)
    assert one.entry.key == "beasts" and one.entry.family == "Other"
    assert one.labels.tolist() == [i % 4 for i in range(12)]
    assert one.prompts.classes == tuple(CLASSES)  # the empty name is kept
    assert [one.images.read(i) for i in range(12)] == images
    assert one.prompts.texts()[:3] == ["a picture of a cat.", "cat", "a picture of a dog."]


def test_index_is_remembered_until_the_tar_changes(folder, tmp_path, images):
    cache = Cache(tmp_path / "cache")
    first = sources.read_webdataset(folder, cache=cache)
    again = sources.read_webdataset(folder, cache=cache)
    assert again.images.members == first.images.members and again.labels.tolist() == first.labels.tolist()
    write_webdataset(folder, images[::-1], [0] * 12, CLASSES, shards=3)
    assert sources.read_webdataset(folder, cache=cache).labels.tolist() == [0] * 12


def test_identity_is_of_the_pictures(folder, tmp_path, images):
    other = write_webdataset(tmp_path / "wds_other", images, [0] * 12, ["x"], shards=1)
    changed = write_webdataset(tmp_path / "wds_changed", images[::-1], [0] * 12, ["x"])
    ids = [sources.read_webdataset(f).images.identity() for f in (folder, other, changed)]
    assert ids[0] == ids[1] != ids[2]


def _rewrite(folder, name, data):
    members = []
    import tarfile

    with tarfile.open(folder / "test" / "0.tar") as tar:
        for member in tar:
            members.append((member.name, data if member.name == name else tar.extractfile(member).read()))
    write_tar(folder / "test" / "0.tar", [m for m in members if m[1] is not None])


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("000001.cls", b"7", "member 000001.png: label 7 is out of range for 4 class names"),
        ("000001.cls", b"-1", "label -1 is out of range"),
        ("000001.cls", b"dog", "its .cls holds 'dog'"),
        ("000001.cls", b"\xff", "not UTF-8"),
        ("000001.cls", None, r"sample 000001: \.cls is missing"),
        ("000001.png", None, "sample 000001: an image is missing"),
    ],
)
def test_bad_member_is_named(folder, name, data, message):
    _rewrite(folder, name, data)
    with pytest.raises(ValueError, match=message):
        sources.read_webdataset(folder)


def test_damaged_shards(folder):
    tar = folder / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"1\.tar.*(cut short|not a whole tar)"):
        sources.read_webdataset(folder)
    tar.unlink()
    with pytest.raises(ValueError, match=r"1\.tar: missing, .*nshards.txt announces 3"):
        sources.read_webdataset(folder)
    (folder / "test" / "nshards.txt").write_text("many")
    with pytest.raises(ValueError, match="'many' is no number of shards"):
        sources.read_webdataset(folder)


def test_unreadable_image_is_named(folder):
    _rewrite(folder, "000002.png", b"not a picture")
    one = sources.read_webdataset(folder)
    with pytest.raises(Unreadable, match=r"0\.tar, member 000002\.png"):
        one.images[2]


def test_retrieval_folder(tmp_path, images):
    texts = [["one", "two"], ["three"], ["", "four"]]
    folder = write_webdataset(tmp_path / "wds_words", images[:3], texts)
    one = sources.read_webdataset(folder)
    assert one.captions == [["one", "two"], ["three"], ["four"]]  # a blank line is no caption, as in a .beton
    assert one.entry.task == catalog.RETRIEVAL_TASK and one.notes == ("1 blank captions left out",)
    write_webdataset(folder, images[:2], [["a"], ["", " "]])
    with pytest.raises(ValueError, match="member 000001.png: its caption file is empty"):
        sources.read_webdataset(folder)


def test_multilabel_is_refused(folder):
    (folder / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(ValueError, match="multilabel"):
        sources.read_webdataset(folder)


# -- finding ---------------------------------------------------------


def test_files_are_read_by_many_threads(tmp_path, images):
    from concurrent.futures import ThreadPoolExecutor

    folder = write_webdataset(tmp_path / "wds_x", images, [0] * 12, ["a"])
    files: FileImages = sources.read_webdataset(folder).images
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(files.read, [i % 12 for i in range(200)])) == [
            images[i % 12] for i in range(200)
        ]


# -- tars as people hold them ---------------------------------------------------------


def _tar_set(folder: Path, *shards: bytes) -> Path:
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for n, data in enumerate(shards):
        (folder / "test" / f"{n}.tar").write_bytes(data)
    (folder / "test" / "nshards.txt").write_text(str(len(shards)))
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    return folder


def _tar(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    write_tar(path, members)
    return path.read_bytes()


def test_repeated_keys_joined_tars_and_hidden_members(tmp_path, images):
    """Every sample, once, with its own label; what macOS adds is none."""
    twice = [("a.png", images[0]), ("a.cls", b"0"), ("a.png", images[1]), ("a.cls", b"1")]
    mac = [("._b.png", b"x"), ("b.png", images[2]), ("._b.cls", b"x"), ("b.cls", b"\xef\xbb\xbf2")]
    joined = _tar(tmp_path / "1.tar", twice) + _tar(tmp_path / "2.tar", mac)
    folder, cache = _tar_set(tmp_path / "wds_x", joined), Cache(tmp_path / "cache")
    for _ in range(2):  # also as it is remembered
        one = sources.read_webdataset(folder, cache=cache)
        assert one.notes[0] == f"2 {evalset.HIDDEN}"
    assert one.labels.tolist() == [0, 1, 2] and [one.images.read(i) for i in range(3)] == images[:3]


def test_what_another_reader_found_is_not_used(tmp_path, images, monkeypatch):
    folder, cache = (
        _tar_set(tmp_path / "wds_x", _tar(tmp_path / "1.tar", _labelled(images))),
        Cache(tmp_path / "c"),
    )
    assert sources.read_webdataset(folder, cache=cache).labels.tolist() == [0, 1]
    index = next((tmp_path / "c" / "index").iterdir())
    index.write_text(json.dumps({"samples": [], "hidden": 0, "more": 0}))
    monkeypatch.setattr(tars, "VERSION", tars.VERSION + 1)
    assert sources.read_webdataset(folder, cache=cache).labels.tolist() == [0, 1]


def _labelled(images) -> list[tuple[str, bytes]]:
    return [("a.png", images[0]), ("a.cls", b"0"), ("b.png", images[1]), ("b.cls", b"1")]


def test_what_tars_hold_besides_is_told(tmp_path, images):
    members = [*_labelled(images)[:1], ("a.jpg", images[2]), *_labelled(images)[1:]]
    folder = _tar_set(tmp_path / "wds_x", _tar(tmp_path / "1.tar", members))
    (folder / "classnames.txt").write_text("cat\ndog\nfox\nDog\n")
    assert sources.read_webdataset(folder).notes == (
        "1 further images of a sample not read",
        "2 classes without an image, still among the answers: fox, Dog",
        "1 names are shared by classes, which no model can tell apart: dog",
    )


def test_marks_in_small_files(tmp_path, images):
    folder = write_webdataset(tmp_path / "wds_x", images[:2], [["a"], ["b"]])
    for name in ("test/nshards.txt", "dataset_type.txt"):
        (folder / name).write_text("\ufeff" + (folder / name).read_text(), encoding="utf-8")
    assert sources.read_folder(folder).captions == [["a"], ["b"]]


def test_tars_that_cannot_be_read_by_place_are_one_line(tmp_path, images):
    members = [("a.png", images[0]), ("b.png", images[1]), ("a.cls", b"0"), ("b.cls", b"1")]
    plain = _tar(tmp_path / "1.tar", members)
    with pytest.raises(ValueError, match=r"0\.tar, sample a: .*pack it anew with tar --sort=name"):
        sources.read_webdataset(_tar_set(tmp_path / "wds_x", plain))
    with pytest.raises(ValueError, match=r"0\.tar: gzip inside; unpack it first \(gunzip\)"):
        sources.read_webdataset(_tar_set(tmp_path / "wds_y", gzip.compress(plain)))
    broken = bytearray(plain)
    broken[-10240 + 600 :] = b"\1" * (10240 - 600)
    with pytest.raises(ValueError, match=r"0\.tar, member .*: not a whole tar"):
        sources.read_webdataset(_tar_set(tmp_path / "wds_z", bytes(broken)))


def test_names_that_are_not_utf8(tmp_path, images):
    members = [("caf\udce9.png", images[0]), ("caf\udce9.cls", b"3")]
    folder = _tar_set(tmp_path / "wds_x", _tar(tmp_path / "1.tar", members))
    cache = Cache(tmp_path / "cache")
    for _ in range(2):  # also as it is remembered
        one = sources.read_webdataset(folder, cache=cache)
        assert one.labels.tolist() == [3] and one.images.read(0) == images[0]
        assert one.images.stamp() and one.images.identity()


# -- what is asked for ---------------------------------------------------------


def test_a_tar_that_nshards_does_not_announce(tmp_path):
    images = [encoded(p) for p in pictures(6)]
    place = write_webdataset(tmp_path / "wds_beasts", images, [0, 1, 2] * 2, ["a", "b", "c"], shards=2)
    (place / "test" / "nshards.txt").write_text("1")
    with pytest.raises(ValueError, match="1.tar: not among the 1 that .*nshards.txt announces"):
        sources.read_folder(place)
