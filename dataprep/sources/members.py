"""The captions of a sample whose parts share a name: members of a tar, or files in a folder.

NAME.jpg, NAME.txt, NAME.json: captions are the .txt, or fields of the .json if there is no .txt or it is
empty.  `--caption-columns` names others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dataprep.samples import Bad, Pair, PassedOver
from dataprep.sources import columns
from pipeline.formats import utf8
from pipeline.formats.tars import PICTURES

TEXTS = ("txt", "text", "caption", "captions")  # endings of parts that are a caption
CAPTIONED = {*TEXTS, "json"}  # endings of parts that may hold one


@dataclass(frozen=True)
class Reading:
    """How captions are read from a sample's texts: ending → content."""

    choice: columns.Choice  # endings of parts (txt, outputs.txt); other names are fields of the .json
    lines: bool  # every line of a .txt is a caption of its own

    def pair(
        self, key: str, image: bytes | str, names: Collection[str], texts: Mapping[str, bytes]
    ) -> tuple[Pair | Bad, list[PassedOver]]:
        """(the sample, what is passed over).  names: the endings of all its parts."""
        try:
            captions, passed_over = self.captions(key, texts)
        except ValueError as error:
            return Bad(key, "bad caption", str(error)), []
        if not captions:
            detail = f"it has {', '.join(names)}{_fields_instead(texts)}"
            return Bad(key, "empty caption", detail), passed_over
        if further := len(self.images(names)) - 1:
            passed_over.append(PassedOver("images beside the one taken", further))
        return Pair(key, image, captions), passed_over

    def captions(self, key: str, texts: Mapping[str, bytes]) -> tuple[list[str], list[PassedOver]]:
        """(captions, what is passed over).  Raises ValueError that names the bad part."""
        captions, passed_over = self._captions(key, texts)
        if fault := columns.half_character(captions):
            raise ValueError(f"{key}.json: {fault}")
        return captions, passed_over

    def _captions(self, key: str, texts: Mapping[str, bytes]) -> tuple[list[str], list[PassedOver]]:
        if self.choice.captions:
            return self._named(key, texts)
        for ending in TEXTS:
            text = utf8.text(texts[ending], f"{key}.{ending}") if ending in texts else ""
            if text.strip():
                return self._of_text(text)
        fields = _fields(key, texts)
        usual = {name: columns.strings(fields.get(name)) for name in columns.CAPTIONS}
        usual = {name: captions for name, captions in usual.items() if any(captions)}
        if not usual:
            return [caption for name in columns.PARTS for caption in columns.strings(fields.get(name))], []
        taken, *others = usual
        passed_over = [
            PassedOver(f"json field {name} beside {taken} (--caption-columns {taken} {name} takes both)")
            for name in others
            if usual[name] != usual[taken]
        ]
        return usual[taken], passed_over

    def images(self, parts: Iterable[str]) -> list[str]:
        """Endings of a sample's images, the one to take first; only --image-column if that was given."""
        chosen = self.choice.image
        return [ending for ending in ((chosen,) if chosen else PICTURES) if ending in parts]

    def _named(self, key: str, texts: Mapping[str, bytes]) -> tuple[list[str], list[PassedOver]]:
        """The captions of the parts and fields that --caption-columns names."""
        captions: list[str] = []
        passed_over: list[PassedOver] = []
        for name in self.choice.captions:
            if name in texts and name != "json":
                own, further = self._of_text(utf8.text(texts[name], f"{key}.{name}"))
                captions += own
                passed_over += further
                continue
            fields = _fields(key, texts)
            captions += columns.strings(fields.get(name))
            if name not in fields:
                passed_over.append(PassedOver(f"samples without {name}, which --caption-columns names"))
        return captions, passed_over

    def _of_text(self, text: str) -> tuple[list[str], list[PassedOver]]:
        lines = [line for line in text.splitlines() if line.strip()]
        if self.lines:
            return lines, []
        further = [PassedOver("further lines of captions, kept as one caption (--caption-lines: one each)")]
        return [text], further if len(lines) > 1 else []


def _fields_instead(texts: Mapping[str, bytes]) -> str:
    """What a .json without a caption holds instead, for a message; empty if that is unknown."""
    try:
        fields = json.loads(texts.get("json") or b"{}")
    except (ValueError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return "; the json is not an object of fields"
    return f"; the json: {', '.join(fields)} (--caption-columns names one)" if fields else ""


def never_downloaded(stats: Path) -> list[PassedOver]:
    """The rows that img2dataset could not fetch, from the statistics beside a shard if it wrote any."""
    try:
        counts = json.loads(stats.read_bytes())
        failed = {name: int(counts.get(name) or 0) for name in ("failed_to_download", "failed_to_resize")}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []
    return [
        PassedOver(f"rows never downloaded ({name})", count) for name, count in failed.items() if count > 0
    ]


def _fields(key: str, texts: Mapping[str, bytes]) -> dict:
    try:
        fields = json.loads(texts.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key}.json: not JSON: {error}") from None
    return fields if isinstance(fields, dict) else {}
