"""The table for judgements that no other reader knows: a csv or tsv with a header, a judgement a row.

Kind "2afc": ref, left, right, vote; `vote` is the share, 0 to 1, that found right nearer to ref.
Kind "odd": a, b, c, odd; `odd` says which is the odd one.
Both may have `votes` (how many answered) and `group` (the part of the set); other columns are not read.

Nothing is guessed: what a table does not say is declared by the caller, or refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import Comparisons, OddOnes
from pipeline.formats.judged.named import images_below, numbered

Kind = Literal["2afc", "odd"]
_IMAGES = {"2afc": ("ref", "left", "right"), "odd": ("a", "b", "c")}
_MOST_VOTES = 2**31 - 1


def read(
    table: Path, images: Path, kind: Kind, base: int | None, odd: str | None, ids: Path | None = None
) -> Comparisons | OddOnes:
    """The judgements of a table, in its order.

    base: None: the image columns hold paths relative to the folder `images`, and `odd` holds a, b or c.
        0 or 1: they hold numbers, of which the first is `base`, and `odd` the place in the row, `base` for a.
    ids: what the numbers count: the lines of this text, names of images in `images`; None: all image files
        below `images`, sorted folder by folder.
    odd: "first" or "last" for a table of kind "odd" without the column `odd`, else None.
    Raises ValueError that names the row and the column, or what has to be declared.
    """
    if kind not in _IMAGES:
        raise ValueError(f"kind {kind!r}: {' or '.join(_IMAGES)} is expected")
    _check_declared(kind, base, odd, ids)
    told = {"2afc": ("vote",), "odd": () if odd else ("odd",)}[kind]
    optional = ("votes", "group", *(("odd",) if kind == "odd" and odd else ()))
    try:
        found = delimited.columns(table, (*_IMAGES[kind], *told), optional=optional)
    except ValueError as error:
        missing = kind == "odd" and not odd and "no column odd" in str(error)
        raise ValueError(f"{error}; or declare --odd first or last" if missing else str(error)) from None
    if odd and "odd" in found.columns:
        raise ValueError(f"{table}: row 1: it has a column odd; leave out --odd {odd}, or the column")
    paths, rows = _rows(found, images, _IMAGES[kind], base, ids)
    return _form(found, images, kind, base, odd, paths, rows)


def _check_declared(kind: Kind, base: int | None, odd: str | None, ids: Path | None) -> None:
    if base not in (None, 0, 1):
        raise ValueError(
            f"base {base}: the first image has number 0 or 1; without base the table holds paths"
        )
    if odd not in (None, "first", "last") or (odd and kind != "odd"):
        raise ValueError(
            f"odd {odd!r}: first or last is expected, for tables of kind odd without that column"
        )
    if ids and base is None:
        raise ValueError(f"{ids}: names that numbers count, but the table holds paths; declare --base 0 or 1")


def _rows(
    table: delimited.Table, images: Path, columns: tuple[str, ...], base: int | None, ids: Path | None
) -> tuple[tuple[str, ...], np.ndarray]:
    if base is None:
        paths, rows = table.images(*columns)
        digits = next((n for n, path in enumerate(paths) if path.isdigit()), None)
        if digits is not None:
            row, column = np.argwhere(rows == digits)[0]
            name = columns[column]
            message = f"{name} is {paths[digits]!r}, a number; declare --base 0 or 1, or write paths"
            raise ValueError(f"{table.path}: row {table.line[row]}: {message}")
    else:
        paths = numbered(images, ids)[1] if ids else _below(images)
        highest = base + len(paths) - 1
        rows = np.stack([table.integer(name, base, highest) - base for name in columns], 1).astype(np.int32)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        differ = rows[:, first] != rows[:, second]
        table.check(columns[second], differ, f"an image other than that of {columns[first]} is expected")
    return paths, rows


def _below(images: Path) -> tuple[str, ...]:
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder of images")
    paths = tuple(path.relative_to(images).as_posix() for path in images_below(images))
    if not paths:
        raise ValueError(f"{images}: no image in it")
    return paths


def _form(
    table: delimited.Table, images: Path, kind: Kind, base: int | None, odd: str | None,
    paths: tuple[str, ...], rows: np.ndarray,
) -> Comparisons | OddOnes:  # fmt: skip
    count, columns = len(rows), table.columns
    votes = table.integer("votes", 0, _MOST_VOTES) if "votes" in columns else np.zeros(count)
    group = np.array(table.text("group")) if "group" in columns else np.zeros(count, "U1")
    notes = delimited.repeats(rows, table.line)
    if kind == "2afc":
        return Comparisons(
            folder=images, images=paths, rows=rows, number=table.line, group=group, notes=notes,
            vote=table.number("vote", 0, 1), votes=votes.astype(np.int32),
        )  # fmt: skip
    return OddOnes(
        folder=images, images=paths, rows=rows, number=table.line, group=group, notes=notes,
        odd=np.eye(3)[_odd_places(table, base, odd, count)], votes=votes.astype(np.int32),
    )  # fmt: skip


def _odd_places(table: delimited.Table, base: int | None, odd: str | None, count: int) -> np.ndarray:
    """Which of the three is the odd one, (N,), from 0."""
    if odd:
        return np.full(count, 0 if odd == "first" else 2)
    if base is not None:
        return table.integer("odd", base, base + 2) - base
    places = {name: place for place, name in enumerate(_IMAGES["odd"])}
    found = np.fromiter((places.get(text, -1) for text in table.text("odd")), np.int64, count)
    table.check("odd", found >= 0, "a, b or c is expected (numbers with --base)")
    return found
