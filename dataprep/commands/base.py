"""What all commands take that build a user's source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tyro.conf import OmitArgPrefixes as Flat  # --size, not --settings.images.size

from dataprep.build import RunSettings, build
from dataprep.cluster import ClusterSettings
from dataprep.shard import SampleSettings
from dataprep.target import check_out
from dataprep.triplets import TripletSource, triplets_of


@dataclass(kw_only=True)
class Build:
    """What all commands take that build a user's source."""

    settings: Flat[SampleSettings] = field(default_factory=SampleSettings)
    how: Flat[RunSettings] = field(default_factory=RunSettings)
    where: Flat[ClusterSettings] = field(default_factory=ClusterSettings)


def check_choice(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    """ValueError where something else than `known` is given, or nothing."""
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise ValueError(f"{flag} {' '.join(unknown)}: choose from {' '.join(known)}")


def file_of(out: Path, split: str) -> Path:
    """The file of a split in the folder `out`."""
    return out / f"triplets-{split}.beton"


def build_splits(sources: Mapping[str, TripletSource], out: Path, how: Build) -> None:
    """One file a split; --share applies to the training split only."""
    for split in sources:
        check_out(file_of(out, split))
    for source in sources.values():
        triplets_of(source)  # tells all mistakes before the first file is written
    for split, source in sources.items():
        settings = how.settings if split == "train" else replace(how.settings, share=1.0)
        build(source, file_of(out, split), settings, how.how, how.where.runner())
