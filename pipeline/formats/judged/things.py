"""THINGS odd-one-out answers over the images of objects, each row the answer of one person.

Which number the first object has, and which of a row's three is the odd one, is declared by the caller; known
releases:
- base 0, odd "last": `trainset.txt` and its like (SPoSE, VICE), and the (N, 3) arrays `train_90.npy`,
  `test_10.npy` and `correct_triplets.npy` (github.com/LukasMut/gLocal, data/things.py: `target = 2`; the last
  one is only those answers that VICE predicts right);
- base 1, odd 4: `triplets_large_final_correctednc_correctedorder.csv` of osf.io/f5rn6, with tabs and a header
  that begins image1, image2, image3, choice; choice is 1, 2 or 3.  (github.com/SaraGhazanfari/UniSim,
  data/three_afc/things.py, takes 1 from all four and its images from `things_first_imgs_idx.txt`.)
- base None, odd "last": rows of three names of images (DreamSim).

Not here: triplets drawn from an embedding of THINGS.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow
import pyarrow.csv

from pipeline.formats import utf8
from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import OddOnes
from pipeline.formats.judged.named import ENDINGS, images_in, numbered, paths

Odd = Literal["first", "last"] | int
_PLACES = {"first": 0, "last": 2}
_MOST = 2**31
_AT_ONCE = 1 << 16  # rows of names at once: bounds the memory


class _Rows(NamedTuple):
    """Fields of the answers, (N, 3), or (N, 4) with the label of the odd one; where each row stands, (N,)."""

    fields: np.ndarray
    number: np.ndarray


def read(answers: Path, images: Path, ids: Path | None, base: int | None, odd: Odd) -> OddOnes:
    """The answers, in their order; rows as they stand in the file.

    answers: .npy, or a text with commas, tabs or blanks.
    images: the folder of the objects' images, NAME.jpg or NAME/ANY.jpg.
    ids: names of the objects in the order of their numbers, one a line; None: those in `images`, sorted.
    base: the number of the first object, 0 or 1.  None: the rows hold names, not numbers.
    odd: which of a row's three is the odd one, "first" or "last"; or the column, counted from 1, that tells:
        it holds `base` for the first of the three, `base` + 1 for the second, `base` + 2 for the third.
    Raises ValueError that names the row and the field; no pickle is opened.
    """
    _check_declared(base, odd)
    names, files = objects(images, ids)
    rows = _named(answers, names) if base is None else _numbers(answers, odd, base, len(names))
    trios = rows.fields[:, :3] - (base or 0)
    _check(
        answers,
        rows,
        (trios < 0) | (trios >= len(names)),
        f"objects are {base} to {len(names) - 1 + (base or 0)}",
    )
    _check(answers, rows, trios == np.roll(trios, 1, axis=1), "three different objects are expected")
    if isinstance(odd, int):
        place = rows.fields[:, 3] - (base or 0)
        _check(answers, rows, (place < 0) | (place > 2), f"column {odd} holds {base} to {2 + (base or 0)}")
        chosen = np.eye(3)[place]
    else:
        chosen = np.broadcast_to(np.eye(3)[_PLACES[odd]], trios.shape)
    unused = len(names) - len(np.unique(trios))
    notes = (f"{unused} of {len(names)} images are in no answer",) if unused else ()
    count = len(trios)
    return OddOnes(
        folder=images, images=files, rows=trios.astype(np.int32), number=rows.number, notes=notes,
        group=np.zeros(count, "U1"), odd=chosen, votes=np.ones(count, np.int32),
    )  # fmt: skip


def objects(images: Path, ids: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(U names, U paths relative to `images`) of the objects, in the order of `ids`, or sorted by name.

    An object's image is NAME.jpg, or the first one in the folder NAME.
    """
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder of object images")
    if ids:
        return numbered(images, ids)
    folders = {path.name for path in images.iterdir() if path.is_dir() and path.name[0] != "."}
    names = tuple(sorted(folders | {path.stem for path in images_in(images)}))
    if not names:
        raise ValueError(f"{images}: no image in it")
    return names, paths(images, names)


def _check_declared(base: int | None, odd: Odd) -> None:
    if base not in (None, 0, 1):
        raise ValueError(f"base {base}: the first object has number 0 or 1")
    if isinstance(odd, int):
        if odd < 4:
            raise ValueError(f"odd {odd}: columns 1 to 3 are the three objects; first, last, or 4 and more")
        if base is None:
            raise ValueError(f"odd {odd}: rows of names have no such column; give first or last")
    elif odd not in _PLACES:
        raise ValueError(f"odd {odd!r}: first, last, or the number of the column that tells it is expected")


def _check(path: Path, rows: _Rows, wrong: np.ndarray, expected: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        fields = ", ".join(map(str, rows.fields[row].tolist()))
        raise ValueError(f"{path}: row {rows.number[row]}: [{fields}]; {expected}")


def _numbers(path: Path, odd: Odd, base: int, count: int) -> _Rows:
    width = odd if isinstance(odd, int) else 3
    if path.suffix != ".npy" and width > 3 and (header := _header(path)):
        return _wide(path, [*header[:3], *header[width - 1 : width]], base, count)
    array = path.suffix == ".npy"
    table = _array(path, width) if array else delimited.numbers(path, width)
    fields = table if width < 5 else table[:, [0, 1, 2, width - 1]]
    return _Rows(fields, np.arange(len(table)) + (0 if array else 1))


def _array(path: Path, width: int) -> np.ndarray:
    """(N, width) int64 of an .npy file, whose numbers may be floats (gLocal casts them)."""
    try:
        table = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: no array of numbers that can be read ({error}); a pickle is not opened"
        ) from None
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "iuf" or table.shape[1:] != (width,):
        what = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else "several arrays"
        raise ValueError(f"{path}: it holds {what}; (N, {width}) whole numbers are expected")
    if not len(table):
        raise ValueError(f"{path}: it has no row")
    whole = (np.abs(table) < _MOST) & (table == np.floor(table))
    if not whole.all():
        row = int(np.argmin(whole.all(axis=1)))
        raise ValueError(f"{path}: row {row}: {table[row].tolist()}; {width} whole numbers are expected")
    return table.astype(np.int64)


def _header(path: Path) -> list[str]:
    """The names in the first line; none if it is a line of numbers."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.readline()
    first = utf8.text(start, str(path)).strip("\r\n")
    fields = [field.strip() for field in first.split("\t" if "\t" in first else ",")]
    try:
        float(fields[0].split()[0])
    except (ValueError, IndexError):
        return fields
    return []


def _wide(path: Path, wanted: list[str], base: int, count: int) -> _Rows:
    """The wanted columns, three and the label, of a table that has a header, and columns of other things."""
    if len(wanted) < 4:
        raise ValueError(
            f"{path}: row 1: it has fewer columns than the one that is declared to tell the odd one"
        )
    with open(path, "rb") as file:
        delimiter = "\t" if b"\t" in file.readline() else ","
    try:  # in C: 4.7 million rows in seconds
        read = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: pyarrow.int64() for name in wanted},
                null_values=[],
            ),
        )
        columns, number = [read[name].to_numpy() for name in wanted], 2 + np.arange(len(read))
    except (pyarrow.ArrowInvalid, KeyError):  # this reader says which row, or finds nothing wrong with it
        table = delimited.columns(path, wanted, delimiter=delimiter)
        highest = [base + count - 1] * 3 + [base + 2]
        columns = [table.integer(name, base, most) for name, most in zip(wanted, highest)]
        number = table.line
    if not len(number):
        raise ValueError(f"{path}: no row below the header")
    return _Rows(np.stack(columns, axis=1), number)


def _named(path: Path, names: tuple[str, ...]) -> _Rows:
    """Numbers of the objects that a text's rows name, with or without the files' endings."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = utf8.text(path.read_bytes(), str(path)).replace(",", " ").rstrip().splitlines()
    if not lines:
        raise ValueError(f"{path}: it is empty; rows of three names are expected")
    place = {f"{name}{end}": number for end in _endings() for number, name in enumerate(names)}
    found = np.empty((len(lines), 3), np.int64)
    for start in range(0, len(lines), _AT_ONCE):
        rows = [line.split() for line in lines[start : start + _AT_ONCE]]
        row = next((n for n, words in enumerate(rows) if len(words) != 3), None)
        if row is not None:
            raise ValueError(f"{path}: row {start + row + 1}: three names expected, {len(rows[row])} found")
        numbers = (place.get(word, -1) for word in chain.from_iterable(rows))
        part = np.fromiter(numbers, np.int64, 3 * len(rows)).reshape(-1, 3)
        if (part < 0).any():
            at, column = divmod(int(np.argmax(part < 0)), 3)
            word = rows[at][column]
            advice = "; are these numbers? then declare --base 0 or 1" if word.isdigit() else ""
            raise ValueError(f"{path}: row {start + at + 1}: no image of {word}{advice}")
        found[start : start + len(rows)] = part
    return _Rows(found, np.arange(1, 1 + len(lines)))


def _endings() -> list[str]:
    """Endings that a name may have; none comes last: a name that itself ends so is itself."""
    return [*ENDINGS, *(ending.upper() for ending in ENDINGS), ""]
