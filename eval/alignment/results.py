"""What the tests of human similarity leave on disk, and reading it back.

    OUT/alignment.json         every figure, and what results.json says of the model
    OUT/alignment/NAME.npz     outcomes of each judgement, as `scores.py` takes them; the statistics' input

alignment.json is removed first and written last: where it exists, its files are whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.alignment import records
from eval.alignment.records import SetScores
from eval.alignment.scores import Arrays
from eval.results import read_arrays, write_arrays
from pipeline.base import files

ALIGNMENT, OUTCOMES = "alignment.json", "alignment"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A set's figures with the outcomes they are made of; None where its test keeps none.

    judgements: a digest, equal where two models were asked the same.
    """

    scores: SetScores
    arrays: Arrays | None
    judgements: str


def write(out: Path, scored: Sequence[Scored], about: dict) -> None:
    """about: `checkpoint`, `recipe`, `settings`, `versions`, `notes`."""
    (out / ALIGNMENT).unlink(missing_ok=True)
    for old in (out / OUTCOMES).glob("*.npz"):
        old.unlink()  # of an earlier evaluation of other sets
    for each in scored:
        if each.arrays is not None:
            write_arrays(out / OUTCOMES / f"{each.scores.name}.npz", each.arrays)
    contents = {
        "schema": SCHEMA,
        **about,
        "judgements": {each.scores.name: each.judgements for each in scored},
        "sets": records.to_json([each.scores for each in scored]),
    }
    text = json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False)
    files.write(out / ALIGNMENT, text + "\n")


@dataclass(frozen=True)
class Alignment:
    """One alignment.json and what lies beside it."""

    folder: Path
    data: dict
    sets: list[SetScores]
    _arrays: dict[str, Arrays] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path) -> Alignment:
        """Raises ValueError for a file that is not there, not whole, or of another version."""
        path = folder / ALIGNMENT
        try:
            data = json.loads(path.read_bytes())
        except OSError:
            raise ValueError(f"{path}: not there; python -m eval.alignment --checkpoint … makes it") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not whole JSON ({error}); evaluate again") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"{path}: of another version of this project; evaluate again")
        try:
            for name in ("recipe", "settings", "versions", "notes"):
                data[name]
            data["checkpoint"]["weights"]
            sets = records.from_json(data["sets"])
            for each in sets:
                data["judgements"][each.name]
            return cls(folder, data, sets)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: of another version of this project, or damaged ({error}); evaluate again"
            ) from None

    def arrays(self, scores: SetScores) -> Arrays | None:
        """The outcomes of a set; None where its test keeps none.  ValueError for a damaged file."""
        path = self.folder / OUTCOMES / f"{scores.name}.npz"
        if not path.is_file():
            return None
        if scores.name not in self._arrays:
            self._arrays[scores.name] = read_arrays(path)
        return self._arrays[scores.name]
