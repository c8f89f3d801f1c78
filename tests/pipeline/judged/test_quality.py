"""KADID-10k, PIPAL and TID2013, on constructed folders of their shape."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.judged import quality

KADID = "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\nI01_01_02.png,I01.png,4.33,0.869\n"
PIPAL = "A0001_00_00.bmp,1466.4372\nA0001_00_01.bmp,1393.2\n"
TID = "5.51429 I01_01_1.bmp\n3.21053 i25_24_5.bmp\n"
SDS = "0.13013\n0.1\n"


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def kadid_folder(folder, table=KADID):
    files(folder, "images/I01.png", "images/I01_01_01.png", "images/I01_01_02.png")
    (folder / "dmos.csv").write_text(table)
    return folder


def pipal_folder(folder, labels=PIPAL, name="Train_Label"):
    files(folder, "Train_Ref/A0001.bmp", "Distortion_1/A0001_00_00.bmp", "Distortion_2/A0001_00_01.bmp")
    files(folder, "Train_Ref/A0002.bmp", "Distortion_1/A0002_06_00.bmp")
    (folder / name).mkdir()
    (folder / name / "A0001.txt").write_text(labels)
    (folder / name / "A0002.txt").write_text("A0002_06_00.bmp,1200\n")
    return folder


def tid_folder(folder, scores=TID, sds=SDS):
    files(folder, "reference_images/I01.BMP", "reference_images/i25.bmp", "reference_images/I02.BMP")
    files(folder, "distorted_images/i01_01_1.bmp", "distorted_images/I25_24_5.bmp")
    (folder / "mos_with_names.txt").write_text(scores)
    (folder / "mos_std.txt").write_text(sds)
    return folder


def pairs_of(found):
    return [[found.images[n] for n in row] for row in found.rows]


def test_kadid(tmp_path):
    found = quality.kadid(kadid_folder(tmp_path))
    assert pairs_of(found) == [["images/I01.png", f"images/I01_01_0{n}.png"] for n in (1, 2)]
    assert found.score.tolist() == [4.57, 4.33] and found.sd.tolist() == [0.496, 0.869] and not found.elo
    assert found.number.tolist() == [2, 3] and found.group.tolist() == ["", ""]
    assert found.rows.dtype == np.int32 and len(found.images) == 3


@pytest.mark.parametrize(("mean", "var"), [(4.57, 0.496), (4.33, 0.869)])
def test_kadids_var_is_a_standard_deviation(mean, var):
    """Of 30 whole ratings, 1 to 5 (public rows of the table): by brute force over their sums of squares."""
    total = round(30 * mean)
    assert round(total / 30, 2) == mean
    variances = np.array([squares / 30 - (total / 30) ** 2 for squares in range(total, 25 * 30 + 1)])
    possible = variances[variances >= 0]
    assert var in np.round(np.sqrt(possible), 3)
    assert var not in np.round(possible, 3) and var not in np.round(possible * 30 / 29, 3)


@pytest.mark.parametrize("name", ["Train_Label", "MOS_Scores_train"])
def test_pipal(tmp_path, name):
    found = quality.pipal(pipal_folder(tmp_path, name=name), "train")
    assert pairs_of(found) == [
        ["Train_Ref/A0001.bmp", "Distortion_1/A0001_00_00.bmp"],
        ["Train_Ref/A0001.bmp", "Distortion_2/A0001_00_01.bmp"],
        ["Train_Ref/A0002.bmp", "Distortion_1/A0002_06_00.bmp"],
    ]
    assert found.score.tolist() == [1466.4372, 1393.2, 1200] and found.elo and np.isnan(found.sd).all()
    assert found.number.tolist() == [1, 2, 1]


def test_tid2013_finds_names_in_either_case(tmp_path):
    found = quality.tid2013(tid_folder(tmp_path))
    assert pairs_of(found) == [
        ["reference_images/I01.BMP", "distorted_images/i01_01_1.bmp"],
        ["reference_images/i25.bmp", "distorted_images/I25_24_5.bmp"],
    ]
    assert (
        found.score.tolist() == [5.51429, 3.21053] and found.sd.tolist() == [0.13013, 0.1] and not found.elo
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4.57", "5.7", "row 2: dmos is '5.7'; a number from 1 to 5"),
        ("4.57", "nan", "row 2: dmos is 'nan'"),
        ("0.869", "", "row 3: var is ''"),
        ("0.869", "-1", "row 3: var is '-1'"),
        ("I01_01_02.png", "I01_01_03.png", "row 3: the image I01_01_03.png is not below"),
        ("I01_01_02.png", "../I01_01_02.png", "row 3: the image ../I01_01_02.png is not below"),
        ("I01.png", "I02.png", "row 2: the image I02.png is not below"),
        ("I01_01_02.png", "I01_01_01.png", "row 3: I01_01_01.png was rated before, in "),
        ("dmos", "mos", "row 1: no column dmos; it has dist_img, ref_img, mos, var"),
        (",0.869", "", "row 3: 3 fields, the header has 4"),
    ],
)
def test_kadid_names_what_is_wrong(tmp_path, old, new, message):
    kadid_folder(tmp_path, KADID.replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        quality.kadid(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'dmos.csv'}: {message}")


def test_an_image_in_two_places_is_no_guess(tmp_path):
    files(kadid_folder(tmp_path), "copies/I01.PNG")
    with pytest.raises(
        ValueError, match="row 2: the image I01.png is there twice: copies/I01.PNG and images/I01.png"
    ):
        quality.kadid(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1393.2", "0.52", "row 2: '0.52'; an Elo rating (not one brought to 0..1) from 100 to 4000"),
        ("1393.2", "nan", "row 2: 'nan'"),
        ("1393.2", "", "row 2: ''"),
        (",1393.2", "", "row 2: ''"),
        ("1393.2", "1393.2,1", "row 2: '1393.2,1'"),
        ("A0001_00_01", "A0001", "row 2: 'A0001.bmp,1393.2'; a line like A0001_00_00.bmp,1466.4372"),
        ("A0001_00_01", "../A0001_00_01", "row 2: '../A0001_00_01.bmp,1393.2'; a line like"),
        ("A0001_00_01", "A0003_00_01", "row 2: the image A0003.bmp is not below"),
        ("A0001_00_01", "A0001_00_00", "row 2: A0001_00_00.bmp was rated before, in "),
        (PIPAL, "\n", "it is empty"),
    ],
)
def test_pipal_names_what_is_wrong(tmp_path, old, new, message):
    pipal_folder(tmp_path, PIPAL.replace(old, new, 1))
    with pytest.raises(ValueError) as caught:
        quality.pipal(tmp_path, "train")
    assert str(caught.value).startswith(f"{tmp_path / 'Train_Label' / 'A0001.txt'}: {message}")


def test_pipals_splits(tmp_path):
    pipal_folder(tmp_path)
    for split, message in (
        ("val", "no folder Val_Label in it"),
        ("valid", "split 'valid': train, val, test are PIPAL's"),
        ("test", "no folder Test_Label in it"),
    ):
        with pytest.raises(ValueError, match=message):
            quality.pipal(tmp_path, split)
    (tmp_path / "Val_Label").mkdir()
    with pytest.raises(ValueError, match=r"Val_Label: no .txt with ratings in it"):
        quality.pipal(tmp_path, "val")


@pytest.mark.parametrize(
    ("scores", "sds", "message"),
    [
        (TID.replace("3.21053", "-1"), SDS, "mos_with_names.txt: row 2: '-1'; a MOS from 0 to 9 is expected"),
        (TID.replace("3.21053", "nan"), SDS, "mos_with_names.txt: row 2: 'nan'"),
        (
            TID.replace("3.21053 ", ""),
            SDS,
            "mos_with_names.txt: row 2: 'i25_24_5.bmp'; a line like 5.51429 I01",
        ),
        (TID.replace("i25_24_5", "i25"), SDS, "mos_with_names.txt: row 2: '3.21053 i25.bmp'; a line like"),
        (
            TID.replace("i25_24_5", "i24_24_5"),
            SDS,
            "mos_with_names.txt: row 2: the image i24.bmp is not below",
        ),
        (
            TID.replace("i25_24_5", "I01_01_1"),
            SDS,
            "mos_with_names.txt: row 2: I01_01_1.bmp was rated before",
        ),
        (TID, "0.13013\nx\n", "mos_std.txt: row 2: 'x'; a standard deviation from 0 to 9"),
        (TID, "0.13013\n", "mos_std.txt: 1 lines, mos_with_names.txt has 2"),
        ("", SDS, "mos_with_names.txt: it is empty"),
    ],
)
def test_tid2013_names_what_is_wrong(tmp_path, scores, sds, message):
    tid_folder(tmp_path, scores, sds)
    with pytest.raises(ValueError) as caught:
        quality.tid2013(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_what_is_not_there(tmp_path):
    for read, message in (
        (quality.kadid, "dmos.csv: no such file"),
        (quality.tid2013, "mos_with_names.txt: no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
