"""Class names and templates: the field's, those beside the data, and lists that are none."""

from __future__ import annotations

import pytest

from eval.sets import catalog, imagenet, prompts, sources
from tests.kits.eval import class_folders, encoded, pictures, write_webdataset

# -- prompts ---------------------------------------------------------


def test_prompts_of_the_field():
    import open_clip

    assert prompts.known_classnames("imagenet_sketch") == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert len(prompts.known_classnames("imagenet-a")) == 200
    assert prompts.known_classnames("clevr_closest_object_distance")[3] == ""
    assert prompts.known_classnames("svhn", "datacomp") == tuple("0123456789")
    assert prompts.known_classnames("svhn", "clip_benchmark")[0] == "zero"
    assert prompts.known_templates("svhn", "datacomp") == ('a photo of the number: "{c}".',)
    assert len(prompts.known_templates("nothing-known")) == 80
    for entry in catalog.CLASSIFICATION:
        names = prompts.known_classnames(entry.prompts)
        assert names is None or len(names) == entry.classes, entry.key


def test_files_beside_the_data_win_and_the_profile_is_named(tmp_path):
    (tmp_path / "classnames.txt").write_text("\n".join("0123456789") + "\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text('a photo of the number: "{c}".\n')
    assert prompts.load("svhn", tmp_path, None, None).profile == "beside the data (equal to datacomp)"
    forced = prompts.load("svhn", tmp_path, None, "clip_benchmark")
    assert forced.classes[0] == "zero" and forced.profile == "clip_benchmark"
    fashion = prompts.load("fashion-mnist", tmp_path / "none", None, None)
    assert fashion.classes[0] == "T-shirt/top" and fashion.profile == prompts.NO_TEMPLATES


@pytest.mark.parametrize(
    "line",
    ["a photo", "a {d}", "a {c", "{0}", 'lambda c: f"a photo of {c}."', '"a photo of {c}.",', "f'{c}'"],
)
def test_bad_template_is_named(line):
    with pytest.raises(ValueError, match="line 2"):
        prompts.checked_templates(["{c}", line], "templates.txt")


def test_templates_that_nobody_gave_are_said(tmp_path):
    (tmp_path / "classnames.txt").write_text("cat\ndog")
    profile = prompts.load("beasts", tmp_path, None, None).profile
    assert profile == f"class names beside the data, {prompts.NO_TEMPLATES}"


def test_open_clip_templates_are_taken():
    assert prompts.checked_templates(["a {}."], "t") == ("a {c}.",)


# -- other class folders ---------------------------------------------------------


def test_class_names_of_the_field_in_another_order(tmp_path, picture, any_count):
    place = class_folders(tmp_path / "imagenet-o", imagenet.wnids("imagenet-o"), picture)
    names = prompts.known_classnames("imagenet-o")
    (place / "classnames.txt").write_text("\n".join(sorted(names)))
    with pytest.raises(ValueError, match="the field's class names in another order"):
        sources.read_folder(place)
    images = [encoded(p) for p in pictures(3)]
    tars = write_webdataset(
        tmp_path / "wds_vtab-pcam", images, [0, 1, 1], prompts.known_classnames("pcam")[::-1]
    )
    assert sources.read_folder(tars).prompts.classes[1] == "lymph node"  # its own order holds within it
    with pytest.raises(ValueError, match="labels and names would not meet"):
        sources.read_folder(tars, "datacomp")


@pytest.mark.parametrize(
    "text, expected", [("\ufeffcat\ndog\n", ("cat", "dog")), ("cat\r\ndog\r\n", ("cat", "dog"))]
)
def test_marks_and_line_ends_in_class_names(tmp_path, picture, text, expected):
    place = class_folders(tmp_path / "beasts", ["1", "2"], picture)
    (place / "classnames.txt").write_bytes(text.encode())
    assert sources.read_folder(place).prompts.classes == expected
    (place / "classnames.txt").write_bytes(text.encode() + b"\n")
    with pytest.raises(ValueError, match="2 class folders but 3 class names"):
        sources.read_folder(place)


@pytest.mark.parametrize(
    "lines, what",
    [
        ("0 cat\n1 dog\n2 fox", "numbers before the names"),
        ("1: cat\n2: dog\n3: fox", "numbers before the names"),
        ("0\tcat\n1\tdog\n2\tfox", "numbers before the names"),
        ('["cat", "dog", "fox"]', "a list out of a program"),
        ("'cat',\n'dog',\n'fox'", "a list out of a program"),
        ("cat,\ndog,\nfox", "a list out of a program"),
        ("1 apple\n2 apples\n3 apples", None),
        ("747-200\nA320\nDR-400", None),
        ("10.5 mm\n11.5 mm\n12.5 mm", None),
    ],
)
def test_lists_of_classes_in_another_form(tmp_path, picture, lines, what):
    place = write_webdataset(tmp_path / "wds_beasts", [picture] * 3, [0, 1, 2], lines.splitlines())
    if what is None:
        assert sources.read_folder(place).prompts.classes == tuple(lines.splitlines())
        return
    with pytest.raises(ValueError, match=f"classnames.txt: {what} .*; a name alone on each line is expected"):
        sources.read_folder(place)


def test_a_tar_without_class_names(tmp_path, picture, any_count):
    place = write_webdataset(tmp_path / "wds_fashion-mnist", [picture] * 3, [0, 1, 2], ["x"])
    (place / "classnames.txt").unlink()
    said = "no classnames.txt: the labels are taken to be in the order of the field's names"
    assert said in sources.read_folder(place).notes


def test_a_blank_line_after_the_class_names_of_a_tar(tmp_path, picture):
    """It is a class if a picture has it (CLEVR's has no name), else a slip that would be one more answer."""
    for labels in ([0, 1, 2], [0, 1, 1]):
        place = tmp_path / f"wds_beasts{labels[2]}"
        write_webdataset(place, [picture] * 3, labels, ["cat", "dog", ""])
        if labels[2] == 2:
            assert sources.read_folder(place).prompts.classes == ("cat", "dog", "")
        else:
            with pytest.raises(ValueError, match="end in a blank line"):
                sources.read_folder(place)
