"""Triplet tables in NIGHTS' layout, data.csv beside the images that it names: the one reader of all rooms.

Columns are read by name (their order varies between releases): left_vote, right_vote, ref_path,
left_path, right_path, and, where there are any, votes, split, is_imagenet and id.  Votes may be
fractions, which are kept, not rounded.  Layout and filter: github.com/ssundaram21/dreamsim.

Whether the images exist and can be read is not looked at.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.formats import utf8

MIN_VOTES = 6  # the released loader keeps triplets with at least so many votes
PARTS = ("train", "val", "test")  # what the column `split` may hold
SPLITS = (*PARTS, "test_imagenet", "test_no_imagenet")
TABLES = ("data.csv", "triplets.csv")
COLUMNS = ("left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path")
_READ = {*COLUMNS, "split", "is_imagenet", "id"}
_NEEDED = tuple(name for name in COLUMNS if name != "votes")


class Row(NamedTuple):
    """One line of the table."""

    key: str
    vote: float  # the fraction that preferred right
    votes: int  # 0: unknown
    paths: tuple[str, str, str]  # ref, left, right, relative to the folder
    split: str


def table_of(folder: Path) -> Path:
    """The table in a folder of NIGHTS' layout.  Raises ValueError when there is none."""
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        what = "neither data.csv nor triplets.csv is in it" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: {what}; a NIGHTS folder holds data.csv, ref/ and distort/")
    return table


def read(
    table: Path, splits: Sequence[str], min_votes: int | None = None, *, unsplit: str = ""
) -> tuple[Row, ...]:
    """Rows of the splits (of SPLITS), in the table's order.

    min_votes: rows with fewer votes are left out.  None leaves out those with fewer than 6, as NIGHTS does,
    unless no row of the table has as many.
    unsplit: the split of all rows of a table without that column; by default such a table is refused.
    Raises ValueError naming the file, the row and the column.
    """
    whole = utf8.text(table.read_bytes(), str(table))
    lines = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
    rows: list[dict] = []
    try:
        names = lines.fieldnames or ()
        _check_columns(names, splits, min_votes, unsplit)
        rows.extend(lines)
        for number, row in enumerate(rows, 2):
            _check_fields(row, number, names)
        numbered = enumerate(rows, 2)
        out = [_row(row, n, unsplit) for n, row in numbered if _wanted(row, n, splits, unsplit)]
    except csv.Error as error:
        message = f"row {len(rows) + 2}: its quotation marks do not pair up ({error})"
        raise ValueError(f"{table}: {message}") from None
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from None
    if min_votes is None:
        min_votes = MIN_VOTES if any(_count(row) >= MIN_VOTES for row in rows) else 0
    return tuple(row for row in out if row.votes >= min_votes)


def _check_fields(row: dict, number: int, names: Sequence[str]) -> None:
    """ValueError for a row whose fields are shifted, or that holds other rows in a field."""
    more = row.pop(None, ())  # fields past the header's; after a text that nobody reads they shift nothing
    if any(more) and names[-1] in _READ:
        raise ValueError(f"row {number}: more fields than the header has; a comma in one without quotes?")
    for field in filter(None, row.values()):
        if "\n" in field and any(line.count(",") >= len(names) - 1 for line in field.splitlines()):
            message = "a quotation mark opens here and closes after what looks like rows"
            raise ValueError(f"row {number}: {message}")


def _check_columns(names: Sequence[str], splits: Sequence[str], min_votes: int | None, unsplit: str) -> None:
    needed = _NEEDED + (("votes",) if min_votes else ()) + (() if unsplit else ("split",))
    needed += ("is_imagenet",) if any("imagenet" in split for split in splits) else ()
    twice = [name for name in needed if list(names).count(name) > 1]
    if twice:
        raise ValueError(f"more than one column is called {', '.join(twice)}")
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; it has {', '.join(names) or 'none'}")


def _wanted(row: dict, number: int, splits: Sequence[str], unsplit: str) -> bool:
    part = row.get("split", unsplit)
    if part not in PARTS:  # else the row would silently be in no split
        raise ValueError(f"row {number}: split is {part!r}, {', '.join(PARTS)} are expected")
    if part in splits:
        return True
    imagenet = {"test_imagenet": True, "test_no_imagenet": False}
    wanted = [imagenet[split] for split in splits if split in imagenet]
    return part == "test" and bool(wanted) and _truth(row["is_imagenet"], number) in wanted


def _truth(value: str | None, number: int) -> bool:
    word = (value or "").strip().lower()
    if word not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise ValueError(f"row {number}: is_imagenet is {value!r}, neither True nor False")
    return word in ("true", "1", "1.0")


def _count(row: dict) -> float:
    try:
        return float(row.get("votes") or 0)
    except ValueError:
        return 0.0


def _row(row: dict, number: int, unsplit: str) -> Row:
    values = ", ".join(f"{name}={row[name]!r}" for name in COLUMNS[:3] if name in row)
    try:
        left, right, votes = float(row["left_vote"]), float(row["right_vote"]), float(row.get("votes") or 0)
    except (TypeError, ValueError):
        raise ValueError(f"row {number}: a vote is not a number ({values})") from None
    if not (left >= 0 and right >= 0 and 0 < left + right < float("inf")):
        raise ValueError(f"row {number}: left_vote {left:g} and right_vote {right:g} prefer neither")
    if not 0 <= votes < 2**31:
        raise ValueError(f"row {number}: votes is {row['votes']!r}, a count is expected")
    paths = tuple(row[name] for name in COLUMNS[3:])
    if not all(paths):
        raise ValueError(f"row {number}: an empty path among {', '.join(COLUMNS[3:])}")
    key = str(row.get("id") or number - 2)
    return Row(key, right / (left + right), int(votes), paths, row.get("split", unsplit))
