"""Which column holds the image and which hold captions: by the names in common use, or the user's.

Not here: reading tables (`tables.py`, `parquet.py`, `tars.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# In order of preference: open_clip csv, DeCLIP, img2dataset, COCO, RWKV-CLIP, webdataset exports.
PATHS = ["filepath", "filename", "file_name", "file", "image_path", "path", "image", "img", "image_name"]
BYTES = ["images", "image", "image_bytes", "jpg", "jpeg", "png", "img", "bytes"]
CAPTIONS = ["captions", "caption", "texts", "text", "txt", "top_caption"]
PARTS = ["title", "description"]  # taken together, as SLIP does


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The user's names of columns; where they are empty, the usual names are tried."""

    image: str = ""
    captions: tuple[str, ...] = ()

    def image_column(self, names: Sequence[str], usual: Sequence[str], where: str) -> str:
        """The column that holds the image.  Raises ValueError that lists the columns."""
        return _find([self.image] if self.image else usual, names, "image", "--image-column", where)

    def caption_columns(self, names: Sequence[str], where: str) -> tuple[str, ...]:
        """The columns that hold captions.  Raises ValueError that lists the columns."""
        if self.captions:
            return tuple(_find([n], names, "caption", "--caption-columns", where) for n in self.captions)
        parts = tuple(name for name in PARTS if name in names)
        if parts and not any(name in names for name in CAPTIONS):
            return parts
        return (_find(CAPTIONS, names, "caption", "--caption-columns", where),)

    def beside(self, names: Sequence[str], where: str) -> str:
        """A note on further columns that seem to hold captions and are not taken; empty without any."""
        taken = self.caption_columns(names, where)
        others = [] if self.captions else [name for name in CAPTIONS if name in names and name not in taken]
        if not others:
            return ""
        every = " ".join((*taken, *others))
        return f"captions in {', '.join(others)}, beside {taken[0]} (--caption-columns {every} takes all)"


def _find(wanted: Sequence[str], names: Sequence[str], what: str, option: str, where: str) -> str:
    for name in wanted:
        if name in names:
            if list(names).count(name) > 1:
                raise ValueError(f"{where}: {list(names).count(name)} columns are called {name}; rename one")
            return name
    folded = {str(name).strip().casefold(): name for name in names}
    for name in wanted:
        if name.casefold() in folded:
            return folded[name.casefold()]
    existing = ", ".join(map(str, names)) or "none"
    urls = [name for name in folded if what == "image" and name in ("url", "urls", "image_url")]
    hint = f" (addresses in {urls[0]}: download the images first, with img2dataset)" if urls else ""
    raise ValueError(
        f"{where}: no {what} column {' or '.join(wanted)}; it has {existing}; name it with {option}{hint}"
    )


def strings(value: object) -> list[str]:
    """Captions of one cell: a string, or a list of strings; anything else is no caption."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [item for item in value if isinstance(item, str)]
    return []


def half_character(texts: Iterable[str]) -> str:
    """What is wrong with texts from JSON that hold a lone surrogate, which is not in UTF-8; else empty."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"half a character (\\u{ord(text[error.start]):04x} without its other half)"
    return ""
