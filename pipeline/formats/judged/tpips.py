"""TPIPS (arXiv 2607.18237): people's answers about triplets, by the aspect ("factor") they were asked about.

Two data sets, each a folder with SPLIT.jsonl, or with SPLIT.parquet or SPLIT-*.parquet, there or in data/:

    sywang/tpips-odd-one-out   p0_path, p1_path, p2_path, factors: a list of {name, label: p0|p1|p2, probs}
    sywang/tpips-2afc          ref_path, p0_path, p1_path, factors: a list of {name, probs}

probs are the shares of people who chose p0, p1 (and p2): as the odd one there, as the nearer one here.
The first layout is that of tpips/data.py in the package tpips 0.1.2, which reads it as jsonl and passes over
a factor whose label is none of the three; so does this reader, and counts it.  The second layout and the
names of the files are assumptions that could not be verified: a row without these fields is refused.

How many people answered is not in the rows.  Whether the images exist is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats import utf8
from pipeline.formats.judged import delimited
from pipeline.formats.judged.forms import Comparisons, OddOnes

ODD = ("p0_path", "p1_path", "p2_path")
PAIRS = ("ref_path", "p0_path", "p1_path")
_CLOSE = 1e-3  # to 1: probs are rounded


def read_2afc(folder: Path, split: str, factor: str = "overall") -> Comparisons:
    """All comparisons by one factor; p0 is left.  The notes say how many rows have no answer for it.

    `number` is the line of a jsonl, the row (from 0) of a parquet file.
    Raises ValueError naming the file, the row and the field.
    """
    shared, probs = _read(folder, split, factor, PAIRS)
    return Comparisons(**shared, vote=probs[:, 1])


def read_odd(folder: Path, split: str, factor: str = "overall") -> OddOnes:
    """All triplets answered for one factor, with a majority.  Otherwise as read_2afc."""
    shared, probs = _read(folder, split, factor, ODD)
    return OddOnes(**shared, odd=probs)


def _read(
    folder: Path, split: str, factor: str, fields: tuple[str, str, str]
) -> tuple[dict[str, Any], np.ndarray]:
    """(what both forms have, the shares (N, 2 or 3))."""
    place: dict[str, int] = {}
    kept: list[tuple[list[int], int, list[float]]] = []
    names: set[str] = set()
    absent = undecided = 0
    for path in _files(folder, split):
        for line, item in _items(path, fields):
            try:
                entries = _factors(item)
                names |= entries.keys()
                if factor not in entries:
                    absent += 1
                elif fields == ODD and entries[factor].get("label") not in ("p0", "p1", "p2"):
                    undecided += 1
                else:
                    three = [place.setdefault(_path(item, field), len(place)) for field in fields]
                    kept.append((three, line, _probs(entries[factor], 3 if fields == ODD else 2)))
            except ValueError as error:
                raise ValueError(f"{path}: row {line}: {error}") from None
    count = absent + undecided + len(kept)
    if not kept:
        known = ", ".join(sorted(names)) or "none"
        raise ValueError(
            f"{folder}: none of {count} rows of {split} answers for {factor!r}; factors: {known}"
        )
    rows, number, probs = (np.array(column) for column in zip(*kept))
    reasons = (absent, f"nobody was asked about {factor!r}"), (undecided, "no majority for one of the three")
    notes = tuple(f"{out} of {count} rows left out: {why}" for out, why in reasons if out)
    notes += delimited.repeats(rows, number)
    count = len(rows)
    shared = {
        "folder": folder, "images": tuple(place), "rows": rows.astype(np.int32), "number": number,
        "group": np.full(count, ""), "notes": notes, "votes": np.zeros(count, np.int32),
    }  # fmt: skip
    return shared, probs


def _files(folder: Path, split: str) -> list[Path]:
    """The files of a split; ValueError unless there is one of a kind, or all parts of one."""
    if not split or not set(split) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
        raise ValueError(f"split is {split!r}; a name such as test is expected")
    bases = folder, folder / "data"
    whole = [base / f"{split}.{kind}" for base in bases for kind in ("jsonl", "parquet")]
    single = [path for path in whole if path.is_file()]
    parts = [path for base in bases for path in sorted(base.glob(f"{split}-*.parquet"))]
    if len(single) + bool(parts) != 1:
        what = ", ".join(path.name for path in single + parts) or "neither"
        expected = f"either {split}.jsonl or {split}-*.parquet is expected"
        raise ValueError(f"{folder}: {expected}, here or in data/; found: {what}")
    if parts and any(f"-of-{len(parts):05d}" not in path.name for path in parts):
        raise ValueError(
            f"{parts[0].parent}: {len(parts)} parts of {split} are here, not all of {parts[0].name}'s"
        )
    return single or parts


def _items(path: Path, fields: Sequence[str]) -> list[tuple[int, Any]]:
    """The rows of a file, numbered."""
    if path.suffix == ".parquet":
        return list(enumerate(_parquet(path, [*fields, "factors"])))
    items = []
    for number, line in enumerate(utf8.text(path.read_bytes(), str(path)).split("\n"), 1):
        if line.strip():
            try:
                items.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: row {number}: not JSON ({error})") from None
    return items


def _parquet(path: Path, fields: list[str]) -> list[dict]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [field for field in fields if field not in names]:
                raise ValueError(f"no column {', '.join(missing)}; it has {', '.join(names)}")
            return file.read(columns=fields).to_pylist()
    except (ValueError, arrow.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from None


def _factors(item: Any) -> dict[str, dict]:
    """The answers of a row by their factors."""
    entries = item.get("factors") if isinstance(item, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise ValueError("factors is no list of {name, label, probs}")
    named = {str(entry["name"]): entry for entry in entries}
    if len(named) < len(entries):
        raise ValueError("factors has a name twice")
    return named


def _path(item: dict, field: str) -> str:
    path = item.get(field)
    if not isinstance(path, str) or not delimited.is_inside(path):
        raise ValueError(f"{field} is {path!r}; the path of an image inside the folder is expected")
    return path


def _probs(entry: dict, count: int) -> list[float]:
    """The shares, with sum 1; ValueError if they are none, or do not agree with the label."""
    probs = entry.get("probs")
    if not isinstance(probs, list) or not all(type(p) in (int, float) and 0 <= p <= 1 for p in probs):
        raise ValueError(f"probs of {entry['name']} is {probs!r}; shares from 0 to 1 are expected")
    if len(probs) != count or abs(sum(probs) - 1) > _CLOSE:
        raise ValueError(f"probs of {entry['name']} is {probs!r}; {count} shares with sum 1 are expected")
    label = entry.get("label")
    if label in ("p0", "p1", "p2")[:count] and probs[int(label[1])] < max(probs):
        raise ValueError(f"label of {entry['name']} is {label}, but probs are {probs!r}")
    return [float(p) / sum(probs) for p in probs]
