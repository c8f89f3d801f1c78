"""A sample in parts: an image, and texts with its name (tar members, or files beside each other).

Captions are the .txt, or fields of the .json where there is no .txt or it is empty; `--caption-columns`
names others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from dataprep.shard import Left, Pair, Source
from dataprep.sources import columns
from pipeline.formats import utf8
from pipeline.formats.tars import PICTURES

TEXTS = ("txt", "text", "caption", "captions")  # parts that are a caption
SAID = {*TEXTS, "json"}  # parts that may hold one


@dataclass(frozen=True)
class Reading:
    """What is taken of a sample's texts."""

    choice: columns.Choice  # names of parts (txt, outputs.txt), other names are fields of the .json
    lines: bool  # every line of a .txt is a caption of its own

    def captions(self, key: str, texts: Mapping[str, bytes]) -> tuple[list[str], list[Left]]:
        """(captions, what is passed over of them).  Raises ValueError naming the part that is wrong."""
        captions, left = self._captions(key, texts)
        if told := columns.half_character(captions):
            raise ValueError(f"{key}.json: {told}")
        return captions, left

    def _captions(self, key: str, texts: Mapping[str, bytes]) -> tuple[list[str], list[Left]]:
        if self.choice.captions:
            return self._chosen(key, texts)
        for name in TEXTS:
            said = utf8.text(texts[name], f"{key}.{name}") if name in texts else ""
            if said.strip():
                return self._of_text(said)
        fields = _fields(key, texts)
        found = {name: columns.strings(fields.get(name)) for name in columns.CAPTIONS}
        found = {name: said for name, said in found.items() if any(said)}
        if not found:
            return [said for name in columns.PARTS for said in columns.strings(fields.get(name))], []
        taken, *others = found
        left = [
            Left(f"json field {name} beside {taken} (--caption-columns {taken} {name} takes both)")
            for name in others
            if found[name] != found[taken]
        ]
        return found[taken], left

    def pictures(self, parts: Iterable[str]) -> list[str]:
        """Endings of a sample's pictures, the one to take first; only --image-column if that was given."""
        chosen = self.choice.image
        return [ending for ending in ((chosen,) if chosen else PICTURES) if ending in parts]

    def _chosen(self, key: str, texts: Mapping[str, bytes]) -> tuple[list[str], list[Left]]:
        out, left, fields = [], [], None
        for name in self.choice.captions:
            if name in texts and name != "json":
                said, more = self._of_text(utf8.text(texts[name], f"{key}.{name}"))
                left += more
            else:
                fields = _fields(key, texts) if fields is None else fields
                said = columns.strings(fields.get(name))
                if name not in fields:
                    left.append(Left(f"samples without {name}, which --caption-columns names"))
            out += said
        return out, left

    def _of_text(self, said: str) -> tuple[list[str], list[Left]]:
        lines = [line for line in said.splitlines() if line.strip()]
        if self.lines:
            return lines, []
        several = [Left("further lines of captions, kept as one caption (--caption-lines: one each)")]
        return [said], several if len(lines) > 1 else []


@cache
def most_captions(source: Source) -> int:
    """The most captions of an image among the first samples."""
    raws = islice(source.read(source.tasks()[0]), 200)
    counts = [len(raw.captions) for raw in raws if isinstance(raw, Pair)]
    return min(max(counts, default=0) or 1, columns.MOST_CAPTIONS)


def told(texts: Mapping[str, bytes]) -> str:
    """What a .json without a caption holds instead; empty where that cannot be told."""
    try:
        fields = json.loads(texts.get("json") or b"{}")
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return "; the json is no object of fields"
    return f"; the json: {', '.join(fields)} (--caption-columns names one)" if fields else ""


def never_downloaded(stats: Path) -> list[Left]:
    """The rows that img2dataset could not fetch, by the statistics it wrote with a shard; [] without them."""
    try:
        told = json.loads(stats.read_bytes())
        failed = {name: int(told.get(name) or 0) for name in ("failed_to_download", "failed_to_resize")}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []
    return [Left(f"rows never downloaded ({name})", count) for name, count in failed.items() if count > 0]


def _fields(key: str, texts: Mapping[str, bytes]) -> dict:
    try:
        fields = json.loads(texts.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key}.json: not JSON: {error}") from None
    return fields if isinstance(fields, dict) else {}
