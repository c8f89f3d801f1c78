"""Captions in the forms that people hold them."""

from __future__ import annotations

import json

import pytest

from eval.sets import sources

# -- the other forms ---------------------------------------------------------

COCO = {
    "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "a.png"}],
    "annotations": [
        {"image_id": 7, "caption": "b1"},
        {"image_id": 3, "caption": "a1"},
        {"image_id": 7, "caption": "b2"},
    ],
}

PLAIN = [{"file": "a.png", "captions": ["a1"]}, {"file": "b.png", "captions": ["b1", "b2"]}]

KARPATHY = {
    "images": [
        {"filepath": "val2014", "filename": "a.png", "split": "test", "sentences": [{"raw": "a1"}]},
        {"filepath": "val2014", "filename": "c.png", "split": "train", "sentences": [{"raw": "c1"}]},
        {
            "filepath": "val2014",
            "filename": "b.png",
            "split": "test",
            "sentences": [{"raw": "b1"}, {"raw": "b2"}],
        },
    ]
}


@pytest.mark.parametrize(
    "name, content",
    [
        ("coco_test_karpathy.json", json.dumps(COCO)),
        ("dataset_coco.json", json.dumps(KARPATHY)),
        ("captions.json", json.dumps(PLAIN)),
    ],
)  # fmt: skip
def test_caption_files(tmp_path, images, name, content):
    folder = tmp_path / "some-captions"
    (folder / "val2014").mkdir(parents=True)
    for n, image in zip("ab", images):
        (folder / "val2014" / f"{n}.png").write_bytes(image)
    (folder / name).write_text(content)
    one = sources.read_folder(folder)
    assert one.captions == [["a1"], ["b1", "b2"]] and [one.images.read(i) for i in (0, 1)] == images[:2]
    for bad in ("a text", [None], [3], None):
        (folder / "captions.json").write_text(json.dumps([{"file": "a.png", "captions": bad}]))
        with pytest.raises(ValueError, match="the captions of a.png are .*, a list of texts is expected"):
            sources.read_captions(folder, folder / "captions.json")
    (folder / "captions.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="captions.json: not UTF-8 text"):
        sources.read_captions(folder, folder / "captions.json")
    (folder / name).write_text(content)
    (folder / "val2014" / "b.png").unlink()
    with pytest.raises(ValueError, match="b.png is in no folder"):
        sources.read_folder(folder)


def test_captions_of_blip_and_pictures_in_two_places(tmp_path, images):
    place = tmp_path / "blip"
    for sub in ("val2014", "small"):
        (place / sub).mkdir(parents=True)
    (place / "val2014" / "a.png").write_bytes(images[0])
    rows = [{"image": "val2014/a.png", "caption": ["one", "two"]}]
    (place / "coco_karpathy_test.json").write_text(json.dumps(rows))
    assert sources.read_folder(place).captions == [["one", "two"]]
    (place / "coco_karpathy_test.json").write_text(json.dumps([{"image": "a.png", "caption": ["one"]}]))
    (place / "small" / "a.png").symlink_to(place / "val2014" / "a.png")
    assert len(sources.read_folder(place).images) == 1  # the same file
    (place / "small" / "a.png").unlink()
    (place / "small" / "a.png").write_bytes(images[1])
    with pytest.raises(ValueError, match="a.png is both .*small/a.png and .*val2014/a.png"):
        sources.read_folder(place)
    (place / "coco_karpathy_test.json").unlink()
    (place / "dataset_coco.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="no image with captions in it"):
        sources.read_folder(place)


def test_flickr_lines(tmp_path, images):
    folder = tmp_path / "flickr-like"
    folder.mkdir()
    for n in "12":
        (folder / f"{n}.jpg").write_bytes(images[0])
    lines = ["image,caption", "1.jpg,one, with a comma", "2.jpg,two", "1.jpg,again"]
    file = folder / "flickr30k_test_karpathy.txt"
    file.write_text("\n".join(lines))
    assert sources.read_folder(folder).captions == [["one, with a comma", "again"], ["two"]]
    file.write_text("image,caption\n1.png one")
    with pytest.raises(ValueError, match="line 2: NAME.jpg,CAPTION"):
        sources.read_folder(folder)


# -- tars as people hold them ---------------------------------------------------------


def test_captions_of_the_first_line_and_blank_ones(tmp_path, images):
    """A list without a header loses no caption; a half character is named."""
    place = tmp_path / "mine"
    place.mkdir()
    for name in "12":
        (place / f"{name}.jpg").write_bytes(images[0])
    lines = ["1.jpg,a dog", "1.jpg,a cat", "2.jpg,x, y", "2.jpg, "]
    for head in ([], ["image,caption"]):
        (place / "x_test_karpathy.txt").write_text("\n".join(head + lines))
        one = sources.read_folder(place)
        assert one.captions == [["a dog", "a cat"], ["x, y"]] and one.notes == ("1 blank captions left out",)
    (place / "x_test_karpathy.txt").unlink()
    (place / "captions.json").write_text('[{"file": "1.jpg", "captions": ["\\ud83d"]}]')
    with pytest.raises(ValueError, match=r"captions.json: a caption of 1.jpg has half a character"):
        sources.read_folder(place)


def test_a_picture_with_a_row_a_caption_is_one_picture(tmp_path, images):
    place = tmp_path / "mine"
    place.mkdir()
    for name in "12":
        (place / f"{name}.jpg").write_bytes(images[0])
    rows = [("1.jpg", ["a"]), ("2.jpg", ["b"]), ("1.jpg", ["c"])]
    (place / "captions.json").write_text(json.dumps([{"file": f, "captions": c} for f, c in rows]))
    assert sources.read_folder(place).captions == [["a", "c"], ["b"]]
    (place / "dataset_mine.json").write_text((place / "captions.json").read_text())
    assert sources.read_folder(place).notes == ("captions from dataset_mine.json, not captions.json",)
    (place / "dataset_mine.json").unlink()
    twice = {"images": [{"id": 1, "file_name": f} for f, _ in rows[:2]], "annotations": []}
    for content, message in (
        (twice, "2 images, but 1 ids"),
        ([{"file": 1, "captions": ["a"]}], "1 is no image's name"),
        ([{"file": "", "captions": ["a"]}], "'' is no image's name"),
    ):
        (place / "captions.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"captions.json: .*{message}"):
            sources.read_folder(place)
