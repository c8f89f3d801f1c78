"""The .beton files a recipe trains on: where they lie by default, and what they must hold.

Needs no torch: the command line is checked with it.  `train/data.py` makes loaders of the files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.beton.fields import Beton
from train.config import Recipe, Stage1
from train.recipes import SMALL

# Where each prior's triplets and the pairs lie unless --data names a file, and what builds them.
PRIOR_DATA = {
    "nights": (Path("data/nights/triplets-train.beton"), "nights --source FOLDER"),
    "bapps": (Path("data/bapps/triplets-train.beton"), "bapps --source FOLDER"),
    "things": (
        Path("data/things/triplets-train.beton"),
        "things --images FOLDER --answers FILE --base 0 --odd last --out data/things/triplets-train.beton",
    ),
    "alignet": (
        Path("data/alignet/triplets-train.beton"),
        "alignet --images FOLDER --table FILE --out data/alignet/triplets-train.beton",
    ),
    "tpips": (Path("data/tpips/triplets-train.beton"), "tpips --source FOLDER --kind odd --out data/tpips"),
    "pieapp": (Path("data/pieapp/triplets-train.beton"), "pieapp --source FOLDER --out data/pieapp"),
    **{
        name: (
            Path(f"data/{name}/triplets-train.beton"),
            f"quality --set {name} --source FOLDER --out data/{name}",
        )
        for name in ("kadid", "pipal", "tid2013")
    },
    "demo": (Path("data/demo/triplets-train.beton"), "demo"),
}
PAIRS = (Path("data/yfcc15m/pairs-train.beton"), "yfcc15m --source FOLDER")
DEMO_PAIRS = (Path("data/demo/pairs-train.beton"), "demo")


def _default(recipe: Recipe) -> tuple[Path, str]:
    """(the recipe's training file, the dataprep command that builds it)."""
    if isinstance(recipe, Stage1):
        return PRIOR_DATA[recipe.prior]
    return DEMO_PAIRS if recipe.name in SMALL else PAIRS


def locate_data(recipe: Recipe) -> Recipe:
    """The recipe with its training file named, whether or not the file exists."""
    file = recipe.data.data or _default(recipe)[0]
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, data=file))


def check_data(recipe: Recipe) -> None:
    """ValueError names the command that builds a missing file."""
    for file in (recipe.data.data, recipe.data.val):
        if file is not None and not file.is_file():
            command = f"python dataprep/build_ffcv.py {_default(recipe)[1]}"
            raise ValueError(f"{file}: no such file; build it with: {command}")


def open_split(path: Path, recipe: Recipe) -> Beton:
    """The .beton at `path`; ValueError if it is broken or holds the other stage's kind of sample."""
    file = Beton(path)
    if file.kind != recipe.unit:
        raise ValueError(f"{path}: holds {file.kind}; stage {recipe.stage} trains on {recipe.unit}")
    return file


def mean_tokens(file: Beton) -> float:
    """Of the captions of a file, by its JSON; 77, nothing saved, where that does not say."""
    return file.info.get("captions", {}).get("mean_tokens") or 77
