"""The embedded demonstration data: emoji drawings by three vendors.

Training sees noto and twemoji.  fluent3d, which is drawn in another style, is held out and becomes four
evaluation sets in clip_benchmark's webdataset layout.  (Another vendor can be, so that what was chosen on
one is judged on one that nobody looked at.)  The triplets were constructed: they hold no human vote, and
every file made of them says so.  Licences: `dataprep/demo/NOTICE`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from dataprep.samples import Pair, Source, Task, pieces
from dataprep.sources import nights
from pipeline.base.files import replacing

FOLDER = Path(__file__).parents[1] / "demo"
VENDORS = ("noto", "twemoji", "fluent3d")
HELD_OUT: Literal["fluent3d"] = "fluent3d"
IN_TRIPLETS = ("noto", "twemoji")  # whose drawings the constructed triplets show
_EVAL_FORMAT = 1  # raised when the evaluation sets are written differently


@cache
def rows(vendor: str) -> list[dict]:
    """The embedded table's rows of one vendor, in the order of concepts."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(FOLDER / "pairs.parquet", filters=[("vendor", "==", vendor)])
    return table.to_pylist()


@dataclass(frozen=True)
class EmojiPairs(Source):
    """The training drawings with four captions each.

    The bare name is there twice, so that training draws it as often as the name with keywords; the keywords
    differ between vendors.  The drawings get a white margin: the held-out ones fill less of their frame, and
    random crops only enlarge.
    """

    margin: int = 4  # pixels on each side
    held_out: str = HELD_OUT
    kind = "pairs"
    captions = 4

    @property
    def vendors(self) -> list[str]:
        """Those that are not held out."""
        return [vendor for vendor in VENDORS if vendor != self.held_out]

    def tasks(self) -> list[Task]:
        drawings = sum(len(rows(vendor)) for vendor in self.vendors)
        return pieces("demo/pairs.parquet", drawings, drawings)

    def read(self, task: Task) -> Iterator[Pair]:
        for vendor in self.vendors:
            for row in rows(vendor):
                image = _png(row["image"], self.margin)
                yield Pair(f"{vendor}/{row['id']}", image, [row["name"], *row["captions"]])

    def describe(self) -> dict:
        path = "dataprep/demo/pairs.parquet"
        return {"name": "demo", "path": path, "vendors": self.vendors, "margin": self.margin}


@cache
def _drawings() -> dict[str, bytes]:
    """The training drawings by the names that the table of triplets gives them."""
    return {f"{vendor}/{row['id']}.png": row["image"] for vendor in IN_TRIPLETS for row in rows(vendor)}


@dataclass(frozen=True, kw_only=True)
class EmojiTriplets(nights.Nights):
    """The constructed triplets of one split; the concepts of `test` are in no train row."""

    folder: Path = FOLDER
    votes = "constructed"

    def picture(self, name: str) -> bytes:
        return _drawings()[name]

    def describe(self) -> dict:
        return {"name": "demo", "path": "dataprep/demo/triplets.csv", "split": self.split}


# -- evaluation sets --------------------------------------------------------------------------


def write_eval(root: Path, vendor: str = HELD_OUT) -> bool:
    """Write the held-out vendor as clip_benchmark webdatasets under `root`; False if they are up to date."""
    stamp = root / "emoji.json"
    named = {} if vendor == HELD_OUT else {"vendor": vendor}
    about = {"format": _EVAL_FORMAT, "state": (FOLDER / "pairs.parquet").stat().st_size, **named}
    state = json.dumps(about) + "\n"
    if stamp.is_file() and stamp.read_text() == state:
        return False
    _write_sets(root, rows(vendor))
    stamp.write_text(state)
    return True


def _write_sets(root: Path, held_out: list[dict]) -> None:
    images = [_png(row["image"]) for row in held_out]
    columns = {"names": "name", "subcategories": "subcategory", "categories": "category"}
    for name, column in columns.items():
        labels = [row[column] for row in held_out]
        # Every concept is a class of its own, though two have the same name.
        classes = labels if column == "name" else sorted(set(labels))
        numbers = range(len(labels)) if column == "name" else [classes.index(label) for label in labels]
        folder = root / f"wds_emoji-{name}"
        _write_shard(folder, images, "cls", [str(n) for n in numbers])
        (folder / "classnames.txt").write_text("".join(f"{_words(c)}\n" for c in classes))
        (folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    folder = root / "wds_emoji-retrieval"
    _write_shard(folder, images, "txt", ["\n".join(row["captions"]) for row in held_out])
    (folder / "dataset_type.txt").write_text("retrieval\n")


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ") if name.islower() and " " not in name else name


def _png(data: bytes, margin: int = 0) -> bytes:
    """An embedded drawing as PNG, on a larger white ground if `margin` is given."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        ImageOps.expand(image.convert("RGB"), margin, "white").save(out, "PNG")
    return out.getvalue()


def _write_shard(folder: Path, images: list[bytes], suffix: str, labels: list[str]) -> None:
    test = folder / "test"
    test.mkdir(parents=True, exist_ok=True)
    with replacing(test / "0.tar") as name, tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (image, label) in enumerate(zip(images, labels)):
            for ending, content in (("png", image), (suffix, label.encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (test / "nshards.txt").write_text("1\n")
