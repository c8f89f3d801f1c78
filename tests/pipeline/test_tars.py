"""The reader of tars: every kind that people hold, other programs' tars as references, faults injected."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.tars import Fault, Sample, Tar, hidden, split

TWO = [("a.jpg", b"A" * 700), ("a.txt", b"one"), ("b.jpg", b"B"), ("b.txt", b"two" * 300)]
HAS_TAR = shutil.which("tar") is not None


def write(path, members, mode="w", form=tarfile.PAX_FORMAT):
    """members: (name, bytes), or (name, (link type, target))."""
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type, info.linkname = data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def read(path, ending="") -> list:
    """[(key, {ending: bytes})], and the faults among them."""
    with Tar(path) as tar:
        found = list(tar.samples(lambda own, _: own.startswith(ending)))
    return [(s.key, {e: p.data for e, p in s.parts.items()}) if isinstance(s, Sample) else s for s in found]


def samples(members) -> list:
    """What plain grouping by key gives."""
    out: list = []
    for name, data in members:
        key, ending = split(name)
        if not out or out[-1][0] != key or ending in out[-1][1]:
            out.append((key, {}))
        out[-1][1][ending] = data
    return out


def faults(found: list) -> list[Fault]:
    return [item for item in found if isinstance(item, Fault)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["x", "é", "deep/" * 12 + "x"])
def test_formats_and_names(tmp_path, form, name):
    members = [(f"{name}{n}", data) for n, data in TWO]
    assert read(write(tmp_path / "t.tar", members, form=form)) == samples(members)


def test_a_name_that_is_not_utf8_comes_back(tmp_path):
    members = [("caf\udce9.jpg", b"1"), ("caf\udce9.txt", b"2")]
    path = write(tmp_path / "t.tar", members, form=tarfile.GNU_FORMAT)
    assert read(path) == [("caf\udce9", {"jpg": b"1", "txt": b"2"})]


def test_a_key_that_comes_twice_is_two_samples(tmp_path):
    members = [("a.jpg", b"1"), ("a.txt", b"one"), ("a.jpg", b"2"), ("a.txt", b"two"), ("b.jpg", b"3")]
    assert read(write(tmp_path / "t.tar", members)) == samples(members)
    assert [key for key, _ in samples(members)] == ["a", "a", "b"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_packed_tars(tmp_path, mode):
    path = write(tmp_path / "t.tar", TWO, mode)
    assert read(path) == samples(TWO)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert faults(read(path))


def test_zstd(tmp_path):
    import pyarrow

    first = write(tmp_path / "one.tar", TWO * 40).read_bytes()
    more = write(tmp_path / "two.tar", [("c.jpg", b"C")]).read_bytes()
    packed = pyarrow.compress(first + more, "zstd", asbytes=True)
    (tmp_path / "t.tar").write_bytes(packed)
    assert read(tmp_path / "t.tar") == samples(TWO * 40) + [("c", {"jpg": b"C"})]
    (tmp_path / "t.tar").write_bytes(packed[:-40])
    assert faults(read(tmp_path / "t.tar"))


def test_joined_tars_give_all(tmp_path):
    """`cat a.tar b.tar`, as after partial downloads; also with a long tail of zeros."""
    parts = [write(tmp_path / f"{n}.tar", [(f"{n}{name}", d) for name, d in TWO]) for n in range(3)]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(part.read_bytes() for part in parts) + bytes(100_000))
    assert read(path) == [sample for part in parts for sample in read(part)]
    path.write_bytes(parts[0].read_bytes() * 2)  # the same keys again, whole: joined, not unsorted
    assert read(path) == read(parts[0]) * 2
    with Tar(path) as tar:
        assert not tar.scattered


def test_hidden_members_are_passed_over_and_counted(tmp_path):
    """As macOS's tar writes them: `._NAME` before each file."""
    mac = [item for name, data in TWO for item in ((f"._{name}", b"x"), (name, data))]
    path = write(tmp_path / "t.tar", [*mac, (".DS_Store", b"x"), ("__MACOSX/a.jpg", b"x")])
    with Tar(path) as tar:
        assert [s.key for s in tar.samples(lambda *_: True)] == ["a", "b"] and tar.hidden == 6
    assert not hidden("./a.jpg") and not hidden("../a.jpg") and hidden("x/.y/a.jpg")


def test_links_to_earlier_members_are_followed(tmp_path):
    members = [
        ("x/a.jpg", b"1"), ("x/a.txt", b"t"), ("x/b.jpg", (tarfile.LNKTYPE, "x/a.jpg")),
        ("x/b.txt", (tarfile.SYMTYPE, "a.txt")), ("x/c.jpg", (tarfile.SYMTYPE, "../nowhere.jpg")),
        ("x/c.txt", b"c"), ("d.jpg", (tarfile.LNKTYPE, "x/b.jpg")),
    ]  # fmt: skip
    found = read(write(tmp_path / "t.tar", members))
    assert found[:2] == [("x/a", {"jpg": b"1", "txt": b"t"}), ("x/b", {"jpg": b"1", "txt": b"t"})]
    assert found[2].name == "x/c.jpg" and "nowhere.jpg, which does not lie before it" in found[2].detail
    assert found[3:] == [("x/c", {"txt": b"c"}), ("d", {"jpg": b"1"})]
    assert read(write(tmp_path / "t.tar", members, "w:gz")) == found


@pytest.mark.skipif(not HAS_TAR, reason="no tar command here")
@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_gnu_tars_own_files(tmp_path, form):
    """The command's hard links, its sorting, its joining; and what it does without --sort."""
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n:03}.jpg").write_bytes(bytes([n]) * (n * 100))
        (folder / f"{n:03}.txt").write_text(f"caption {n}")
    (folder / "020.jpg").hardlink_to(folder / "003.jpg")
    (folder / "020.txt").write_text("linked")
    args = ["tar", "-C", str(folder), f"--format={form}"]
    subprocess.run([*args, "--sort=name", "-cf", str(tmp_path / "s.tar"), "."], check=True)
    found = read(tmp_path / "s.tar")
    assert len(found) == 21 and found[20] == ("./020", {"jpg": bytes([3]) * 300, "txt": b"linked"})
    assert found[7] == ("./007", {"jpg": bytes([7]) * 700, "txt": b"caption 7"})
    names = sorted(p.name for p in folder.glob("*.jpg")) + sorted(p.name for p in folder.glob("*.txt"))
    subprocess.run([*args, "-cf", str(tmp_path / "u.tar"), *names], check=True)
    with Tar(tmp_path / "u.tar") as tar:
        assert set(tar.scattered) == {f"{n:03}" for n in range(21)}
    with Tar(tmp_path / "s.tar") as tar:
        assert not tar.scattered


def test_only_what_is_asked_for_is_read(tmp_path):
    """The bytes of images are not touched when labels are wanted: their places are given."""
    path = write(tmp_path / "t.tar", [("a.jpg", b"J" * 5000), ("a.cls", b"7")])
    with Tar(path) as tar:
        (sample,) = tar.samples(lambda ending, _: ending == "cls")
    assert sample.parts["jpg"].data is None and sample.parts["cls"].data == b"7"
    part = sample.parts["jpg"]
    assert path.read_bytes()[part.offset : part.offset + part.size] == b"J" * 5000


def test_several_pictures_in_clip_benchmarks_order(tmp_path):
    path = write(tmp_path / "t.tar", [("a.jpg", b"1"), ("a.PNG", b"2"), ("a.webp", b"3"), ("a.gif", b"4")])
    with Tar(path) as tar:
        assert next(tar.samples(lambda *_: False)).pictures == ["webp", "png", "jpg", "gif"]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_never_silent(tmp_path_factory, data):
    """Whatever headers are damaged and wherever a tar is cut: a sample that does not come is told of.

    One byte of a header: two may leave its checksum, a sum of bytes, as it was.
    """
    members = [
        (f"{n}.{e}", bytes([n]) * data.draw(st.integers(0, 1500))) for n in range(5) for e in ("jpg", "txt")
    ]
    path = write(tmp_path_factory.mktemp("tar") / "t.tar", members, form=tarfile.USTAR_FORMAT)
    raw = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
        end = tar.offset
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, end)) :]
    for header in data.draw(st.lists(st.sampled_from(headers), max_size=3, unique=True)):
        at = header + data.draw(st.integers(0, 150))
        if at < len(raw):
            raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    found = read(path)
    good = [item for item in found if not isinstance(item, Fault)]
    assert good == samples(members) or faults(found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["jpg", "txt", "json"])), max_size=12),
    st.integers(1, 3),
)
def test_any_members_joined_from_any_tars_are_grouped_as_they_come(tmp_path_factory, names, pieces):
    folder = tmp_path_factory.mktemp("tar")
    members = [(f"{key}.{ending}", str(n).encode()) for n, (key, ending) in enumerate(names)]
    step = max(1, -(-len(members) // pieces))
    parts = [members[k : k + step] for k in range(0, len(members), step)] or [[]]
    raw = b"".join(write(folder / "part.tar", part).read_bytes() for part in parts)
    (folder / "t.tar").write_bytes(raw)
    assert read(folder / "t.tar") == samples(members)


@pytest.mark.parametrize("raw", [b"", b"hello" * 500, b"\x1f\x8b nothing", b"BZh nothing", b"\xff" * 2000])
def test_what_is_no_tar_is_one_fault(tmp_path, raw):
    (tmp_path / "t.tar").write_bytes(raw)
    (fault,) = read(tmp_path / "t.tar")
    assert "not a tar" in fault.detail


def test_sparse_files_are_told(tmp_path):
    if not HAS_TAR:
        pytest.skip("no tar command here")
    with open(tmp_path / "a.jpg", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    for form in ("gnu", "pax"):
        tar = ["tar", "-C", str(tmp_path), "-S", f"--format={form}"]
        subprocess.run([*tar, "-cf", str(tmp_path / "t.tar"), "a.jpg"], check=True)
        assert "sparse" in faults(read(tmp_path / "t.tar"))[0].detail
