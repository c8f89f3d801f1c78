"""The data pipeline: one resumable stream of samples from a .beton, by two engines.

    from pipeline import AUGMENTS, FFCVLoader

Importing this package loads nothing else; a name below loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.augment import AUGMENTS, Augment
    from pipeline.batch import ImageText, Triplet
    from pipeline.beton.fields import Beton
    from pipeline.dali_loader import DALILoader
    from pipeline.ffcv_loader import FFCVLoader
    from pipeline.order import Order, Subset
    from pipeline.packing import pack

__all__ = [
    "AUGMENTS", "Augment", "Beton", "DALILoader", "FFCVLoader", "ImageText", "Order", "Subset", "Triplet",
    "pack",
]  # fmt: skip
_MODULES = {
    "AUGMENTS": "augment", "Augment": "augment", "Beton": "beton.fields", "DALILoader": "dali_loader",
    "FFCVLoader": "ffcv_loader", "ImageText": "batch", "Order": "order", "Subset": "order",
    "Triplet": "batch", "pack": "packing",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
