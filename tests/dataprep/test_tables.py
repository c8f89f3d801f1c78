"""Tables as people really hold them: quoting, encodings, line ends, JSON of every form."""

from __future__ import annotations

import csv
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.build_ffcv import main
from dataprep.sources import delimited
from dataprep.sources.columns import Choice
from dataprep.sources.tables import TableFile
from pipeline.beton.fields import Beton
from tests.kits import dataprep as kit

# -- tables ---------------------------------------------------------------------------------------


PLAIN = (
    'filepath\ttitle\n1.jpg\tone\n2.jpg\t"unclosed two\n3.jpg\tthree\n4.jpg\tfour 6" pipe\n5.jpg\t"five"\n'
)


def test_a_tsv_without_quoting_is_a_row_a_line(tmp_path):
    assert kit.make(kit.table_of(tmp_path / "c.tsv", PLAIN), tmp_path / "out.beton") == 0
    said = ["one", '" unclosed two', "three", 'four 6 " pipe', '" five "']
    assert kit.taken(tmp_path / "out.beton") == [(f"{n}.jpg", [s]) for n, s in enumerate(said, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "body, kept, line, detail",
    [
        (
            '1.jpg,one\n2.jpg,"unclosed\n3.jpg,three\n',
            [1, 3],
            3,
            "a quotation mark opens here and never closes",
        ),
        ('1.jpg,one\n2.jpg,"unclosed\n3.jpg,three 6"\n4.jpg,x\n', [1, 3, 4], 3, "closes 1 lines on"),
        ('1.jpg,one\n2.jpg,"un"closed\n3.jpg,"th, ree"\n', [1, 3], 3, "do not pair up"),
        ("1.jpg,one\n2.jpg,two, more\n3.jpg,three,\n", [1, 3], 3, "a comma in a field without quotes"),
        ('1.jpg,"one\nand more"\n2.jpg\n3.jpg,three\n', [1, 3], 4, "1 fields where the header has 2"),
        ("1.jpg,one\n,two\n3.jpg,three\n,\n", [1, 3], 3, "it names no image"),
        ("1.jpg,one\nhttps://x/2.jpg,two\n3.jpg,three\n", [1, 3], 3, "download the images first"),
        ("1.jpg,one\n2.jpg,caf\udce9 \udc93x\n3.jpg,three\n", [1, 3], 3, r"not UTF-8: 'caf\xe9 \x93x'"),
    ],
)
@pytest.mark.parametrize("shard", [1, 100])
def test_a_bad_row_costs_itself_and_is_named_by_its_line(
    tmp_path, monkeypatch, body, kept, line, detail, shard
):
    monkeypatch.setattr("dataprep.sources.tables.SHARD", shard)
    path = kit.table_of(tmp_path / "c.csv", f"filepath,title\n{body}".encode("utf-8", "surrogateescape"))
    assert kit.make(path, tmp_path / "out.beton", "--max-rejects", "0.5") == 0
    assert kit.keys(Beton(tmp_path / "out.beton")) == [f"{n}.jpg" for n in kept]
    (row,) = kit.rejects(tmp_path / "out.beton")
    assert row["key"] == f"line {line}" and detail in row["detail"], row


def test_a_bad_row_is_not_swallowed_either(tmp_path):
    body = 'filepath,title\n1.jpg,one\n2.jpg,"unclosed\n3.jpg,three, 6"\n4.jpg,x\n'
    table = kit.table_of(tmp_path / "c.csv", body)
    assert kit.make(table, tmp_path / "out.beton", "--max-rejects", "0.5") == 0
    assert [row["key"] for row in kit.rejects(tmp_path / "out.beton")] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    "name, body, message",
    [
        ("c.csv", "filepath,title\n1.jpg,é\n".encode("utf-16"), "not UTF-8 text but UTF-16"),
        ("c.csv", "filepath,title\n1.jpg,é\n".encode("utf-16-le"), "UTF-16 without a mark"),
        ("c.json", '[{"image": "1.jpg"}]'.encode("utf-16"), "not UTF-8 text but UTF-16"),
        ("c.csv", b"filepath,title\r1.jpg,one\r2.jpg,two\r", "in CR alone; tr"),
        ("c.csv", b'filepath,"title\n1.jpg,one\n', "its header line is no csv"),
        ("c.tsv", b"a dog\thttp://x/1.jpg\n", "it has a dog, http://x/1.jpg; name it with --image-column"),
        ("c.json", json.dumps({"images": [{"filename": "1.jpg", "sentences": []}]}).encode(), "Karpathy"),
        ("c.json", b'{"images":\n[{"id": 1, "file_name": "a"}], "annotations": [{"id": 1}]}', "not COCO's"),
        ("c.json", b'[{"image": "1.jpg", "caption": "x"}', "not JSON"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_one_line(tmp_path, capsys, name, body, message):
    assert kit.make(kit.table_of(tmp_path / name, body), tmp_path / "out.beton") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0] and name in error[0], error
    assert not list(tmp_path.glob("out*"))


COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "2.jpg"}, {"id": 3, "file_name": "1.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "b1"},
        {"image_id": 3, "id": 2, "caption": "a1"},
        {"image_id": 7, "id": 3, "caption": "b2"},
    ],
}
LISTED = [{"file": "1.jpg", "captions": ["a1"]}, {"file": "2.jpg", "captions": ["b1", "b2"]}]


@pytest.mark.slow
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n "])
@pytest.mark.parametrize("data", [COCO, LISTED, {"1.jpg": "a1", "2.jpg": ["b1", "b2"]}])
def test_json_documents(tmp_path, data, mark, indent, monkeypatch):
    """COCO's own captions, lists, names with captions; with a byte-order mark, indented or not."""
    monkeypatch.setattr("dataprep.sources.tables.SHARD", 1)
    path = kit.table_of(tmp_path / "c.json", mark + json.dumps(data, indent=indent).encode())
    assert kit.make(path, tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [("1.jpg", ["a 1"]), ("2.jpg", ["b 1", "b 2"])]


def test_one_line_of_json_is_a_table_too(tmp_path):
    path = kit.table_of(tmp_path / "c.json", json.dumps({"filename": "1.jpg", "caption": ["x", "y"]}))
    assert kit.make(path, tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [("1.jpg", ["x", "y"])]


def test_json_that_is_no_object_is_a_bad_row(tmp_path, capsys):
    assert kit.make(kit.table_of(tmp_path / "c.json", '"1.jpg"'), tmp_path / "out.beton") == 1
    assert "line 1: bad row: not a JSON object" in capsys.readouterr().err


def test_column_names_in_other_letters_and_words_that_look_like_nothing(tmp_path):
    body = "Image, Caption\n1.jpg,None\n2.jpg,NA\n3.jpg,null\n"
    assert kit.make(kit.table_of(tmp_path / "c.csv", body), tmp_path / "out.beton") == 0
    assert [captions for _, captions in kit.taken(tmp_path / "out.beton")] == [["none"], ["na"], ["null"]]
    body = "Image Path,raw_caption,shortIB_captions\n1.jpg,a,b\n"
    columns = ["--image-column", "Image Path", "--caption-columns", "raw_caption", "shortIB_captions"]
    assert kit.make(kit.table_of(tmp_path / "d.csv", body), tmp_path / "two.beton", *columns) == 0
    assert kit.taken(tmp_path / "two.beton") == [("1.jpg", ["a", "b"])]


def test_a_txt_that_is_a_csv_and_empty_rows(tmp_path):
    """Flickr8k's captions.txt; rows of nothing but commas at the end, as spreadsheets leave them; CRLF."""
    body = "image,caption\r\n1.jpg,a dog .\r\n1.jpg,a cat\r\n2.jpg,x\r\n,\r\n,\r\n\r\n"
    assert kit.make(kit.table_of(tmp_path / "captions.txt", body), tmp_path / "out.beton") == 0
    assert kit.taken(tmp_path / "out.beton") == [("1.jpg", ["a dog .", "a cat"]), ("2.jpg", ["x"])]
    assert Beton(tmp_path / "out.beton").info["rejected"] == {}


def test_each_row_without_an_image_is_a_reject(tmp_path):
    table = kit.table_of(tmp_path / "c.csv", "filepath,title\n1.jpg,a\n,b\n,c\n2.jpg,d\n")
    assert kit.make(table, tmp_path / "out.beton", "--max-rejects", "0.5") == 0
    assert [row["key"] for row in kit.rejects(tmp_path / "out.beton")] == ["line 3", "line 4"]


def test_rows_of_an_image_that_do_not_follow_each_other_are_told(tmp_path, capsys):
    body = "filepath,caption\n1.jpg,a\n2.jpg,b\n1.jpg,c\n2.jpg,d\n2.jpg,e\n"
    assert kit.make(kit.table_of(tmp_path / "c.csv", body), tmp_path / "out.beton") == 0
    assert "2 samples repeat an image" in capsys.readouterr().out
    assert Beton(tmp_path / "out.beton").info["source"]["images_again"] == 2


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)


def read_back(path, shard: int) -> list[tuple[str, list[str]]]:
    """(image, captions) of a table read in pieces of `shard` rows."""
    table = TableFile(path, Choice())
    places = [(record.offset, record.number) for record in table.records()]
    starts, end = places[::shard], path.stat().st_size
    stops = [offset for offset, _ in starts[1:]] + [end]
    rows = [r for (start, line), stop in zip(starts, stops) for r in table.records(start, stop, line)]
    assert [(r.offset, r.number) for r in rows] == places and not any(r.fault for r in rows)
    return [(r.image, r.captions) for r in rows]


@settings(max_examples=150, deadline=None)
@given(st.lists(CELL, min_size=1, max_size=8), st.integers(1, 3), st.sampled_from("\t,;"), st.booleans())
def test_what_a_csv_writer_writes_comes_back(tmp_path_factory, cells, shard, delimiter, everything):
    """Any cells, quoted where they must be or everywhere, in any delimiter, read from any row on."""
    path = tmp_path_factory.mktemp("table") / "t.tsv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        how = csv.QUOTE_ALL if everything else csv.QUOTE_MINIMAL
        writer = csv.writer(file, delimiter=delimiter, quoting=how)  # \r\n: else it leaves \r unquoted
        writer.writerows([("filepath", "caption"), *((f"{n}.jpg", cell) for n, cell in enumerate(cells))])
    assert read_back(path, shard) == [(f"{n}.jpg", [cell]) for n, cell in enumerate(cells)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(CELL, min_size=1, max_size=8), st.integers(1, 3))
def test_lines_with_tabs_come_back_letter_by_letter(tmp_path_factory, cells, shard):
    """Quotation marks mean nothing in a tsv, but where csv's doubling is the only reading."""
    cells = [" ".join(cell.split()).replace('""', '"') or "x" for cell in cells]
    path = tmp_path_factory.mktemp("table") / "t.tsv"
    lines = ["filepath\tcaption", *(f"{n}.jpg\t{cell}" for n, cell in enumerate(cells))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    assert read_back(path, shard) == [(f"{n}.jpg", [cell]) for n, cell in enumerate(cells)]


def test_very_many_open_quotation_marks_are_read_in_time(tmp_path):
    """Each is looked for over a bounded stretch only."""
    path = tmp_path / "t.tsv"
    path.write_text("filepath\tcaption\n" + "".join(f'{n}.jpg\t"open {n}\n' for n in range(3_001)))
    found = list(TableFile(path, Choice()).records())
    assert len(found) == 3_001 and all(r.captions == [f'"open {n}'] for n, r in enumerate(found))


def test_delimited_rows_end_at_their_stop(tmp_path):
    path = kit.table_of(tmp_path / "c.csv", 'filepath,title\n1.jpg,"a\nb"\n2.jpg,c\n')
    head = delimited.head(path)
    rows = list(delimited.rows(path, head, 0, 0, None, 1))
    assert [(row.line, row.fields) for row in rows] == [(2, ["1.jpg", "a\nb"]), (4, ["2.jpg", "c"])]
    assert [row.line for row in delimited.rows(path, head, 0, 0, rows[1].offset, 1)] == [2]


@pytest.mark.parametrize("name", ["CAPTIONS.CSV", "C.TSV", "c.JSONL", "c.Json", "list.jsonl"])
def test_endings_in_capitals(tmp_path, name):
    delimiter = "\t" if name == "C.TSV" else ","
    row = {"filepath": "1.jpg", "title": "one"}
    body = {
        "c.JSONL": json.dumps(row),
        "c.Json": json.dumps([row]),
        "list.jsonl": json.dumps([row], indent=1),
    }
    body = body.get(name)
    table = kit.table_of(tmp_path / name, body or delimiter.join(row) + "\n" + delimiter.join(row.values()))
    for source, out in ((table, "a.beton"), (tmp_path, "b.beton")):
        assert kit.make(source, tmp_path / "o" / out) == 0
        assert kit.taken(tmp_path / "o" / out) == [("1.jpg", ["one"])]


def test_bars_part_fields_as_flickr30k_has_it(tmp_path):
    body = (
        "image_name| comment_number| comment\n1.jpg| 0| A cat .\n1.jpg| 1| Two , cats\n2.jpg| 4   A dog .\n"
    )
    more = "--caption-columns", "comment", "--max-rejects", "0.5"
    assert kit.make(kit.table_of(tmp_path / "results.csv", body), tmp_path / "out.beton", *more) == 0
    assert kit.taken(tmp_path / "out.beton") == [("1.jpg", ["a cat .", "two , cats"])]
    (row,) = kit.rejects(tmp_path / "out.beton")
    assert row["key"] == "line 4" and "2 fields where the header has 3" in row["detail"]


@pytest.mark.parametrize(
    "image, reason, told",
    [
        ("in\\1.jpg", "missing file", "folders are separated by / here"),
        ("e\u0301.jpg", "missing file", "it is there, but its name is encoded in another way"),
        ("HTTP://x/1.jpg", "image is a URL", "download the images first"),
        ("/9j/4AAQ" * 50, "image is base64", "/9j/4AAQ/9j/4AAQ/9j/4AAQ…; write it to a file"),
        ("data:image/png;base64,iVBO", "image is base64", "write it to a file"),
        ("/dev/zero", "unreadable file", "a device or pipe"),
        ("pipe.jpg", "unreadable file", "a device or pipe"),
        ("\ud800.jpg", "bad row", r"half a character (\ud800 without its other half)"),
    ],
)
def test_what_an_image_column_holds_instead_of_a_file(tmp_path, image, reason, told):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "é.jpg").touch()
    rows = [{"image": "1.jpg", "text": "one"}, {"image": image, "text": "two"}]
    table = kit.table_of(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows)))
    more = "--max-rejects", "0.5", "--share", "0.999999"
    assert kit.make(table, tmp_path / "out.beton", *more) == 0
    assert kit.taken(tmp_path / "out.beton") == [("1.jpg", ["one"])]
    (row,) = kit.rejects(tmp_path / "out.beton")
    assert row["reason"] == reason and told in row["detail"], row


@pytest.mark.parametrize("second, told", [("IMG_2007", True), ("50%25 off+sale now", False)])
def test_captions_that_are_url_encoded_are_told(tmp_path, capsys, second, told):
    """As the titles and descriptions of YFCC100M's own table are."""
    body = f"filename,title\n1.jpg,denise%27s+peanut+chicken\n2.jpg,{second}\n"
    assert kit.make(kit.table_of(tmp_path / "c.csv", body), tmp_path / "out.beton") == 0
    assert ("look URL-encoded (denise%27s+peanut+chicken)" in capsys.readouterr().out) == told


def test_lists_in_cells_are_several_captions(tmp_path, capsys):
    """Flickr30k's annotations (JSON) and what pandas writes of lists (Python)."""
    cells = ['["Two men.", "A man."]', "['It\\'s a dog', 'x']", "['no list", "[1, 2]", '["a", 3]']
    rows = [(f"{n}.jpg", cell, "train") for n, cell in enumerate(cells)]
    path = kit.table_of(tmp_path / "c.csv", "")
    kit.write_csv(path, rows, ("filename", "caption", "split"))
    assert kit.make(path, tmp_path / "out.beton") == 0
    stored = Beton(tmp_path / "out.beton")
    expected = [["Two men.", "A man."], ["It's a dog", "x"], *([cell] for cell in cells[2:])]
    assert (kit.tokens(stored) == kit.expected_tokens(expected)).all()
    assert "rows of every split are taken: the column split is not looked at" in capsys.readouterr().out


def test_a_name_that_comes_twice_in_json_is_not_dropped(tmp_path, capsys):
    path = kit.table_of(tmp_path / "c.json", '{"1.jpg": ["one"], "2.jpg": ["two"], "1.jpg": ["three"]}')
    assert kit.make(path, tmp_path / "out.beton") == 2
    assert "c.json: not JSON: '1.jpg' appears more than once in one object" in capsys.readouterr().err


def test_two_columns_that_could_hold_the_image_are_told(tmp_path, capsys):
    path = kit.table_of(tmp_path / "c.csv", "image,filepath,caption\n1.jpg,2.jpg,x\n")
    for more, key in (((), "2.jpg"), (("--image-column", "image"), "1.jpg")):
        assert kit.make(path, tmp_path / "out.beton", *more) == 0
        assert kit.taken(tmp_path / "out.beton") == [(key, ["x"])]
        told = "images are those of column filepath, not of image" in capsys.readouterr().out
        assert told == (not more)


def test_captions_of_json_that_are_no_text(tmp_path):
    rows = [2015, {"en": "x"}, "fine", None]
    body = "\n".join(json.dumps({"image": f"{n}.jpg", "text": said}) for n, said in enumerate(rows))
    path = kit.table_of(tmp_path / "c.jsonl", body)
    assert kit.make(path, tmp_path / "out.beton", "--max-rejects", "0.9") == 0
    told = [(row["reason"], row["detail"]) for row in kit.rejects(tmp_path / "out.beton")]
    assert told == [
        ("bad row", "its caption is not text: 2015"),
        ("bad row", "its caption is not text: {'en': 'x'}"),
        ("empty caption", ""),
    ]


def test_what_names_no_image_is_no_name(tmp_path):
    images = ("0.jpg", None, {"path": "1.jpg"}, ["2.jpg"], "\ud83d.jpg")
    rows = [{"image": image, "caption": "x"} for image in images]
    table = kit.table_of(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows)))
    assert kit.make(table, tmp_path / "o.beton", "--max-rejects", "0.9") == 0
    assert [row["key"] for row in kit.rejects(tmp_path / "o.beton")] == [f"line {n}" for n in (2, 3, 4, 5)]
    assert {row["reason"] for row in kit.rejects(tmp_path / "o.beton")} == {"bad row"}


@pytest.mark.parametrize(
    "name, body, told",
    [
        ("c.csv", "file_name,caption,caption\n0.jpg,x,y\n", "2 columns are called caption"),
        ("c.jsonl", '{"file_name": "0.jpg", "caption": "x"}\n'.encode("utf-16"), "UTF-16"),
        (
            "c.json",
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "0.jpg"}, {"id": 1, "file_name": "1.jpg"}],
                    "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "y"}],
                }
            ),
            "2 images, but 1 ids",
        ),
        (
            "c.json",
            b'{"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 2, "caption": ""}]}',
            "a caption of image 2, which is not among its images",
        ),
    ],
)
def test_tables_that_could_be_read_in_two_ways_are_refused(tmp_path, capsys, name, body, told):
    table = kit.table_of(tmp_path / name, body)
    assert kit.make(table, tmp_path / "o.beton") == 2
    said = capsys.readouterr().err
    assert f"error: {table}: " in said and told in said and not (tmp_path / "o.beton").exists()


def nights_table(folder, change) -> None:
    """NIGHTS in 12 rows with a table changed by `change(lines)`."""
    kit.nights_folder(folder, 12)
    lines = (folder / "data.csv").read_text().splitlines()
    change(lines)
    (folder / "data.csv").write_text("\n".join(lines) + "\n")


def swallow(lines: list[str]) -> None:
    lines[3] = lines[3].replace("prompt 2", '"prompt 2')
    lines[6] = lines[6].replace("prompt 5", 'prompt 5"')


def open_mark(lines: list[str]) -> None:
    lines[3] = lines[3].replace("prompt 2", '"prompt 2')


def twice(lines: list[str]) -> None:
    lines[0] = lines[0].replace("prompt", "left_vote")


def comma(lines: list[str]) -> None:
    lines[:] = [line.rpartition(",")[0] for line in lines]  # without the prompt
    lines[3] = lines[3].replace(",", ",3,", 1)


@pytest.mark.parametrize(
    "change, told",
    [
        (comma, "row 4: more fields than the header has"),
        (swallow, "row 4: a quotation mark opens here and closes after what looks like rows"),
        (open_mark, "row 4: its quotation marks do not pair up"),
        (twice, "more than one column is called left_vote"),
    ],
)
def test_triplets_are_not_swallowed(tmp_path, capsys, change, told):
    nights_table(tmp_path / "in", change)
    assert main(["nights", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert f"data.csv: {told}" in capsys.readouterr().err


def test_triplets_with_few_votes_are_counted(tmp_path, capsys):
    def few(lines: list[str]) -> None:
        lines[1] = lines[1].replace(",8,", ",3,", 1)

    nights_table(tmp_path / "in", few)
    assert main(["nights", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("passed over 1: rows with too few votes (--min-votes 0") == 1
    assert len(Beton(tmp_path / "out/triplets-train.beton")) == 5
