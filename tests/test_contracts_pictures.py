"""What two rooms must agree on, each tested across both."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataprep import build_ffcv, verify
from dataprep.convert import ImageSettings, Rejected, convert
from eval.metrics import perceptual
from eval.sets.evalset import BetonImages, FileImages, Member, PreparedImages, Unreadable
from pipeline.beton.fields import Beton, pairs_schema
from pipeline.beton.writer import Jpeg, writing
from pipeline.dali_loader import DALILoader
from pipeline.ffcv_loader import FFCVLoader
from pipeline.formats import pictures
from tests.kits import dataprep as kit
from tests.kits.pipeline import overwrite, triplets_file

# -- one judge of a stored picture ------------------------------------------------------------------


def smooth(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def incomplete_profile(image: Image.Image) -> bytes:
    """A sound JPEG whose colour profile lacks its second part, as scraped photographs have it."""
    data = encoded(image, icc_profile=bytes(100_000))
    at = data.index(b"ICC_PROFILE\0\x02") - 4
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def judged(data: bytes, folder: Path) -> dict[str, bool]:
    """Whether each of those who look at a stored picture takes these bytes, of which no checksum tells."""
    height, width = 24, 40
    tokens = np.zeros((1, 77), np.int32)
    tokens[0, :3] = 49406, 320, 49407
    head = pictures.read_head(data)
    if head is not None:
        height, width = head.height, head.width
    with writing(folder / "one.beton", pairs_schema(1, checksums=False), 1) as writer:
        writer.add({"image": Jpeg(data, height, width), "tokens": tokens, "luma": 128.0, "key": b"x"})
    file = Beton(folder / "one.beton")
    start, size = file.rows(np.array([0])).spans("image")
    images = BetonImages([Member(file.path, int(start[0]), int(size[0]), "x")], [(height, width)], [None])
    try:
        evaluated = images[0].size == (width, height)
    except Unreadable:
        evaluated = False
    (batch,) = FFCVLoader.one_pass(file, batch_size=1, image_size=16)
    fault = verify.check_image(data, height, width).fault
    return {"engine": bool(batch.valid[0]), "verify": fault == "", "eval": evaluated}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("judged")


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, sound",
    [
        (encoded(smooth()), True),
        (incomplete_profile(smooth()), True),
        (b"\xff\xd8\xff\x01" + encoded(smooth())[2:], True),  # a marker without a length
        (b"\xff\xd8\xff\xff\xff\xd0" + encoded(smooth())[2:], True),
        (encoded(smooth()) + b"after the end", True),
        (encoded(smooth(size=(200, 200)))[:-300], False),
        (encoded(smooth(size=(200, 200)))[:2000] + b"\xff\xd9", False),
        (b"<html>", False),
    ],
)
def test_one_judge_of_a_stored_picture(place, data, sound):
    """The build keeps it byte for byte, `verify`, evaluation and both engines read it; or none of them."""
    assert judged(data, place) == dict.fromkeys(("engine", "verify", "eval"), sound)
    (batch,) = DALILoader.one_pass(place / "one.beton", batch_size=1, image_size=16, device="cpu")
    assert bool(batch.valid[0]) == sound
    if sound:
        assert convert(data, ImageSettings(size="none")).passed
    else:
        with pytest.raises(Rejected):
            convert(data, ImageSettings(size="none"))


MARKS = [b"\xff\xd0", b"\xff\x01", b"\xff\xff", b"\0", b"\xff\xd9"]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_judges_agree_on_damage(place, data):
    raw = bytearray(encoded(smooth(), subsampling=data.draw(st.integers(0, 2)),
                            restart_marker_blocks=data.draw(st.integers(0, 2))))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        at, kind = data.draw(st.integers(2, len(raw) - 1)), data.draw(st.sampled_from("change add cut"))
        if kind == "change":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "add":
            raw[at:at] = data.draw(
                st.sampled_from([b"\xff\xd0", b"\xff\x01", b"\xff\xff", b"\0", b"\xff\xd9"])
            )
        else:
            del raw[at : at + 3]
    raw, head = bytes(raw), pictures.read_head(bytes(raw))
    if head is None or head.sof != 0xC0 or len(head.components) != 3:
        return  # the build never stores it, and `verify` says so
    if not 0 < head.width * head.height < 10**6:
        return
    verdicts = judged(raw, place)
    assert len(set(verdicts.values())) == 1, verdicts
    try:
        passed = convert(raw, ImageSettings(size="none")).passed
    except Rejected:
        passed = False
    assert not passed or verdicts["engine"]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", ["pairs", "nights"])
def test_the_build_writes_the_checksums_that_engines_and_verify_compare(tmp_path, capsys, kind, kept):
    """Of joined files too, whose images were kept or encoded anew; a flipped bit is seen by all three."""
    source = (
        kit.captions_table(tmp_path / "in", 8) if kind == "pairs" else kit.nights_folder(tmp_path / "in", 8)
    )
    out = tmp_path / ("triplets-test.beton" if kind == "nights" else "p.beton")
    where = ["--out", str(tmp_path), "--splits", "test"] if kind == "nights" else ["--out", str(out)]
    how = ["--workers", "1", *([] if kept else ["--no-passthrough"])]
    assert build_ffcv.main([kind, "--source", str(source), *where, *how]) == 0
    file, name = Beton(out), "image" if kind == "pairs" else "left"
    data = file.jpeg(1, name).tobytes()
    for bad in (data, data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]):
        overwrite(file, 1, bad, name)
        sound = [index != 1 or bad == data for index in range(len(file))]
        for engine, device in ((FFCVLoader, {}), (DALILoader, {"device": "cpu"})):
            (batch,) = engine.one_pass(file, batch_size=len(file), image_size=16, **device)
            assert batch.valid.tolist() == sound
        assert bool(verify.verify(out, 1).counts) == (bad != data)


# -- one way to prepare triplets' pictures -------------------------------------------------------------


def transparent() -> Image.Image:
    image = smooth(1).convert("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, 40 * 24).astype(np.uint8).reshape(24, 40)))
    return image


def rotated(orientation: int, kind: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(smooth(2), kind, exif=exif if kind == "TIFF" else exif.tobytes(), **options)


DEEP = np.linspace(0, 65_535, 40 * 24).astype(np.uint16).reshape(24, 40)
PICTURES = {
    "plain.jpg": encoded(smooth(3), quality=95),
    "clear.png": encoded(transparent(), "PNG"),
    "clear.webp": encoded(transparent(), "WEBP", lossless=True),
    "palette.png": encoded(transparent().quantize(16), "PNG"),
    "turned6.jpg": rotated(6, "JPEG", quality=95),
    "turned3.png": rotated(3, "PNG"),
    "turned8.tif": rotated(8, "TIFF"),
    "deep.png": encoded(Image.fromarray(DEEP), "PNG"),
    "grey.jpg": encoded(smooth(4).convert("L"), quality=95),
    "cmyk.jpg": encoded(smooth(5).convert("CMYK"), quality=95),
    "profile.jpg": incomplete_profile(smooth(6)),
    "marked.jpg": b"\xff\xd8\xff\x01" + encoded(smooth(7), quality=95)[2:],
}


def triplet_folder(folder: Path) -> Path:
    """A folder in NIGHTS' layout over PICTURES, one test row for each as reference."""
    names = list(PICTURES)
    (folder / "ref").mkdir(parents=True)
    for name, data in PICTURES.items():
        (folder / "ref" / name).write_bytes(data)
    lines = ["id,left_vote,right_vote,votes,ref_path,left_path,right_path,split"]
    for n in range(len(names)):
        paths = ",".join(f"ref/{names[(n + k) % len(names)]}" for k in range(3))
        lines.append(f"{n},{n % 2},{1 - n % 2},8,{paths},test")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_of_triplets_and_the_beton_made_of_it_show_the_same_pictures(tmp_path, capsys):
    folder = triplet_folder(tmp_path / "nights")
    arguments = [
        "nights",
        "--source",
        str(folder),
        "--out",
        str(tmp_path),
        "--splits",
        "test",
        "--size",
        "none",
    ]
    assert build_ffcv.main([*arguments, "--quality", "98", "--subsampling", "444", "--workers", "1"]) == 0
    there, here = perceptual.read(folder), perceptual.read(tmp_path / "triplets-test.beton")
    assert np.array_equal(there.vote, here.vote) and len(there.rows) == len(here.rows) == len(PICTURES)
    for a, b in zip(there.rows.ravel(), here.rows.ravel()):
        theirs, ours = (
            np.asarray(images[i]).astype(int) for images, i in ((there.images, a), (here.images, b))
        )
        assert theirs.shape == ours.shape
        name = there.images.members[a].name.removeprefix("ref/")
        if name in ("plain.jpg", "profile.jpg", "marked.jpg"):  # kept byte for byte
            assert np.array_equal(theirs, ours), name
        assert np.abs(theirs - ours).mean() < 2.5, name


def test_zero_shot_pictures_are_read_as_clip_benchmark_reads_them(tmp_path):
    """Transparency dropped, EXIF ignored; and never from the cache of a reading that is another."""
    for name, data in PICTURES.items():
        if name == "marked.jpg":
            continue  # PIL does not know it for a JPEG
        (tmp_path / name).write_bytes(data)
        member = [Member.whole(tmp_path / name)]
        picture = Image.open(io.BytesIO(data))
        if name == "deep.png":  # of which Pillow's conversion makes white: not the field's way here
            stock = np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, -1)
        else:
            stock = np.asarray(picture.convert("RGB"))
        assert np.array_equal(np.asarray(FileImages(member)[0]), stock)
        keys = {x for images in (FileImages(member), PreparedImages(member))
                for x in (images.stamp(), images.identity())}  # fmt: skip
        assert len(keys) == 4


def test_a_damaged_stored_picture_ends_an_evaluation(tmp_path):
    """PIL would show grey where data is missing; the engines refuse the picture."""
    data = encoded(smooth(size=(200, 200)), quality=95)
    at = len(data) // 2
    broken = data[:at] + b"\xff\xd9"
    (tmp_path / "x").write_bytes(broken)
    images = BetonImages([Member.whole(tmp_path / "x", "left of sample 3")], [(200, 200)], [None])
    with pytest.raises(Unreadable, match="x: .*remature end"):
        images[0]


def test_an_exchanged_stored_picture_ends_an_evaluation(tmp_path):
    """Sound by itself, but not what was written: the engines refuse it too."""
    whole = triplets_file(tmp_path / "whole.beton", 12)
    file = triplets_file(tmp_path / "t.beton", 12, broken={3: whole.jpeg(10, "left").tobytes()})
    images = perceptual._read_betons(file.path, [file]).images
    bad = [i for i in range(len(images)) if images.name(i).endswith("left of sample 3")]
    with pytest.raises(Unreadable, match="left of sample 3: its bytes are not those that were written"):
        images[bad[0]]
    (batch,) = FFCVLoader.one_pass(file, batch_size=12, image_size=16)
    assert torch.equal(batch.valid, torch.arange(12) != 3)
    others = [i for i in range(len(images)) if i not in bad]
    assert all(images[i].size for i in others) and len(bad) == 1
