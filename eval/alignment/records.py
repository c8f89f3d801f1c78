"""What the tests of human similarity come to: figures with their interval, chance level and ceiling.

Values only; how they are computed is in `scores.py`, how they are kept in `results.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

SHARE, CORRELATION = "share", "correlation"  # units: from 0 to 1, from −1 to 1
EVERYTHING, MEAN = "", "mean"  # groups: all judgements as one, the mean of the groups' figures


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of a set, larger is better.

    metric: its name in `scores.METRICS`, or of a test of its own.  group: the part of the set, EVERYTHING or
    MEAN.  low, high: ends of the 95 % interval over judgements, None where nothing can be said.  chance: what
    guessing gets.  ceiling: the most that can be expected, None where it is not known; ceiling_source: where
    it comes from, in words.  n: judgements that count.  unit: SHARE or CORRELATION.
    """

    metric: str
    group: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    ceiling: float | None
    ceiling_source: str
    n: int
    unit: str

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high, self.chance, self.ceiling)
        if self.unit not in (SHARE, CORRELATION) or self.n < 1:
            raise ValueError(f"{self.metric} {self.group}: unit {self.unit!r} of {self.n} judgements")
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise ValueError(f"{self.metric} {self.group}: a figure is not finite ({numbers})")


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """One set's figures; the first one stands for the set where there is room for one.

    key: of the set.  title: for people.  probe: "" for features as they are, else what was fitted on what.
    source: where the set lies.  voters: `human`, or where the answers come from, in words.  notes: what was
    left out and why.
    """

    key: str
    title: str
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()
    probe: str = ""
    source: str = ""
    voters: str = "human"

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError(f"{self.key}: no figure")
        names = [(score.metric, score.group) for score in self.scores]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.key}: one figure twice among {names}")

    @property
    def name(self) -> str:
        """Of its file of outcomes: the key, and whether a probe was fitted."""
        return f"{self.key}-probe" if self.probe else self.key


def to_json(sets: Sequence[SetScores]) -> list[dict]:
    """JSON values, which `from_json` reads."""
    return [asdict(each) for each in sets]


def from_json(values: object) -> list[SetScores]:
    """ValueError, KeyError or TypeError for anything that `to_json` did not write."""
    if not isinstance(values, list):
        raise TypeError("sets is no list")
    return [_set(value) for value in values]


def _set(value: dict) -> SetScores:
    text = {name: value[name] for name in ("key", "title", "probe", "source", "voters")}
    if not all(isinstance(each, str) for each in (*text.values(), *value["notes"])):
        raise TypeError(f"a field of {value['key']} is no text")
    scores = tuple(_score(score) for score in value["scores"])
    return SetScores(scores=scores, notes=tuple(value["notes"]), **text)


def _score(value: dict) -> Score:
    names = [each.name for each in fields(Score)]
    if sorted(value) != sorted(names):
        raise KeyError(", ".join(sorted({*names} ^ {*value})))
    numbers = [value[name] for name in ("low", "high", "chance", "ceiling") if value[name] is not None]
    if not all(isinstance(number, (int, float)) for number in (value["value"], value["n"], *numbers)):
        raise TypeError(f"a figure of {value['metric']} is no number")
    return Score(**value)
